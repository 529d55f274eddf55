//! What a call of [`simt`] costs in real time: `cargo bench -p tokenrail-emulator`.

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::ptr::with_exposed_provenance;
use std::time::Duration;
use tokenrail_emulator::{Launch, Machine, Options, Stream, simt};

const BLOCKS: u32 = 8;
const THREADS: u32 = 256;
const ROUNDS: u32 = 200;

/// Runs a kernel to its end.
fn run(stream: &Stream, block: u32, shared_bytes: usize, kernel: impl Fn() + Send + Sync + 'static) {
    let launch = Launch { name: "cost", grid: BLOCKS, block, shared_bytes };
    stream.launch(launch, Box::new(kernel)).expect("a launch within the limits");
    stream.synchronize().expect("a kernel without faults");
}

/// In a round.
type Call = fn(u32);

/// Calls of lanes: each thread makes `ROUNDS`.
fn calls(criterion: &mut Criterion) {
    let machine = Machine::new(Options::default());
    let stream = machine.device(0).expect("the first device").stream();
    let mut group = criterion.benchmark_group("calls");
    group.throughput(Throughput::Elements((BLOCKS * THREADS * ROUNDS).into()));
    let calls: [(&str, Call); 5] = [
        ("shuffle", |round| _ = black_box(simt::shuffle(u32::MAX, 1, round % 32))),
        ("ballot", |round| _ = black_box(simt::ballot(u32::MAX, round % 2 == 0))),
        ("match_any", |round| _ = black_box(simt::match_any(u32::MAX, u64::from(round % 2)))),
        ("barrier", |_| simt::barrier(0, THREADS)),
        ("preempt", |_| simt::preempt()),
    ];
    for (name, call) in calls {
        group.bench_function(name, |bencher| {
            bencher.iter(|| run(&stream, THREADS, 0, move || (0..ROUNDS).for_each(call)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("threads");
    group.throughput(Throughput::Elements((BLOCKS * 1024).into()));
    group.bench_function("an empty kernel", |bencher| bencher.iter(|| run(&stream, 1024, 0, || ())));
}

/// Bulk copies of `bytes` bytes each, loaded and stored back by one thread of each block.
fn bulk(criterion: &mut Criterion, bytes: u32) {
    let machine = Machine::new(Options::default());
    let device = machine.device(0).expect("the first device");
    let memory = device.alloc((BLOCKS * bytes) as usize).expect("memory");
    let base = memory.ptr().expose_provenance();
    let stream = device.stream();
    let kernel = move || {
        if simt::thread_index() != 0 {
            return;
        }
        let global = base + (simt::block_index() * bytes) as usize;
        let (mbarrier, buffer) = (simt::shared_base(), simt::shared_base() + 1024);
        simt::mbarrier_init(mbarrier, 1);
        for round in 0..ROUNDS {
            simt::mbarrier_arrive_expect_tx(mbarrier, bytes);
            simt::bulk_load(buffer, with_exposed_provenance(global), bytes, mbarrier);
            simt::mbarrier_wait(mbarrier, round % 2);
            simt::bulk_store(with_exposed_provenance::<u8>(global).cast_mut(), buffer, bytes);
            simt::bulk_commit();
            simt::bulk_wait(0, false);
        }
    };
    let mut group = criterion.benchmark_group("bulk copies");
    group.throughput(Throughput::Bytes(2 * u64::from(BLOCKS * ROUNDS) * u64::from(bytes)));
    group.bench_function(format!("of {bytes} bytes"), |bencher| {
        bencher.iter(|| run(&stream, 32, 1024 + bytes as usize, kernel));
    });
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    calls(&mut criterion);
    [256, 4096, 14336].into_iter().for_each(|bytes| bulk(&mut criterion, bytes));
    criterion.final_summary();
}
