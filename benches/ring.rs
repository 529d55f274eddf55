//! The host's side of the ring of commands, without a GPU: `cargo bench --bench ring`.

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::time::Duration;
use tokenrail::device::gpu::mem::Quad;
use tokenrail::device::internode::command::{Command, Target};
use tokenrail::fabric::ProxySpeed;

const COMMANDS: u32 = 1 << 12;

/// Every third of a kind.
fn command(at: u32) -> Command {
    let (to, place) = (Target { peer: at % 64, lane: at % 4 }, 16 * u64::from(at));
    match at % 3 {
        0 => Command::Put { to, channel: 1, from: place, at: place, bytes: 7168 },
        1 => Command::Word { to, at: place, value: place },
        _ => Command::Signal { to, channel: 1, value: place },
    }
}

fn words(criterion: &mut Criterion) {
    let commands: Vec<Command> = (0..COMMANDS).map(command).collect();
    let quads: Vec<Quad> = commands.iter().map(|command| command.encode(1)).collect();
    let mut group = criterion.benchmark_group("command");
    group.throughput(Throughput::Elements(COMMANDS.into()));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(&commands).iter().for_each(|command| _ = black_box(command.encode(1))));
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(&quads).iter().for_each(|&quad| _ = black_box(Command::decode(quad))));
    });
}

/// One of its numbers.
type Rate = fn(&ProxySpeed) -> f64;

/// The library times itself, as commands are put in between in untimed pauses.
fn proxy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("proxy");
    group.sample_size(10).throughput(Throughput::Elements(1));
    let rates: [(&str, Rate); 2] = [
        ("commands taken", |speed| speed.taken_per_s),
        ("commands made writes, posted, seen done", |speed| speed.posted_per_s),
    ];
    for (name, rate) in rates {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|commands| {
                let speed = ProxySpeed::of_host().expect("all commands come");
                Duration::from_secs_f64(commands as f64 / rate(&speed))
            });
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    words(&mut criterion);
    proxy(&mut criterion);
    criterion.final_summary();
}
