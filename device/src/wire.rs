//! What ranks share: the shape all agree on, and where everything lies in an arena and a workspace.
//!
//! Each rank owns one **arena**, mapped by all peers; offsets are equal on all ranks. Its flags carry an epoch that
//! only grows, so nothing is ever cleared. The **workspace** is the rank's own: no peer touches it.

use crate::gpu::mem::{self, Address};
use crate::trace::{About, Activity, Trace};

/// Channels that share one FP8 scale.
pub const SCALE_CHANNELS: u32 = 128;

/// An unused entry of a route.
pub const NO_ROUTE: u64 = u64::MAX;

/// Most side tensors of a token.
pub const MAX_SIDES: usize = 8;

/// Most lanes to a rank of another node.
pub const MAX_LANES: u32 = 32;

/// Tokens whose rows are announced together where the receiver goes on with them before the dispatch is complete.
pub const CHUNK: u32 = 8;

/// The sizes that every rank of a group agrees on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks in the group.
    pub ranks: u32,
    /// Ranks of a node: node n has those from `n * ranks_per_node` on.
    pub ranks_per_node: u32,
    /// Experts over all ranks; rank r owns the block from `r * experts_per_rank()` on.
    pub experts: u32,
    /// Expert slots of a token.
    pub topk: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Bytes of a dispatched row, a multiple of 16.
    pub row_bytes: u32,
    /// Words of scales that travel with a row; 0 for none.
    pub scales: u32,
    /// 1 if received scales lie word by word, `[scales, rows rounded up to 4]`, and not row by row.
    pub column_major: u32,
    /// Words of each side tensor that travel with a row; 0 for none.
    pub side_words: [u32; MAX_SIDES],
    /// Most tokens that a rank dispatches at once.
    pub tokens: u32,
    /// Most rows that a rank receives at once.
    pub rows: u32,
    /// Most rows of the expert-major form; 0 for no such form.
    pub expert_rows: u32,
    /// Each expert's rows begin at a multiple of this many rows.
    pub alignment: u32,
    /// 1 if what does not fit is left out and counted, 0 if it is a failure.
    pub cap: u32,
    /// 1 if experts' outputs and combined rows are f16, 0 for bf16.
    pub f16: u32,
    /// 1 if arenas have room for rows that copy engines move.
    pub copy_engine: u32,
    /// Ranks that reach each other's memory: those of a node where others are reached through a proxy, else all. It
    /// divides `ranks`.
    pub near_ranks: u32,
}

/// Where word `word` of row `row` of some scales lies: `row * by_row + word * by_word`, in words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleStrides {
    /// Words from a row to the next.
    pub by_row: u32,
    /// Words from a word of a row to the next.
    pub by_word: u32,
}

impl ScaleStrides {
    /// The word's place.
    pub const fn place(&self, row: u32, word: u32) -> u64 {
        row as u64 * self.by_row as u64 + word as u64 * self.by_word as u64
    }
}

impl Shape {
    /// Experts that a rank owns: ceil(experts / ranks). The last ranks may own fewer, or none.
    ///
    /// Neither side is 0 in a checked shape; saying so again keeps the panics of a division out of the kernels.
    pub const fn experts_per_rank(&self) -> u32 {
        at_least_one(self.experts.div_ceil(at_least_one(self.ranks)))
    }

    /// Nodes of the group.
    pub const fn nodes(&self) -> u32 {
        self.ranks.div_ceil(at_least_one(self.ranks_per_node))
    }

    /// Whether some ranks are reached through a proxy.
    pub const fn is_across(&self) -> bool {
        self.near_ranks < self.ranks
    }

    /// Groups of near ranks beside a rank's own; 0 without a proxy.
    pub const fn far_nodes(&self) -> u32 {
        self.ranks / at_least_one(self.near_ranks) - 1
    }

    /// Most ranks of a node that one token goes to.
    pub const fn near_width(&self) -> u32 {
        if self.topk < self.near_ranks { self.topk } else { self.near_ranks }
    }

    /// Most ranks that one token goes to: no more than it has slots.
    pub const fn route_width(&self) -> u32 {
        if self.topk < self.ranks { self.topk } else { self.ranks }
    }

    /// Bytes of a row of what experts give back, bf16 or f16.
    pub const fn output_bytes(&self) -> u32 {
        2 * self.hidden
    }

    /// Words that a rank tells each peer in the count phase: tokens to each rank, [`counts`], tokens to each of the
    /// peer's experts. Whole 16 bytes, in which they go to other nodes.
    pub const fn count_words(&self) -> u32 {
        (self.ranks + counts::FIXED + self.experts_per_rank()).next_multiple_of(4)
    }

    /// Chunks of a full dispatch.
    pub const fn chunks(&self) -> u32 {
        self.tokens.div_ceil(CHUNK)
    }

    /// How the received scales of `rows` rows lie.
    pub const fn scale_strides(&self, rows: u32) -> ScaleStrides {
        if self.column_major == 0 {
            ScaleStrides { by_row: self.scales, by_word: 1 }
        } else {
            // 16 bytes: what TMA asks of a stride.
            ScaleStrides { by_row: 1, by_word: rows.next_multiple_of(4) }
        }
    }

    /// Words of the received scales of `rows` rows.
    pub const fn scale_words(&self, rows: u32) -> u64 {
        let rows = if self.column_major == 0 { rows } else { rows.next_multiple_of(4) };
        rows as u64 * self.scales as u64
    }
}

/// A token on its way to another node: 16 bytes with the epoch, 16 for each slot, scales, side tensors, the row; each
/// part a multiple of 16 bytes.
impl Shape {
    /// Where its scales begin.
    pub const fn message_scales(&self) -> u32 {
        16 + 16 * self.topk
    }

    /// Where its side tensors begin, one behind the other.
    pub const fn message_sides(&self) -> u32 {
        self.message_scales() + (4 * self.scales).next_multiple_of(16)
    }

    /// Where its row begins.
    pub const fn message_row(&self) -> u32 {
        let (mut words, mut side) = (0, 0);
        while side < MAX_SIDES {
            words += self.side_words[side];
            side += 1;
        }
        self.message_sides() + (4 * words).next_multiple_of(16)
    }

    /// The whole.
    pub const fn message_bytes(&self) -> u32 {
        self.message_row() + self.row_bytes
    }

    /// Bytes of what comes back of a token from another node: the sum of its rows there, then a word for each slot.
    pub const fn partial_bytes(&self) -> u32 {
        self.output_bytes() + (4 * self.topk).next_multiple_of(16)
    }
}

/// What stands between the counts per rank and the counts per expert: offsets from the end of the former.
pub mod counts {
    /// One of [`GOOD`], [`INVALID`], [`CACHED`].
    pub const STATUS: u32 = 0;
    /// Low half of the handle's id.
    pub const HANDLE_LOW: u32 = 1;
    /// High half of the handle's id.
    pub const HANDLE_HIGH: u32 = 2;
    /// Tokens of the source.
    pub const TOKENS: u32 = 3;
    /// How many there are.
    pub const FIXED: u32 = 4;

    /// The counts are those of a new routing.
    pub const GOOD: u32 = 0;
    /// The source's input is not valid.
    pub const INVALID: u32 = 1;
    /// There are no counts: the routing is the named handle's.
    pub const CACHED: u32 = 2;
}

pub(crate) const fn at_least_one(number: u32) -> u32 {
    if number == 0 { 1 } else { number }
}

/// Gives out offsets one after the other, each aligned to 128 bytes: a line of the L2 cache, so that flags and data
/// of different regions never share one.
pub(crate) struct Regions(pub u64);

impl Regions {
    pub const fn take(&mut self, bytes: u64) -> u64 {
        let offset = self.0;
        self.0 = (offset + bytes).next_multiple_of(128);
        offset
    }
}

/// Byte offsets of the regions of one flight's part of an arena. Indices are given in brackets, outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    /// u64 `[source]`: epoch of the dispatch whose counts of tokens per rank from `source` have arrived.
    pub count_flags: u64,
    /// u64 `[source]`: epoch of the dispatch whose rows, and counts per expert, from `source` have arrived.
    pub data_flags: u64,
    /// u64 `[owner]`: epoch of the combine for which `owner`'s expert outputs are ready.
    pub ready_flags: u64,
    /// u64 `[source, chunk]`: epoch of the dispatch of which that chunk's rows have arrived. With the expert-major form.
    pub chunk_flags: u64,
    /// u64 `[source, chunk]`: first row << 32 | rows of the chunk. With the expert-major form.
    pub chunk_rows: u64,
    /// u32 `[epoch % 2, source, count_words]`.
    pub counts: u64,
    /// Bytes `[row, row_bytes]`: the received rows.
    pub rows: u64,
    /// u32, as [`Shape::scale_strides`] of `rows` says.
    pub scales: u64,
    /// i32 `[row, topk]`: number of the expert on this rank, −1 where the slot is another rank's or empty.
    pub topk_idx: u64,
    /// f32 `[row, topk]`: 0 where the index is −1.
    pub topk_weights: u64,
    /// u32 `[row, topk]`: how many pairs of the same source and expert come before; meaningless where the index is −1.
    /// With the expert-major form.
    pub places: u64,
    /// u32 pairs `[row]`: source rank, token index there.
    pub sources: u64,
    /// u32 `[row, side_words]` each.
    pub sides: [u64; MAX_SIDES],
    /// bf16 or f16 `[row, hidden]`: the experts' outputs, which combine reads.
    pub outputs: u64,
    /// f32 `[row, topk]`: what combine sends back to each slot, such as the gradient of its weight.
    pub slot_outputs: u64,
    /// Bytes `[expert row, row_bytes]`. This and the next four with the expert-major form; no peer touches them.
    pub expert_x: u64,
    /// u32, as [`Shape::scale_strides`] of `expert_rows` says.
    pub expert_scales: u64,
    /// f32 `[expert row]`: the weight of the pair, 0 for padding.
    pub expert_weights: u64,
    /// i32 `[expert row]`: number of the expert on this rank, −1 for padding and past the end.
    pub expert_of_row: u64,
    /// i32 `[expert row]`: the received row that it is a copy of, −1 for padding and past the end.
    pub source_row: u64,
    /// Bytes `[rank, token, row_bytes]`: rows packed for the copy engines.
    pub outbox: u64,
    /// bf16 or f16 `[rank, token, hidden]`: outputs that copy engines have brought.
    pub inbox: u64,
    /// u64 `[far node]`: epoch of the last dispatch whose messages that node's rank of this rail has forwarded. This and
    /// the next five where ranks are reached through a proxy; far nodes are numbered without one's own.
    pub forwarded: u64,
    /// u32 `[epoch % 2, peer, count_words]`: counts on their way to ranks of other nodes.
    pub count_outbox: u64,
    /// Bytes `[token, message_bytes]`: this rank's tokens on their way to other nodes.
    pub far_outbox: u64,
    /// Bytes `[far node, token, message_bytes]`: tokens of the other ranks of this rail.
    pub far_inbox: u64,
    /// Bytes `[far node, token, partial_bytes]`: what goes back for these.
    pub partial_outbox: u64,
    /// Bytes `[far node, token, partial_bytes]`: what came back for this rank's tokens.
    pub partial_inbox: u64,
    /// Size of a flight's part.
    pub bytes: u64,
}

impl ArenaLayout {
    /// A flight's part of the arena of every rank of a group with this shape.
    pub const fn new(shape: &Shape) -> Self {
        let ranks = shape.ranks as u64;
        let rows = shape.rows as u64;
        let expert_rows = shape.expert_rows as u64;
        let slots = rows * 4 * shape.topk as u64;
        let (chunks, places) =
            if expert_rows > 0 { (8 * ranks * shape.chunks() as u64, slots) } else { (0, 0) };
        let packed = if shape.copy_engine != 0 { ranks * shape.tokens as u64 } else { 0 };
        let (across, far) = (shape.is_across() as u64, shape.far_nodes() as u64);
        let (messages, message) = (far * shape.tokens as u64, shape.message_bytes() as u64);
        let partials = messages * shape.partial_bytes() as u64;
        let mut regions = Regions(0);
        let mut layout = Self {
            count_flags: regions.take(8 * ranks),
            data_flags: regions.take(8 * ranks),
            ready_flags: regions.take(8 * ranks),
            chunk_flags: regions.take(chunks),
            chunk_rows: regions.take(chunks),
            counts: regions.take(2 * ranks * 4 * shape.count_words() as u64),
            rows: regions.take(rows * shape.row_bytes as u64),
            scales: regions.take(4 * shape.scale_words(shape.rows)),
            topk_idx: regions.take(slots),
            topk_weights: regions.take(slots),
            places: regions.take(places),
            sources: regions.take(rows * 8),
            sides: [0; MAX_SIDES],
            outputs: regions.take(rows * shape.output_bytes() as u64),
            slot_outputs: regions.take(slots),
            expert_x: regions.take(expert_rows * shape.row_bytes as u64),
            expert_scales: regions.take(4 * shape.scale_words(shape.expert_rows)),
            expert_weights: regions.take(4 * expert_rows),
            expert_of_row: regions.take(4 * expert_rows),
            source_row: regions.take(4 * expert_rows),
            outbox: regions.take(packed * shape.row_bytes as u64),
            inbox: regions.take(packed * shape.output_bytes() as u64),
            forwarded: regions.take(8 * far),
            count_outbox: regions.take(across * 2 * ranks * 4 * shape.count_words() as u64),
            far_outbox: regions.take(across * shape.tokens as u64 * message),
            far_inbox: regions.take(messages * message),
            partial_outbox: regions.take(partials),
            partial_inbox: regions.take(partials),
            bytes: 0,
        };
        let mut side = 0;
        while side < MAX_SIDES {
            layout.sides[side] = regions.take(rows * 4 * shape.side_words[side] as u64);
            side += 1;
        }
        layout.bytes = regions.0;
        layout
    }

    /// Offset of the counts that `source` sends for `epoch`. Two sets alternate: a rank can be one dispatch ahead of
    /// a peer that still reads, never two, since the dispatch between needs that peer's rows.
    pub const fn counts_of(&self, shape: &Shape, epoch: u64, source: u32) -> u64 {
        self.counts + ((epoch % 2) * shape.ranks as u64 + source as u64) * 4 * shape.count_words() as u64
    }

    /// Offset of the counts for `peer`, on another node, of `epoch`. They alternate as those that have arrived do.
    pub const fn count_outbox_of(&self, shape: &Shape, epoch: u64, peer: u32) -> u64 {
        self.count_outbox + ((epoch % 2) * shape.ranks as u64 + peer as u64) * 4 * shape.count_words() as u64
    }
}

/// Byte offsets of a handle's regions: where a dispatch put things, kept for those that follow it. The rank's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleLayout {
    /// u64: which dispatch made it, the same number on all ranks; 0 before the first.
    pub id: u64,
    /// u32: tokens of this rank.
    pub tokens: u64,
    /// u32: rows received.
    pub received: u64,
    /// u32: rows for this rank that were left out for want of room.
    pub dropped_rows: u64,
    /// u32: rows of this rank's tokens that were left out, over all ranks.
    pub dropped_routes: u64,
    /// u32: (row, slot) pairs left out of the expert-major form.
    pub dropped_pairs: u64,
    /// u32 `[source]`: rows received from each rank.
    pub tokens_per_source: u64,
    /// u32 `[expert of this rank]`: (row, slot) pairs received.
    pub tokens_per_expert: u64,
    /// u32 `[expert of this rank + 1]`: first expert-major row of each expert, and the end. With that form.
    pub expert_starts: u64,
    /// u32 `[source, expert of this rank]`: pairs from each source of each expert. With that form.
    pub expert_counts: u64,
    /// u64 `[rank]`: first row << 32 | rows of this rank's tokens there.
    pub sent: u64,
    /// u64 `[token, route_width]`: rank << 32 | row there, ascending by rank, then [`NO_ROUTE`].
    pub routes: u64,
    /// i32 `[token, topk]`: the routing.
    pub topk_idx: u64,
    /// u32 `[token, topk]`: what is sent as [`ArenaLayout::places`]. With the expert-major form.
    pub places: u64,
    /// i32 `[row, topk]`: expert-major row of each pair, −1 for none. With that form.
    pub positions: u64,
    /// u32 `[far node]`: tokens of that node's rank of this rail. This and the next with a proxy.
    pub far_tokens: u64,
    /// u64 `[far node, token, near_width]`: rank << 32 | row there of its tokens' rows on this node, ascending by rank,
    /// then [`NO_ROUTE`].
    pub far_routes: u64,
    /// Size of a handle.
    pub bytes: u64,
}

impl HandleLayout {
    /// A handle of a rank of a group with this shape.
    pub const fn new(shape: &Shape) -> Self {
        let experts = shape.experts_per_rank() as u64;
        let slots = 4 * shape.topk as u64;
        let far = shape.far_nodes() as u64;
        let by_expert = if shape.expert_rows > 0 { 1 } else { 0 };
        let mut regions = Regions(0);
        let mut layout = Self {
            id: regions.take(8),
            tokens: regions.take(4),
            received: regions.take(4),
            dropped_rows: regions.take(4),
            dropped_routes: regions.take(4),
            dropped_pairs: regions.take(4),
            tokens_per_source: regions.take(4 * shape.ranks as u64),
            tokens_per_expert: regions.take(4 * experts),
            expert_starts: regions.take(by_expert * 4 * (experts + 1)),
            expert_counts: regions.take(by_expert * 4 * experts * shape.ranks as u64),
            sent: regions.take(8 * shape.ranks as u64),
            routes: regions.take(shape.tokens as u64 * 8 * shape.route_width() as u64),
            topk_idx: regions.take(shape.tokens as u64 * slots),
            places: regions.take(by_expert * shape.tokens as u64 * slots),
            positions: regions.take(by_expert * shape.rows as u64 * slots),
            far_tokens: regions.take(4 * far),
            far_routes: regions.take(far * shape.tokens as u64 * 8 * shape.near_width() as u64),
            bytes: 0,
        };
        layout.bytes = regions.0;
        layout
    }
}

/// Byte offsets of the regions of one flight's workspace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkspaceLayout {
    /// u64: dispatches completed.
    pub dispatch_epoch: u64,
    /// u64: combines completed.
    pub combine_epoch: u64,
    /// u32 `[meeting]`: blocks that have reached each of a kernel's meetings. Apart, because a block whose wait has timed
    /// out goes to the second while others have yet to come to the first.
    pub arrived: u64,
    /// u32: 1 if a block has found a reason not to send in this dispatch.
    pub unsent: u64,
    /// u32: 1 once a thread has taken the right to write the report.
    pub report_claim: u64,
    /// u64 `[rank]`: addresses of the flight's part of the arenas as this GPU sees them.
    pub peers: u64,
    /// u32 `[block, ranks + 1]`: tokens to each rank, and whether an input was invalid.
    pub block_counts: u64,
    /// u32 `[block, expert]`: pairs of each expert; then, with the expert-major form, those of the blocks before.
    pub block_experts: u64,
    /// u32 `[block, rank]`: tokens to each rank from the blocks before.
    pub block_base: u64,
    /// u32 `[lane]`: warps that have done their share of a lane. With a proxy.
    pub lanes_done: u64,
    /// Size of a flight's workspace.
    pub bytes: u64,
}

impl WorkspaceLayout {
    /// Most meetings of a kernel.
    const MEETINGS: u64 = 2;

    /// The workspace of a rank whose kernels run with at most `blocks` blocks.
    pub const fn new(shape: &Shape, blocks: u32) -> Self {
        let ranks = shape.ranks as u64;
        let blocks = blocks as u64;
        let mut regions = Regions(0);
        let mut layout = Self {
            dispatch_epoch: regions.take(8),
            combine_epoch: regions.take(8),
            arrived: regions.take(4 * Self::MEETINGS),
            unsent: regions.take(4),
            report_claim: regions.take(4),
            peers: regions.take(8 * ranks),
            block_counts: regions.take(blocks * 4 * (ranks + 1)),
            block_experts: regions.take(blocks * 4 * shape.experts as u64),
            block_base: regions.take(blocks * 4 * ranks),
            lanes_done: regions.take(shape.is_across() as u64 * 4 * MAX_LANES as u64),
            bytes: 0,
        };
        layout.bytes = regions.0;
        layout
    }
}

/// What every kernel of an exchange is given: the shape, where things lie, and who this is.
///
/// Contract: `workspace` has the bytes that `work` says, its `peers` are the addresses of `shape.ranks` arenas laid
/// out as `arena`, `handle_at` has the bytes that `handle` says, `report` is host-visible and 64 bytes, all zeroed
/// before the first launch. Kernels with the same workspace run one after the other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The sizes all ranks agree on.
    pub shape: Shape,
    /// Where things lie in every arena.
    pub arena: ArenaLayout,
    /// Where things lie in this flight's workspace.
    pub work: WorkspaceLayout,
    /// Where things lie in a handle.
    pub handle: HandleLayout,
    /// This flight's workspace.
    pub workspace: Address,
    /// The handle that the operation makes or follows.
    pub handle_at: Address,
    /// Where a failure is reported: host-visible memory of [`Report::WORDS`] u64.
    pub report: Address,
    /// Where what warps do is recorded, if it is.
    pub trace: Trace,
    /// How long any one wait may take, in nanoseconds.
    pub timeout_ns: u64,
    /// This rank.
    pub rank: u32,
    /// This flight, below 256.
    pub flight: u32,
}

/// Why a kernel gave up. Zero is reserved for "it did not".
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A peer's flag did not come within the timeout.
    Late = 1,
    /// An expert id of this rank's input is neither −1 nor below the number of experts.
    ExpertOutOfRange = 2,
    /// A peer announced that its input was invalid.
    PeerInput = 3,
    /// A rank would receive more rows than its arena holds.
    Capacity = 4,
    /// A peer follows another handle, or makes a new one where this rank follows one, or the other way round.
    Handle = 5,
    /// The count of tokens read on the device is above what the exchange was made for.
    Tokens = 6,
    /// This rank's expert-major rows would be more than there is room for.
    ExpertRows = 7,
}

/// Which wait a late peer was missed in.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No wait.
    None = 0,
    /// Dispatch: the peer's counts.
    Counts = 1,
    /// Dispatch: the peer's rows.
    Data = 2,
    /// Combine: the peer's expert outputs.
    Ready = 3,
    /// Low latency: that the peer has read what it was sent before.
    Read = 4,
    /// Low-latency dispatch: the peer's summary of its routing.
    Summary = 5,
    /// Low-latency dispatch: the peer's rows.
    Rows = 6,
    /// Low-latency combine: what the peer's experts made.
    Parts = 7,
    /// Room in the ring to this rank's own proxy.
    Ring = 8,
    /// Dispatch: that the peer, on another node, has forwarded what it was sent before.
    Forwarded = 9,
    /// Dispatch: the peer's rows for this node.
    Messages = 10,
    /// Combine: the peer's sums for this rank's tokens.
    Partials = 11,
}

/// What a kernel that gave up tells the host. The first thread to fail writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// A [`Failure`].
    pub failure: u64,
    /// A [`Phase`].
    pub phase: u64,
    /// The rank that was late, gave invalid input, or is full.
    pub peer: u64,
    /// The epoch of the operation.
    pub epoch: u64,
    /// What was waited for, or the limit.
    pub expected: u64,
    /// What was there instead.
    pub seen: u64,
    /// The token, for an expert out of range.
    pub token: u64,
    /// The slot, for an expert out of range.
    pub slot: u64,
}

impl Report {
    /// u64 words of a report in memory, in the order of the fields.
    pub const WORDS: usize = 8;

    /// The report whose words the host has read.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [failure, phase, peer, epoch, expected, seen, token, slot] = words;
        Self { failure, phase, peer, epoch, expected, seen, token, slot }
    }

    /// A report without token and slot.
    pub const fn new(
        failure: Failure,
        phase: Phase,
        peer: u32,
        epoch: u64,
        expected: u64,
        seen: u64,
    ) -> Self {
        Self {
            failure: failure as u64,
            phase: phase as u64,
            peer: peer as u64,
            epoch,
            expected,
            seen,
            token: 0,
            slot: 0,
        }
    }
}

/// Writes a report at `to` unless another thread has.
///
/// # Safety
/// `claim` is a u32 that is 0 as long as there is no report; `to` is host-visible memory of [`Report::WORDS`] u64.
pub unsafe fn write_report(claim: Address, to: Address, report: Report) {
    // SAFETY: the caller's promise; only the claimant writes.
    unsafe {
        if mem::compare_exchange_acq_rel_gpu_u32(claim, 0, 1) != 0 {
            return;
        }
        mem::store_u64(to.long(1), report.phase);
        mem::store_u64(to.long(2), report.peer);
        mem::store_u64(to.long(3), report.epoch);
        mem::store_u64(to.long(4), report.expected);
        mem::store_u64(to.long(5), report.seen);
        mem::store_u64(to.long(6), report.token);
        mem::store_u64(to.long(7), report.slot);
        // Released last; the host reads it after it has synchronised with the stream.
        mem::store_release_sys_u64(to, report.failure);
    }
}

impl Exchange {
    /// Address of `rank`'s arena.
    ///
    /// # Safety
    /// The struct's contract holds and `rank` is below `shape.ranks`. So for all methods here.
    pub unsafe fn peer(&self, rank: u32) -> Address {
        // SAFETY: the peers table has an entry for every rank.
        Address(unsafe { mem::load_u64(self.workspace.offset(self.work.peers).long(rank)) })
    }

    /// Address of this rank's own arena.
    ///
    /// # Safety
    /// See [`Exchange::peer`].
    pub unsafe fn own(&self) -> Address {
        // SAFETY: `rank` is one of the ranks.
        unsafe { self.peer(self.rank) }
    }

    /// Address of a region of the workspace.
    pub fn work(&self, offset: u64) -> Address {
        self.workspace.offset(offset)
    }

    /// Address of a region of the handle.
    pub fn handle(&self, offset: u64) -> Address {
        self.handle_at.offset(offset)
    }

    /// What a handle made by the dispatch of this epoch is called, on all ranks alike. Never 0.
    pub const fn handle_id(&self, epoch: u64) -> u64 {
        epoch << 8 | self.flight as u64
    }

    /// Writes the report unless another thread has.
    ///
    /// # Safety
    /// See [`Exchange::peer`].
    pub unsafe fn fail(&self, report: Report) {
        // SAFETY: the claim word and the report are where the contract says.
        unsafe { write_report(self.workspace.offset(self.work.report_claim), self.report, report) };
    }

    /// Waits for a flag of this rank's arena, one per rank, to reach `epoch`; reports `peer` as late if it does not.
    /// Acquires what the flag's writer released.
    ///
    /// # Safety
    /// See [`Exchange::peer`].
    #[inline(always)]
    pub unsafe fn wait_flag(
        &self,
        flags: u64,
        peer: u32,
        epoch: u64,
        deadline_ns: u64,
        phase: Phase,
    ) -> bool {
        // SAFETY: `flags` is the offset of a region with a flag for every rank.
        unsafe {
            let flag = self.own().offset(flags).long(peer);
            self.trace.begin();
            let waited = mem::wait_at_least_acquire_sys(flag, epoch, deadline_ns);
            self.trace.end(Activity::wait(phase), About::peer(peer));
            match waited {
                Ok(()) => true,
                Err(seen) => {
                    self.fail(Report::new(Failure::Late, phase, peer, epoch, epoch, seen));
                    false
                }
            }
        }
    }
}
