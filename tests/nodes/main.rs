//! Exchanges whose nodes are processes of their own, over real verbs devices: a NIC, or Soft-RoCE in scripts/rdma-testbed.
//! Kernels run on the emulator, and every result is compared with the CPU reference. Where there is no device the tests say
//! so and pass, unless TOKENRAIL_REQUIRE_VERBS is set.
#![cfg(feature = "rdma")]

#[path = "../common/low_latency.rs"]
#[allow(dead_code, reason = "a part of it")]
mod batches;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "a part of it")]
mod common;
mod node;
mod processes;
#[path = "../skip/mod.rs"]
mod skip;

use common::input;
use node::{Node, devices};
use processes::{Pair, in_turn};
use std::time::Duration;

/// What a process does that a test has started: nothing in a run of all tests.
#[test]
fn a_node() {
    if let Some(node) = Node::from_environment() {
        node.run();
    }
}

#[test]
fn two_machines_compute_what_one_does() {
    let Some(devices) = devices() else { return };
    match Node::of_machine(&devices[0]) {
        Some(node) => node.run(),
        None => skip::skipped("no second machine: TOKENRAIL_RANK and TOKENRAIL_ADDRESSES name none"),
    }
}

#[test]
fn two_processes_compute_what_one_does() {
    let Some(devices) = devices() else { return };
    let _turn = in_turn();
    Pair::start(&devices, "compare").both_end_well();
}

#[test]
fn a_killed_process_is_an_error_of_the_other_and_the_next_group_works() {
    let Some(devices) = devices() else { return };
    let _turn = in_turn();
    let mut pair = Pair::start(&devices, "rounds");
    pair.wait_for_round(5);
    pair.kill(1);
    let errors = pair.errors_of(0);
    for error in &errors {
        assert!(is_lost(error) || is_late(error, &[2, 3]), "{errors:?}");
    }
    Pair::start(&devices, "compare").both_end_well();
}

#[test]
fn a_link_that_goes_down_is_an_error_of_both_and_the_next_group_works() {
    let Some(devices) = devices() else { return };
    let _turn = in_turn();
    if devices.len() < 2 || !processes::has_cable() {
        return skip::skipped("no cable to pull: the test bed's has one");
    }
    let mut pair = Pair::start(&devices, "rounds");
    pair.wait_for_round(5);
    processes::cable(false);
    let errors = [pair.errors_of(0), pair.errors_of(1)];
    processes::cable(true);
    for (process, errors) in errors.iter().enumerate() {
        for error in errors {
            let peers = if process == 0 { [2, 3] } else { [0, 1] };
            assert!(is_lost(error) || is_late(error, &peers) || error.contains("port is down"), "{errors:?}");
        }
    }
    Pair::start(&devices, "compare").both_end_well();
}

#[test]
fn a_process_that_stalls_is_late() {
    let Some(devices) = devices() else { return };
    let _turn = in_turn();
    let mut pair = Pair::start(&devices, "stall");
    let errors = pair.errors_of(0);
    assert!(errors.iter().all(|error| is_late(error, &[2, 3])), "{errors:?}");
    pair.let_go(1);
    assert!(pair.wait(1, Duration::from_secs(60)), "the stalled process ends well when it is let go");
}

#[test]
fn a_process_with_another_secret_is_kept_out() {
    let Some(devices) = devices() else { return };
    let _turn = in_turn();
    let mut pair = Pair::start(&devices, "secret");
    let (host, guest) = (pair.errors_of(0), pair.errors_of(1));
    assert!(guest[0].contains("secret"), "{guest:?}");
    // Whoever it was has proved nothing: process 0 can only say who is missing.
    assert!(host[0].contains('1'), "{host:?}");
}

fn is_lost(error: &str) -> bool {
    error.contains("lost lane")
}

fn is_late(error: &str, peers: &[u32]) -> bool {
    peers.iter().any(|peer| error.contains(&format!("rank {peer} is late")))
}
