//! Groups whose ranks are in several processes: here threads that share nothing but a TCP connection.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};
use tokenrail::bootstrap::{Bootstrap, Rendezvous, Secret, TcpRendezvous};
use tokenrail::fabric::{LoopbackOptions, Network};
use tokenrail::{Backend, Config, Error, Exchange, Group, Internode, LowLatency, Member, Via};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `process` for each of `count` processes that have met.
fn processes<T: Send>(count: u32, process: impl Fn(Arc<dyn Bootstrap>) -> T + Sync) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let settings = |number| Rendezvous::new(&address, number, count, Secret::new("sixteen bytes and more"));
    std::thread::scope(|scope| {
        let mut threads: Vec<ScopedJoinHandle<T>> = Vec::new();
        let (process, first) = (&process, settings(0));
        threads.push(scope.spawn(move || process(Arc::new(TcpRendezvous::host(listener, &first).unwrap()))));
        for number in 1..count {
            let settings = settings(number);
            threads.push(scope.spawn(move || process(Arc::new(TcpRendezvous::join(&settings).unwrap()))));
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs `rank` for each member of a process; what they come to, in order.
fn ranks<T: Send>(members: Vec<Member>, rank: impl Fn(Member) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(move || rank(member))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn ranks_of_all_processes_tell_each_other() {
    let told = processes(3, |bootstrap| {
        let members = Group::spanning(bootstrap, 2, &Backend::emulator(0)).unwrap();
        ranks(members, |member| {
            assert_eq!((member.ranks(), member.ranks_per_node()), (6, 2));
            let first = member.all_gather_bytes(
                vec![member.rank() as u8; member.rank() as usize],
                "a test",
                PATIENCE,
            );
            let second = member.all_gather_bytes(vec![9], "another", PATIENCE);
            assert_eq!(second.unwrap(), vec![vec![9]; 6]);
            assert!(matches!(member.all_gather(1, "values", PATIENCE), Err(Error::Unavailable { .. })));
            (member.rank(), first.unwrap())
        })
    });
    let wanted: Vec<Vec<u8>> = (0..6).map(|rank| vec![rank as u8; rank]).collect();
    for (place, (rank, found)) in told.into_iter().flatten().enumerate() {
        assert_eq!(rank as usize, place);
        assert_eq!(found, wanted, "on rank {rank}");
    }
}

#[test]
fn processes_with_other_numbers_of_ranks_do_not_agree() {
    let outcomes = processes(2, |bootstrap| {
        let ranks = 1 + bootstrap.process();
        Group::spanning(bootstrap, ranks, &Backend::emulator(0)).map(|members| members.len())
    });
    for outcome in outcomes {
        let field = "ranks of a process";
        assert!(
            matches!(&outcome, Err(Error::Disagreement { field: named, .. }) if *named == field),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_process_that_stays_away_is_named_on_all_ranks() {
    let outcomes = processes(2, |bootstrap| {
        let process = bootstrap.process();
        let members = Group::spanning(bootstrap, 2, &Backend::emulator(0)).unwrap();
        let begun = Instant::now();
        ranks(members, |member| {
            if process == 1 {
                // It goes without a word, and with its last rank its connection.
                return None;
            }
            let outcome = member.all_gather_bytes(Vec::new(), "a test", Duration::from_secs(5));
            assert!(begun.elapsed() < PATIENCE, "it takes no longer than it may");
            Some(outcome)
        })
    });
    for outcome in outcomes.into_iter().flatten().flatten() {
        match outcome {
            Err(Error::Bootstrap { cause, place: "a test", .. }) => assert_eq!(cause.processes(), [1]),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn settings_are_compared_across_processes() {
    let outcomes = processes(2, |bootstrap| {
        let experts = 4 + 4 * bootstrap.process();
        let members = Group::spanning(bootstrap, 1, &Backend::emulator(0)).unwrap();
        let via = Via::Loopback(Network::new(LoopbackOptions::default()));
        let config = |experts| Config {
            ranks_per_node: Some(1),
            internode: Some(Internode::new(via.clone())),
            low_latency: Some(LowLatency::new(4)),
            ..Config::new(experts, 2, 64, 0)
        };
        ranks(members, |member| Exchange::new(member, &config(experts)).map(drop))
    });
    for outcome in outcomes.into_iter().flatten() {
        assert!(matches!(&outcome, Err(Error::Disagreement { field: "experts", .. })), "{outcome:?}");
    }
}

#[test]
fn a_group_on_nodes_asks_how_they_are_reached() {
    let refusal = |config: &Config| {
        let mut outcomes = processes(2, |bootstrap| {
            let members = Group::spanning(bootstrap, 1, &Backend::emulator(0)).unwrap();
            ranks(members, |member| Exchange::new(member, config).map(drop))
        });
        outcomes.remove(0).remove(0).unwrap_err().to_string()
    };
    let base = Config { low_latency: Some(LowLatency::new(4)), ..Config::new(8, 2, 64, 0) };
    assert!(refusal(&base).starts_with("ranks_per_node = 2: "), "{}", refusal(&base));
    let on_nodes = Config { ranks_per_node: Some(1), ..base };
    assert!(refusal(&on_nodes).starts_with("internode = None: "), "{}", refusal(&on_nodes));
    let via = Via::Loopback(Network::new(LoopbackOptions::default()));
    let loopback = Config { internode: Some(Internode::new(via)), ..on_nodes };
    assert!(refusal(&loopback).starts_with("internode.via = Loopback: "), "{}", refusal(&loopback));
}
