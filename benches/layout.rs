//! What the CPU reference takes to draw routings, to say where tokens go, and to dispatch them:
//! `cargo bench --bench layout`.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;
use tokenrail::oracle::{self, Draw, Placement, Router, Routing, Spread, TokenBatch};

const TOKENS: usize = 4096;
const EXPERTS: usize = 256;
const TOPK: usize = 8;
const RANKS_PER_NODE: usize = 8;
/// Short, so that it is the order of rows that takes the time.
const HIDDEN: usize = 64;

fn draw(spread: Spread) -> Draw {
    Draw::new(spread, EXPERTS, TOPK, 1).expect("a spread over the experts")
}

fn batch(routing: Routing) -> TokenBatch {
    let x = oracle::hidden_states(2, routing.topk_idx.len() / TOPK, HIDDEN);
    TokenBatch::bf16(&x, HIDDEN, routing).expect("a row for each token")
}

fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    group.throughput(Throughput::Elements(TOKENS as u64));
    for spread in [Spread::Uniform, Spread::Zipf] {
        let draw = draw(spread);
        group.bench_function(draw.to_string(), |bencher| bencher.iter(|| draw.route(3, TOKENS)));
    }
    // A gate's scores take long.
    let tokens = TOKENS / 64;
    let router = Router::new(oracle::Gate::DEEPSEEK_V3, 1024, 4).expect("a gate for these rows");
    let x = oracle::hidden_states(5, tokens, 1024);
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function("DeepSeek-V3's gate, hidden 1024", |bencher| {
        bencher.iter(|| router.route(black_box(&x)).expect("whole rows"));
    });
}

fn layout(criterion: &mut Criterion) {
    let batch = batch(draw(Spread::Uniform).route(3, TOKENS));
    let mut group = criterion.benchmark_group("layout");
    group.throughput(Throughput::Elements(TOKENS as u64));
    for ranks in [8, 64] {
        let placement = Placement::new(ranks, EXPERTS).expect("experts for each rank");
        group.bench_function(BenchmarkId::from_parameter(format_args!("{ranks} ranks")), |bencher| {
            bencher.iter(|| oracle::layout(black_box(&batch), &placement, RANKS_PER_NODE));
        });
    }
}

fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference's dispatch");
    group.throughput(Throughput::Elements(TOKENS as u64));
    for ranks in [2, 8] {
        let placement = Placement::new(ranks, EXPERTS).expect("experts for each rank");
        let draw = draw(Spread::Uniform);
        let batches: Vec<TokenBatch> =
            (0..ranks).map(|rank| batch(draw.route(rank as u64, TOKENS / ranks))).collect();
        group.bench_function(BenchmarkId::from_parameter(format_args!("{ranks} ranks")), |bencher| {
            bencher.iter(|| oracle::dispatch(black_box(&batches), &placement, None));
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    routing(&mut criterion);
    layout(&mut criterion);
    dispatch(&mut criterion);
    criterion.final_summary();
}
