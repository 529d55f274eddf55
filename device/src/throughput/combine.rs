//! Combine: every rank pulls the partial results of its tokens from the ranks that hold them and sums them: in f32,
//! in ascending rank order, then the biases, rounded once. Unweighted: the experts' owner has weighted already
//! ([`reduce`](super::reduce) does, from expert-major rows).
//!
//! One flag per rank says that its outputs are ready. Nothing says that they have been read: the next dispatch does,
//! since none of its rows arrive before their sender has finished this combine.

use super::across;
use super::pull::{self, Pull};
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, thread};
use crate::internode::Link;
use crate::kernel::kernel;
use crate::meet;
use crate::trace::{About, Activity};
use crate::wire::{Exchange, Phase};

/// Arguments of [`Combine`] and [`CombinePlain`].
///
/// Contract: [`Exchange`]'s; the handle was filled by a dispatch; the arrays have as many rows as its tokens; this rank's
/// outputs were written before the launch, in stream order; the grid's blocks are resident at once and whole warps;
/// the launch has [`Shared`]'s bytes of shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineArgs {
    /// The exchange this belongs to.
    pub exchange: Exchange,
    /// Out: bf16 or f16 `[tokens, hidden]`, aligned to 16 bytes.
    pub out: Address,
    /// bf16 or f16 `[tokens, hidden]` each, aligned to 16 bytes, added last and in this order; null for none.
    pub bias: [Address; 2],
    /// Out: f32 `[tokens, topk]`: what the slots' owners have put into their `slot_outputs`, 0 where there is none; null
    /// if not wanted.
    pub slots_out: Address,
    /// 1 if copy engines have brought the outputs to the inbox, 0 to pull them from the peers.
    pub from_inbox: u32,
    /// Bytes of each partial row that a stage holds, a multiple of 16.
    pub piece_bytes: u32,
    /// Stages of a warp.
    pub stages: u32,
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
kernel!(
    /// Combine, partial rows pulled by bulk copies. sm_90.
    Combine, tokenrail_combine, CombineArgs, combine_bulk
);

kernel!(
    /// Combine, partial rows pulled by 16-byte loads: for GPUs without bulk copies.
    CombinePlain, tokenrail_combine_plain, CombineArgs, combine_plain
);

/// Arguments of the combine kernels for ranks on several nodes.
///
/// Contract: [`CombineArgs`]'s and [`Link`]'s, with the flight's channels and part of the arenas; the shape is one across
/// nodes; `from_inbox` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineAcrossArgs {
    /// As on one node.
    pub combine: CombineArgs,
    /// The way to other nodes.
    pub link: Link,
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
kernel!(
    /// [`Combine`] across nodes: see [`super::across`]. sm_90.
    CombineAcross, tokenrail_combine_across, CombineAcrossArgs, combine_across_bulk
);

kernel!(
    /// [`CombinePlain`] across nodes.
    CombineAcrossPlain, tokenrail_combine_across_plain, CombineAcrossArgs, combine_across_plain
);

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn combine_across_bulk(args: CombineAcrossArgs) {
    // SAFETY: the contract of CombineAcrossArgs, passed on.
    unsafe { across::combine::combine(&args, pull::Bulk::new(&args.combine)) }
}

#[inline(always)]
unsafe fn combine_across_plain(args: CombineAcrossArgs) {
    // SAFETY: the contract of CombineAcrossArgs, passed on.
    unsafe { across::combine::combine(&args, pull::Plain) }
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
unsafe fn combine_bulk(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine(&args, pull::Bulk::new(&args)) }
}

#[inline(always)]
unsafe fn combine_plain(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine(&args, pull::Plain) }
}

/// Offsets in a block's dynamic shared memory, from its base.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// mbarriers `[warp, stage]`.
    pub barriers: u32,
    /// Bytes `[warp, stage, route_width, piece_bytes]`.
    pub stages: u32,
    /// The whole.
    pub bytes: u32,
}

impl Shared {
    /// The shared memory of a block of `warps` warps with `stages` stages, each of `stage_bytes` bytes.
    pub const fn new(warps: u32, stages: u32, stage_bytes: u32) -> Self {
        let buffers = (8 * warps * stages).next_multiple_of(128);
        Self { barriers: 0, stages: buffers, bytes: buffers + warps * stages * stage_bytes }
    }
}

#[inline(always)]
unsafe fn combine(args: &CombineArgs, mut pull: impl Pull) {
    let exchange = &args.exchange;
    let (ranks, trace) = (exchange.shape.ranks, exchange.trace);
    // SAFETY: the contract of CombineArgs. The epoch is written by the last block, after every block has read it.
    unsafe {
        let at = exchange.work(exchange.work.combine_epoch);
        let epoch = mem::load_u64(at) + 1;
        let tokens = mem::load_u32(exchange.handle(exchange.handle.tokens));
        let deadline_ns = clock::now_ns() + exchange.timeout_ns;
        trace.begin_warp();
        if thread::block_index() == 0 {
            for peer in thread::strided(ranks) {
                // Partner: the wait for ready_flags below, on `peer` (acquire, sys). What it releases: the outputs,
                // which stream order puts before this kernel.
                let flag = exchange.peer(peer).offset(exchange.arena.ready_flags).long(exchange.rank);
                mem::store_release_sys_u64(flag, epoch);
            }
            trace.end_warp(Activity::Signal, About::NOTHING);
        }
        let mut late = false;
        for peer in thread::strided(ranks) {
            // Partner: the release above, on `peer`.
            late |= !exchange.wait_flag(exchange.arena.ready_flags, peer, epoch, deadline_ns, Phase::Ready);
        }
        let late = block::barrier_or(late);
        trace.end_warp(Activity::Barrier, About::NOTHING);
        if !late {
            if !args.slots_out.is_null() {
                pull::slots(args, tokens);
                trace.end_warp(Activity::Slots, About::NOTHING);
            }
            pull::tokens_of_all_ranks(args, tokens, &mut pull);
        }
        if meet::last_block(exchange.work(exchange.work.arrived)) && block::is_first_thread() {
            mem::store_u64(at, epoch);
        }
        trace.end_warp(Activity::Meet, About::NOTHING);
    }
}
