//! Layout, dispatch and combine against the CPU reference, on the emulator.

mod common;

use common::random::Limits;
use common::{Back, Calls, Case, Where, check};
use proptest::prelude::*;
use tokenrail::{Backend, Config, Element, ExpertMajor, Half, Overflow, ScaleLayout, Transport};

#[test]
fn machine_beneath_the_kernels() {
    (0..20).for_each(|seed| common::probe::check(&Backend::emulator(seed)));
}

#[test]
fn formats_are_made_and_read() {
    (0..3).for_each(|seed| common::formats::check(&Backend::emulator(seed)));
}

#[test]
fn two_ranks() {
    check(&Case::new(Config::new(8, 2, 64, 40), &[&[40, 33]], 0), &Backend::emulator(1));
}

#[test]
fn rounds_follow_each_other() {
    let rounds: &[&[usize]] = &[&[9, 4, 7], &[0, 16, 3], &[16, 16, 16], &[1, 0, 0], &[0, 0, 0], &[5, 5, 5]];
    check(&Case::new(Config::new(12, 3, 128, 16), rounds, 5), &Backend::emulator(2));
}

#[test]
fn one_rank_alone() {
    check(&Case::new(Config::new(3, 3, 8, 5), &[&[5], &[2]], 3), &Backend::emulator(3));
}

#[test]
fn experts_that_ranks_do_not_divide() {
    // ceil(5 / 4) = 2: the ranks own 2, 2, 1 and 0.
    check(&Case::new(Config::new(5, 4, 24, 10), &[&[10, 1, 0, 7]], 4), &Backend::emulator(4));
}

#[test]
fn fp8_with_scales() {
    let config = Config { element: Element::Fp8E4m3, ..Config::new(16, 4, 272, 20) };
    check(&Case::new(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(5));
}

#[test]
fn f16_rows() {
    let config = Config { element: Element::F16, ..Config::new(16, 4, 136, 20) };
    check(&Case::new(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(13));
}

#[test]
fn fp8_with_packed_scales() {
    // Five groups: the second word of scales has one.
    let config = Config { element: Element::Fp8E4m3Ue8m0, ..Config::new(16, 4, 528, 20) };
    check(&Case::new(config.clone(), &[&[20, 11], &[3, 20]], 6), &Backend::emulator(14));
    check(&Case::new(Config { bulk_copy: Some(false), ..config }, &[&[20, 11]], 6), &Backend::emulator(15));
}

#[test]
fn opaque_rows() {
    // fp4: half a byte an element, and a byte of scale for 16 of them.
    let fp4 = Element::Opaque { row_bytes: 96, scale_words: 3 };
    let config = Config { element: fp4, ..Config::new(16, 4, 192, 20) };
    check(&Case::new(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(16));
    let without_scales = Element::Opaque { row_bytes: 16, scale_words: 0 };
    let config = Config { element: without_scales, bulk_copy: Some(false), ..Config::new(16, 4, 1024, 20) };
    check(&Case::new(config, &[&[20, 11]], 6), &Backend::emulator(17));
}

#[test]
fn rows_longer_than_a_buffer() {
    // 40 KB of bf16: three pieces in dispatch, many in combine.
    check(&Case::new(Config::new(4, 2, 20008, 3), &[&[3, 2]], 0), &Backend::emulator(6));
}

#[test]
fn more_ranks_than_a_mask_has_bits() {
    let tokens = [2; 35];
    check(&Case::new(Config::new(70, 6, 16, 2), &[&tokens], 3), &Backend::emulator(7));
}

#[test]
fn top_32_of_many_experts() {
    check(&Case::new(Config::new(1000, 32, 16, 70), &[&[70, 64, 1]], 2), &Backend::emulator(8));
}

#[test]
fn without_bulk_copies() {
    let config = Config { bulk_copy: Some(false), ..Config::new(16, 4, 264, 20) };
    check(&Case::new(config.clone(), &[&[20, 11], &[0, 20]], 6), &Backend::emulator(9));
    let config = Config { element: Element::Fp8E4m3, ..config };
    check(&Case::new(Config { hidden: 272, ..config }, &[&[20, 11]], 6), &Backend::emulator(10));
}

#[test]
fn more_blocks_than_tokens() {
    check(
        &Case::new(Config { sms: Some(7), ..Config::new(8, 2, 32, 4) }, &[&[4, 2], &[0, 1]], 0),
        &Backend::emulator(11),
    );
}

#[test]
fn exactly_as_many_rows_as_there_is_room_for() {
    // One expert, so that rank 0 receives every token and rank 1 none.
    let config = Config { receive_rows: Some(6), ..Config::new(1, 1, 16, 4) };
    check(&Case::new(config, &[&[4, 2], &[3, 3]], 0), &Backend::emulator(12));
}

/// The expert-major form, with room for everything.
fn aligned(alignment: u32) -> Option<ExpertMajor> {
    Some(ExpertMajor { alignment, rows: None })
}

fn with(case: Case, calls: Calls) -> Case {
    Case { calls, ..case }
}

#[test]
fn by_expert() {
    let config = Config { expert_major: aligned(4), ..Config::new(8, 3, 64, 40) };
    let case = Case::new(config, &[&[40, 33, 0], &[1, 0, 17], &[0, 0, 0]], 4);
    for (seed, outputs) in
        [(20, Where::ByExpert), (21, Where::ByExpertGiven), (22, Where::ByExpertUnweighted)]
    {
        check(&with(case.clone(), Calls { outputs, ..Calls::default() }), &Backend::emulator(seed));
    }
}

#[test]
fn by_expert_without_bulk_copies() {
    let config = Config {
        expert_major: aligned(16),
        bulk_copy: Some(false),
        element: Element::Fp8E4m3,
        ..Config::new(10, 4, 272, 20)
    };
    let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
    check(&with(Case::new(config, &[&[20, 9], &[2, 20]], 5), calls), &Backend::emulator(23));
}

#[test]
fn by_expert_with_rows_longer_than_a_buffer() {
    let config = Config { expert_major: aligned(2), ..Config::new(4, 3, 20008, 5) };
    let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
    check(&with(Case::new(config, &[&[5, 4]], 0), calls), &Backend::emulator(24));
}

#[test]
fn by_expert_with_too_little_room_leaves_pairs_out() {
    let expert_major = Some(ExpertMajor { alignment: 4, rows: Some(21) });
    let config = Config { expert_major, overflow: Overflow::Cap, ..Config::new(6, 3, 32, 12) };
    let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
    check(&with(Case::new(config, &[&[12, 10], &[3, 1], &[12, 12]], 4), calls), &Backend::emulator(25));
}

#[test]
fn too_little_room_leaves_rows_out() {
    let config = Config { receive_rows: Some(9), overflow: Overflow::Cap, ..Config::new(9, 4, 32, 12) };
    let calls = Calls { slots: Back::InPlace, follow: 1, ..Calls::default() };
    let rounds: &[&[usize]] = &[&[12, 10, 3], &[2, 1, 3], &[0, 12, 12]];
    check(&with(Case::new(config, rounds, 4), calls), &Backend::emulator(26));
}

#[test]
fn scales_by_word_on_both_sides() {
    for element in [Element::Fp8E4m3, Element::Fp8E4m3Ue8m0] {
        let config = Config {
            element,
            scale_layout: ScaleLayout::ColumnMajor,
            expert_major: aligned(8),
            ..Config::new(6, 2, 1040, 13)
        };
        let calls = Calls { scales_by_word: true, ..Calls::default() };
        check(&with(Case::new(config, &[&[13, 7], &[6, 0]], 5), calls), &Backend::emulator(27));
    }
}

#[test]
fn eight_sides() {
    let config = Config { sides: vec![4, 8, 132, 4, 12, 4, 64, 20], ..Config::new(6, 2, 16, 9) };
    check(&Case::new(config, &[&[9, 7], &[0, 8]], 3), &Backend::emulator(28));
}

#[test]
fn handles_are_followed() {
    let config = Config { expert_major: aligned(8), handles: Some(2), ..Config::new(6, 3, 64, 20) };
    let calls = Calls { outputs: Where::ByExpert, follow: 3, slots: Back::Foreign, ..Calls::default() };
    check(&with(Case::new(config, &[&[20, 3, 11], &[5, 5, 0]], 5), calls), &Backend::emulator(29));
}

#[test]
fn biases_slots_and_foreign_outputs_of_f16() {
    let config = Config { combined: Half::F16, element: Element::F16, ..Config::new(7, 4, 48, 11) };
    for (biases, outputs, slots) in
        [(1, Where::Rows, Back::Foreign), (2, Where::InPlace, Back::InPlace), (2, Where::Rows, Back::Nothing)]
    {
        let calls = Calls { biases, outputs, slots, ..Calls::default() };
        check(&with(Case::new(config.clone(), &[&[11, 4, 9]], 2), calls), &Backend::emulator(30));
    }
}

#[test]
fn copy_engines() {
    let config = Config { copy_engine: true, sides: vec![8], ..Config::new(9, 3, 64, 20) };
    let calls = Calls { transport: Transport::CopyEngine, follow: 1, biases: 1, ..Calls::default() };
    let case = with(Case::new(config, &[&[20, 3, 11], &[5, 0, 20], &[0, 0, 0]], 4), calls);
    check(&case, &Backend::emulator(31));
    let config = Config { element: Element::Fp8E4m3, bulk_copy: Some(false), ..case.config };
    check(&Case { config: Config { hidden: 144, ..config }, ..case }, &Backend::emulator(32));
}

#[test]
fn tokens_counted_on_the_device() {
    let config = Config { expert_major: aligned(4), ..Config::new(8, 2, 64, 30) };
    let calls = Calls { tokens_on_device: true, follow: 1, outputs: Where::ByExpert, ..Calls::default() };
    check(&with(Case::new(config, &[&[30, 7], &[0, 30], &[1, 1]], 4), calls), &Backend::emulator(33));
}

#[test]
fn several_in_flight_take_turns() {
    let config = Config { in_flight: 3, handles: Some(5), ..Config::new(8, 2, 64, 12) };
    let rounds: &[&[usize]] = &[&[12, 7], &[0, 9], &[5, 5], &[1, 12], &[12, 12]];
    check(
        &with(Case::new(config, rounds, 4), Calls { follow: 1, ..Calls::default() }),
        &Backend::emulator(34),
    );
}

#[test]
fn captured_overlapping_and_beside_each_other() {
    (0..8).for_each(|seed| common::overlap::check(&Backend::emulator(seed)));
}

/// What the emulator does in a moment.
const SMALL: Limits = Limits { ranks: 5, tokens: 24, eights: 40, rounds: 2, sms: 4 };

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_case_under_any_schedule(
        case in common::random::cases(SMALL),
        schedule in 0u64..1000,
    ) {
        check(&case, &Backend::emulator(schedule));
    }
}
