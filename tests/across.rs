//! Dispatch and combine of ranks on different nodes, over a network within the process, on the emulator: results equal those
//! of the CPU reference bit for bit, whatever the network's delays and order.

#[allow(dead_code, reason = "a part of it")]
mod common;
#[path = "common/network.rs"]
mod network;

use common::overlap::{self, On};
use common::random::{Limits, on_nodes_of_fewer};
use common::{Back, Calls, Case, Where, check};
use half::bf16;
use network::{loopback, networks, on_nodes};
use proptest::prelude::*;
use std::time::Duration;
use tokenrail::fabric::{Arrival, Cause, LoopbackOptions, Network, ProxyStatistics};
use tokenrail::oracle::{self, Gate, Placement, Router};
use tokenrail::{
    ArenaMemory, Backend, Config, Element, Error, Exchange, ExpertMajor, Group, Half, Input, Internode,
    LowLatency, Member, Output, Overflow, Received, Routing, Stream, Tokens, Via,
};

#[test]
fn two_nodes_of_one_rank() {
    for ordered in [true, false] {
        let config = on_nodes(Config::new(8, 2, 64, 40), 1, loopback(ordered));
        check(&Case::new(config, &[&[40, 33]], 0), &Backend::emulator(1));
    }
}

#[test]
fn rounds_follow_each_other() {
    let rounds: &[&[usize]] =
        &[&[9, 4, 7, 16], &[0, 16, 3, 1], &[16; 4], &[1, 0, 0, 0], &[0; 4], &[5, 5, 5, 5]];
    for ordered in [true, false] {
        let config = on_nodes(Config::new(12, 3, 128, 16), 2, loopback(ordered));
        check(&Case::new(config, rounds, 5), &Backend::emulator(2));
    }
}

/// Rows of `element`, with all that can travel beside them.
fn with_everything(element: Element, internode: Internode) -> Case {
    let config = Config {
        element,
        sides: vec![4, 36],
        handles: Some(3),
        in_flight: 2,
        ..on_nodes(Config::new(24, 5, 272, 20), 3, internode)
    };
    let calls = Calls { follow: 2, slots: Back::InPlace, biases: 2, ..Calls::default() };
    let tokens: &[&[usize]] = &[&[20, 3, 0, 11, 20, 8], &[1, 20, 7, 0, 2, 20]];
    Case { calls, ..Case::new(config, tokens, 6) }
}

#[test]
fn every_element_with_handles_sides_and_slots() {
    let opaque = Element::Opaque { row_bytes: 48, scale_words: 70 };
    let elements = [Element::Bf16, Element::F16, Element::Fp8E4m3, Element::Fp8E4m3Ue8m0, opaque];
    for (seed, element) in (0..).zip(elements) {
        check(&with_everything(element, loopback(seed % 2 == 0)), &Backend::emulator(seed));
    }
}

#[test]
fn tokens_counted_on_the_device_and_f16_without_bulk_copies() {
    let mut case = with_everything(Element::F16, loopback(false));
    case.calls.tokens_on_device = true;
    case.calls.outputs = Where::Rows;
    case.config.combined = Half::F16;
    case.config.bulk_copy = Some(false);
    check(&case, &Backend::emulator(5));
}

#[test]
fn by_expert() {
    for (seed, outputs) in (0..).zip([Where::ByExpert, Where::ByExpertGiven, Where::ByExpertUnweighted]) {
        let mut case = with_everything(Element::Fp8E4m3, loopback(seed % 2 == 1));
        case.config.expert_major = Some(ExpertMajor { alignment: 8, rows: None });
        case.config.bulk_copy = Some(seed != 2);
        case.calls.outputs = outputs;
        check(&case, &Backend::emulator(seed));
    }
}

#[test]
fn too_little_room_leaves_rows_out() {
    for rows in [0, 1, 17, 40] {
        let mut case = with_everything(Element::Bf16, loopback(rows % 2 == 0));
        (case.config.overflow, case.config.receive_rows) = (Overflow::Cap, Some(rows));
        check(&case, &Backend::emulator(rows.into()));
    }
}

#[test]
fn more_ranks_than_lanes_of_a_warp() {
    let on_one_sm = |config| Config { sms: Some(1), ..config };
    let config = on_one_sm(on_nodes(Config::new(68, 6, 16, 3), 2, loopback(true)));
    check(&Case::new(config, &[&[3; 34]], 0), &Backend::emulator(8));
    // Of a node, too.
    let config = on_one_sm(on_nodes(Config::new(66, 6, 16, 1), 33, loopback(false)));
    let expert_major = Some(ExpertMajor { alignment: 1, rows: None });
    check(&Case::new(Config { expert_major, ..config }, &[&[1; 66]], 0), &Backend::emulator(9));
}

#[test]
fn rows_longer_than_a_buffer_and_more_lanes_than_chunks() {
    let internode = Internode { lanes: 32, ..loopback(true) };
    let config = on_nodes(Config::new(4, 2, 12_000, 9), 1, internode);
    check(&Case::new(config, &[&[9, 2]], 0), &Backend::emulator(3));
}

#[test]
fn captured_overlapping_and_on_streams_of_their_own() {
    for seed in 0..4 {
        let backend = &Backend::emulator(seed);
        let on = On { backend, internode: Some(loopback(seed % 2 == 0)) };
        overlap::captured(&on);
        overlap::in_flight(&on);
        overlap::on_the_communication_stream(&on);
    }
}

/// What the emulator does in a moment.
const SMALL: Limits = Limits { ranks: 6, tokens: 24, eights: 40, rounds: 2, sms: 4 };

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_case_over_any_network(
        case in common::random::cases(SMALL),
        nodes in 0usize..3,
        internode in networks(),
        schedule in 0u64..1000,
    ) {
        check(&on_nodes_of_fewer(case, nodes, internode), &Backend::emulator(schedule));
    }
}

/// Runs every rank on a thread of its own; gives what each returned, in rank order.
fn on_ranks<T: Send>(config: &Config, ranks: u32, seed: u64, rank: impl Fn(Member) -> T + Sync) -> Vec<T> {
    let per_node = config.ranks_per_node.unwrap();
    let members = Group::on_nodes(ranks, per_node, &Backend::emulator(seed)).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(|| rank(member))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn meet(exchange: &Exchange) {
    exchange.all_gather((), "a step of the test", Duration::from_secs(60)).unwrap();
}

/// Dispatches rows of ones with these ids, whose experts give back what they get.
fn exchange_once(exchange: &mut Exchange, stream: &Stream, topk_idx: &[i32]) -> Result<Vec<f32>, Error> {
    let gpu = exchange.gpu().clone();
    let (hidden, topk) = (exchange.config().hidden as usize, exchange.config().topk as usize);
    let tokens = topk_idx.len() / topk;
    let x = gpu.upload(&vec![bf16::ONE; tokens * hidden])?;
    let ids = gpu.upload(topk_idx)?;
    let received = exchange.dispatch(stream, &Input::new(&x, &ids, &ids, tokens as u32))?;
    exchange.finish(stream)?;
    let sums = give_back(exchange, stream, &received, tokens * hidden)?;
    Ok(sums.chunks(hidden).map(|row| row[hidden - 1].to_f32()).collect())
}

/// Dispatches as many tokens as the device says.
fn exchange_counted(exchange: &mut Exchange, stream: &Stream, tokens: u32) -> Result<(), Error> {
    let gpu = exchange.gpu().clone();
    let (x, ids) = (gpu.upload(&[bf16::ONE; 12 * 64])?, gpu.upload(&EVERYWHERE)?);
    let tokens = gpu.upload(&[tokens])?;
    let routing = Routing::New {
        topk_idx: ids.view(),
        topk_weights: ids.view(),
        tokens: Tokens::Device(tokens.view()),
    };
    exchange.dispatch(stream, &Input { routing, ..Input::new(&x, &ids, &ids, 0) })?;
    exchange.finish(stream)
}

fn give_back(
    exchange: &mut Exchange,
    stream: &Stream,
    received: &Received,
    count: usize,
) -> Result<Vec<bf16>, Error> {
    let gpu = exchange.gpu().clone();
    gpu.copy(stream, received.x(), received.outputs(), received.outputs().bytes())?;
    let combined = gpu.alloc(count * 2)?;
    exchange.combine_with(stream, received, &Output::new(&combined))?;
    exchange.finish(stream)?;
    gpu.download(stream, combined.view(), count)
}

/// 2 nodes of 2 ranks with 2 experts each.
fn small(ordered: bool) -> Config {
    let timeout = Duration::from_millis(200);
    on_nodes(Config { timeout, ..Config::new(8, 2, 64, 12) }, 2, loopback(ordered))
}

/// 12 tokens for 2 ranks each: every rank has 6 rows of every rank.
const EVERYWHERE: [i32; 24] = [0, 4, 2, 6, 1, 5, 3, 7, 0, 2, 4, 6, 0, 4, 2, 6, 1, 5, 3, 7, 0, 2, 4, 6];

#[test]
fn what_all_ranks_refuse_leaves_the_exchange_usable() {
    for ordered in [true, false] {
        let narrow = Config { receive_rows: Some(24), ..small(ordered) };
        on_ranks(&narrow, 4, 1, |member| {
            let rank = member.rank();
            let mut exchange = Exchange::new(member, &narrow).unwrap();
            let stream = exchange.gpu().stream().unwrap();
            for round in 0..6 {
                // An id out of range on one rank, in the last of its tokens: others are on their way by then.
                let mut bad = EVERYWHERE;
                bad[23] = if rank == 1 { 8 } else { 7 };
                match exchange_once(&mut exchange, &stream, &bad) {
                    Err(Error::ExpertOutOfRange { token: 11, slot: 1, .. }) if rank == 1 => {}
                    Err(Error::PeerInput { peer: 1 }) if rank != 1 => {}
                    other => panic!("rank {rank}, round {round}: {other:?}"),
                }
                // More than a rank of the other node has room for.
                let full = if rank == 0 { [6; 14] } else { [7; 14] };
                match exchange_once(&mut exchange, &stream, &full) {
                    Err(Error::Capacity { rank: 3, rows: 28, capacity: 24 }) => {}
                    other => panic!("rank {rank}, round {round}: {other:?}"),
                }
                // More tokens than there is room for, which only the device knows.
                match exchange_counted(&mut exchange, &stream, if rank == 2 { 13 } else { 12 }) {
                    Err(Error::TokenCount { tokens: 13, limit: 12 }) if rank == 2 => {}
                    Err(Error::PeerInput { peer: 2 }) if rank != 2 => {}
                    other => panic!("rank {rank}, round {round}: {other:?}"),
                }
                let sums = exchange_once(&mut exchange, &stream, &EVERYWHERE).unwrap();
                assert_eq!(sums, [2.0; 12], "rank {rank}, round {round}");
            }
            meet(&exchange);
        });
    }
}

#[test]
fn ranks_that_follow_different_handles() {
    let config = Config { handles: Some(4), ..small(false) };
    on_ranks(&config, 4, 1, |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &config).unwrap();
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().unwrap();
        let x = gpu.upload(&[bf16::ONE; 12 * 64]).unwrap();
        let ids = gpu.upload(&EVERYWHERE).unwrap();
        let [first, second] = [(); 2].map(|()| {
            let received = exchange.dispatch(&stream, &Input::new(&x, &ids, &ids, 12)).unwrap();
            exchange.finish(&stream).unwrap();
            received
        });
        for _ in 0..3 {
            let follows = if rank == 2 { second.handle() } else { first.handle() };
            exchange.dispatch(&stream, &Input::follow(&x, follows)).unwrap();
            assert!(matches!(exchange.finish(&stream), Err(Error::HandleMismatch { .. })));
            let received = exchange.dispatch(&stream, &Input::follow(&x, first.handle())).unwrap();
            exchange.finish(&stream).unwrap();
            let sums = give_back(&mut exchange, &stream, &received, 12 * 64).unwrap();
            assert_eq!(sums, [bf16::from_f32(2.0); 12 * 64]);
        }
        meet(&exchange);
    });
}

/// Nothing tells the sender of a dispatch that is not combined what became of it, but for the rail's words.
#[test]
fn dispatches_that_are_not_combined() {
    for ordered in [true, false] {
        let options = LoopbackOptions { ordered, delay_ns: 0..=60_000, ..LoopbackOptions::default() };
        let via = Via::Loopback(Network::new(options));
        let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
        let internode = Some(Internode { arrival, lanes: 3, ..Internode::new(via) });
        let config = Config { internode, ..small(ordered) };
        on_ranks(&config, 4, 5, |member| {
            let mut exchange = Exchange::new(member, &config).unwrap();
            let gpu = exchange.gpu().clone();
            let stream = gpu.stream().unwrap();
            let ids = gpu.upload(&EVERYWHERE).unwrap();
            let rows = [1.0, 2.0, 3.0, 4.0].map(|value| [bf16::from_f32(value); 12 * 64]);
            let rows = rows.map(|rows| gpu.upload(&rows).unwrap());
            meet(&exchange);
            for (value, x) in (1u8..).zip(rows.iter().cycle().take(16)) {
                let received = exchange.dispatch(&stream, &Input::new(x, &ids, &ids, 12)).unwrap();
                let came: Vec<bf16> = gpu.download(&stream, received.x(), 24 * 64).unwrap();
                let want = bf16::from_f32(f32::from((value - 1) % 4 + 1));
                assert!(came.iter().all(|&value| value == want), "dispatch {value}");
            }
            exchange.finish(&stream).unwrap();
            meet(&exchange);
        });
    }
}

/// Little keeps ranks from beginning a dispatch before the counts of the last one have come to all: nobody waits for rows.
#[test]
fn counts_of_dispatches_that_follow_each_other_at_once() {
    let options = LoopbackOptions { ordered: false, delay_ns: 0..=60_000, ..LoopbackOptions::default() };
    let via = Via::Loopback(Network::new(options));
    let internode = Internode { arrival: Arrival::Counted, ..Internode::new(via) };
    let config = on_nodes(Config { sms: Some(1), ..Config::new(8, 2, 64, 12) }, 1, internode);
    on_ranks(&config, 2, 1, |member| {
        let mut exchange = Exchange::new(member, &config).unwrap();
        let stream = exchange.gpu().stream().unwrap();
        let none = exchange.gpu().upload(&[0u32; 0]).unwrap();
        meet(&exchange);
        for _ in 0..300 {
            exchange.dispatch(&stream, &Input::new(&none, &none, &none, 0)).unwrap();
        }
        exchange.finish(&stream).unwrap();
        meet(&exchange);
    });
}

#[test]
fn patience_that_just_does_not_last_gives_an_error_or_all_rows() {
    let (mut late, mut right) = (0, 0);
    for seed in 0..40 {
        // Virtual time, around what it takes.
        let timeout = Duration::from_nanos(10_000 + (seed * 7919) % 60_000);
        let config = Config { timeout, sms: Some(3), ..small(seed % 2 == 0) };
        let results = on_ranks(&config, 4, seed, |member| {
            let mut exchange = Exchange::new(member, &config)?;
            let stream = exchange.gpu().stream()?;
            let sums = exchange_once(&mut exchange, &stream, &EVERYWHERE);
            meet(&exchange);
            sums
        });
        for result in results {
            match result {
                Err(Error::Late { .. }) => late += 1,
                Ok(sums) => {
                    right += 1;
                    assert_eq!(sums, [2.0; 12], "seed {seed}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(late > 0 && right > 0, "{late} late, {right} right: the times do not straddle what it takes");
}

/// 4 ranks that exchange until something is wrong, at most `rounds` times; what each of them comes to, and in which round.
fn work(config: &Config, rounds: u32, each: impl Fn(u32, u32) + Sync) -> Vec<Result<(), (u32, Error)>> {
    on_ranks(config, 4, 1, |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, config).unwrap();
        let stream = exchange.gpu().stream().unwrap();
        for round in 1..=rounds {
            each(rank, round);
            match exchange_once(&mut exchange, &stream, &EVERYWHERE) {
                Ok(sums) => assert_eq!(sums, [2.0; 12]),
                Err(error) => {
                    let again = exchange_once(&mut exchange, &stream, &EVERYWHERE);
                    assert!(matches!(again, Err(Error::Failed)), "after {error}");
                    return Err((round, error));
                }
            }
        }
        // Nobody goes while others may still be sent to.
        meet(&exchange);
        Ok(())
    })
}

fn all_well(outcomes: &[Result<(), (u32, Error)>]) {
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn an_arena_in_the_hosts_memory() {
    for ordered in [true, false] {
        let internode = Internode { memory: ArenaMemory::Host, ..loopback(ordered) };
        all_well(&work(&Config { internode: Some(internode), ..small(ordered) }, 3, |_, _| {}));
    }
}

#[test]
fn a_killed_rank_is_an_error_everywhere_and_the_next_group_works() {
    for ordered in [true, false] {
        let config = small(ordered);
        let Some(Internode { via: Via::Loopback(net), .. }) = &config.internode else { unreachable!() };
        let outcomes = work(&config, 8, |rank, round| {
            if (rank, round) == (1, 4) {
                net.kill(1);
            }
        });
        for (rank, outcome) in (0..).zip(&outcomes) {
            // Of ranks on its node, too, which miss what it does not send, or what it has not heard of.
            match outcome {
                Err((4, Error::Link { rank: 1, cause: Cause::Local, .. })) if rank == 1 => {}
                Err((3 | 4, Error::Link { peer: 1, cause: Cause::Unreachable, .. } | Error::Late { .. }))
                    if rank != 1 => {}
                other => panic!("rank {rank}: {other:?}"),
            }
        }
        all_well(&work(&config, 3, |_, _| {}));
    }
}

#[test]
fn a_lost_write_is_an_error_of_its_connection() {
    let options = LoopbackOptions { lose_one_in: 300, delay_ns: 0..=3_000, ..LoopbackOptions::default() };
    let internode = Internode::new(Via::Loopback(Network::new(options)));
    let config = Config { internode: Some(internode), ..small(true) };
    let outcomes = work(&config, 200, |_, _| {});
    let lost = |outcome: &Result<(), (u32, Error)>| {
        matches!(outcome, Err((_, Error::Link { cause: Cause::Unreachable, .. })))
    };
    assert!(outcomes.iter().any(lost), "{outcomes:?}");
    let told =
        |outcome: &Result<(), (u32, Error)>| lost(outcome) || matches!(outcome, Err((_, Error::Late { .. })));
    assert!(outcomes.iter().all(told), "{outcomes:?}");
    all_well(&work(&small(true), 3, |_, _| {}));
}

/// What each rank's proxy has done for one dispatch, and then for its combine.
fn traffic(config: &Config, routings: &[Vec<i32>]) -> Vec<[ProxyStatistics; 2]> {
    on_ranks(config, routings.len() as u32, 1, |member| {
        let mut exchange = Exchange::new(member, config).unwrap();
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().unwrap();
        let topk_idx = &routings[exchange.rank() as usize];
        let tokens = topk_idx.len() / config.topk as usize;
        let x = gpu.upload(&vec![bf16::ONE; tokens * config.hidden as usize]).unwrap();
        let ids = gpu.upload(topk_idx).unwrap();
        let received = exchange.dispatch(&stream, &Input::new(&x, &ids, &ids, tokens as u32)).unwrap();
        exchange.finish(&stream).unwrap();
        meet(&exchange);
        let dispatched = exchange.proxy_statistics().unwrap();
        give_back(&mut exchange, &stream, &received, tokens * config.hidden as usize).unwrap();
        meet(&exchange);
        [dispatched, exchange.proxy_statistics().unwrap()]
    })
}

/// For each rank how many crossings of its tokens there are to be, one for each other node that a token goes to, and how many
/// rows other nodes' ranks get of them.
fn crossings(config: &Config, routings: &[Vec<i32>]) -> Vec<(u64, u64)> {
    let placement = Placement::new(routings.len(), config.experts as usize).unwrap();
    let per_node = config.ranks_per_node.unwrap() as usize;
    let of = |(rank, routing): (usize, &Vec<i32>)| {
        let far = |to: &usize| to / per_node != rank / per_node;
        routing.chunks(config.topk as usize).fold((0, 0), |(nodes, rows), experts| {
            let ranks: Vec<_> =
                (0..routings.len()).filter(far).filter(|&to| placement.goes_to(experts, to)).collect();
            let of_nodes = ranks.chunk_by(|a, b| a / per_node == b / per_node).count();
            (nodes + of_nodes as u64, rows + ranks.len() as u64)
        })
    };
    routings.iter().enumerate().map(of).collect()
}

/// Compares what crosses with what has to, byte by byte; gives the bytes of all messages.
fn check_traffic(config: &Config, routings: &[Vec<i32>]) -> u64 {
    let (ranks, per_node) = (routings.len() as u64, u64::from(config.ranks_per_node.unwrap()));
    let (topk, hidden) = (u64::from(config.topk), u64::from(config.hidden));
    let nodes = ranks / per_node;
    let crossings = crossings(config, routings);
    let traffic = traffic(config, routings);
    let message = 16 + 16 * topk + 2 * hidden;
    let partial = 2 * hidden + (4 * topk).next_multiple_of(16);
    let counts = 4 * (ranks + 4 + u64::from(config.experts).div_ceil(ranks)).next_multiple_of(4);
    let lanes = u64::from(config.internode.as_ref().unwrap().lanes);
    for (rank, [dispatched, all]) in (0..).zip(&traffic) {
        let own = crossings[rank as usize].0;
        // What the rail's other ranks send here goes back.
        let forwarded: u64 = (0..ranks)
            .filter(|source| source % per_node == rank % per_node && source / per_node != rank / per_node)
            .map(|source| {
                let placement = Placement::new(ranks as usize, config.experts as usize).unwrap();
                let node = rank / per_node * per_node;
                let here = |experts: &&[i32]| {
                    (node..node + per_node).any(|to| placement.goes_to(experts, to as usize))
                };
                routings[source as usize].chunks(topk as usize).filter(here).count() as u64
            })
            .sum();
        let far = ranks - per_node;
        assert_eq!(dispatched.bytes, own * message + far * counts, "rank {rank}");
        assert_eq!(all.bytes - dispatched.bytes, forwarded * partial, "rank {rank}");
        // Each far rank's counts and their signal. For each of the rail two signals for each lane, and a word.
        let told = 2 * far + (nodes - 1) * (2 * lanes + 1);
        assert_eq!(all.taken, own + forwarded + told, "rank {rank}");
        assert_eq!((all.dropped, all.posted), (0, all.taken), "rank {rank}");
    }
    crossings.iter().map(|(nodes, _)| nodes * message).sum()
}

#[test]
fn a_token_crosses_once_for_each_node() {
    let config = small(true);
    // For both ranks of the other node, one of them twice; for one; for none.
    let routings = [vec![4, 6, 5, 4, 0, 2], vec![], vec![-1, 0, 1, 0], vec![]];
    assert_eq!(crossings(&config, &routings)[0], (2, 3));
    check_traffic(&config, &routings);
}

#[test]
fn group_limited_gating_has_less_cross() {
    // 4 nodes of 2 ranks with 2 experts each; a group of experts is a node's.
    let (tokens, hidden) = (24, 32);
    let internode = loopback(false);
    let config = on_nodes(Config::new(16, 4, hidden, tokens), 2, internode);
    let bytes = |top_groups| {
        let gate = Gate::DeepSeekV3 { experts: 16, groups: 4, top_groups, topk: 4, scale: 1.0 };
        let router = Router::new(gate, hidden as usize, 7).unwrap();
        let routings: Vec<_> = (0..8)
            .map(|rank| {
                router.route(&oracle::hidden_states(rank, tokens as usize, hidden as usize)).unwrap().topk_idx
            })
            .collect();
        let crossings = crossings(&config, &routings);
        // Fewer cross than ranks get them.
        assert!(crossings.iter().all(|(nodes, rows)| nodes < rows), "{crossings:?}");
        assert!(crossings.iter().all(|&(nodes, _)| nodes <= top_groups as u64 * u64::from(tokens)));
        check_traffic(&config, &routings)
    };
    let (one, two, all) = (bytes(1), bytes(2), bytes(4));
    assert!(one < two && two < all, "{one}, {two}, {all}");
}

#[test]
fn settings_that_cannot_be() {
    let refusal = |change: fn(&mut Config)| {
        let mut config = small(true);
        change(&mut config);
        tokenrail::bytes_for(&config, 4).unwrap_err().to_string()
    };
    assert!(tokenrail::bytes_for(&small(true), 4).is_ok());
    assert_eq!(
        refusal(|config| config.ranks_per_node = Some(3)),
        "ranks_per_node = 3: with internode and tokens above 0 it must divide 4, the ranks"
    );
    assert_eq!(
        refusal(|config| config.copy_engine = true),
        "copy_engine = true: copy engines do not reach ranks of other nodes: it must be false with internode"
    );
    let sides = refusal(|config| config.sides = vec![1 << 21; 8]);
    assert!(sides.starts_with("sides = 16778"), "{sides}");
    let channels = refusal(|config| {
        (config.in_flight, config.low_latency) = (16, Some(LowLatency { depth: 97, ..LowLatency::new(1) }));
    });
    assert!(channels.starts_with("channels of all batches and dispatches in flight = 258: "), "{channels}");
}

#[test]
fn without_tokens_there_are_low_latency_calls_alone() {
    let low_latency = Some(LowLatency::new(4));
    let config = Config { tokens: 0, low_latency, ..small(true) };
    on_ranks(&config, 4, 1, |member| {
        let mut exchange = Exchange::new(member, &config).unwrap();
        let stream = exchange.gpu().stream().unwrap();
        let refused = exchange_once(&mut exchange, &stream, &[]).unwrap_err().to_string();
        assert!(refused.starts_with("tokens: 0, but with internode"), "{refused}");
        meet(&exchange);
    });
}
