//! Sizes of low-latency calls, and where everything lies.
//!
//! Rows travel in *tiles* of 96 *cells*: a lane of the warp that sends a tile has three cells of it, one in each *plane* of
//! 32. A cell is 8 channels of bf16, or 16 of a smaller format.

use super::packet::PACKET_BYTES;
use crate::wire::{Regions, SCALE_CHANNELS, ScaleStrides, at_least_one};

/// Cells of a tile.
pub const TILE_CELLS: u32 = 96;

/// What dispatched rows are made into.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// bf16, as they are.
    Bf16 = 0,
    /// FP8 e4m3, f32 scales.
    E4m3 = 1,
    /// FP8 e4m3, powers of two as scales, in f32.
    E4m3PowerOfTwo = 2,
    /// FP8 e4m3, powers of two as scales, four UE8M0 bytes a word.
    E4m3Ue8m0 = 3,
}

/// What combined rows travel as.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// bf16.
    Bf16 = 0,
    /// FP8 e4m3, f32 scales.
    E4m3 = 1,
    /// A sign and 9 bits of logarithm.
    Log10 = 2,
}

/// How a format fills packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Channels of a cell.
    pub channels: u32,
    /// 4-byte words of a cell, and so packets of a lane in a tile.
    pub words: u32,
    /// Whether 4 more packets of a tile carry a word for each 128 channels.
    pub grouped: bool,
}

impl Fill {
    /// 16 bits a channel.
    pub const HALF: Self = Self { channels: 8, words: 4, grouped: false };
    /// 8 bits a channel.
    pub const BYTE: Self = Self { channels: 16, words: 4, grouped: true };
    /// 10 bits a channel.
    pub const LOG10: Self = Self { channels: 16, words: 5, grouped: true };

    /// Cells of a row; the last may be half empty.
    pub const fn cells(self, hidden: u32) -> u32 {
        hidden.div_ceil(at_least_one(self.channels))
    }

    /// Tiles of a row.
    pub const fn tiles(self, hidden: u32) -> u32 {
        self.cells(hidden).div_ceil(TILE_CELLS)
    }

    /// Packets of a tile.
    pub const fn tile_packets(self) -> u32 {
        32 * self.words + if self.grouped { 4 } else { 0 }
    }

    /// Bytes of the fifth words of a row's cells, rounded up to 16.
    pub const fn fifth_bytes(self, hidden: u32) -> u32 {
        if self.words == 5 { (4 * self.cells(hidden)).next_multiple_of(16) } else { 0 }
    }

    /// Bytes of a row that travels without tags: see [`far`](super::far).
    pub const fn far_row_bytes(self, hidden: u32) -> u32 {
        let groups = if self.grouped { 3 * 16 * self.tiles(hidden) } else { 0 };
        16 * self.cells(hidden) + self.fifth_bytes(hidden) + groups
    }

    /// Packets of a row.
    pub const fn row_packets(self, hidden: u32) -> u32 {
        self.tiles(hidden) * self.tile_packets()
    }
}

/// The sizes that every rank agrees on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks of the group.
    pub ranks: u32,
    /// Ranks that reach each other's memory: those from a multiple of this on. The others are reached by proxies.
    pub near_ranks: u32,
    /// Experts over all ranks; rank r owns the block from `r * experts_per_rank()` on.
    pub experts: u32,
    /// Expert slots of a token.
    pub topk: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Most tokens of a rank in one call.
    pub tokens: u32,
    /// An [`Element`].
    pub element: u32,
    /// 1 if received scales lie word by word.
    pub column_major: u32,
    /// A [`Wire`].
    pub wire: u32,
    /// 1 if every slot's row travels back, 0 if a rank sums those of its experts first.
    pub by_slot: u32,
}

impl Shape {
    /// Experts that a rank owns: ceil(experts / ranks).
    pub const fn experts_per_rank(&self) -> u32 {
        at_least_one(self.experts.div_ceil(at_least_one(self.ranks)))
    }

    /// Rows that there is room for at each expert: every token of every rank.
    pub const fn expert_rows(&self) -> u32 {
        self.ranks * self.tokens
    }

    /// Rows that come back for a token, at most.
    pub const fn parts(&self) -> u32 {
        if self.by_slot != 0 || self.topk < self.ranks { self.topk } else { self.ranks }
    }

    /// Whether dispatched rows are FP8.
    pub const fn quantized(&self) -> bool {
        self.element != Element::Bf16 as u32
    }

    /// How dispatched rows fill packets.
    pub const fn dispatched(&self) -> Fill {
        if self.quantized() { Fill::BYTE } else { Fill::HALF }
    }

    /// How combined rows fill packets.
    pub const fn combined(&self) -> Fill {
        if self.wire == Wire::E4m3 as u32 {
            Fill::BYTE
        } else if self.wire == Wire::Log10 as u32 {
            Fill::LOG10
        } else {
            Fill::HALF
        }
    }

    /// Bytes of a received row.
    pub const fn row_bytes(&self) -> u32 {
        if self.quantized() { self.hidden } else { 2 * self.hidden }
    }

    /// Words of scales of a received row.
    pub const fn scale_words(&self) -> u32 {
        let groups = self.hidden.div_ceil(SCALE_CHANNELS);
        if !self.quantized() {
            0
        } else if self.element == Element::E4m3Ue8m0 as u32 {
            groups.div_ceil(4)
        } else {
            groups
        }
    }

    /// How an expert's received scales lie.
    pub const fn scale_strides(&self) -> ScaleStrides {
        if self.column_major == 0 {
            ScaleStrides { by_row: self.scale_words(), by_word: 1 }
        } else {
            // 16 bytes: what TMA asks of a stride.
            ScaleStrides { by_row: 1, by_word: self.expert_rows().next_multiple_of(4) }
        }
    }

    /// Words of an expert's received scales.
    pub const fn expert_scale_words(&self) -> u32 {
        let rows = self.expert_rows();
        let rows = if self.column_major == 0 { rows } else { rows.next_multiple_of(4) };
        rows * self.scale_words()
    }

    /// Packets of a message, which is one token's row for one rank: a packet for each slot, then the row's tiles.
    pub const fn message_packets(&self) -> u32 {
        self.topk + self.dispatched().row_packets(self.hidden)
    }

    /// Packets of a row that comes back.
    pub const fn part_packets(&self) -> u32 {
        self.combined().row_packets(self.hidden)
    }

    /// Ranks that are reached by proxies.
    pub const fn far_ranks(&self) -> u32 {
        self.ranks - if self.near_ranks < self.ranks { self.near_ranks } else { self.ranks }
    }

    /// Bytes of what goes to other nodes beside a token's row: for each slot, [`far_slot`].
    pub const fn far_slots_bytes(&self) -> u32 {
        (4 * far_slot::WORDS * self.topk).next_multiple_of(16)
    }

    /// Bytes of a message to ranks of other nodes, the same for all of them.
    pub const fn far_message_bytes(&self) -> u32 {
        self.far_slots_bytes() + self.dispatched().far_row_bytes(self.hidden)
    }

    /// Bytes of a summary for a rank of another node.
    pub const fn far_summary_bytes(&self) -> u32 {
        (4 * self.summary_words()).next_multiple_of(16)
    }

    /// Bytes of a row that goes back to a rank of another node.
    pub const fn far_part_bytes(&self) -> u32 {
        self.combined().far_row_bytes(self.hidden)
    }

    /// Rows that go back for a token from one rank, at most.
    pub const fn parts_of_rank(&self) -> u32 {
        if self.by_slot != 0 { self.topk } else { 1 }
    }

    /// Words of a bit for each token.
    pub const fn token_bits(&self) -> u32 {
        self.tokens.div_ceil(32)
    }

    /// Words that a rank tells each peer about a dispatch: [`summary`].
    pub const fn summary_words(&self) -> u32 {
        summary::TOKENS_THERE + self.token_bits() + self.experts_per_rank()
    }

    /// Packets that they take.
    pub const fn summary_packets(&self) -> u32 {
        self.summary_words().div_ceil(3)
    }
}

/// What a rank tells a peer about a dispatch: words at these places, then for each of the peer's experts how many of the
/// rank's tokens it gets.
pub mod summary {
    /// Tokens of the rank, or [`INVALID`].
    pub const TOKENS: u32 = 0;
    /// From here a bit for each token that goes to the peer.
    pub const TOKENS_THERE: u32 = 1;
    /// The rank's input is not valid. It sends nothing, and no token is its own.
    pub const INVALID: u32 = u32::MAX;
}

/// Two words for each slot of a token that goes to other nodes: its expert, of all ranks', << 16 | its place among the
/// source's rows for that expert, or [`NO_ROW`]; and bits of its weight.
pub mod far_slot {
    /// Words.
    pub const WORDS: u32 = 2;
}

/// Byte offsets of the regions of one batch's part of an arena. Indices are given in brackets, outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    /// u64 `[rank]`: epoch of the dispatch of which `rank` has read what this rank sent.
    pub dispatch_read: u64,
    /// u64 `[rank]`: epoch of the combine of which `rank` has read what this rank sent.
    pub combine_read: u64,
    /// Packets `[source, summary_packets]`.
    pub summaries: u64,
    /// Packets `[source, token, message_packets]`.
    pub messages: u64,
    /// Packets `[token, part, part_packets]`: what comes back.
    pub parts: u64,
    /// u32 `[rank, far_summary_bytes / 4]`: what this rank tells those of other nodes. This and the next two where there
    /// are any.
    pub outbox_summaries: u64,
    /// Bytes `[token, far_message_bytes]`: what it sends them.
    pub outbox_messages: u64,
    /// Bytes `[source, token, parts_of_rank, far_part_bytes]`: what goes back to them.
    pub outbox_parts: u64,
    /// Size of a batch's part.
    pub bytes: u64,
}

impl ArenaLayout {
    /// A batch's part of the arena of every rank of a group with this shape.
    pub const fn new(shape: &Shape) -> Self {
        let ranks = shape.ranks as u64;
        let tokens = shape.tokens as u64;
        let far = if shape.far_ranks() > 0 { 1 } else { 0 };
        let mut regions = Regions(0);
        let mut layout = Self {
            dispatch_read: regions.take(8 * ranks),
            combine_read: regions.take(8 * ranks),
            summaries: regions.take(ranks * PACKET_BYTES * shape.summary_packets() as u64),
            messages: regions.take(ranks * tokens * PACKET_BYTES * shape.message_packets() as u64),
            parts: regions.take(tokens * PACKET_BYTES * shape.parts() as u64 * shape.part_packets() as u64),
            outbox_summaries: regions.take(far * ranks * shape.far_summary_bytes() as u64),
            outbox_messages: regions.take(far * tokens * shape.far_message_bytes() as u64),
            outbox_parts: regions
                .take(far * ranks * tokens * shape.parts_of_rank() as u64 * shape.far_part_bytes() as u64),
            bytes: 0,
        };
        layout.bytes = regions.0;
        layout
    }
}

/// Byte offsets of the regions of one batch's workspace, which no peer touches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkspaceLayout {
    /// u64 `[step, block]`: how often each was done, for each of [`batch::Step`](super::batch::Step).
    pub epochs: u64,
    /// u32: 1 once a thread has taken the right to write the report.
    pub report_claim: u64,
    /// u64 `[rank]`: addresses of the batch's part of the arenas as this GPU sees them; 0 of ranks of other nodes.
    pub peers: u64,
    /// u32 `[dispatch or combine]`: blocks that have written all that goes to other nodes.
    pub meetings: u64,
    /// u32: tokens of this rank.
    pub tokens: u64,
    /// i32 `[token, topk]`: their routing.
    pub topk_idx: u64,
    /// u32 `[source, 1 + token_bits]`: tokens of the source, and a bit for each that came here.
    pub sources: u64,
    /// u32 `[source, token, topk]`: row of each pair, counted over all of this rank's experts, or [`NO_ROW`].
    pub rows: u64,
    /// f32 `[source, token, topk]`: weights that came with the tokens.
    pub weights: u64,
    /// u32 `[source, token]`: how many ranks below this one the token went to.
    pub part: u64,
    /// u32 `[expert of this rank]`: rows received.
    pub counts: u64,
    /// u64 `[expert of this rank, source]`: first row << 32 | rows from that source.
    pub ranges: u64,
    /// u64 `[expert of this rank]`: rows received, over all batches.
    pub totals: u64,
    /// u32 `[dispatch or combine, epoch % 2, source]`: nanoseconds that the latest was waited for.
    pub waited: u64,
    /// u64 `[dispatch or combine, source]`: the same, added up.
    pub waits: u64,
    /// Size of the whole.
    pub bytes: u64,
}

/// Of a pair whose expert is another rank's.
pub const NO_ROW: u32 = u32::MAX;

impl WorkspaceLayout {
    /// The workspace of a rank whose kernels run with at most `blocks` blocks.
    pub const fn new(shape: &Shape, blocks: u32) -> Self {
        let ranks = shape.ranks as u64;
        let experts = shape.experts_per_rank() as u64;
        let slots = shape.tokens as u64 * shape.topk as u64;
        let mut regions = Regions(0);
        let mut layout = Self {
            epochs: regions.take(8 * super::batch::Step::COUNT as u64 * blocks as u64),
            report_claim: regions.take(4),
            peers: regions.take(8 * ranks),
            meetings: regions.take(4 * 2),
            tokens: regions.take(4),
            topk_idx: regions.take(4 * slots),
            sources: regions.take(4 * ranks * (1 + shape.token_bits() as u64)),
            rows: regions.take(4 * ranks * slots),
            weights: regions.take(4 * ranks * slots),
            part: regions.take(4 * ranks * shape.tokens as u64),
            counts: regions.take(4 * experts),
            ranges: regions.take(8 * experts * ranks),
            totals: regions.take(8 * experts),
            waited: regions.take(4 * 4 * ranks),
            waits: regions.take(2 * 8 * ranks),
            bytes: 0,
        };
        layout.bytes = regions.0;
        layout
    }
}
