//! Defects that kernels like these have had elsewhere, one by one, and what is said of each.

use crate::cases;
use crate::mutants::{Place, findings_of, mutants, place_of};
use tokenrail::gpu::emulator_check::Weakness::{self, Early, Narrow, Nothing};

/// Weakens the operation in this file and function, on the line that has this text, and looks for a finding that says all of
/// this.
#[track_caller]
fn is_found(case: &str, (file, function, line): (&str, &str, &str), weakness: Weakness, said: &[&str]) {
    let mut cases = cases::all();
    cases.retain(|other| other.name == case);
    let is_it = |place: &Place| place.0 == file && place.1 == function && place.2.contains(line);
    let all = mutants(&cases);
    let mut those =
        all.iter().filter(|(mutant, _)| mutant.weakness == weakness && is_it(&place_of(&mutant.site)));
    let Some(((mutant, _), None)) = those.next().map(|first| (first, those.next())) else {
        panic!("{file}: {function}: {line}: not one operation")
    };
    let told: Vec<_> = findings_of(mutant, &cases[0]).iter().map(ToString::to_string).collect();
    assert!(!told.is_empty(), "{mutant}: nothing was found");
    let says_all = |text: &String| said.iter().all(|part| text.contains(part));
    assert!(told.iter().any(says_all), "{mutant}: none of these says {said:?}:\n{}", told.join("\n"));
}

#[test]
fn a_missing_fence() {
    let fence = ("throughput/send.rs", "bulk", "bulk::fence_proxy_async()");
    is_found(
        "bulk",
        fence,
        Nothing,
        &["mbarrier_init at device/src/throughput/send.rs", "bulk_load", "(the copy)"],
    );
}

#[test]
fn the_scope_of_a_device_where_peers_look() {
    let flag = ("throughput/arrive.rs", "signal", "mem::store_release_sys_u64");
    is_found(
        "bulk",
        flag,
        Narrow,
        &["device/src/throughput/arrive.rs", "device 0", "device 1", "warp", "lane"],
    );
    let flag = ("throughput/combine.rs", "combine", "mem::store_release_sys_u64");
    is_found("plain", flag, Narrow, &["device/src/throughput/combine.rs", "device 0", "device 1", "launch"]);
}

#[test]
fn a_wrong_epoch() {
    let wait = ("wire.rs", "wait_flag", "mem::wait_at_least_acquire_sys");
    is_found("plain", wait, Early, &["device 0", "device 1"]);
}

#[test]
fn a_flag_before_its_data() {
    let flag = ("throughput/arrive.rs", "signal", "mem::store_release_sys_u64");
    is_found(
        "bulk",
        flag,
        Nothing,
        &["bulk_store at device/src/throughput/send.rs", "(the copy)", "read at"],
    );
    let flag = ("throughput/combine.rs", "combine", "mem::store_release_sys_u64");
    is_found("bulk", flag, Nothing, &["an operation of the stream", "device/src/throughput/pull.rs"]);
}

#[test]
fn a_forgotten_wait() {
    let wait = ("wire.rs", "wait_flag", "mem::wait_at_least_acquire_sys");
    is_found("plain", wait, Nothing, &["device 0", "device 1"]);
    let wait = ("throughput/pull.rs", "pull", "bulk::mbarrier_wait");
    is_found("bulk", wait, Nothing, &["bulk_load at device/src/throughput/pull.rs", "shared_load_quad"]);
}

#[test]
fn a_buffer_used_again_too_early() {
    let wait = ("throughput/send.rs", "bulk", "bulk::wait_read()");
    is_found("bulk", wait, Nothing, &["bulk_store at device/src/throughput/send.rs", "bulk_load"]);
}
