//! Networks within the process.

use proptest::prelude::*;
use tokenrail::fabric::{Arrival, LoopbackOptions, Network};
use tokenrail::{Config, Internode, Via};

/// The settings, with ranks on nodes that `network` joins.
pub fn on_nodes(config: Config, ranks_per_node: u32, internode: Internode) -> Config {
    Config { ranks_per_node: Some(ranks_per_node), internode: Some(internode), ..config }
}

/// A network with delays, that keeps the order of lanes or does not.
#[allow(dead_code, reason = "the GPUs' tests have none of the delays")]
pub fn loopback(ordered: bool) -> Internode {
    let options = LoopbackOptions { ordered, delay_ns: 100..=5_000, ..LoopbackOptions::default() };
    let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
    Internode { arrival, lanes: 2, ..Internode::new(Via::Loopback(Network::new(options))) }
}

/// Random networks: some keep the order of lanes, others count.
pub fn networks() -> impl Strategy<Value = Internode> {
    let parts = (any::<bool>(), any::<u16>(), 0u64..20_000, 1u32..5, 1u32..40);
    parts.prop_map(|(ordered, seed, delay_ns, lanes, depth)| {
        let options = LoopbackOptions {
            seed: seed.into(),
            delay_ns: 0..=delay_ns,
            ordered,
            depth,
            ..LoopbackOptions::default()
        };
        let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
        let via = Via::Loopback(Network::new(options));
        Internode { lanes, arrival, ring_log2: 6, ..Internode::new(via) }
    })
}
