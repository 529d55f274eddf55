//! The settings of low-latency calls.

use super::{Config, ScaleLayout, refuse, within};
use crate::Error;
use tokenrail_device::low_latency::layout::{ArenaLayout, Element, Shape, Wire, WorkspaceLayout};

/// What a low-latency dispatch makes of its bf16 rows. Scales are of 128 channels each: amax / 448, or the least power
/// of two that is no smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DispatchFormat {
    /// The rows as they are.
    Bf16,
    /// FP8 e4m3 with f32 scales.
    #[default]
    Fp8,
    /// FP8 e4m3 with powers of two as scales, in f32.
    Fp8PowerOfTwo,
    /// FP8 e4m3 with powers of two as scales, packed as [`Element::Fp8E4m3Ue8m0`](crate::Element::Fp8E4m3Ue8m0) says.
    Fp8Ue8m0,
}

/// What the rows of a low-latency combine travel as. All but the first lose something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CombineFormat {
    /// bf16.
    #[default]
    Bf16,
    /// A sign and a 9-bit logarithm for each channel, between the least magnitude but 0 and the largest of 128 channels: 164
    /// bytes for them. Off by at most |v| · octaves / 1000, where `octaves` are the steps of bf16 between those two, rounded
    /// outward, over 128, and at most 32. Magnitudes below amax · 2^−32, or 2^−126 if that is more, are off by at most
    /// 0.504 of it; those above the largest bf16 count as that. What is not finite becomes NaN.
    Log10,
    /// FP8 e4m3 with an f32 scale for 128 channels: off by at most |v| / 16, or amax · 2^−18 if that is more, where amax
    /// counts as at least 1e-4. An infinity makes all of its 128 channels NaN.
    Fp8,
}

/// Where the weights of a token's experts are applied, and in what order its rows are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Summation {
    /// Each rank applies the weights that came with the dispatch to its own experts' rows, and sums them in f32 in the
    /// order of slots. One row for each (token, rank) travels; these are summed in f32 by ascending rank.
    #[default]
    ByRank,
    /// Every expert's row travels; the token's rank applies the weights that it gives the combine, and sums in f32 in the
    /// order of slots. As many times the bytes as a token has experts on a rank, and the sum is rounded only once.
    BySlot,
}

/// Settings of low-latency calls, beside those that they share with the others: experts, topk and hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowLatency {
    /// Most tokens that a rank dispatches in one call; at most 8192 slots.
    pub tokens: u32,
    /// Batches that may be under way at the same time, 1 to 16. Each has its own part of the arena.
    pub depth: u32,
    /// What rows are dispatched as.
    pub dispatch: DispatchFormat,
    /// How received scales lie, for each expert: `[rows, words]` or `[words, rows]`.
    pub scale_layout: ScaleLayout,
    /// What rows travel back as.
    pub combine: CombineFormat,
    /// Who applies weights.
    pub summation: Summation,
    /// Streaming multiprocessors that a kernel occupies, unless a call says otherwise. `None`: so many that a rank has them
    /// for all batches at once, up to `max_sms`; 2 on the emulator.
    pub sms: Option<u32>,
}

/// Most slots of all tokens of a call: every block keeps their experts in shared memory.
const MAX_SLOTS: u32 = 8192;
/// Most batches under way.
const MAX_DEPTH: u32 = 16;
/// Most rows of all experts of a rank, and most words of scales of one: their indices are 32 bits.
const MAX_ROWS: u64 = 1 << 31;

impl LowLatency {
    /// FP8 with f32 scales there and bf16 back, summed by rank; two batches under way.
    pub fn new(tokens: u32) -> Self {
        Self {
            tokens,
            depth: 2,
            dispatch: DispatchFormat::default(),
            scale_layout: ScaleLayout::RowMajor,
            combine: CombineFormat::default(),
            summation: Summation::default(),
            sms: None,
        }
    }

    /// What ranks must agree on.
    pub(super) fn shared(self) -> Self {
        Self { sms: None, ..self }
    }

    /// Checks the settings, those of `config` that they share apart.
    pub(super) fn shape(&self, config: &Config, ranks: u32, near_ranks: u32) -> Result<Shape, Error> {
        within("low_latency.tokens", self.tokens, 1, MAX_SLOTS / config.topk)?;
        within("low_latency.depth", self.depth, 1, MAX_DEPTH)?;
        if let Some(sms) = self.sms {
            within("low_latency.sms", sms, 1, config.max_sms)?;
        }
        if config.combined != super::Half::Bf16 {
            let limit = "low-latency rows are Bf16";
            return Err(refuse("combined", format!("{:?}", config.combined), limit));
        }
        let shape = Shape {
            ranks,
            near_ranks,
            experts: config.experts,
            topk: config.topk,
            hidden: config.hidden,
            tokens: self.tokens,
            element: match self.dispatch {
                DispatchFormat::Bf16 => Element::Bf16,
                DispatchFormat::Fp8 => Element::E4m3,
                DispatchFormat::Fp8PowerOfTwo => Element::E4m3PowerOfTwo,
                DispatchFormat::Fp8Ue8m0 => Element::E4m3Ue8m0,
            } as u32,
            column_major: (self.scale_layout == ScaleLayout::ColumnMajor).into(),
            wire: match self.combine {
                CombineFormat::Bf16 => Wire::Bf16,
                CombineFormat::Fp8 => Wire::E4m3,
                CombineFormat::Log10 => Wire::Log10,
            } as u32,
            by_slot: (self.summation == Summation::BySlot).into(),
        };
        if !shape.row_bytes().is_multiple_of(16) {
            let limit = format!(
                "a row of {:?} is {} bytes, and must be a multiple of 16",
                self.dispatch,
                shape.row_bytes()
            );
            return Err(refuse("hidden", config.hidden, limit));
        }
        let rows = u64::from(ranks) * u64::from(self.tokens);
        let most = rows * u64::from(shape.experts_per_rank().max(shape.scale_words()));
        if most >= MAX_ROWS {
            let limit =
                format!("ranks · tokens · (experts of a rank, or words of scales) must be below {MAX_ROWS}");
            return Err(refuse("low_latency.tokens", self.tokens, limit));
        }
        Ok(shape)
    }
}

/// Where things lie in the parts of an exchange's allocations that batches have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchPlan {
    pub shape: Shape,
    pub arena: ArenaLayout,
    pub work: WorkspaceLayout,
    pub depth: u32,
}

impl BatchPlan {
    pub(super) fn new(
        low_latency: &LowLatency,
        config: &Config,
        ranks: u32,
        near_ranks: u32,
    ) -> Result<Self, Error> {
        let shape = low_latency.shape(config, ranks, near_ranks)?;
        Ok(Self {
            shape,
            arena: ArenaLayout::new(&shape),
            work: WorkspaceLayout::new(&shape, config.max_sms),
            depth: low_latency.depth,
        })
    }

    pub(super) fn arena_bytes(&self) -> u64 {
        u64::from(self.depth) * self.arena.bytes
    }

    pub(super) fn workspace_bytes(&self) -> u64 {
        u64::from(self.depth) * self.work.bytes
    }
}
