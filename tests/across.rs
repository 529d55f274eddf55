//! Dispatch and combine of ranks on different nodes, over a network within the process, on the emulator: results equal those
//! of the CPU reference bit for bit, whatever the network's delays and order.

mod common;
#[path = "common/network.rs"]
mod network;

use common::random::Limits;
use common::{Case, check};
use network::{networks, on_nodes};
use proptest::prelude::*;
use tokenrail::fabric::{Arrival, LoopbackOptions, Network};
use tokenrail::{Backend, Config, Internode, Transport, Via};

fn loopback(ordered: bool) -> Internode {
    let options = LoopbackOptions { ordered, delay_ns: 100..=5_000, ..LoopbackOptions::default() };
    let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
    Internode { arrival, lanes: 2, ..Internode::new(Via::Loopback(Network::new(options))) }
}

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

/// What the emulator does in a moment.
const SMALL: Limits = Limits { ranks: 6, tokens: 24, eights: 40, rounds: 2, sms: 4 };

/// The case, with its ranks, at least two, on nodes of fewer.
fn on_fewer(case: Case, choice: usize, internode: Internode) -> Case {
    let ranks = case.tokens[0].len().max(2);
    let nodes: Vec<_> = (1..ranks).filter(|per_node| ranks.is_multiple_of(*per_node)).collect();
    let per_node = nodes[choice % nodes.len()] as u32;
    let tokens =
        case.tokens.iter().map(|round| round.iter().copied().cycle().take(ranks).collect()).collect();
    let config = Config { copy_engine: false, ..on_nodes(case.config.clone(), per_node, internode) };
    let calls = common::Calls { transport: Transport::Kernel, ..case.calls };
    Case { config, tokens, calls, ..case }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_case_over_any_network(
        case in common::random::cases(SMALL),
        nodes in 0usize..3,
        internode in networks(),
        schedule in 0u64..1000,
    ) {
        check(&on_fewer(case, nodes, internode), &Backend::emulator(schedule));
    }
}
