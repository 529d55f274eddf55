//! What a dispatch has brought, and where it has put things.

use crate::config::Plan;
use crate::gpu::{Buffer, View};
use std::sync::Arc;
use tokenrail_device::wire::HandleLayout;

/// Where a dispatch has put its tokens, on all ranks: what later dispatches can follow. Valid until as many dispatches
/// with a new routing have come after it as there are handles ([`Config::handles`](crate::Config::handles)).
#[derive(Clone)]
pub struct Handle {
    pub(super) index: u32,
    pub(super) generation: u64,
    /// Whose it is, and what keeps it.
    pub(super) workspace: Arc<Buffer>,
    pub(super) offset: u64,
}

impl Handle {
    pub(super) fn region(
        &self,
        offset: impl Fn(&HandleLayout) -> u64,
        layout: &HandleLayout,
        bytes: u64,
    ) -> View {
        self.workspace.part(self.offset + offset(layout), bytes)
    }
}

/// What a rank has received, in place in its arena: valid until as many dispatches have come after it as are in flight
/// ([`Config::in_flight`](crate::Config::in_flight)), which makes it stale.
///
/// Rows lie in the order (source rank, token index there). How many there are is known on the device
/// ([`Received::rows`]); [`Exchange::counts`](crate::Exchange::counts) tells the host.
#[derive(Clone)]
pub struct Received {
    pub(super) flight: u32,
    pub(super) dispatch: u64,
    pub(super) handle: Handle,
    pub(super) plan: Plan,
    pub(super) arena: Arc<Buffer>,
}

/// How much a rank has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Rows in all.
    pub rows: u32,
    /// Rows from each rank.
    pub tokens_per_source: Vec<u32>,
    /// (row, slot) pairs of each expert of this rank.
    pub tokens_per_expert: Vec<u32>,
    /// First expert-major row of each expert of this rank, and the end; empty without that form.
    pub expert_starts: Vec<u32>,
    /// Rows for this rank that were left out for want of room. With [`Overflow::Cap`](crate::Overflow::Cap); so for
    /// the next two.
    pub dropped_rows: u32,
    /// Rows of this rank's tokens that were left out, over all ranks.
    pub dropped_routes: u32,
    /// (row, slot) pairs that were left out of the expert-major form.
    pub dropped_pairs: u32,
}

/// The expert-major form of what was received. Rows lie in the order (expert, source rank, token index, slot), each
/// expert's from a multiple of the alignment on.
#[derive(Clone, Copy)]
pub struct ByExpert {
    /// Elements `[expert rows, hidden]`; zeros where there is padding.
    pub x: View,
    /// 4-byte words of scales, laid out as the config says; zeros where there is padding.
    pub x_scales: View,
    /// f32 `[expert rows]`: the weight; 0 for padding.
    pub weights: View,
    /// i32 `[expert rows]`: this rank's number of the expert; −1 for padding and for what lies past the end.
    pub experts: View,
    /// i32 `[expert rows]`: the received row that it is a copy of; −1 for padding and past the end.
    pub rows: View,
    /// u32 `[experts per rank + 1]`: first row of each expert, and the end.
    pub starts: View,
    /// u32 `[experts per rank]`: rows of each expert, without padding.
    pub counts: View,
    /// i32 `[received rows, topk]`: where each slot's row is; −1 for none.
    pub positions: View,
}

impl Received {
    fn region(&self, offset: u64, bytes: u64) -> View {
        self.arena.part(self.plan.arena_offset(self.flight) + offset, bytes)
    }

    /// Bytes of each of the rows that there is room for.
    fn rows_of(&self, offset: u64, row_bytes: u32) -> View {
        self.region(offset, u64::from(self.plan.shape.rows) * u64::from(row_bytes))
    }

    fn kept(&self, offset: impl Fn(&HandleLayout) -> u64, words: u32) -> View {
        self.handle.region(offset, &self.plan.handle, 4 * u64::from(words))
    }

    /// What later dispatches can follow.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The rows: elements `[receive_rows, hidden]`, of which the first [`Received::rows`] are filled. So for all.
    pub fn x(&self) -> View {
        self.rows_of(self.plan.arena.rows, self.plan.shape.row_bytes)
    }

    /// 4-byte words of scales, laid out as [`Config::scale_layout`](crate::Config::scale_layout) says: f32
    /// `[receive_rows, ceil(hidden / 128)]` for e4m3. Empty where elements have none.
    pub fn x_scales(&self) -> View {
        let shape = &self.plan.shape;
        self.region(self.plan.arena.scales, 4 * shape.scale_words(shape.rows))
    }

    /// i32 `[receive_rows, topk]`: this rank's number of the expert, −1 where the slot is not this rank's.
    pub fn topk_idx(&self) -> View {
        self.rows_of(self.plan.arena.topk_idx, 4 * self.plan.shape.topk)
    }

    /// f32 `[receive_rows, topk]`: 0 where the index is −1.
    pub fn topk_weights(&self) -> View {
        self.rows_of(self.plan.arena.topk_weights, 4 * self.plan.shape.topk)
    }

    /// u32 `[receive_rows, 2]`: source rank, and the token's index there.
    pub fn sources(&self) -> View {
        self.rows_of(self.plan.arena.sources, 8)
    }

    /// Bytes `[receive_rows, bytes]` of side tensor `index`; empty if there is none of that number.
    pub fn side(&self, index: usize) -> View {
        let words = self.plan.shape.side_words.get(index).copied().unwrap_or(0);
        self.rows_of(self.plan.arena.sides.get(index).copied().unwrap_or(0), 4 * words)
    }

    /// bf16 or f16 `[receive_rows, hidden]`: where the experts' outputs go, one per row, weighted and summed over this
    /// rank's experts.
    pub fn outputs(&self) -> View {
        self.rows_of(self.plan.arena.outputs, self.plan.shape.output_bytes())
    }

    /// f32 `[receive_rows, topk]`: where what goes back to the slots goes, see [`Slots`](crate::Slots).
    pub fn slot_outputs(&self) -> View {
        self.rows_of(self.plan.arena.slot_outputs, 4 * self.plan.shape.topk)
    }

    /// The expert-major form, if there is one.
    pub fn by_expert(&self) -> Option<ByExpert> {
        let (shape, arena) = (&self.plan.shape, &self.plan.arena);
        let (rows, experts) = (u64::from(shape.expert_rows), shape.experts_per_rank());
        (rows > 0).then(|| ByExpert {
            x: self.region(arena.expert_x, rows * u64::from(shape.row_bytes)),
            x_scales: self.region(arena.expert_scales, 4 * shape.scale_words(shape.expert_rows)),
            weights: self.region(arena.expert_weights, 4 * rows),
            experts: self.region(arena.expert_of_row, 4 * rows),
            rows: self.region(arena.source_row, 4 * rows),
            starts: self.kept(|handle| handle.expert_starts, experts + 1),
            counts: self.tokens_per_expert(),
            positions: self.kept(|handle| handle.positions, shape.rows * shape.topk),
        })
    }

    /// u32: number of rows, on the device.
    pub fn rows(&self) -> View {
        self.kept(|handle| handle.received, 1)
    }

    /// u32 `[ranks]`: rows from each rank, on the device.
    pub fn tokens_per_source(&self) -> View {
        self.kept(|handle| handle.tokens_per_source, self.plan.shape.ranks)
    }

    /// u32 `[experts per rank]`: (row, slot) pairs of each of this rank's experts, on the device.
    pub fn tokens_per_expert(&self) -> View {
        self.kept(|handle| handle.tokens_per_expert, self.plan.shape.experts_per_rank())
    }

    /// u32 each: rows, routes and pairs that were left out, on the device: see [`Counts`].
    pub fn dropped(&self) -> [View; 3] {
        [
            self.kept(|handle| handle.dropped_rows, 1),
            self.kept(|handle| handle.dropped_routes, 1),
            self.kept(|handle| handle.dropped_pairs, 1),
        ]
    }
}
