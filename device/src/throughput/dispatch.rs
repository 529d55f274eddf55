//! Dispatch: every token's row, written once, straight into its final place on each rank that owns one of its experts.
//!
//! A block owns a contiguous range of tokens and goes through four phases:
//! 1. **count** its tokens per rank and expert, and each token's place among the block's tokens for a rank;
//! 2. **announce**: the last block to arrive adds up, and writes this rank's row of counts to every peer (those per
//!    expert after its flag: nobody waits for them yet);
//! 3. **plan**: with the counts of all ranks the row of every token on its destination is known;
//! 4. **send** the rows; the last block to finish signals every peer and waits for their signals.
//!
//! Placement is a pure function of the routing: rows lie in the order (source rank, token index).

use super::{destinations, meet, send};
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, shared, thread, warp};
use crate::kernel::kernel;
use crate::wire::{Exchange, Failure, NO_ROUTE, Phase, Report, Shape};

/// Arguments of [`Dispatch`] and [`DispatchPlain`].
///
/// Contract: [`Exchange`]'s; the input arrays are as described, aligned to 16 bytes and not written meanwhile; the
/// grid has at most as many blocks as the workspace was made for, all resident at once; blocks are whole warps; the
/// launch has [`Shared`]'s bytes of shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DispatchArgs {
    /// The exchange this belongs to.
    pub exchange: Exchange,
    /// Bytes `[tokens, row_bytes]`.
    pub x: Address,
    /// f32 `[tokens, scales]`; null without scales.
    pub x_scales: Address,
    /// i32 `[tokens, topk]`, −1 for none.
    pub topk_idx: Address,
    /// f32 `[tokens, topk]`.
    pub topk_weights: Address,
    /// Tokens in this call, at most `shape.tokens`.
    pub tokens: u32,
    /// Bytes of a staging buffer, a multiple of 16. A longer row goes in several pieces.
    pub stage_bytes: u32,
    /// Staging buffers of a warp.
    pub stages: u32,
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
kernel!(
    /// Dispatch, rows moved by bulk copies. sm_90.
    Dispatch, tokenrail_dispatch, DispatchArgs, dispatch_bulk
);

kernel!(
    /// Dispatch, rows moved by 16-byte loads and stores: for GPUs without bulk copies.
    DispatchPlain, tokenrail_dispatch_plain, DispatchArgs, dispatch_plain
);

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
unsafe fn dispatch_bulk(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { dispatch(&args, send::bulk) }
}

unsafe fn dispatch_plain(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { dispatch(&args, send::plain) }
}

/// Offsets in a block's dynamic shared memory, from its base.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// u32 `[rank]`: the block's tokens to each rank; in the announcing block then this rank's.
    pub totals: u32,
    /// u32 `[rank]`: first row there of this block's tokens.
    pub base: u32,
    /// u32 `[warp, rank]`: tokens of the warps before, in the round.
    pub warp_counts: u32,
    /// u32 `[expert]`: tokens to each expert; in the finishing block then from all ranks to each of this rank's.
    pub experts: u32,
    /// mbarriers `[warp, stage]`.
    pub barriers: u32,
    /// Bytes `[warp, stage, stage_bytes]`.
    pub stages: u32,
    /// The whole.
    pub bytes: u32,
}

impl Shared {
    /// The shared memory of a block of `warps` warps with `stages` buffers of `stage_bytes` each.
    pub const fn new(shape: &Shape, warps: u32, stages: u32, stage_bytes: u32) -> Self {
        let totals = 0;
        let base = totals + 4 * shape.ranks;
        let warp_counts = base + 4 * shape.ranks;
        let experts = warp_counts + 4 * shape.ranks * warps;
        let barriers = (experts + 4 * shape.experts).next_multiple_of(8);
        let buffers = (barriers + 8 * warps * stages).next_multiple_of(128);
        Self {
            totals,
            base,
            warp_counts,
            experts,
            barriers,
            stages: buffers,
            bytes: buffers + warps * stages * stage_bytes,
        }
    }

    const fn at(self, base: u32) -> Self {
        Self {
            totals: self.totals + base,
            base: self.base + base,
            warp_counts: self.warp_counts + base,
            experts: self.experts + base,
            barriers: self.barriers + base,
            stages: self.stages + base,
            bytes: self.bytes,
        }
    }
}

/// A range of this rank's tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub first: u32,
    pub end: u32,
}

/// What the phases of one block share.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub args: &'a DispatchArgs,
    pub shared: Shared,
    pub tokens: Tokens,
    pub epoch: u64,
    deadline_ns: u64,
}

impl Block<'_> {
    /// Address of a region of the workspace.
    fn work(&self, offset: u64) -> Address {
        self.args.exchange.workspace.offset(offset)
    }

    /// Address of `token`'s routes.
    pub fn routes(&self, token: u32) -> Address {
        let width = self.args.exchange.shape.route_width();
        self.work(self.args.exchange.work.routes).long(token * width)
    }
}

#[inline(always)]
unsafe fn dispatch(args: &DispatchArgs, send_rows: unsafe fn(&Block)) {
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    let shared = Shared::new(shape, thread::warps(), args.stages, args.stage_bytes).at(shared::base());
    let share = args.tokens.div_ceil(thread::grid_size().max(1));
    let first = args.tokens.min(share * thread::block_index());
    let tokens = Tokens { first, end: args.tokens.min(first + share) };
    // SAFETY: the contract of DispatchArgs. The epoch is written by the last block, after every block has read it.
    unsafe {
        let epoch = mem::load_u64(exchange.workspace.offset(exchange.work.dispatch_epoch)) + 1;
        let deadline_ns = clock::now_ns() + exchange.timeout_ns;
        let block = Block { args, shared, tokens, epoch, deadline_ns };

        count(&block);
        let meetings = block.work(exchange.work.arrived);
        if meet::last_block(meetings) {
            announce(&block);
        }
        if plan(&block) {
            send_rows(&block);
        }
        if meet::last_block(meetings.word(1)) {
            finish(&block);
        }
    }
}

/// Phase 1: the block's tokens per rank and expert, and for each token its place among the block's tokens for a rank.
#[inline(always)]
unsafe fn count(block: &Block) {
    let args = block.args;
    let shape = &args.exchange.shape;
    let Shared { totals, warp_counts, experts, .. } = block.shared;
    let ranks = shape.ranks;
    let width = shape.route_width();
    // SAFETY: the contract of DispatchArgs; each array in shared memory is written and read in phases parted by
    // barriers; a route is written by the thread that has its token.
    unsafe {
        for rank in thread::strided(ranks) {
            shared::store_u32(totals + 4 * rank, 0);
        }
        for expert in thread::strided(shape.experts) {
            shared::store_u32(experts + 4 * expert, 0);
        }
        let mut invalid = false;
        let mut round = block.tokens.first;
        while round < block.tokens.end {
            block::barrier();
            let token = round + thread::index();
            let active = token < block.tokens.end;
            if active {
                invalid |= !count_experts(block, token);
            }

            let mut mask = 0;
            for rank in 0..ranks {
                if rank % 32 == 0 {
                    mask = if active { destinations::mask(shape, args.topk_idx, token, rank) } else { 0 };
                }
                let votes = warp::ballot(warp::ALL, mask >> (rank % 32) & 1 != 0);
                if thread::lane() == 0 {
                    shared::store_u32(
                        warp_counts + 4 * (thread::warp_index() * ranks + rank),
                        votes.count_ones(),
                    );
                }
            }
            block::barrier();
            // Each count becomes the sum of those before it; a lane has a warp's.
            for rank in thread::warp_strided(ranks) {
                let at = warp_counts + 4 * (thread::lane() * ranks + rank);
                let counted = if thread::lane() < thread::warps() { shared::load_u32(at) } else { 0 };
                let before = shared::load_u32(totals + 4 * rank);
                let sum = before + warp::inclusive_sum(counted);
                if thread::lane() < thread::warps() {
                    shared::store_u32(at, sum - counted);
                }
                if thread::lane() == thread::WARP - 1 {
                    shared::store_u32(totals + 4 * rank, sum);
                }
            }
            block::barrier();

            let mut used = 0;
            for rank in 0..ranks {
                // With up to 32 ranks the mask is still the one from above.
                if rank % 32 == 0 && ranks > 32 {
                    mask = if active { destinations::mask(shape, args.topk_idx, token, rank) } else { 0 };
                }
                let inside = mask >> (rank % 32) & 1 != 0;
                let votes = warp::ballot(warp::ALL, inside);
                if inside {
                    let before = shared::load_u32(warp_counts + 4 * (thread::warp_index() * ranks + rank));
                    let place = before + (votes & warp::lanes_below()).count_ones();
                    mem::store_u64(block.routes(token).long(used), (rank as u64) << 32 | place as u64);
                    used += 1;
                }
            }
            while active && used < width {
                mem::store_u64(block.routes(token).long(used), NO_ROUTE);
                used += 1;
            }
            round += thread::block_size();
        }

        let invalid = block::barrier_or(invalid);
        let counts = block.work(args.exchange.work.block_counts).word(thread::block_index() * (ranks + 1));
        for rank in thread::strided(ranks) {
            mem::store_u32(counts.word(rank), shared::load_u32(totals + 4 * rank));
        }
        if block::is_first_thread() {
            mem::store_u32(counts.word(ranks), invalid as u32);
        }
        let expert_counts = block.work(args.exchange.work.expert_counts);
        for expert in thread::strided(shape.experts) {
            let counted = shared::load_u32(experts + 4 * expert);
            if counted != 0 {
                // Relaxed: read after the blocks have met.
                mem::fetch_add_relaxed_gpu_u32(expert_counts.word(expert), counted);
            }
        }
    }
}

/// Adds a token to its experts' counts; false, and a report, if one of its ids is out of range.
#[inline(always)]
unsafe fn count_experts(block: &Block, token: u32) -> bool {
    let args = block.args;
    let shape = &args.exchange.shape;
    let mut valid = true;
    for slot in 0..shape.topk {
        // SAFETY: the contract of DispatchArgs; the count exists for every id below `experts`.
        unsafe {
            let expert = mem::load_u32(args.topk_idx.word(token * shape.topk + slot));
            if expert < shape.experts {
                shared::add_u32(block.shared.experts + 4 * expert, 1);
            } else if expert != u32::MAX {
                valid = false;
                let report = Report::new(
                    Failure::ExpertOutOfRange,
                    Phase::None,
                    args.exchange.rank,
                    block.epoch,
                    shape.experts as u64,
                    expert as u64,
                );
                args.exchange.fail(Report { token: token as u64, slot: slot as u64, ..report });
            }
        }
    }
    valid
}

/// Phase 2, by the last block: adds the blocks' counts up and writes this rank's to every peer.
#[inline(always)]
unsafe fn announce(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let totals = block.shared.totals;
    let ranks = shape.ranks;
    let block_counts = block.work(exchange.work.block_counts);
    let block_base = block.work(exchange.work.block_base);
    let own_counts = exchange.arena.counts_of(shape, block.epoch, exchange.rank);
    // SAFETY: the contract of DispatchArgs; the blocks' counts were acquired at the meeting.
    unsafe {
        // A warp takes a rank, a lane a block.
        for rank in thread::warp_strided(ranks) {
            let mut total = 0;
            let mut first = 0;
            while first < thread::grid_size() {
                let other = first + thread::lane();
                let inside = other < thread::grid_size();
                let counted =
                    if inside { mem::load_u32(block_counts.word(other * (ranks + 1) + rank)) } else { 0 };
                let sum = warp::inclusive_sum(counted);
                if inside {
                    mem::store_u32(block_base.word(other * ranks + rank), total + sum - counted);
                }
                total += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
                first += thread::WARP;
            }
            if thread::lane() == 0 {
                shared::store_u32(totals + 4 * rank, total);
            }
        }
        let mut invalid = false;
        for other in thread::strided(thread::grid_size()) {
            invalid |= mem::load_u32(block_counts.word(other * (ranks + 1) + ranks)) != 0;
        }
        let invalid = block::barrier_or(invalid);

        for peer in thread::warp_strided(ranks) {
            let to = exchange.peer(peer).offset(own_counts);
            for word in thread::lane_strided(ranks + 1) {
                let value = if word < ranks { shared::load_u32(totals + 4 * word) } else { invalid as u32 };
                mem::store_u32(to.word(word), value);
            }
            warp::barrier(warp::ALL);
            if thread::lane() == 0 {
                // Partner: `plan`'s wait for count_flags on `peer` (acquire, sys). What it releases: this warp's
                // stores, by way of the warp's barrier; the own rank's flag also carries `block_base` to the other
                // blocks, by way of the block's.
                let flag = exchange.peer(peer).offset(exchange.arena.count_flags).long(exchange.rank);
                mem::store_release_sys_u64(flag, block.epoch);
            }
        }

        // Released by `finish`, which meets this block.
        let expert_counts = block.work(exchange.work.expert_counts);
        for expert in thread::strided(shape.experts) {
            let (peer, local) = (expert / shape.experts_per_rank(), expert % shape.experts_per_rank());
            let count = mem::load_u32(expert_counts.word(expert));
            mem::store_u32(expert_counts.word(expert), 0);
            mem::store_u32(exchange.peer(peer).offset(own_counts).word(ranks + 1 + local), count);
        }
    }
}

/// Phase 3: waits for all ranks' counts and works out where this block's tokens begin on each rank. False, on all
/// threads and then on all blocks and ranks alike, if the counts cannot be carried out; false too if a peer is late.
#[inline(always)]
unsafe fn plan(block: &Block) -> bool {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let ranks = shape.ranks;
    let mut good = true;
    // SAFETY: the contract of DispatchArgs; counts are read only once their flags were acquired, by threads that the
    // barrier puts behind the threads that waited.
    unsafe {
        for peer in thread::strided(ranks) {
            // Partner: `announce` on `peer` (release, sys).
            let flags = exchange.arena.count_flags;
            good &= exchange.wait_flag(flags, peer, block.epoch, block.deadline_ns, Phase::Counts);
        }
        if block::barrier_or(!good) {
            return false;
        }
        let arena = exchange.own();
        let block_base = block.work(exchange.work.block_base).word(thread::block_index() * ranks);
        // A warp takes a rank, a lane a source.
        for rank in thread::warp_strided(ranks) {
            let (mut before, mut all) = (0, 0);
            for source in thread::lane_strided(ranks) {
                let counts = arena.offset(exchange.arena.counts_of(shape, block.epoch, source));
                let tokens = mem::load_u32(counts.word(rank));
                before += if source < exchange.rank { tokens } else { 0 };
                all += tokens;
            }
            let (before, all) = (warp::sum(before), warp::sum(all));
            if thread::lane() != 0 {
                continue;
            }
            shared::store_u32(block.shared.base + 4 * rank, before + mem::load_u32(block_base.word(rank)));
            if all > shape.rows {
                good = false;
                let (limit, all) = (shape.rows as u64, all as u64);
                exchange.fail(Report::new(Failure::Capacity, Phase::None, rank, block.epoch, limit, all));
            }
            let status = arena.offset(exchange.arena.counts_of(shape, block.epoch, rank)).word(ranks);
            if mem::load_u32(status) != 0 {
                good = false;
                exchange.fail(Report::new(Failure::PeerInput, Phase::None, rank, block.epoch, 0, 1));
            }
        }
        !block::barrier_or(!good)
    }
}

/// The end, by the last block: tells every peer that its rows are written, sums up what this rank receives, and waits
/// until all of it is there. After a failure nothing was sent: only the epoch moves on.
#[inline(always)]
unsafe fn finish(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let ranks = shape.ranks;
    // SAFETY: the contract of DispatchArgs; every block has arrived, so that all rows of this rank are written and
    // visible to this block, and nobody reads the epoch any more.
    unsafe {
        // Not what this block has seen: another's wait may have timed out where this one's just did not, and its rows
        // are missing then.
        let sent = mem::load_relaxed_gpu_u32(block.work(exchange.work.report_claim)) == 0;
        if sent {
            for peer in thread::strided(ranks) {
                // Partner: the wait for data_flags below, on `peer` (acquire, sys). What it releases: the rows, by
                // way of each warp's `wait_written`, its block's barrier and the meeting of the blocks.
                let flag = exchange.peer(peer).offset(exchange.arena.data_flags).long(exchange.rank);
                mem::store_release_sys_u64(flag, block.epoch);
            }
        }
        // While the rows are on their way: what the counts per rank say, which have long been here.
        let arena = exchange.own();
        let count = |source: u32, word: u32| {
            mem::load_u32(arena.offset(exchange.arena.counts_of(shape, block.epoch, source)).word(word))
        };
        let received = block.work(exchange.work.received);
        for source in thread::strided(ranks) {
            let tokens = if sent { count(source, exchange.rank) } else { 0 };
            mem::store_u32(block.work(exchange.work.tokens_per_source).word(source), tokens);
        }
        if thread::warp_index() == 0 {
            let mut rows = 0;
            for source in thread::lane_strided(ranks) {
                rows += if sent { count(source, exchange.rank) } else { 0 };
            }
            let rows = warp::sum(rows);
            if thread::lane() == 0 {
                mem::store_u32(received, rows);
                mem::store_u64(block.work(exchange.work.dispatch_epoch), block.epoch);
            }
        }
        let own_experts = shape.experts_per_rank();
        for expert in thread::strided(own_experts) {
            shared::store_u32(block.shared.experts + 4 * expert, 0);
        }

        let mut arrived = sent;
        if sent {
            for peer in thread::strided(ranks) {
                // Partner: the data_flags' release above, on `peer`.
                let flags = exchange.arena.data_flags;
                arrived &= exchange.wait_flag(flags, peer, block.epoch, block.deadline_ns, Phase::Data);
            }
        }
        let arrived = !block::barrier_or(!arrived);
        if arrived {
            // These came with the rows. A thread takes a pair, so that all loads are on their way at once.
            for pair in thread::strided(ranks * own_experts) {
                let (source, expert) = (pair / own_experts, pair % own_experts);
                shared::add_u32(block.shared.experts + 4 * expert, count(source, ranks + 1 + expert));
            }
        } else if block::is_first_thread() {
            mem::store_u32(received, 0);
        }
        block::barrier();
        for expert in thread::strided(own_experts) {
            let tokens = shared::load_u32(block.shared.experts + 4 * expert);
            mem::store_u32(block.work(exchange.work.tokens_per_expert).word(expert), tokens);
        }
    }
}
