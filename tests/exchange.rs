//! Layout, dispatch and combine against the CPU reference, on the emulator.

mod common;

use common::{Case, check};
use proptest::prelude::*;
use tokenrail::{Backend, Config, Element};

fn case(config: Config, tokens: &[&[usize]], mask_one_in: u64) -> Case {
    Case { config, tokens: tokens.iter().map(|tokens| tokens.to_vec()).collect(), mask_one_in, seed: 1 }
}

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
    check(&case(Config::new(8, 2, 64, 40), &[&[40, 33]], 0), &Backend::emulator(1));
}

#[test]
fn rounds_follow_each_other() {
    let rounds: &[&[usize]] = &[&[9, 4, 7], &[0, 16, 3], &[16, 16, 16], &[1, 0, 0], &[0, 0, 0], &[5, 5, 5]];
    check(&case(Config::new(12, 3, 128, 16), rounds, 5), &Backend::emulator(2));
}

#[test]
fn one_rank_alone() {
    check(&case(Config::new(3, 3, 8, 5), &[&[5], &[2]], 3), &Backend::emulator(3));
}

#[test]
fn experts_that_ranks_do_not_divide() {
    // ceil(5 / 4) = 2: the ranks own 2, 2, 1 and 0.
    check(&case(Config::new(5, 4, 24, 10), &[&[10, 1, 0, 7]], 4), &Backend::emulator(4));
}

#[test]
fn fp8_with_scales() {
    let config = Config { element: Element::Fp8E4m3, ..Config::new(16, 4, 272, 20) };
    check(&case(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(5));
}

#[test]
fn f16_rows() {
    let config = Config { element: Element::F16, ..Config::new(16, 4, 136, 20) };
    check(&case(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(13));
}

#[test]
fn fp8_with_packed_scales() {
    // Five groups: the second word of scales has one.
    let config = Config { element: Element::Fp8E4m3Ue8m0, ..Config::new(16, 4, 528, 20) };
    check(&case(config.clone(), &[&[20, 11], &[3, 20]], 6), &Backend::emulator(14));
    check(&case(Config { bulk_copy: Some(false), ..config }, &[&[20, 11]], 6), &Backend::emulator(15));
}

#[test]
fn opaque_rows() {
    // fp4: half a byte an element, and a byte of scale for 16 of them.
    let fp4 = Element::Opaque { row_bytes: 96, scale_words: 3 };
    let config = Config { element: fp4, ..Config::new(16, 4, 192, 20) };
    check(&case(config, &[&[20, 11], &[3, 20]], 6), &Backend::emulator(16));
    let without_scales = Element::Opaque { row_bytes: 16, scale_words: 0 };
    let config = Config { element: without_scales, bulk_copy: Some(false), ..Config::new(16, 4, 1024, 20) };
    check(&case(config, &[&[20, 11]], 6), &Backend::emulator(17));
}

#[test]
fn rows_longer_than_a_buffer() {
    // 40 KB of bf16: three pieces in dispatch, many in combine.
    check(&case(Config::new(4, 2, 20008, 3), &[&[3, 2]], 0), &Backend::emulator(6));
}

#[test]
fn more_ranks_than_a_mask_has_bits() {
    let tokens = [2; 35];
    check(&case(Config::new(70, 6, 16, 2), &[&tokens], 3), &Backend::emulator(7));
}

#[test]
fn top_32_of_many_experts() {
    check(&case(Config::new(1000, 32, 16, 70), &[&[70, 64, 1]], 2), &Backend::emulator(8));
}

#[test]
fn without_bulk_copies() {
    let config = Config { bulk_copy: Some(false), ..Config::new(16, 4, 264, 20) };
    check(&case(config.clone(), &[&[20, 11], &[0, 20]], 6), &Backend::emulator(9));
    let config = Config { element: Element::Fp8E4m3, ..config };
    check(&case(Config { hidden: 272, ..config }, &[&[20, 11]], 6), &Backend::emulator(10));
}

#[test]
fn more_blocks_than_tokens() {
    check(
        &case(Config { sms: Some(7), ..Config::new(8, 2, 32, 4) }, &[&[4, 2], &[0, 1]], 0),
        &Backend::emulator(11),
    );
}

#[test]
fn exactly_as_many_rows_as_there_is_room_for() {
    // One expert, so that rank 0 receives every token and rank 1 none.
    let config = Config { receive_rows: Some(6), ..Config::new(1, 1, 16, 4) };
    check(&case(config, &[&[4, 2], &[3, 3]], 0), &Backend::emulator(12));
}

const ELEMENTS: [Element; 5] = [
    Element::Bf16,
    Element::F16,
    Element::Fp8E4m3,
    Element::Fp8E4m3Ue8m0,
    Element::Opaque { row_bytes: 48, scale_words: 2 },
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_under_any_schedule(
        ranks in 1usize..6,
        experts in 1u32..40,
        slots in 1u32..9,
        eights in 1u32..40,
        element in prop::sample::select(&ELEMENTS[..]),
        plain in any::<bool>(),
        sms in 1u32..4,
        mask_one_in in 0u64..6,
        counts in proptest::collection::vec(0usize..24, 15),
        seed in 0u64..1000,
    ) {
        let hidden = eights * 8 * if element.row_bytes(8) < 16 { 2 } else { 1 };
        let config = Config {
            element,
            sms: Some(sms),
            bulk_copy: Some(!plain),
            ..Config::new(experts, slots.min(experts), hidden, 24)
        };
        let tokens = counts.chunks(5).map(|round| round[..ranks].to_vec()).collect();
        check(&Case { config, tokens, mask_one_in, seed }, &Backend::emulator(seed));
    }
}
