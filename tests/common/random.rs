//! Random cases: any shape, any settings, asked for in any way.

use super::{Back, Calls, Case, Where};
use proptest::prelude::*;
use tokenrail::{Config, Element, ExpertMajor, Half, Internode, Overflow, ScaleLayout, Transport};

/// How large they may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ranks.
    pub ranks: usize,
    /// Tokens of a rank.
    pub tokens: u32,
    /// Elements of a row, in eights.
    pub eights: u32,
    /// Rounds.
    pub rounds: usize,
    /// Multiprocessors of a call.
    pub sms: u32,
}

/// Cases within limits.
pub fn cases(limits: Limits) -> impl Strategy<Value = Case> {
    (shapes(limits), settings(), calls(limits), 0u64..1000)
        .prop_map(move |(shape, settings, calls, seed)| fit(limits, shape, settings, calls, seed))
}

const ELEMENTS: [Element; 5] = [
    Element::Bf16,
    Element::F16,
    Element::Fp8E4m3,
    Element::Fp8E4m3Ue8m0,
    Element::Opaque { row_bytes: 48, scale_words: 2 },
];

/// The shape of a random case.
#[derive(Clone, Debug)]
struct Shape {
    ranks: usize,
    ranks_per_node: usize,
    experts: u32,
    slots: u32,
    eights: u32,
    counts: Vec<usize>,
    mask_one_in: u64,
}

/// Its settings beside the shape.
#[derive(Clone, Debug)]
struct Settings {
    element: Element,
    combined: Half,
    column_major: bool,
    sides: Vec<u32>,
    alignment: Option<u32>,
    /// In percent of what cannot overflow.
    room: Option<u64>,
    plain: bool,
    copy_engine: bool,
    in_flight: u32,
}

fn shapes(limits: Limits) -> impl Strategy<Value = Shape> {
    let Limits { ranks, tokens, eights, rounds, .. } = limits;
    // Every so often none.
    let tokens = prop_oneof![1 => Just(0), 8 => 0..=tokens as usize];
    let counts = proptest::collection::vec(tokens, ranks * rounds);
    (1..=ranks, 1..=ranks, 1u32..40, 1u32..9, 1..=eights, counts, 0u64..6).prop_map(
        |(ranks, per_node, experts, slots, eights, counts, mask_one_in)| Shape {
            ranks,
            ranks_per_node: per_node.min(ranks),
            experts,
            slots: slots.min(experts),
            eights,
            counts,
            mask_one_in,
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    (
        prop::sample::select(&ELEMENTS[..]),
        prop::sample::select(&[Half::Bf16, Half::F16][..]),
        any::<bool>(),
        proptest::collection::vec((1u32..20).prop_map(|words| 4 * words), 0..4),
        proptest::option::of(prop::sample::select(&[1, 2, 4, 8, 16][..])),
        proptest::option::of(0u64..120),
        any::<bool>(),
        any::<bool>(),
        1u32..4,
    )
        .prop_map(
            |(element, combined, column_major, sides, alignment, room, plain, copy_engine, in_flight)| {
                Settings {
                    element,
                    combined,
                    column_major,
                    sides,
                    alignment,
                    room,
                    plain,
                    copy_engine,
                    in_flight,
                }
            },
        )
}

fn calls(limits: Limits) -> impl Strategy<Value = Calls> {
    let outputs =
        [Where::InPlace, Where::Rows, Where::ByExpert, Where::ByExpertGiven, Where::ByExpertUnweighted];
    (
        any::<bool>(),
        any::<bool>(),
        1..=limits.sms,
        prop::sample::select(outputs.to_vec()),
        0usize..3,
        prop::sample::select(vec![Back::Nothing, Back::InPlace, Back::Foreign]),
        0usize..3,
    )
        .prop_map(|(tokens_on_device, scales_by_word, sms, outputs, biases, slots, follow)| Calls {
            tokens_on_device,
            scales_by_word,
            transport: Transport::Kernel,
            sms: Some(sms),
            outputs,
            biases,
            slots,
            follow,
        })
}

/// Makes the parts of a case fit each other.
fn fit(limits: Limits, shape: Shape, settings: Settings, mut calls: Calls, seed: u64) -> Case {
    let Shape { ranks, experts, slots, .. } = shape;
    let hidden = shape.eights * 8 * if settings.element.row_bytes(8) < 16 { 2 } else { 1 };
    let most = ranks as u64 * u64::from(limits.tokens);
    let percent = settings.room.unwrap_or(100).min(100);
    let by_expert = settings.alignment.map(|alignment| {
        let rows = most * u64::from(slots) * percent / 100;
        ExpertMajor { alignment, rows: settings.room.map(|_| rows.max(1) as u32) }
    });
    if by_expert.is_none() && !matches!(calls.outputs, Where::InPlace | Where::Rows) {
        calls.outputs = Where::InPlace;
    }
    if settings.copy_engine && by_expert.is_none() {
        calls.transport = Transport::CopyEngine;
    }
    let config = Config {
        element: settings.element,
        combined: settings.combined,
        scale_layout: if settings.column_major { ScaleLayout::ColumnMajor } else { ScaleLayout::RowMajor },
        sides: settings.sides,
        receive_rows: settings.room.filter(|_| by_expert.is_none()).map(|_| (most * percent / 100) as u32),
        expert_major: by_expert,
        overflow: if settings.room.is_some() { Overflow::Cap } else { Overflow::Fail },
        ranks_per_node: Some(shape.ranks_per_node as u32),
        copy_engine: settings.copy_engine,
        in_flight: settings.in_flight,
        handles: Some(settings.in_flight + 1),
        bulk_copy: Some(!settings.plain),
        ..Config::new(experts, slots, hidden, limits.tokens)
    };
    let tokens = shape.counts.chunks(limits.ranks).map(|round| round[..ranks].to_vec()).collect();
    Case { config, tokens, mask_one_in: shape.mask_one_in, seed, calls }
}

/// The case, with its ranks, of which there are two then at least, on nodes of fewer: `choice` says of how many.
#[allow(dead_code, reason = "not all tests have nodes")]
pub fn on_nodes_of_fewer(case: Case, choice: usize, internode: Internode) -> Case {
    let ranks = case.tokens[0].len().max(2);
    let sizes: Vec<_> = (1..ranks).filter(|per_node| ranks.is_multiple_of(*per_node)).collect();
    let of_round = |round: &Vec<usize>| round.iter().copied().cycle().take(ranks).collect();
    let tokens = case.tokens.iter().map(of_round).collect();
    let config = Config {
        ranks_per_node: Some(sizes[choice % sizes.len()] as u32),
        internode: Some(internode),
        copy_engine: false,
        ..case.config.clone()
    };
    let calls = Calls { transport: Transport::Kernel, ..case.calls };
    Case { config, tokens, calls, ..case }
}
