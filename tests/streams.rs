//! Streams, events, graphs and memory, on the emulator.

#[path = "common/streams.rs"]
mod checks;

use tokenrail::{Backend, Error, Group};

/// Each check is a test of its own, with a few interleavings.
macro_rules! on_the_emulator {
    ($($check:ident)*) => {$(
        #[test]
        fn $check() {
            (0..3).for_each(|seed| checks::$check(&Backend::emulator(seed)));
        }
    )*};
}

on_the_emulator! {
    streams_are_ordered_by_events
    the_host_waits_for_events
    gpus_are_ordered_by_events
    a_graph_does_its_work_again_at_every_launch
    a_capture_forks_and_joins
    an_exchange_is_captured
    what_a_capture_refuses
    a_stream_goes_on_after_a_capture_that_failed
    what_streams_refuse
    allocated_bytes_are_what_was_asked_for
}

#[test]
fn the_checks_are_all_run() {
    checks::check(&Backend::emulator(4));
}

#[test]
fn the_emulator_has_no_foreign_streams() {
    let member = Group::in_process(1, &Backend::emulator(0)).unwrap().remove(0);
    assert_eq!(member.gpu().stream().unwrap().raw(), None);
    // SAFETY: the emulator looks at no handle.
    let refused = unsafe { member.gpu().stream_from_raw(0) };
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
}
