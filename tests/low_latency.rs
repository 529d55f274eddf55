//! Low-latency calls against the CPU reference, on the emulator.

#[path = "common/low_latency.rs"]
mod batches;
#[path = "common/input.rs"]
mod input;

use batches::{Case, Limits, cases, check, config};
use proptest::prelude::*;
use tokenrail::{Backend, CombineFormat, DispatchFormat, LowLatency, ScaleLayout, Summation};

#[test]
fn two_ranks() {
    check(&Case::new(config(8, 2, 64, LowLatency::new(9)), &[&[9, 5]]), &Backend::emulator(1));
}

#[test]
fn every_format_there_and_back() {
    for (seed, dispatch) in (0..).zip([
        DispatchFormat::Bf16,
        DispatchFormat::Fp8,
        DispatchFormat::Fp8PowerOfTwo,
        DispatchFormat::Fp8Ue8m0,
    ]) {
        for combine in [CombineFormat::Bf16, CombineFormat::Fp8, CombineFormat::Log10] {
            for summation in [Summation::ByRank, Summation::BySlot] {
                // More than a tile of either kind, and a group that is not whole.
                let low_latency = LowLatency { dispatch, combine, summation, ..LowLatency::new(6) };
                let case = Case::new(config(7, 3, 1616, low_latency), &[&[6, 3, 0], &[1, 6, 6]]);
                check(&case, &Backend::emulator(seed));
            }
        }
    }
}

#[test]
fn batches_follow_each_other() {
    let tokens: &[&[usize]] = &[&[8, 0, 3], &[0, 0, 0], &[1, 8, 8], &[8, 8, 8], &[0, 1, 0], &[2, 2, 2]];
    let case = Case::new(config(12, 4, 128, LowLatency::new(8)), tokens);
    check(&case, &Backend::emulator(2));
    check(&Case { halves: true, ..case.clone() }, &Backend::emulator(3));
    check(&Case { tokens_on_device: true, ..case }, &Backend::emulator(4));
}

#[test]
fn one_rank_alone() {
    check(&Case::new(config(3, 3, 16, LowLatency::new(5)), &[&[5], &[2]]), &Backend::emulator(5));
}

#[test]
fn experts_that_ranks_do_not_divide() {
    // ceil(5 / 4) = 2: the ranks own 2, 2, 1 and 0.
    check(&Case::new(config(5, 4, 32, LowLatency::new(7)), &[&[7, 1, 0, 7]]), &Backend::emulator(6));
}

#[test]
fn top_32_of_many_experts() {
    let low_latency = LowLatency { summation: Summation::BySlot, ..LowLatency::new(40) };
    check(&Case::new(config(1000, 32, 16, low_latency), &[&[40, 33, 1]]), &Backend::emulator(7));
}

#[test]
fn more_ranks_than_lanes() {
    check(&Case::new(config(70, 6, 16, LowLatency::new(2)), &[&[2; 35]]), &Backend::emulator(8));
}

#[test]
fn scales_for_grouped_gemms() {
    for dispatch in [DispatchFormat::Fp8, DispatchFormat::Fp8Ue8m0] {
        let scale_layout = ScaleLayout::ColumnMajor;
        let low_latency = LowLatency { dispatch, scale_layout, ..LowLatency::new(5) };
        check(&Case::new(config(6, 2, 1040, low_latency), &[&[5, 4, 3]]), &Backend::emulator(9));
    }
}

#[test]
fn graphs_are_replayed_with_other_tokens() {
    (0..2).for_each(|seed| batches::replays(&Backend::emulator(seed), 9));
}

#[test]
fn a_late_rank_costs_time_alone() {
    (0..3).for_each(|seed| batches::late_rank(&Backend::emulator(seed)));
}

/// What the emulator does in a moment.
const SMALL: Limits = Limits { ranks: 4, tokens: 12, sixteens: 130, batches: 4, sms: 4 };

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_case_in_any_order_under_any_schedule(case in cases(SMALL), schedule in 0u64..1000) {
        check(&case, &Backend::emulator(schedule));
    }
}
