//! Steps a second of emulated exchanges: `cargo bench --bench emulator`. What its primitives take is
//! `cargo bench -p tokenrail-emulator`.

use criterion::{Criterion, Throughput};
use half::bf16;
use std::thread;
use std::time::Duration;
use tokenrail::low_latency::{self, Rows, Sums};
use tokenrail::oracle::{Draw, Spread, hidden_states};
use tokenrail::{Backend, Buffer, Config, DispatchFormat, Error, Exchange, Group, Input, LowLatency, Stream};

const RANKS: u32 = 2;
const TOKENS: u32 = 16;
const HIDDEN: u32 = 256;
const EXPERTS: u32 = 16;
const TOPK: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// A rank with all that it needs.
struct Rank {
    exchange: Exchange,
    stream: Stream,
    x: Buffer,
    topk_idx: Buffer,
    topk_weights: Buffer,
    /// What experts are given, and what they leave.
    rows: Buffer,
    combined: Buffer,
}

/// Dispatch and combine of a rank.
type Round = fn(&mut Rank) -> Result<(), Error>;

impl Rank {
    fn all(config: &Config) -> Vec<Self> {
        let members = Group::in_process(RANKS, &Backend::emulator(0)).expect("emulated ranks");
        // All have to be there for one to be made.
        thread::scope(|scope| {
            let made = members.into_iter().map(|member| {
                scope.spawn(|| Exchange::new(member, config).and_then(Self::new).expect("an exchange"))
            });
            let made: Vec<_> = made.collect();
            made.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
        })
    }

    fn new(exchange: Exchange) -> Result<Self, Error> {
        let seed = exchange.rank().into();
        let gpu = exchange.gpu();
        let draw = Draw::new(Spread::Uniform, EXPERTS as usize, TOPK as usize, seed);
        let draw = draw.expect("a spread over the experts");
        let routing = draw.route(seed, TOKENS as usize);
        let slots = EXPERTS / RANKS * RANKS * TOKENS;
        Ok(Self {
            stream: gpu.stream()?,
            x: gpu.upload(&hidden_states(seed, TOKENS as usize, HIDDEN as usize))?,
            topk_idx: gpu.upload(&routing.topk_idx)?,
            topk_weights: gpu.upload(&routing.topk_weights)?,
            rows: gpu.upload(&vec![bf16::ONE; (slots * HIDDEN) as usize])?,
            combined: gpu.alloc((2 * TOKENS * HIDDEN) as usize)?,
            exchange,
        })
    }

    fn throughput(&mut self) -> Result<(), Error> {
        let input = Input::new(&self.x, &self.topk_idx, &self.topk_weights, TOKENS);
        let received = self.exchange.dispatch(&self.stream, &input)?;
        self.exchange.combine(&self.stream, &received, &self.combined)
    }

    fn low_latency(&mut self) -> Result<(), Error> {
        let input = low_latency::Input::new(&self.x, &self.topk_idx, &self.topk_weights, TOKENS);
        let rows = Rows { x: (&self.rows).into(), x_scales: None };
        let mut calls = self.exchange.low_latency()?;
        let batch = calls.dispatch(&self.stream, &input, &rows)?;
        calls.combine(&self.stream, &batch, &self.rows, &Sums::new(&self.combined))
    }
}

/// Steps of the slower rank.
fn run(ranks: &mut [Rank], round: Round) -> u64 {
    let one = |rank: &mut Rank| -> Result<f64, Error> {
        let begun = rank.stream.record()?;
        // Emulated time stands still for threads that have used their device: a rank that begins sooner must not wait for one
        // that has not.
        rank.exchange.all_gather((), "a round", PATIENCE)?;
        round(rank)?;
        let done = rank.stream.record()?;
        rank.exchange.finish(&rank.stream)?;
        begun.elapsed_ms(&done)
    };
    let steps = thread::scope(|scope| {
        let ranks: Vec<_> = ranks.iter_mut().map(|rank| scope.spawn(move || one(rank))).collect();
        let times = ranks.into_iter().map(|rank| rank.join().expect("no rank panics").expect("no error"));
        times.fold(0.0, f64::max)
    });
    // Virtual time: a nanosecond is a step.
    (steps * 1e6) as u64
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    let config = Config::new(EXPERTS, TOPK, HIDDEN, TOKENS);
    let few = LowLatency { dispatch: DispatchFormat::Bf16, ..LowLatency::new(TOKENS) };
    let cases: [(&str, Config, Round); 2] = [
        ("dispatch and combine", config.clone(), Rank::throughput),
        ("low latency", Config { low_latency: Some(few), ..config }, Rank::low_latency),
    ];
    let mut group = criterion.benchmark_group("emulated exchange, steps");
    for (name, config, round) in cases {
        let mut ranks = Rank::all(&config);
        group.throughput(Throughput::Elements(run(&mut ranks, round)));
        group.bench_function(name, |bencher| bencher.iter(|| run(&mut ranks, round)));
    }
    group.finish();
    criterion.final_summary();
}
