//! The settings of low-latency calls.

use super::ScaleLayout;

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
    /// A sign and a 9-bit logarithm for each channel, between the least and the largest magnitude of 128 channels: 164
    /// bytes for them. Off by at most |v| · octaves / 1018, where `octaves` lie between those two, at most 32; magnitudes
    /// below amax · 2^−32 are off by at most half of that.
    Log10,
    /// FP8 e4m3 with an f32 scale for 128 channels: off by at most |v| / 16, or amax · 2^−18 if that is more.
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
    /// Streaming multiprocessors that a kernel occupies, unless a call says otherwise. `None`: as many as there are for a
    /// rank, up to `max_sms`.
    pub sms: Option<u32>,
}
