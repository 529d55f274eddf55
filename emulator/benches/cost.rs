//! What a call of [`simt`] costs in real time: `cargo bench -p tokenrail-emulator`.

use std::hint::black_box;
use std::ptr::with_exposed_provenance;
use std::time::Instant;
use tokenrail_emulator::{Launch, Machine, Options, simt};

const BLOCKS: u32 = 8;
const THREADS: u32 = 256;
const ROUNDS: u32 = 2000;

/// Runs a kernel of this size; seconds.
fn seconds(block: u32, shared_bytes: usize, kernel: impl Fn() + Send + Sync + 'static) -> f64 {
    let machine = Machine::new(Options::default());
    let stream = machine.device(0).expect("the first device").stream();
    let launch = Launch { name: "cost", grid: BLOCKS, block, shared_bytes };
    let start = Instant::now();
    stream.launch(launch, Box::new(kernel)).expect("a launch within the limits");
    stream.synchronize().expect("a kernel without faults");
    start.elapsed().as_secs_f64()
}

/// Prints the cost of one of a thread's `ROUNDS` calls.
fn per_call<T>(name: &str, call: impl Fn(u32) -> T + Send + Sync + 'static) {
    let seconds = seconds(THREADS, 0, move || (0..ROUNDS).for_each(|round| _ = black_box(call(round))));
    let calls = f64::from(BLOCKS) * f64::from(THREADS) * f64::from(ROUNDS);
    println!("{name:24} {:7.1} ns a call of a lane", seconds * 1e9 / calls);
}

/// Prints the rate of bulk copies of `bytes` bytes each, loaded and stored back by one thread of each block.
fn bulk(bytes: u32) {
    let machine = Machine::new(Options::default());
    let device = machine.device(0).expect("the first device");
    let memory = device.alloc((BLOCKS * bytes) as usize).expect("memory");
    let base = memory.ptr().expose_provenance();
    let stream = device.stream();
    let launch = Launch { name: "bulk", grid: BLOCKS, block: 32, shared_bytes: 1024 + bytes as usize };
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
    let start = Instant::now();
    stream.launch(launch, Box::new(kernel)).expect("a launch within the limits");
    stream.synchronize().expect("a kernel without faults");
    let copied = f64::from(BLOCKS) * f64::from(ROUNDS) * f64::from(bytes) * 2.0;
    println!("bulk copies of {bytes:6} B {:9.2} GB/s", copied / start.elapsed().as_secs_f64() / 1e9);
}

fn main() {
    per_call("shuffle", |round| _ = simt::shuffle(u32::MAX, 1, round % 32));
    per_call("ballot", |round| _ = simt::ballot(u32::MAX, round % 2 == 0));
    per_call("match_any", |round| _ = simt::match_any(u32::MAX, u64::from(round % 2)));
    per_call("barrier", |_| simt::barrier(0, THREADS));
    per_call("preempt", |_| simt::preempt());
    let threads = f64::from(BLOCKS) * 1024.0;
    println!("{:24} {:7.1} ns a thread", "empty kernel", seconds(1024, 0, || ()) * 1e9 / threads);
    [256, 4096, 14336].into_iter().for_each(bulk);
}
