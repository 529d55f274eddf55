//! Warp collectives against a plain model, and runs against themselves.

mod support;

use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::channel;
use support::{Log, Words, launch, options, run_with, store, wait};
use tokenrail_emulator::{Launch, Machine, Options, simt};

/// A lane's part of a round.
#[derive(Clone, Copy, Debug)]
struct Part {
    value: u64,
    source: u32,
    predicate: bool,
}

/// By lane: the number of its set, which acts together; lanes of set 0 take no part.
type Sets = [u8; 32];

fn mask_of(sets: &Sets, lane: usize) -> u32 {
    (0..32).filter(|&other| sets[other] == sets[lane]).fold(0, |mask, other| mask | 1 << other)
}

/// The lanes of `mask` for which `holds`.
fn lanes(mask: u32, holds: impl Fn(usize) -> bool) -> u32 {
    (0..32).filter(|&lane| mask >> lane & 1 != 0 && holds(lane)).fold(0, |lanes, lane| lanes | 1 << lane)
}

fn rounds() -> impl Strategy<Value = Vec<(Sets, [Part; 32])>> {
    let part = (0..4u64, 0..32u32, any::<bool>());
    let part = part.prop_map(|(value, source, predicate)| Part { value, source, predicate });
    let round = (prop::array::uniform32(0..4u8), prop::array::uniform32(part));
    prop::collection::vec(round, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sets run ahead of each other: lanes of one may wait for a lane that still has a round to do with another.
    #[test]
    fn sets_of_lanes_that_change_agree_with_a_plain_model(seed: u64, rounds in rounds()) {
        let wrong = Log::default();
        let rounds = Arc::new(rounds);
        let kernel = {
            let (wrong, rounds) = (wrong.clone(), rounds.clone());
            move || {
                let lane = simt::thread_index() as usize;
                for (round, (sets, parts)) in rounds.iter().enumerate() {
                    if sets[lane] != 0 {
                        let (mask, part) = (mask_of(sets, lane), parts[lane]);
                        // The model knows sources inside the mask only.
                        let source = if mask >> part.source & 1 != 0 { part.source } else { lane as u32 };
                        let ballot = simt::ballot(mask, part.predicate);
                        simt::preempt();
                        let shuffled = simt::shuffle(mask, part.value, source);
                        let equal = simt::match_any(mask, part.value);
                        let right = ballot == lanes(mask, |other| parts[other].predicate)
                            && shuffled == parts[source as usize].value
                            && equal == lanes(mask, |other| parts[other].value == part.value);
                        if !right {
                            wrong.push((round * 32 + lane) as u64);
                        }
                    }
                }
                simt::warp_barrier(u32::MAX);
            }
        };
        let outcome = run_with(options(seed), launch(1, 32), kernel);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
        prop_assert_eq!(wrong.entries(), Vec::<u64>::new(), "rounds and lanes that differ from the model");
    }
}

/// Two host threads, each with a device: each kernel writes itself down and answers the other. `first` launches first,
/// in real time.
fn handshake(seed: u64, first: usize) -> Vec<u64> {
    let machine = Machine::new(Options { devices: 2, ..options(seed) });
    let devices = [0, 1].map(|ordinal| machine.device(ordinal).expect("two devices"));
    let words = Words::new(&devices[0], 2);
    let flags = [words.address(0), words.address(1)];
    let log = Log::default();
    let (launched, other_launched) = channel::<()>();
    let (mut launched, mut other_launched) = (Some(launched), Some(other_launched));
    let threads = devices.map(|device| {
        let rank = device.ordinal();
        let log = log.clone();
        let before = if rank == first { launched.take() } else { None };
        let after = if rank == first { None } else { other_launched.take() };
        std::thread::spawn(move || {
            if let Some(other_launched) = after {
                other_launched.recv().expect("the first thread launches");
            }
            let stream = device.stream();
            let kernel = move || {
                for round in 1..=5 {
                    log.push(1000 * round + 100 * rank as u64 + u64::from(simt::thread_index()));
                    if simt::thread_index() == 0 {
                        store(flags[rank], round);
                        assert!(wait(flags[1 - rank], round, u64::MAX));
                    }
                    simt::barrier(0, 64);
                }
            };
            let size = Launch { name: "handshake", ..launch(1, 64) };
            stream.launch(size, Box::new(kernel)).expect("a launch within the limits");
            if let Some(launched) = before {
                launched.send(()).expect("the other thread waits");
            }
            stream.synchronize().expect("a correct kernel");
        })
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    log.entries()
}

#[test]
fn the_order_of_host_threads_in_real_time_does_not_matter() {
    let orders: HashSet<Vec<u64>> = (0..16)
        .map(|seed| {
            let order = handshake(seed, 0);
            assert_eq!(order, handshake(seed, 1), "seed {seed}");
            order
        })
        .collect();
    assert_eq!(orders.len(), 16, "seeds give orders of their own");
}
