//! How long processes take to find each other over TCP on one host, and to exchange a few bytes:
//! `cargo bench --bench bootstrap`. Threads stand for the processes.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::net::TcpListener;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use tokenrail::bootstrap::{Bootstrap, Rendezvous, Secret, TcpRendezvous};

const PATIENCE: Duration = Duration::from_secs(30);

/// Has all processes meet, and then `work`; what process 0's gives.
fn group<T: Send>(processes: u32, work: impl Fn(TcpRendezvous) -> T + Sync) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let settings =
        |process| Rendezvous::new(&address, process, processes, Secret::new("known to this program alone"));
    thread::scope(|scope| {
        for process in 1..processes {
            let (settings, work) = (settings(process), &work);
            scope.spawn(move || work(TcpRendezvous::join(&settings).expect("a rendezvous")));
        }
        work(TcpRendezvous::host(listener, &settings(0)).expect("a rendezvous"))
    })
}

fn rendezvous(criterion: &mut Criterion) {
    let mut cases = criterion.benchmark_group("rendezvous");
    for processes in [2, 8] {
        cases.bench_function(BenchmarkId::from_parameter(format_args!("{processes} processes")), |bencher| {
            bencher.iter(|| group(processes, drop));
        });
    }
}

fn all_gather(criterion: &mut Criterion) {
    let mut cases = criterion.benchmark_group("all-gather");
    for processes in [2, 8] {
        for bytes in [64, 1 << 16] {
            cases.throughput(Throughput::Bytes(u64::from(processes) * bytes as u64));
            let name = format!("{processes} processes, {bytes} bytes each");
            let entry = vec![1; bytes];
            cases.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    let begin = Barrier::new(processes as usize);
                    group(processes, |bootstrap| {
                        begin.wait();
                        let begun = Instant::now();
                        for _ in 0..rounds {
                            bootstrap.all_gather(&entry, "a round", PATIENCE).expect("all take part");
                        }
                        begun.elapsed()
                    })
                });
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    rendezvous(&mut criterion);
    all_gather(&mut criterion);
    criterion.final_summary();
}
