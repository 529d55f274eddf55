//! Dispatch: every token's row, written once, straight into its final place on each rank that owns one of its experts.
//!
//! A block owns a contiguous range of tokens and goes through these phases, one file each:
//! 1. `count` its tokens per rank and expert, and each token's place among the block's tokens for a rank;
//! 2. `announce`: the last block to arrive adds up, and writes this rank's row of counts to every
//!    peer (those per expert only with the expert-major form: otherwise nobody waits for them, and they come later);
//! 3. `plan`: with the counts of all ranks the row of every token on its destination is known;
//! 4. `send` the rows; beside it, for the expert-major form, other warps
//!    `expand` what arrives;
//! 5. `arrive`: the last block to finish signals every peer and waits for their signals.
//!
//! Placement is a pure function of the routing: rows lie in the order (source rank, token index), expert-major rows in
//! the order (expert, source rank, token index, slot). It is kept in a handle. A dispatch that follows a handle leaves
//! phase 1 out, and of phase 2 all but the handle's name.

use super::across::{forward, pack};
use super::{announce, arrive, count, expand, plan, send};
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, shared, thread};
use crate::internode::Link;
use crate::kernel::kernel;
use crate::meet;
use crate::trace::{About, Activity};
use crate::wire::{CHUNK, Exchange, Failure, MAX_SIDES, Phase, Report, ScaleStrides, Shape};

/// Arguments of all dispatch kernels.
///
/// Contract: [`Exchange`]'s; the input arrays are as described, aligned to 16 bytes and not written meanwhile; the
/// grid has at most as many blocks as the workspace was made for, all resident at once; blocks are whole warps, of
/// which `senders` is at least one and, but for the expert-major form, all; the launch has [`Shared`]'s bytes of
/// shared memory. If `cached`, an earlier dispatch with the same shape has filled the handle.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DispatchArgs {
    /// The exchange this belongs to.
    pub exchange: Exchange,
    /// Bytes `[tokens, row_bytes]`.
    pub x: Address,
    /// u32 words, as `x_scale_strides` says; null without scales.
    pub x_scales: Address,
    /// i32 `[tokens, topk]`, −1 for none; not used if `cached`.
    pub topk_idx: Address,
    /// f32 `[tokens, topk]`; null to send zeros.
    pub topk_weights: Address,
    /// u32 `[tokens, side_words]` each.
    pub sides: [Address; MAX_SIDES],
    /// Where the scales of a token lie.
    pub x_scale_strides: ScaleStrides,
    /// u32: tokens in this call, read on the device; null to take `tokens`.
    pub tokens_at: Address,
    /// Tokens in this call, at most `shape.tokens`.
    pub tokens: u32,
    /// 1 to follow the handle, 0 to make it anew.
    pub cached: u32,
    /// 1 to pack rows for other ranks into the outbox and stop before telling anyone: [`struct@Arrive`] does, once copy
    /// engines have moved them.
    pub pack: u32,
    /// Warps that send; those after them expand.
    pub senders: u32,
    /// Groups in which the pairs of a block are counted: more need more shared memory, and take less time.
    pub groups: u32,
    /// Bytes of a staging buffer, a multiple of 16. A longer row goes in several pieces.
    pub stage_bytes: u32,
    /// Staging buffers of a warp that sends.
    pub stages: u32,
    /// Staging buffers of a warp that expands.
    pub expand_stages: u32,
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
kernel!(
    /// [`Dispatch`] that also fills the expert-major form. sm_90.
    DispatchByExpert, tokenrail_dispatch_by_expert, DispatchArgs, dispatch_by_expert_bulk
);

kernel!(
    /// [`DispatchPlain`] that also fills the expert-major form.
    DispatchByExpertPlain, tokenrail_dispatch_by_expert_plain, DispatchArgs, dispatch_by_expert_plain
);

/// Arguments of the dispatch kernels for ranks on several nodes.
///
/// Contract: [`DispatchArgs`]'s and [`Link`]'s, with the flight's channels and part of the arenas; the shape is one across
/// nodes; `pack` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DispatchAcrossArgs {
    /// As on one node.
    pub dispatch: DispatchArgs,
    /// The way to other nodes.
    pub link: Link,
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
kernel!(
    /// [`Dispatch`] across nodes: see [`across`](super::across). sm_90.
    DispatchAcross, tokenrail_dispatch_across, DispatchAcrossArgs, across_bulk
);

kernel!(
    /// [`DispatchPlain`] across nodes.
    DispatchAcrossPlain, tokenrail_dispatch_across_plain, DispatchAcrossArgs, across_plain
);

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
kernel!(
    /// [`DispatchByExpert`] across nodes. sm_90.
    DispatchByExpertAcross, tokenrail_dispatch_by_expert_across, DispatchAcrossArgs, by_expert_across_bulk
);

kernel!(
    /// [`DispatchByExpertPlain`] across nodes.
    DispatchByExpertAcrossPlain, tokenrail_dispatch_by_expert_across_plain, DispatchAcrossArgs, by_expert_across_plain
);

kernel!(
    /// The end of a dispatch whose rows were packed and moved by copy engines. One block.
    Arrive, tokenrail_arrive, DispatchArgs, arrive_alone
);

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn dispatch_bulk(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { near::<false>(&args, send::bulk::<false, false>, expand::nothing) }
}

#[inline(always)]
unsafe fn dispatch_plain(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { near::<false>(&args, send::plain::<false, false>, expand::nothing) }
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn dispatch_by_expert_bulk(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { near::<true>(&args, send::bulk::<true, false>, expand::bulk) }
}

#[inline(always)]
unsafe fn dispatch_by_expert_plain(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { near::<true>(&args, send::plain::<true, false>, expand::plain) }
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn across_bulk(args: DispatchAcrossArgs) {
    // SAFETY: the contract of DispatchAcrossArgs, passed on.
    unsafe { across::<false>(&args, send::bulk::<false, true>, forward::bulk::<false>, expand::nothing) }
}

#[inline(always)]
unsafe fn across_plain(args: DispatchAcrossArgs) {
    // SAFETY: the contract of DispatchAcrossArgs, passed on.
    unsafe { across::<false>(&args, send::plain::<false, true>, forward::plain::<false>, expand::nothing) }
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn by_expert_across_bulk(args: DispatchAcrossArgs) {
    // SAFETY: the contract of DispatchAcrossArgs, passed on.
    unsafe { across::<true>(&args, send::bulk::<true, true>, forward::bulk::<true>, expand::bulk) }
}

#[inline(always)]
unsafe fn by_expert_across_plain(args: DispatchAcrossArgs) {
    // SAFETY: the contract of DispatchAcrossArgs, passed on.
    unsafe { across::<true>(&args, send::plain::<true, true>, forward::plain::<true>, expand::plain) }
}

#[inline(always)]
unsafe fn arrive_alone(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs; the packing kernel was the last one with this workspace.
    unsafe {
        let block = Block::new::<false>(&args, &Link::NONE);
        args.exchange.trace.begin_warp();
        arrive::signal::<false>(&block);
        arrive::wait::<false, false>(&block);
    }
}

/// Bytes of an entry of the list of side tensors.
pub(super) const SIDE_BYTES: u32 = 24;

/// Offsets in a block's dynamic shared memory, from its base.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// u32 `[rank]`: the block's tokens to each rank; in the announcing block then this rank's.
    pub totals: u32,
    /// u32 `[rank]`: first row there of this block's tokens.
    pub base: u32,
    /// u32 `[rank]`: first row there of this rank's tokens.
    pub first: u32,
    /// u32 `[rank]`: this rank's tokens to each rank, in so far as there is room.
    pub mine: u32,
    /// u32 `[warp, rank]`: tokens of the warps before, in the round.
    pub warp_counts: u32,
    /// u32 `[group, expert]`: pairs of each expert; later `[source, expert of this rank]`: with the expert-major form
    /// the first expert-major row of that source's pairs, without it sums.
    pub experts: u32,
    /// u32 `[expert of this rank + 1]`: first expert-major row of each expert, and the end.
    pub starts: u32,
    /// u32 `[expert of this rank]`: where its rows end and padding begins.
    pub ends: u32,
    /// u64 words, address and offset in the arena `[side]`.
    pub sides: u32,
    /// mbarriers `[buffer]`.
    pub barriers: u32,
    /// Bytes `[buffer, stage_bytes]`.
    pub stages: u32,
    /// mbarriers `[warp]`, to forward with. This and the next two with other nodes.
    pub forward_barriers: u32,
    /// u32 `[near rank, far node]`: first row there of the tokens of that node's rank of this rail.
    pub far_first: u32,
    /// u32 `[far node]`: these ranks' tokens.
    pub far_tokens: u32,
    /// The whole.
    pub bytes: u32,
}

impl Shared {
    /// The shared memory of a block of `warps` warps with `buffers` buffers of `stage_bytes` each.
    pub const fn new(shape: &Shape, warps: u32, groups: u32, buffers: u32, stage_bytes: u32) -> Self {
        let ranks = 4 * shape.ranks;
        let own = shape.experts_per_rank();
        let counted = groups * shape.experts;
        let pairs = shape.ranks * own;
        let totals = 0;
        let base = totals + ranks;
        let first = base + ranks;
        let mine = first + ranks;
        let warp_counts = mine + ranks;
        let experts = warp_counts + ranks * warps;
        let starts = experts + 4 * if counted > pairs { counted } else { pairs };
        let ends = starts + 4 * (own + 1);
        let sides = (ends + 4 * own).next_multiple_of(8);
        let barriers = sides + SIDE_BYTES * MAX_SIDES as u32;
        let stages = (barriers + 8 * buffers).next_multiple_of(128);
        // Behind the rest, which has nothing to do with other nodes.
        let forward_barriers = stages + buffers * stage_bytes;
        let forwarding = if shape.is_across() { warps } else { 0 };
        let far_first = forward_barriers + 8 * forwarding;
        let far_tokens = far_first + 4 * shape.near_ranks * shape.far_nodes();
        Self {
            totals,
            base,
            first,
            mine,
            warp_counts,
            experts,
            starts,
            ends,
            sides,
            far_first,
            far_tokens,
            barriers,
            forward_barriers,
            stages,
            bytes: far_tokens + 4 * shape.far_nodes(),
        }
    }

    const fn at(self, base: u32) -> Self {
        Self {
            totals: self.totals + base,
            base: self.base + base,
            first: self.first + base,
            mine: self.mine + base,
            warp_counts: self.warp_counts + base,
            experts: self.experts + base,
            starts: self.starts + base,
            ends: self.ends + base,
            sides: self.sides + base,
            far_first: self.far_first + base,
            far_tokens: self.far_tokens + base,
            barriers: self.barriers + base,
            forward_barriers: self.forward_barriers + base,
            stages: self.stages + base,
            bytes: self.bytes,
        }
    }
}

/// Buffers of all warps of a block.
pub const fn buffers(warps: u32, senders: u32, stages: u32, expand_stages: u32) -> u32 {
    senders * stages + (warps - senders) * expand_stages
}

/// A range of tokens.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub first: u32,
    pub end: u32,
}

impl Tokens {
    /// This block's share of `tokens` tokens; whole chunks if they are announced by the chunk.
    #[inline(always)]
    pub fn share<const BY_EXPERT: bool>(tokens: u32) -> Self {
        let mut share = tokens.div_ceil(thread::grid_size().max(1));
        if BY_EXPERT {
            share = share.div_ceil(CHUNK) * CHUNK;
        }
        let first = tokens.min(share * thread::block_index());
        Self { first, end: tokens.min(first + share) }
    }
}

/// What the phases of one block share.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub args: &'a DispatchArgs,
    /// The way to other nodes; none in the kernels for one.
    pub link: &'a Link,
    /// The first rank of this one's node.
    pub first_near: u32,
    pub shared: Shared,
    /// This rank's tokens.
    pub all_tokens: u32,
    /// This block's.
    pub tokens: Tokens,
    pub epoch: u64,
    pub deadline_ns: u64,
    /// False if the count of tokens on the device is too large; nobody sends then.
    pub tokens_fit: bool,
}

impl<'a> Block<'a> {
    /// # Safety
    /// The contract of [`DispatchArgs`].
    #[inline(always)]
    unsafe fn new<const BY_EXPERT: bool>(args: &'a DispatchArgs, link: &'a Link) -> Self {
        let exchange = &args.exchange;
        let warps = thread::warps();
        let buffers = buffers(warps, args.senders, args.stages, args.expand_stages);
        let shared = Shared::new(&exchange.shape, warps, args.groups, buffers, args.stage_bytes);
        // SAFETY: the caller's promise. The epoch is written by the last block, after every block has read it; the
        // handle's count, if it is this dispatch that writes it, is not read.
        unsafe {
            let epoch = mem::load_u64(exchange.work(exchange.work.dispatch_epoch)) + 1;
            let deadline_ns = clock::now_ns() + exchange.timeout_ns;
            let tokens = if args.cached != 0 {
                mem::load_u32(exchange.handle(exchange.handle.tokens))
            } else if args.tokens_at.is_null() {
                args.tokens
            } else {
                mem::load_u32(args.tokens_at)
            };
            let tokens_fit = tokens <= exchange.shape.tokens;
            let all_tokens = if tokens_fit { tokens } else { 0 };
            Self {
                args,
                link,
                first_near: exchange.rank - exchange.rank % exchange.shape.near_ranks.max(1),
                shared: shared.at(shared::base()),
                all_tokens,
                tokens: Tokens::share::<BY_EXPERT>(all_tokens),
                epoch,
                deadline_ns,
                tokens_fit,
            }
        }
    }

    /// Address of `token`'s routes.
    pub fn routes(&self, token: u32) -> Address {
        let exchange = &self.args.exchange;
        exchange.handle(exchange.handle.routes).long(token * exchange.shape.route_width())
    }

    /// Address of a word of the counts that `source` has sent to this rank, of which `own` is the arena.
    pub fn count_word(&self, own: Address, source: u32, word: u32) -> Address {
        let exchange = &self.args.exchange;
        own.offset(exchange.arena.counts_of(&exchange.shape, self.epoch, source)).word(word)
    }

    /// Whether this rank writes to `rank`'s arena itself.
    #[inline(always)]
    pub fn is_near(&self, rank: u32) -> bool {
        rank.wrapping_sub(self.first_near) < self.args.exchange.shape.near_ranks
    }

    /// The first rank that this one has flags of in its arena, and how many have.
    #[inline(always)]
    pub fn near<const ACROSS: bool>(&self) -> (u32, u32) {
        let shape = &self.args.exchange.shape;
        if ACROSS { (self.first_near, shape.near_ranks) } else { (0, shape.ranks) }
    }

    /// This rank's rows will not all be there: `arrive` is to tell nobody that they are.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`].
    #[inline(always)]
    pub unsafe fn give_up(&self) {
        let exchange = &self.args.exchange;
        // SAFETY: the contract. Partner: `arrive`'s load, behind the meeting of the blocks. Whoever stores stores the same.
        unsafe { mem::store_relaxed_gpu_u32(exchange.work(exchange.work.unsent), 1) };
    }

    /// A report about this dispatch.
    pub fn report(&self, failure: Failure, peer: u32, expected: u64, seen: u64) -> Report {
        Report::new(failure, Phase::None, peer, self.epoch, expected, seen)
    }
}

/// A dispatch whose ranks reach each other's memory.
#[inline(always)]
unsafe fn near<const BY_EXPERT: bool>(
    args: &DispatchArgs,
    send_rows: unsafe fn(&Block),
    expand_rows: unsafe fn(&Block),
) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { dispatch::<BY_EXPERT, false>(args, &Link::NONE, send_rows, expand::nothing, expand_rows) }
}

/// A dispatch across nodes.
#[inline(always)]
unsafe fn across<const BY_EXPERT: bool>(
    args: &DispatchAcrossArgs,
    send_rows: unsafe fn(&Block),
    forward_rows: unsafe fn(&Block),
    expand_rows: unsafe fn(&Block),
) {
    // SAFETY: the contract of DispatchAcrossArgs, passed on.
    unsafe { dispatch::<BY_EXPERT, true>(&args.dispatch, &args.link, send_rows, forward_rows, expand_rows) }
}

#[inline(always)]
unsafe fn dispatch<const BY_EXPERT: bool, const ACROSS: bool>(
    args: &DispatchArgs,
    link: &Link,
    send_rows: unsafe fn(&Block),
    forward_rows: unsafe fn(&Block),
    expand_rows: unsafe fn(&Block),
) {
    let exchange = &args.exchange;
    // SAFETY: the contracts of DispatchArgs and, with ACROSS, of Link.
    unsafe {
        let block = Block::new::<BY_EXPERT>(args, link);
        let trace = exchange.trace;
        trace.begin_warp();
        let meetings = exchange.work(exchange.work.arrived);
        if args.cached == 0 {
            count::count::<BY_EXPERT>(&block);
            trace.end_warp(Activity::Count, About::NOTHING);
            let last = meet::last_block(meetings);
            trace.end_warp(Activity::Meet, About::NOTHING);
            if last {
                announce::announce::<BY_EXPERT, ACROSS>(&block);
                trace.end_warp(Activity::Announce, About::NOTHING);
            }
        } else if thread::block_index() == 0 {
            announce::announce_handle::<ACROSS>(&block);
            trace.end_warp(Activity::Announce, About::NOTHING);
        }
        if exchange.shape.side_words[0] != 0 && block::is_first_thread() {
            send::list_sides(&block);
        }
        if ACROSS {
            pack::pack::<BY_EXPERT>(&block);
            trace.end_warp(Activity::Pack, About::NOTHING);
        }
        let plan = plan::plan::<BY_EXPERT, ACROSS>(&block);
        trace.end_warp(Activity::Plan, About::NOTHING);
        if plan.send {
            if !BY_EXPERT && !ACROSS && args.cached == 0 {
                announce::send_expert_counts(&block);
                trace.end_warp(Activity::Announce, About::NOTHING);
            }
            if thread::warp_index() < args.senders {
                send_rows(&block);
                if ACROSS {
                    forward_rows(&block);
                }
            } else if plan.expand {
                expand_rows(&block);
            } else {
                expand::clear(&block);
            }
        }
        let last = meet::last_block(meetings.word(1));
        trace.end_warp(Activity::Meet, About::NOTHING);
        if last {
            if args.pack == 0 {
                arrive::signal::<ACROSS>(&block);
            }
            // While the rows are on their way.
            arrive::settle::<BY_EXPERT, ACROSS>(&block);
            trace.end_warp(Activity::Settle, About::NOTHING);
            if args.pack == 0 {
                arrive::wait::<BY_EXPERT, ACROSS>(&block);
            }
        }
    }
}
