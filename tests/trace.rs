//! What kernels record of themselves, on the emulator.

#[path = "common/input.rs"]
#[allow(dead_code, reason = "part of it is for tests that compare with the reference")]
mod input;
#[path = "common/network.rs"]
#[allow(dead_code, reason = "random networks are for others")]
mod network;
#[path = "common/trace.rs"]
mod traced;

use std::collections::BTreeSet;
use tokenrail::low_latency::{Input as FewInput, Rows, Sums};
use tokenrail::trace::{Activity, Operation};
use tokenrail::{Backend, Config, Error, Exchange, ExpertMajor, Group, Input, LowLatency};
use traced::{Of, check, exchange, is_sane};

#[test]
fn both_kinds_of_calls_are_recorded_and_come_to_the_same() {
    let config = Config { low_latency: Some(LowLatency::new(20)), ..Config::new(16, 3, 128, 20) };
    check(&config, 3, 20, &Backend::emulator(1));
}

#[test]
fn every_form_is_recorded() {
    let config = Config::new(16, 3, 64, 20);
    let plain = Config { bulk_copy: Some(false), ..config.clone() };
    let by_expert = Config { expert_major: Some(ExpertMajor { alignment: 4, rows: None }), ..config };
    check(&plain, 2, 20, &Backend::emulator(2));
    check(&by_expert, 2, 20, &Backend::emulator(3));
    check(&Config { bulk_copy: Some(false), ..by_expert.clone() }, 2, 20, &Backend::emulator(4));
    for outcome in exchange(&by_expert, 2, 20, &Backend::emulator(5), Some(100_000)) {
        let dispatch = Of::operation(&outcome.trace, Operation::Dispatch);
        let from: BTreeSet<u32> = (0..2).flat_map(|block| dispatch.peers(Activity::Expand, block)).collect();
        assert_eq!(from, BTreeSet::from([0, 1]));
        assert!(!dispatch.blocks(Activity::Pad).is_empty());
    }
}

#[test]
fn ways_between_nodes_are_recorded() {
    let config = || {
        let config = Config { low_latency: Some(LowLatency::new(9)), ..Config::new(16, 4, 64, 9) };
        network::on_nodes(config, 2, network::loopback(true))
    };
    let untraced = exchange(&config(), 4, 9, &Backend::emulator(6), None);
    let traced = exchange(&config(), 4, 9, &Backend::emulator(6), Some(100_000));
    for (rank, (untraced, traced)) in (0u32..).zip(untraced.iter().zip(&traced)) {
        assert!(untraced.written == traced.written);
        assert_eq!(traced.trace.lost, 0);
        is_sane(4, &traced.trace.spans);
        let (dispatch, combine) = (
            Of::operation(&traced.trace, Operation::Dispatch),
            Of::operation(&traced.trace, Operation::Combine),
        );
        for activity in [Activity::Pack, Activity::WaitForwarded, Activity::Forward, Activity::WaitMessages] {
            assert!(!dispatch.blocks(activity).is_empty(), "{activity:?}");
        }
        for activity in [Activity::WaitPartials, Activity::SumForward] {
            assert!(!combine.blocks(activity).is_empty(), "{activity:?}");
        }
        // The rail's other rank is the only one that messages come from.
        let rail = BTreeSet::from([(rank + 2) % 4]);
        for &block in &dispatch.blocks(Activity::WaitMessages) {
            assert_eq!(dispatch.peers(Activity::WaitMessages, block), rail);
        }
    }
}

#[test]
fn what_finds_no_room_is_counted() {
    let config = Config::new(16, 3, 64, 20);
    let [whole, cut] =
        [100_000, 100].map(|marks| exchange(&config, 2, 20, &Backend::emulator(7), Some(marks)));
    for (whole, cut) in whole.iter().zip(&cut) {
        assert!(whole.written == cut.written);
        assert_eq!(whole.trace.lost, 0);
        assert!(!cut.trace.spans.is_empty() && cut.trace.spans.len() < 100);
        // Some marks begin what others end.
        assert!(cut.trace.lost as usize + 100 >= whole.trace.spans.len());
        is_sane(2, &cut.trace.spans);
    }
}

#[test]
fn graphs_record_as_they_were_captured() -> Result<(), Error> {
    let member = Group::in_process(1, &Backend::emulator(8))?.remove(0);
    let config = Config { low_latency: Some(LowLatency::new(4)), ..Config::new(4, 2, 64, 4) };
    let mut exchange = Exchange::new(member, &config)?;
    let gpu = exchange.gpu().clone();
    let stream = gpu.stream()?;
    let x = gpu.upload(&[half::bf16::ONE; 4 * 64])?;
    let topk_idx = gpu.upload(&[0, 3, 1, 2, 2, -1, 3, 0])?;
    let topk_weights = gpu.upload(&[0.5f32; 8])?;
    let (rows, scales) = (gpu.alloc(4 * 4 * 64)?, gpu.alloc(4 * 4 * 4)?);
    let y = gpu.alloc_zeroed(4 * 4 * 64 * 2)?;
    let combined = gpu.alloc(4 * 64 * 2)?;
    let calls = |exchange: &mut Exchange| {
        let received = exchange.dispatch(&stream, &Input::new(&x, &topk_idx, &topk_weights, 4))?;
        exchange.combine(&stream, &received, &combined)?;
        let mut calls = exchange.low_latency()?;
        let input = FewInput::new(&x, &topk_idx, &topk_weights, 4);
        let batch = calls.dispatch(&stream, &input, &Rows::fp8(&rows, &scales))?;
        calls.combine(&stream, &batch, &y, &Sums::new(&combined))
    };
    let ((), untraced) = stream.capture(|| calls(&mut exchange))?;
    exchange.start_trace(10_000)?;
    let ((), traced) = stream.capture(|| calls(&mut exchange))?;
    untraced.launch(&stream)?;
    let trace = exchange.stop_trace(&stream)?;
    assert_eq!((trace.spans.len(), trace.lost), (0, 0), "nothing that was launched is traced");

    exchange.start_trace(10_000)?;
    traced.launch(&stream)?;
    traced.launch(&stream)?;
    let trace = exchange.stop_trace(&stream)?;
    is_sane(1, &trace.spans);
    for operation in Operation::ALL {
        assert!(trace.spans.iter().any(|span| span.operation == operation), "{operation:?}");
    }
    let meetings = |operation| Of::operation(&trace, operation).blocks(Activity::Meet).len();
    assert!(meetings(Operation::Dispatch) > 0 && meetings(Operation::Combine) > 0);
    // Calls that follow are not traced, and what the graph does now goes where nobody looks.
    calls(&mut exchange)?;
    traced.launch(&stream)?;
    exchange.finish(&stream)
}

#[test]
fn what_is_not_possible_is_refused() -> Result<(), Error> {
    let member = Group::in_process(1, &Backend::emulator(9))?.remove(0);
    let mut exchange = Exchange::new(member, &Config::new(4, 2, 64, 4))?;
    let stream = exchange.gpu().stream()?;
    let refusal = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert!(refusal(exchange.start_trace(0)).contains("marks: 0, but it must be 1 to 1073741824"));
    assert!(refusal(exchange.start_trace(u32::MAX)).contains("marks: 4294967295"));
    assert!(refusal(exchange.stop_trace(&stream).map(drop)).contains("call start_trace before"));
    exchange.start_trace(10)?;
    let started = stream.capture(|| exchange.start_trace(10)).map(drop);
    assert!(refusal(started).contains("a write is not possible"));
    assert_eq!(exchange.stop_trace(&stream)?, Default::default());
    assert!(refusal(exchange.stop_trace(&stream).map(drop)).contains("call start_trace before"));
    Ok(())
}
