//! What a dispatch and a combine are given.

use super::Handle;
use crate::gpu::View;

/// What moves rows between ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The kernel itself, on its multiprocessors. The host never waits.
    #[default]
    Kernel,
    /// Copy engines, while all multiprocessors compute: rows are packed for each rank, then copied. The host waits in
    /// between for how many there are, so that such a call cannot be captured. Needs
    /// [`Config::copy_engine`](crate::Config::copy_engine); not for the expert-major form.
    CopyEngine,
}

/// How many tokens there are.
#[derive(Clone, Copy)]
pub enum Tokens {
    /// So many.
    Host(u32),
    /// As many as this u32 on the device says when the kernel runs, at most the config's. Arrays must have room for
    /// those.
    Device(View),
}

/// Where a dispatch's tokens go.
#[derive(Clone, Copy)]
pub enum Routing<'a> {
    /// To these experts.
    New {
        /// i32 `[tokens, topk]`, −1 for an empty slot.
        topk_idx: View,
        /// f32 `[tokens, topk]`.
        topk_weights: View,
        /// Tokens.
        tokens: Tokens,
    },
    /// Where an earlier dispatch's went: counts are not exchanged again. All ranks follow the handle of the same
    /// dispatch.
    Follow {
        /// That dispatch's.
        handle: &'a Handle,
        /// f32 `[tokens, topk]`; `None` sends zeros.
        topk_weights: Option<View>,
    },
}

/// What a rank dispatches. Arrays are row-major and aligned to 16 bytes.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Elements `[tokens, hidden]`, of the config's kind.
    pub x: View,
    /// 4-byte words of scales `[tokens, scale words]`, where elements have them.
    pub x_scales: Option<View>,
    /// `Some(stride)`: the scales lie word by word, `[scale words, stride]`.
    pub x_scales_stride: Option<u32>,
    /// Bytes `[tokens, bytes]` each, as many as the config's sides.
    pub sides: &'a [View],
    /// Where they go.
    pub routing: Routing<'a>,
    /// What moves them.
    pub transport: Transport,
    /// Multiprocessors for this call; `None`: the config's.
    pub sms: Option<u32>,
}

impl<'a> Input<'a> {
    /// `tokens` tokens with a new routing.
    pub fn new(
        x: impl Into<View>,
        topk_idx: impl Into<View>,
        topk_weights: impl Into<View>,
        tokens: u32,
    ) -> Self {
        let (topk_idx, topk_weights) = (topk_idx.into(), topk_weights.into());
        Self::routed(x, Routing::New { topk_idx, topk_weights, tokens: Tokens::Host(tokens) })
    }

    /// Tokens that go where those of an earlier dispatch went.
    pub fn follow(x: impl Into<View>, handle: &'a Handle) -> Self {
        Self::routed(x, Routing::Follow { handle, topk_weights: None })
    }

    fn routed(x: impl Into<View>, routing: Routing<'a>) -> Self {
        Self {
            x: x.into(),
            x_scales: None,
            x_scales_stride: None,
            sides: &[],
            routing,
            transport: Transport::Kernel,
            sms: None,
        }
    }

    /// The same with scales.
    pub fn with_scales(self, x_scales: impl Into<View>) -> Self {
        Self { x_scales: Some(x_scales.into()), ..self }
    }
}

/// What an expert-major row is multiplied by before it is summed.
#[derive(Clone, Copy, Default)]
pub enum Weights {
    /// The weight that came with its token.
    #[default]
    Received,
    /// f32 `[rows, topk]`, for the received rows' slots.
    Given(View),
    /// Nothing: the experts have weighted already.
    None,
}

/// Where the experts' outputs are. bf16 or f16, as the config says.
#[derive(Clone, Copy, Default)]
pub enum Outputs {
    /// In [`Received::outputs`](crate::Received::outputs), one row for each received row.
    #[default]
    InPlace,
    /// Elsewhere, `[rows, hidden]`, one row for each received row.
    Rows(View),
    /// Elsewhere, expert-major as [`Received::by_expert`](crate::Received::by_expert) is: `[expert rows, hidden]`. A
    /// received row's are summed in f32, in slot order, and rounded once, before they travel.
    ByExpert(View, Weights),
}

/// What combine is to do.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    /// Out: bf16 or f16 `[tokens, hidden]`; with room for as many tokens as the config allows if they were counted on the
    /// device. So for the other arrays of tokens.
    pub combined: View,
    /// Where the experts' outputs are.
    pub outputs: Outputs,
    /// bf16 or f16 `[tokens, hidden]` each, at most two, added in f32 after the ranks' rows and in this order.
    pub biases: &'a [View],
    /// A number for each slot, sent back: the gradients of the weights, say.
    pub slots: Option<Slots>,
    /// What moves rows.
    pub transport: Transport,
    /// Multiprocessors for this call; `None`: the config's.
    pub sms: Option<u32>,
}

/// Numbers that travel back to the slots which rows came from.
#[derive(Clone, Copy)]
pub struct Slots {
    /// f32 `[rows, topk]`, for the received rows' slots; `None`: they are in
    /// [`Received::slot_outputs`](crate::Received::slot_outputs).
    pub values: Option<View>,
    /// Out: f32 `[tokens, topk]`; 0 for a slot that went nowhere.
    pub combined: View,
}

impl Output<'_> {
    /// The sum of outputs that are in place.
    pub fn new(combined: impl Into<View>) -> Self {
        Self {
            combined: combined.into(),
            outputs: Outputs::InPlace,
            biases: &[],
            slots: None,
            transport: Transport::Kernel,
            sms: None,
        }
    }
}
