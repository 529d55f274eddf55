//! Calls whose ranks are on different nodes, over a network within the process, on the emulator: results equal those of the
//! CPU reference, whatever the network's delays and order.

#[path = "common/low_latency.rs"]
#[allow(dead_code, reason = "a part of it")]
mod batches;
#[path = "common/input.rs"]
mod input;

use batches::{Case, Limits, cases, check, config, networks, on_nodes};
use proptest::prelude::*;
use tokenrail::fabric::{Arrival, LoopbackOptions, Network};
use tokenrail::{Backend, CombineFormat, DispatchFormat, Internode, LowLatency, Summation, Via};

fn network(ordered: bool) -> Internode {
    let options = LoopbackOptions { ordered, delay_ns: 100..=5_000, ..LoopbackOptions::default() };
    let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
    Internode { arrival, lanes: 2, ..Internode::new(Via::Loopback(Network::new(options))) }
}

#[test]
fn low_latency_between_two_nodes_of_one_rank() {
    for ordered in [true, false] {
        let config = on_nodes(config(8, 2, 64, LowLatency::new(9)), 1, network(ordered));
        check(&Case::new(config, &[&[9, 5]]), &Backend::emulator(1));
    }
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
                let config = on_nodes(config(7, 3, 1616, low_latency), 2, network(seed % 2 == 0));
                let case = Case::new(config, &[&[6, 3, 0, 2], &[1, 6, 6, 4]]);
                check(&case, &Backend::emulator(seed));
            }
        }
    }
}

#[test]
fn more_low_latency_ranks_than_lanes_of_a_warp() {
    let config = on_nodes(config(70, 6, 16, LowLatency::new(2)), 5, network(true));
    check(&Case::new(config, &[&[2; 35]]), &Backend::emulator(8));
}

#[test]
fn a_late_rank_costs_time_alone() {
    let low_latency = LowLatency { depth: 1, ..LowLatency::new(8) };
    let tokens: &[&[usize]] = &[&[8, 3, 5], &[0, 8, 8], &[4, 0, 1], &[8, 8, 8], &[2, 7, 0]];
    for (ordered, late) in [(true, 0), (false, 2)] {
        let config = on_nodes(config(12, 3, 528, low_latency.clone()), 1, network(ordered));
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
