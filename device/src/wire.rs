//! What ranks share: the shape all agree on, and where everything lies in an arena and a workspace.
//!
//! Each rank owns one **arena**, mapped by all peers; offsets are equal on all ranks. Its flags carry an epoch that
//! only grows, so nothing is ever cleared. The **workspace** is the rank's own: no peer touches it.

use crate::gpu::mem::{self, Address};

/// Channels that share one FP8 scale.
pub const SCALE_CHANNELS: u32 = 128;

/// An unused entry of a route.
pub const NO_ROUTE: u64 = u64::MAX;

/// The sizes that every rank of a group agrees on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks in the group.
    pub ranks: u32,
    /// Experts over all ranks; rank r owns the block from `r * experts_per_rank()` on.
    pub experts: u32,
    /// Expert slots of a token.
    pub topk: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Bytes of a dispatched row, a multiple of 16.
    pub row_bytes: u32,
    /// f32 scales that travel with a row; 0 for none.
    pub scales: u32,
    /// Most tokens that a rank dispatches at once.
    pub tokens: u32,
    /// Most rows that a rank receives at once.
    pub rows: u32,
}

impl Shape {
    /// Experts that a rank owns: ceil(experts / ranks). The last ranks may own fewer, or none.
    ///
    /// Neither side is 0 in a checked shape; saying so again keeps the panics of a division out of the kernels.
    pub const fn experts_per_rank(&self) -> u32 {
        at_least_one(self.experts.div_ceil(at_least_one(self.ranks)))
    }

    /// Most ranks that one token goes to: no more than it has slots.
    pub const fn route_width(&self) -> u32 {
        if self.topk < self.ranks { self.topk } else { self.ranks }
    }

    /// Bytes of a bf16 row: what experts give back.
    pub const fn output_bytes(&self) -> u32 {
        2 * self.hidden
    }

    /// Words that a rank tells each peer in the count phase: tokens to each rank, a status, tokens to each of the
    /// peer's experts.
    pub const fn count_words(&self) -> u32 {
        self.ranks + 1 + self.experts_per_rank()
    }
}

const fn at_least_one(number: u32) -> u32 {
    if number == 0 { 1 } else { number }
}

/// Gives out offsets one after the other, each aligned to 128 bytes: a line of the L2 cache, so that flags and data
/// of different regions never share one.
struct Regions(u64);

impl Regions {
    const fn take(&mut self, bytes: u64) -> u64 {
        let offset = self.0;
        self.0 = (offset + bytes).next_multiple_of(128);
        offset
    }
}

/// Byte offsets of an arena's regions. Indices are given in brackets, outermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaLayout {
    /// u64 `[source]`: epoch of the dispatch whose counts of tokens per rank from `source` have arrived.
    pub count_flags: u64,
    /// u64 `[source]`: epoch of the dispatch whose rows, and counts per expert, from `source` have arrived.
    pub data_flags: u64,
    /// u64 `[owner]`: epoch of the combine for which `owner`'s expert outputs are ready.
    pub ready_flags: u64,
    /// u32 `[epoch % 2, source, count_words]`.
    pub counts: u64,
    /// Bytes `[row, row_bytes]`: the received rows.
    pub rows: u64,
    /// f32 `[row, scales]`.
    pub scales: u64,
    /// i32 `[row, topk]`: number of the expert on this rank, −1 where the slot is another rank's or empty.
    pub topk_idx: u64,
    /// f32 `[row, topk]`: 0 where the index is −1.
    pub topk_weights: u64,
    /// u32 pairs `[row]`: source rank, token index there.
    pub sources: u64,
    /// bf16 `[row, hidden]`: the experts' outputs, which combine reads.
    pub outputs: u64,
    /// Size of the arena.
    pub bytes: u64,
}

impl ArenaLayout {
    /// The arena of every rank of a group with this shape.
    pub const fn new(shape: &Shape) -> Self {
        let ranks = shape.ranks as u64;
        let rows = shape.rows as u64;
        let mut regions = Regions(0);
        Self {
            count_flags: regions.take(8 * ranks),
            data_flags: regions.take(8 * ranks),
            ready_flags: regions.take(8 * ranks),
            counts: regions.take(2 * ranks * 4 * shape.count_words() as u64),
            rows: regions.take(rows * shape.row_bytes as u64),
            scales: regions.take(rows * 4 * shape.scales as u64),
            topk_idx: regions.take(rows * 4 * shape.topk as u64),
            topk_weights: regions.take(rows * 4 * shape.topk as u64),
            sources: regions.take(rows * 8),
            outputs: regions.take(rows * shape.output_bytes() as u64),
            bytes: regions.0,
        }
    }

    /// Offset of the counts that `source` sends for `epoch`. Two sets alternate: a rank can be one dispatch ahead of
    /// a peer that still reads, never two, since the dispatch between needs that peer's rows.
    pub const fn counts_of(&self, shape: &Shape, epoch: u64, source: u32) -> u64 {
        self.counts + ((epoch % 2) * shape.ranks as u64 + source as u64) * 4 * shape.count_words() as u64
    }
}

/// Byte offsets of a workspace's regions.
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
    /// u32: 1 once a thread has taken the right to write the report.
    pub report_claim: u64,
    /// u64 `[rank]`: addresses of the arenas as this GPU sees them.
    pub peers: u64,
    /// u32 `[block, ranks + 1]`: tokens to each rank, and whether an input was invalid.
    pub block_counts: u64,
    /// u32 `[expert]`: tokens to each expert, zero between dispatches.
    pub expert_counts: u64,
    /// u32 `[block, rank]`: tokens to each rank from the blocks before.
    pub block_base: u64,
    /// u64 `[token, route_width]`: rank << 32 | row there, ascending by rank, then [`NO_ROUTE`].
    pub routes: u64,
    /// u32: rows received.
    pub received: u64,
    /// u32 `[source]`: rows received from each rank.
    pub tokens_per_source: u64,
    /// u32 `[expert of this rank]`: (row, slot) pairs received.
    pub tokens_per_expert: u64,
    /// Size of the workspace.
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
        Self {
            dispatch_epoch: regions.take(8),
            combine_epoch: regions.take(8),
            arrived: regions.take(4 * Self::MEETINGS),
            report_claim: regions.take(4),
            peers: regions.take(8 * ranks),
            block_counts: regions.take(blocks * 4 * (ranks + 1)),
            expert_counts: regions.take(4 * shape.experts as u64),
            block_base: regions.take(blocks * 4 * ranks),
            routes: regions.take(shape.tokens as u64 * 8 * shape.route_width() as u64),
            received: regions.take(4),
            tokens_per_source: regions.take(4 * ranks),
            tokens_per_expert: regions.take(4 * shape.experts_per_rank() as u64),
            bytes: regions.0,
        }
    }
}

/// What every kernel of an exchange is given: the shape, where things lie, and who this is.
///
/// Contract: `workspace` has the bytes that `work` says, its `peers` are the addresses of `shape.ranks` arenas laid
/// out as `arena`, `report` is host-visible and 64 bytes, all zeroed before the first launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The sizes all ranks agree on.
    pub shape: Shape,
    /// Where things lie in every arena.
    pub arena: ArenaLayout,
    /// Where things lie in this rank's workspace.
    pub work: WorkspaceLayout,
    /// This rank's workspace.
    pub workspace: Address,
    /// Where a failure is reported: host-visible memory of [`Report::WORDS`] u64.
    pub report: Address,
    /// How long any one wait may take, in nanoseconds.
    pub timeout_ns: u64,
    /// This rank.
    pub rank: u32,
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

    /// Writes the report unless another thread has.
    ///
    /// # Safety
    /// See [`Exchange::peer`].
    pub unsafe fn fail(&self, report: Report) {
        // SAFETY: the claim word and the report are where the contract says; only the claimant writes.
        unsafe {
            if mem::compare_exchange_acq_rel_gpu_u32(self.workspace.offset(self.work.report_claim), 0, 1) != 0
            {
                return;
            }
            mem::store_u64(self.report.long(1), report.phase);
            mem::store_u64(self.report.long(2), report.peer);
            mem::store_u64(self.report.long(3), report.epoch);
            mem::store_u64(self.report.long(4), report.expected);
            mem::store_u64(self.report.long(5), report.seen);
            mem::store_u64(self.report.long(6), report.token);
            mem::store_u64(self.report.long(7), report.slot);
            // Released last; the host reads it after it has synchronised with the stream.
            mem::store_release_sys_u64(self.report, report.failure);
        }
    }

    /// Waits for a flag of this rank's arena, one per rank, to reach `epoch`; reports `peer` as late if it does not.
    /// Acquires what the flag's writer released.
    ///
    /// # Safety
    /// See [`Exchange::peer`].
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
            match mem::wait_at_least_acquire_sys(flag, epoch, deadline_ns) {
                Ok(()) => true,
                Err(seen) => {
                    self.fail(Report::new(Failure::Late, phase, peer, epoch, epoch, seen));
                    false
                }
            }
        }
    }
}
