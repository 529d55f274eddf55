//! Warp collectives against a plain model.

mod common;
use common::*;
use proptest::prelude::*;
use std::sync::Arc;
use tokenrail_emulator::{Machine, Options, simt};

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
        let machine = Machine::new(Options { seed, preempt_one_in: 4, ..Options::default() });
        let outcome = run_on(&machine.device(0).unwrap(), (1, 32), 0, kernel);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
        prop_assert_eq!(wrong.entries(), Vec::<u64>::new(), "rounds and lanes that differ from the model");
    }
}
