//! Calls whose ranks are on different nodes, over a network within the process, on the emulator: results equal those of the
//! CPU reference, whatever the network's delays and order.

#[path = "common/low_latency.rs"]
#[allow(dead_code, reason = "a part of it")]
mod batches;
#[path = "common/input.rs"]
mod input;
#[path = "common/network.rs"]
mod network;

use batches::{Case, Limits, cases, check, config};
use network::{loopback, networks, on_nodes};
use proptest::prelude::*;
use std::time::Duration;
use tokenrail::fabric::{Arrival, Cause, LoopbackOptions, Network, ProxySpeed};
use tokenrail::low_latency::{Input, Rows, Sums};
use tokenrail::{
    ArenaMemory, Backend, CombineFormat, Config, DispatchFormat, Error, Exchange, Group, Internode,
    LowLatency, Member, Summation, Via,
};

#[test]
fn low_latency_between_two_nodes_of_one_rank() {
    for ordered in [true, false] {
        let config = on_nodes(config(8, 2, 64, LowLatency::new(9)), 1, loopback(ordered));
        check(&Case::new(config, &[&[9, 5]]), &Backend::emulator(1));
    }
}

#[test]
fn an_arena_in_the_hosts_memory() {
    let internode = Internode { memory: ArenaMemory::Host, ..loopback(true) };
    let config = on_nodes(config(8, 2, 64, LowLatency::new(4)), 1, internode);
    let members = Group::on_nodes(2, 1, &Backend::emulator(1)).unwrap();
    std::thread::scope(|scope| {
        for member in members {
            let config = &config;
            scope.spawn(move || {
                let before = member.gpu().allocated_bytes();
                let gpu = member.gpu().clone();
                let exchange = Exchange::new(member, config).unwrap();
                assert_eq!(exchange.arena_memory(), ArenaMemory::Host);
                // What is the device's is the workspace alone.
                let all = tokenrail::bytes_for(config, 2).unwrap();
                assert!(gpu.allocated_bytes() - before < all / 2, "{all}");
                exchange.all_gather((), "the end", Duration::from_secs(60)).unwrap();
            });
        }
    });
    let internode = Internode { memory: ArenaMemory::Host, ..loopback(false) };
    let config = on_nodes(self::config(8, 2, 64, LowLatency::new(9)), 1, internode);
    check(&Case::new(config, &[&[9, 5], &[3, 9]]), &Backend::emulator(1));
}

#[test]
fn low_latency_of_every_format() {
    for (seed, dispatch) in (0..).zip([
        DispatchFormat::Bf16,
        DispatchFormat::Fp8,
        DispatchFormat::Fp8PowerOfTwo,
        DispatchFormat::Fp8Ue8m0,
    ]) {
        for combine in [CombineFormat::Bf16, CombineFormat::Fp8, CombineFormat::Log10] {
            for summation in [Summation::ByRank, Summation::BySlot] {
                let low_latency = LowLatency { dispatch, combine, summation, ..LowLatency::new(6) };
                let config = on_nodes(config(7, 3, 1616, low_latency), 2, loopback(seed % 2 == 0));
                let case = Case::new(config, &[&[6, 3, 0, 2], &[1, 6, 6, 4]]);
                check(&case, &Backend::emulator(seed));
            }
        }
    }
}

#[test]
fn more_low_latency_ranks_than_lanes_of_a_warp() {
    let config = on_nodes(config(70, 6, 16, LowLatency::new(2)), 5, loopback(true));
    check(&Case::new(config, &[&[2; 35]]), &Backend::emulator(8));
}

#[test]
fn a_late_rank_costs_time_alone() {
    let low_latency = LowLatency { depth: 1, ..LowLatency::new(8) };
    let tokens: &[&[usize]] = &[&[8, 3, 5], &[0, 8, 8], &[4, 0, 1], &[8, 8, 8], &[2, 7, 0]];
    for (ordered, late) in [(true, 0), (false, 2)] {
        let config = on_nodes(config(12, 3, 528, low_latency.clone()), 1, loopback(ordered));
        let case = Case { halves: true, late: Some(late), ..Case::new(config, tokens) };
        check(&case, &Backend::emulator(3));
        check(&Case { dropped_one_in: 1, ..case }, &Backend::emulator(4));
    }
}

/// What the emulator does in a moment.
const SMALL: Limits = Limits { ranks: 5, tokens: 12, sixteens: 130, batches: 4, sms: 4 };

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_low_latency_case_over_any_network(
        case in cases(SMALL),
        per_node in 1u32..4,
        internode in networks(),
        schedule in 0u64..1000,
    ) {
        let per_node = per_node.min(case.tokens[0].len() as u32);
        check(&Case { config: on_nodes(case.config.clone(), per_node, internode), ..case }, &Backend::emulator(schedule));
    }
}

/// A rank that dispatches and combines until something is wrong, at most `rounds` times; the error, and the round.
fn work(member: Member, config: &Config, rounds: u32, each: impl Fn(u32)) -> Result<(), (u32, Error)> {
    let at = |round| move |error| (round, error);
    let mut exchange = Exchange::new(member, config).map_err(at(0))?;
    let gpu = exchange.gpu().clone();
    let (tokens, hidden, topk) = (TOKENS as usize, HIDDEN as usize, 2);
    let stream = gpu.stream().map_err(at(0))?;
    let x = gpu.upload(&vec![half::bf16::ONE; tokens * hidden]).map_err(at(0))?;
    let ids: Vec<i32> = (0..tokens * topk).map(|slot| (slot % EXPERTS as usize) as i32).collect();
    let ids = gpu.upload(&ids).map_err(at(0))?;
    let weights = gpu.upload(&vec![0.5f32; tokens * topk]).map_err(at(0))?;
    let rows = EXPERTS.div_ceil(exchange.ranks()) as usize * exchange.ranks() as usize * tokens;
    let received = gpu.alloc(2 * rows * hidden).map_err(at(0))?;
    let y = gpu.upload(&vec![half::bf16::ONE; rows * hidden]).map_err(at(0))?;
    let combined = gpu.alloc(2 * tokens * hidden).map_err(at(0))?;
    for round in 1..=rounds {
        each(round);
        let mut step = || {
            let mut calls = exchange.low_latency()?;
            let input = Input::new(&x, &ids, &weights, TOKENS);
            let batch = calls.dispatch(&stream, &input, &Rows::bf16(&received))?;
            calls.combine(&stream, &batch, &y, &Sums::new(&combined))?;
            exchange.finish(&stream)
        };
        if let Err(error) = step() {
            // The exchange says so from now on.
            assert!(matches!(exchange.low_latency().err(), Some(Error::Failed)), "after {error}");
            return Err((round, error));
        }
    }
    // Nobody goes while others may still be sent to.
    exchange.all_gather((), "the end", Duration::from_secs(60)).map(drop).map_err(at(rounds))
}

const TOKENS: u32 = 6;
const HIDDEN: u32 = 128;
const EXPERTS: u32 = 8;

/// Every rank a node; what each of them comes to.
fn run(
    ranks: u32,
    internode: &Internode,
    rounds: u32,
    each: impl Fn(u32, u32) + Sync,
) -> Vec<Result<(), (u32, Error)>> {
    let low_latency = LowLatency { dispatch: DispatchFormat::Bf16, ..LowLatency::new(TOKENS) };
    let config = Config { timeout: Duration::from_millis(200), ..config(EXPERTS, 2, HIDDEN, low_latency) };
    let config = on_nodes(config, 1, internode.clone());
    let members = Group::on_nodes(ranks, 1, &Backend::emulator(1)).unwrap();
    std::thread::scope(|scope| {
        let start = |member: Member| {
            let (config, each) = (&config, &each);
            let rank = member.rank();
            scope.spawn(move || work(member, config, rounds, |round| each(rank, round)))
        };
        let threads: Vec<_> = members.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn all_well(outcomes: &[Result<(), (u32, Error)>]) {
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn a_killed_rank_is_an_error_everywhere_and_the_next_group_works() {
    for ordered in [true, false] {
        let internode = loopback(ordered);
        let Via::Loopback(net) = internode.via.clone() else { unreachable!("that is what it is") };
        let outcomes = run(3, &internode, 8, |rank, round| {
            if (rank, round) == (1, 4) {
                net.kill(1);
            }
        });
        for (rank, outcome) in (0..).zip(&outcomes) {
            // What it had yet to send in round 3 is gone, too: the others miss it, or notice as they send.
            match outcome {
                Err((4, Error::Link { rank: 1, cause: Cause::Local, .. })) if rank == 1 => {}
                Err((
                    3 | 4,
                    Error::Link { peer: 1, cause: Cause::Unreachable, .. } | Error::Late { peer: 1, .. },
                )) if rank != 1 => {}
                other => panic!("rank {rank}: {other:?}"),
            }
        }
        all_well(&run(3, &internode, 3, |_, _| {}));
    }
}

#[test]
fn a_port_that_goes_down_is_an_error_until_it_is_up() {
    let internode = loopback(true);
    let Via::Loopback(net) = internode.via.clone() else { unreachable!("that is what it is") };
    let outcomes = run(2, &internode, 8, |rank, round| {
        if (rank, round) == (0, 3) {
            net.set_port(0, false);
        }
    });
    assert!(
        matches!(outcomes[0], Err((3, Error::Fabric { .. } | Error::Link { cause: Cause::Local, .. }))),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[1], Err((2 | 3, Error::Late { peer: 0, .. } | Error::Link { peer: 0, .. }))),
        "{outcomes:?}"
    );
    net.set_port(0, true);
    all_well(&run(2, &internode, 3, |_, _| {}));
}

#[test]
fn a_lost_write_is_an_error_of_its_connection() {
    for seed in 0..16 {
        lose_one(seed);
    }
}

fn lose_one(seed: u64) {
    let options =
        LoopbackOptions { seed, lose_one_in: 200, delay_ns: 0..=3_000, ..LoopbackOptions::default() };
    let internode = Internode::new(Via::Loopback(Network::new(options)));
    let outcomes = run(2, &internode, 200, |_, _| {});
    let lost = |outcome: &Result<(), (u32, Error)>| {
        matches!(outcome, Err((_, Error::Link { cause: Cause::Unreachable, .. })))
    };
    assert!(outcomes.iter().any(lost), "{outcomes:?}");
    let told =
        |outcome: &Result<(), (u32, Error)>| lost(outcome) || matches!(outcome, Err((_, Error::Late { .. })));
    assert!(outcomes.iter().all(told), "{outcomes:?}");
}

#[test]
fn a_rank_that_stays_away_is_late() {
    let internode = loopback(true);
    let low_latency = LowLatency { dispatch: DispatchFormat::Bf16, ..LowLatency::new(TOKENS) };
    let config = Config { timeout: Duration::from_millis(50), ..config(EXPERTS, 2, HIDDEN, low_latency) };
    let config = on_nodes(config, 1, internode);
    let mut members = Group::on_nodes(2, 1, &Backend::emulator(1)).unwrap();
    let (second, first) = (members.pop().unwrap(), members.pop().unwrap());
    std::thread::scope(|scope| {
        let config = &config;
        scope.spawn(move || {
            let exchange = Exchange::new(second, config).unwrap();
            // Here as long as the other works, so that it is its silence that is noticed.
            exchange.all_gather((), "the end", Duration::from_secs(60)).unwrap();
        });
        let mut exchange = Exchange::new(first, config).unwrap();
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().unwrap();
        let x = gpu.upload(&vec![half::bf16::ONE; HIDDEN as usize]).unwrap();
        let (ids, weights) = (gpu.upload(&[7, 1]).unwrap(), gpu.upload(&[1f32; 2]).unwrap());
        let rows = gpu.alloc((EXPERTS * TOKENS * HIDDEN * 2) as usize).unwrap();
        let input = Input::new(&x, &ids, &weights, 1);
        exchange.low_latency().unwrap().dispatch(&stream, &input, &Rows::bf16(&rows)).unwrap();
        match exchange.finish(&stream) {
            Err(Error::Late { peer: 1, phase, .. }) => {
                assert!(phase.contains("low-latency dispatch"), "{phase}")
            }
            other => panic!("{other:?}"),
        }
        exchange.all_gather((), "the end", Duration::from_secs(60)).unwrap();
    });
}

#[test]
fn as_much_crosses_as_has_to() {
    // 2 nodes of 2 ranks; 3 tokens of rank 0, whose experts are on ranks 2 and 3; on 2 twice; on 0 and 1.
    let low_latency = LowLatency { dispatch: DispatchFormat::Bf16, depth: 1, ..LowLatency::new(4) };
    let config = on_nodes(config(8, 2, 64, low_latency), 2, loopback(true));
    let members = Group::on_nodes(4, 2, &Backend::emulator(1)).unwrap();
    let statistics: Vec<_> = std::thread::scope(|scope| {
        let start = |member: Member| {
            let config = &config;
            scope.spawn(move || {
                let mut exchange = Exchange::new(member, config).unwrap();
                let gpu = exchange.gpu().clone();
                let stream = gpu.stream().unwrap();
                let x = gpu.upload(&[half::bf16::ONE; 3 * 64]).unwrap();
                let ids = gpu.upload(&[4, 6, 5, 4, 1, 2]).unwrap();
                let weights = gpu.upload(&[0.5f32; 6]).unwrap();
                let rows = gpu.alloc(2 * 2 * 4 * 4 * 64).unwrap();
                let tokens = if exchange.rank() == 0 { 3 } else { 0 };
                let input = Input::new(&x, &ids, &weights, tokens);
                exchange.low_latency().unwrap().dispatch(&stream, &input, &Rows::bf16(&rows)).unwrap();
                exchange.finish(&stream).unwrap();
                exchange.all_gather((), "the end", Duration::from_secs(60)).unwrap();
                exchange.proxy_statistics().unwrap()
            })
        };
        let threads: Vec<_> = members.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A message is two slots of 8 bytes and a row; a summary a count, a word of bits and two experts.
    let (message, summary) = (16 + 128, 16);
    // To the first rank of the other node two, to the second one.
    assert_eq!(statistics[0].bytes, 3 * message + 2 * summary);
    for of in &statistics[1..] {
        assert_eq!(of.bytes, 2 * summary, "{of:?}");
    }
    // To each of two ranks: both acknowledgements, a summary, a signal for each of two lanes.
    assert_eq!(statistics.iter().map(|of| of.taken).collect::<Vec<_>>(), [13, 10, 10, 10]);
    for of in &statistics {
        assert_eq!((of.dropped, of.posted), (0, of.taken), "{of:?}");
        assert!(of.high_water >= 1, "{of:?}");
    }
}

#[test]
fn settings_that_cannot_be() {
    let good = || {
        let low_latency = LowLatency::new(TOKENS);
        on_nodes(config(EXPERTS, 2, HIDDEN, low_latency), 1, loopback(true))
    };
    let refusal = |change: fn(&mut Config)| {
        let mut config = good();
        change(&mut config);
        tokenrail::bytes_for(&config, 2).unwrap_err().to_string()
    };
    assert!(tokenrail::bytes_for(&good(), 2).is_ok());
    let told = [
        (
            refusal(|config| (config.tokens, config.copy_engine) = (1, true)),
            "copy_engine = true: copy engines do not reach",
        ),
        (
            refusal(|config| (config.tokens, config.low_latency.as_mut().unwrap().depth) = (1, 127)),
            "channels of all batches and dispatches in flight = 258: must be 1 to 256",
        ),
        (
            refusal(|config| config.internode.as_mut().unwrap().lanes = 0),
            "internode.lanes = 0: must be 1 to 32",
        ),
        (
            refusal(|config| config.internode.as_mut().unwrap().ring_log2 = 21),
            "internode.ring_log2 = 21: must be 6 to 20",
        ),
    ];
    for (found, wanted) in told {
        assert!(found.starts_with(wanted), "{found}");
    }
    let mut unordered = good();
    unordered.internode = Some(Internode { arrival: Arrival::Ordered, ..loopback(false) });
    let found = tokenrail::bytes_for(&unordered, 2).unwrap_err().to_string();
    assert!(found.starts_with("internode.arrival = Ordered: "), "{found}");
}

#[test]
fn a_proxy_is_measured() {
    // That all commands come is checked within; times of the emulator say nothing.
    let speed = ProxySpeed::measure(&Backend::emulator(1), None).unwrap();
    assert!(speed.high_water >= 1 && speed.round_trip_ns > 0.0, "{speed:?}");
    println!("{:?}", ProxySpeed::of_host().unwrap());
}
