//! Dispatch, phase 5: what was received, and that all of it is there. By the last block to finish.

use super::across::finish;
use super::dispatch::Block;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, shared, thread, warp};
use crate::trace::{About, Activity};
use crate::wire::{Failure, Phase, counts};

/// Whether this rank has sent its rows: no block has found a reason not to. A block's own plan says too little:
/// another's wait may have timed out where this one's just did not, and its rows are missing then.
#[inline(always)]
unsafe fn sent(block: &Block) -> bool {
    let exchange = &block.args.exchange;
    // SAFETY: the contract. Partner: `dispatch`'s store, which the meeting of the blocks orders before.
    unsafe { mem::load_relaxed_gpu_u32(exchange.work(exchange.work.unsent)) == 0 }
}

/// Keeps in the handle what the counts per rank say. After a failure the handle is one of no tokens and no rows.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); all blocks have sent, and this one has planned.
#[inline(always)]
pub unsafe fn settle<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (handle, ranks) = (&exchange.handle, shape.ranks);
    // SAFETY: the contract; counts were acquired in `plan` if anything was sent; nobody reads the handle meanwhile.
    unsafe {
        if block.args.cached == 0 {
            let sent = sent(block);
            let own = exchange.own();
            for rank in thread::strided(ranks) {
                let first = shared::load_u32(block.shared.first + 4 * rank) as u64;
                let mine = shared::load_u32(block.shared.mine + 4 * rank) as u64;
                let range = if sent { first << 32 | mine } else { 0 };
                mem::store_u64(exchange.handle(handle.sent).long(rank), range);
            }
            if ACROSS {
                finish::settle(block, sent);
            }
            // The first warps are about to wait for flags.
            if thread::warp_index() + 1 == thread::warps() {
                settle_rows(block, own, sent);
            }
            if BY_EXPERT && sent {
                let experts = shape.experts_per_rank();
                for pair in thread::strided(ranks * experts) {
                    let word = ranks + counts::FIXED + pair % experts;
                    let counted = mem::load_u32(block.count_word(own, pair / experts, word));
                    mem::store_u32(exchange.handle(handle.expert_counts).word(pair), counted);
                }
            }
        }
        if BY_EXPERT {
            settle_experts(block);
        }
    }
}

/// Rows received, by source and in all, and what was left out. One warp.
#[inline(always)]
unsafe fn settle_rows(block: &Block, own: Address, sent: bool) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (handle, ranks) = (&exchange.handle, shape.ranks);
    let (mut all, mut left_out) = (0, 0);
    let mut first = 0;
    while first < ranks {
        let source = first + thread::lane();
        let inside = sent && source < ranks;
        // SAFETY: the contract, passed on; all lanes take the same way.
        unsafe {
            let (tokens, mine) = if inside {
                let mine = mem::load_u32(block.count_word(own, exchange.rank, source));
                let there = shared::load_u32(block.shared.mine + 4 * source);
                (mem::load_u32(block.count_word(own, source, exchange.rank)), mine - there)
            } else {
                (0, 0)
            };
            let sum = warp::inclusive_sum(tokens);
            let before = all + sum - tokens;
            if source < ranks {
                let here = (before + tokens).min(shape.rows) - before.min(shape.rows);
                mem::store_u32(exchange.handle(handle.tokens_per_source).word(source), here);
            }
            all += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
            left_out += warp::sum(mine);
        }
        first += thread::WARP;
    }
    if thread::lane() == 0 {
        let received = all.min(shape.rows);
        // SAFETY: the words are the handle's.
        unsafe {
            mem::store_u32(exchange.handle(handle.received), received);
            mem::store_u32(exchange.handle(handle.dropped_rows), all - received);
            mem::store_u32(exchange.handle(handle.dropped_routes), left_out);
            if !sent {
                mem::store_u32(exchange.handle(handle.tokens), 0);
            }
        }
    }
}

/// The expert-major form's starts and counts, in so far as there is room.
#[inline(always)]
unsafe fn settle_experts(block: &Block) {
    let exchange = &block.args.exchange;
    let (shape, handle) = (&exchange.shape, &exchange.handle);
    let experts = shape.experts_per_rank();
    // SAFETY: the contract; `starts` and `ends` are those of `plan` if anything was sent.
    unsafe {
        let sent = sent(block);
        let end = if sent { shared::load_u32(block.shared.starts + 4 * experts) } else { 0 };
        let fits = end <= shape.expert_rows || shape.cap != 0;
        let row = |at: u32| if sent && fits { shared::load_u32(at).min(shape.expert_rows) } else { 0 };
        for expert in thread::strided(experts + 1) {
            let start = row(block.shared.starts + 4 * expert);
            mem::store_u32(exchange.handle(handle.expert_starts).word(expert), start);
            if expert < experts {
                let tokens = row(block.shared.ends + 4 * expert) - start;
                mem::store_u32(exchange.handle(handle.tokens_per_expert).word(expert), tokens);
            }
        }
        if thread::warp_index() == 0 {
            let mut dropped = 0;
            for expert in thread::lane_strided(experts) {
                if sent {
                    let start = shared::load_u32(block.shared.starts + 4 * expert);
                    let pairs = shared::load_u32(block.shared.ends + 4 * expert) - start;
                    dropped +=
                        pairs - (row(block.shared.ends + 4 * expert) - row(block.shared.starts + 4 * expert));
                }
            }
            let dropped = warp::sum(dropped);
            if thread::lane() == 0 {
                mem::store_u32(exchange.handle(handle.dropped_pairs), dropped);
            }
        }
    }
}

/// Tells every peer that its rows are written. After a failure nothing was sent, and nothing is said.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); every block has arrived, or this one is alone, so that
/// all rows of this rank are written and visible to this block.
#[inline(always)]
pub unsafe fn signal<const ACROSS: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    // SAFETY: the caller's promise.
    unsafe {
        if !sent(block) {
            return;
        }
        let (first, count) = block.near::<ACROSS>();
        for near in thread::strided(count) {
            let peer = first + near;
            // Partner: the wait for data_flags in `wait`, on `peer` (acquire, sys). What it releases: the rows, own
            // and forwarded, by way of each warp's `wait_written`, its block's barrier and the meeting of the blocks.
            let flag = exchange.peer(peer).offset(exchange.arena.data_flags).long(exchange.rank);
            mem::store_release_sys_u64(flag, block.epoch);
        }
        exchange.trace.end_warp(Activity::Signal, About::NOTHING);
    }
}

/// Waits until all of this rank's rows are there, and moves the epoch on.
///
/// # Safety
/// As [`signal`], and nobody reads the epoch any more.
#[inline(always)]
pub unsafe fn wait<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    // SAFETY: the caller's promise.
    unsafe {
        let sent = sent(block);
        if !BY_EXPERT {
            for expert in thread::strided(shape.experts_per_rank()) {
                shared::store_u32(block.shared.experts + 4 * expert, 0);
            }
        }
        let mut arrived = sent;
        if ACROSS {
            arrived &= finish::finish(block);
        }
        if sent {
            let (first, count) = block.near::<ACROSS>();
            for near in thread::strided(count) {
                let peer = first + near;
                // Partner: `signal` on `peer` (release, sys).
                let flags = exchange.arena.data_flags;
                arrived &= exchange.wait_flag(flags, peer, block.epoch, block.deadline_ns, Phase::Data);
            }
        }
        let arrived = !block::barrier_or(!arrived);
        exchange.trace.end_warp(Activity::Barrier, About::NOTHING);
        if block::is_first_thread() {
            mem::store_u64(exchange.work(exchange.work.dispatch_epoch), block.epoch);
            mem::store_relaxed_gpu_u32(exchange.work(exchange.work.unsent), 0);
            if !arrived && block.args.cached == 0 {
                mem::store_u32(exchange.handle(exchange.handle.received), 0);
            }
        }
        if BY_EXPERT {
            let end = shared::load_u32(block.shared.starts + 4 * shape.experts_per_rank());
            if arrived && end > shape.expert_rows && shape.cap == 0 && block::is_first_thread() {
                let report =
                    block.report(Failure::ExpertRows, exchange.rank, shape.expert_rows.into(), end.into());
                exchange.fail(report);
            }
        } else if block.args.cached == 0 {
            count_experts(block, arrived);
            exchange.trace.end_warp(Activity::Settle, About::NOTHING);
        }
    }
}

/// Pairs received by each of this rank's experts, whose sums are zero.
#[inline(always)]
unsafe fn count_experts(block: &Block, arrived: bool) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (handle, ranks) = (&exchange.handle, shape.ranks);
    let experts = shape.experts_per_rank();
    let sums = block.shared.experts;
    // SAFETY: the contract; the counts came with the rows, which have arrived if `arrived` says so.
    unsafe {
        let own = exchange.own();
        let dropped = arrived && shape.cap != 0 && mem::load_u32(exchange.handle(handle.dropped_rows)) != 0;
        if arrived && !dropped {
            // A thread takes a pair, so that all loads are on their way at once.
            for pair in thread::strided(ranks * experts) {
                let (source, expert) = (pair / experts, pair % experts);
                let word = ranks + counts::FIXED + expert;
                shared::add_u32(sums + 4 * expert, mem::load_u32(block.count_word(own, source, word)));
            }
        } else if arrived {
            // What was announced is more than has come: count what has.
            let slots = mem::load_u32(exchange.handle(handle.received)) * shape.topk;
            for slot in thread::strided(slots) {
                let expert = mem::load_u32(own.offset(exchange.arena.topk_idx).word(slot));
                if expert < experts {
                    shared::add_u32(sums + 4 * expert, 1);
                }
            }
        }
        block::barrier();
        for expert in thread::strided(experts) {
            let tokens = shared::load_u32(sums + 4 * expert);
            mem::store_u32(exchange.handle(handle.tokens_per_expert).word(expert), tokens);
        }
    }
}
