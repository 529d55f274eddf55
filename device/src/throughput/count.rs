//! Dispatch, phase 1: what a block's tokens are and where they go.

use super::destinations;
use super::dispatch::{Block, Shared};
use crate::gpu::mem;
use crate::gpu::{block, shared, thread, warp};
use crate::wire::{Failure, NO_ROUTE, Report};

/// The block's tokens per rank and pairs per expert; for each token its place among the block's tokens for a rank and,
/// with the expert-major form, for each pair its place among the block's pairs of the expert.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs).
#[inline(always)]
pub unsafe fn count<const BY_EXPERT: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (ranks, experts) = (shape.ranks, shape.experts);
    // SAFETY: the contract, passed on; each array in shared memory is written and read in phases parted by barriers.
    unsafe {
        for rank in thread::strided(ranks) {
            shared::store_u32(block.shared.totals + 4 * rank, 0);
        }
        for word in thread::strided(block.args.groups * experts) {
            shared::store_u32(block.shared.experts + 4 * word, 0);
        }
        block::barrier();
        let mut invalid = !count_pairs(block);
        if !block.tokens_fit {
            invalid = true;
            if block::is_first_thread() {
                let seen = mem::load_u32(block.args.tokens_at);
                let report = block.report(Failure::Tokens, exchange.rank, shape.tokens.into(), seen.into());
                exchange.fail(report);
            }
        }
        count_tokens(block);
        let invalid = block::barrier_or(invalid);

        let counts = exchange.work(exchange.work.block_counts).word(thread::block_index() * (ranks + 1));
        for rank in thread::strided(ranks) {
            mem::store_u32(counts.word(rank), shared::load_u32(block.shared.totals + 4 * rank));
        }
        if block::is_first_thread() {
            mem::store_u32(counts.word(ranks), invalid as u32);
        }
        let per_expert = exchange.work(exchange.work.block_experts).word(thread::block_index() * experts);
        for expert in thread::strided(experts) {
            // The counts of each group become those of the groups before.
            let mut sum = 0;
            let mut group = 0;
            while group < block.args.groups {
                let at = block.shared.experts + 4 * (group * experts + expert);
                let counted = shared::load_u32(at);
                if BY_EXPERT {
                    shared::store_u32(at, sum);
                }
                sum += counted;
                group += 1;
            }
            mem::store_u32(per_expert.word(expert), sum);
        }
        if BY_EXPERT {
            block::barrier();
            place_pairs(block);
        }
    }
}

/// A group's share of the block's pairs: whole warps' worth, the first and the one past the last.
#[inline(always)]
fn share(block: &Block, group: u32) -> (u32, u32) {
    let topk = block.args.exchange.shape.topk;
    let (first, end) = (block.tokens.first * topk, block.tokens.end * topk);
    let share = (end - first).div_ceil(block.args.groups.max(1)).div_ceil(thread::WARP) * thread::WARP;
    let first = end.min(first + group * share);
    (first, end.min(first + share))
}

/// Adds the block's pairs to their experts' counts, each group's apart, and keeps the routing in the handle. False, and
/// a report, on a thread that has seen an id out of range.
#[inline(always)]
unsafe fn count_pairs(block: &Block) -> bool {
    let exchange = &block.args.exchange;
    let kept = exchange.handle(exchange.handle.topk_idx);
    let mut valid = true;
    let mut group = thread::warp_index();
    // One group is the whole block's work; of several each is a warp's.
    let (mut pair, end, step) = if block.args.groups == 1 {
        group = 0;
        let (first, end) = share(block, 0);
        (first + thread::index(), end, thread::block_size())
    } else if group < block.args.groups {
        let (first, end) = share(block, group);
        (first + thread::lane(), end, thread::WARP)
    } else {
        (0, 0, 1)
    };
    while pair < end {
        // SAFETY: the contract; the pairs are of the block's tokens.
        unsafe {
            // Four at a time, so that their loads are on their way together.
            let expert = |pair: u32| {
                if pair < end { mem::load_u32(block.args.topk_idx.word(pair)) } else { u32::MAX }
            };
            let pairs = [pair, pair + step, pair + 2 * step, pair + 3 * step];
            let [a, b, c, d] = [expert(pairs[0]), expert(pairs[1]), expert(pairs[2]), expert(pairs[3])];
            let mut count = |pair: u32, expert: u32| {
                if pair < end {
                    mem::store_u32(kept.word(pair), expert);
                    valid &= count_pair(block, group, pair, expert);
                }
            };
            count(pairs[0], a);
            count(pairs[1], b);
            count(pairs[2], c);
            count(pairs[3], d);
        }
        pair += 4 * step;
    }
    valid
}

/// Adds a pair to its expert's count in a group. False, and a report, if the id is out of range.
#[inline(always)]
unsafe fn count_pair(block: &Block, group: u32, pair: u32, expert: u32) -> bool {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    // SAFETY: the contract; the count exists for ids below `experts`.
    unsafe {
        if expert < shape.experts {
            shared::add_u32(block.shared.experts + 4 * (group * shape.experts + expert), 1);
        } else if expert != u32::MAX {
            let topk = shape.topk.max(1);
            let (failure, experts) = (Failure::ExpertOutOfRange, shape.experts.into());
            let report = block.report(failure, exchange.rank, experts, expert.into());
            exchange.fail(Report { token: (pair / topk).into(), slot: (pair % topk).into(), ..report });
            return false;
        }
    }
    true
}

/// Numbers the pairs of each expert in the order of tokens and slots, from the block's first.
#[inline(always)]
unsafe fn place_pairs(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let group = thread::warp_index();
    if group >= block.args.groups {
        return;
    }
    let places = exchange.handle(exchange.handle.places);
    let (mut pair, end) = share(block, group);
    // Whole warps, so that lanes past the end still take part.
    while pair < end {
        let own = pair + thread::lane();
        // SAFETY: the contract; the group's counts are this warp's alone, and barriers part its lanes' reads from the
        // writes of others.
        unsafe {
            let expert = if own < end { mem::load_u32(block.args.topk_idx.word(own)) } else { u32::MAX };
            let counted = expert < shape.experts;
            let same = warp::match_any(warp::ALL, expert);
            let at = block.shared.experts + 4 * (group * shape.experts + if counted { expert } else { 0 });
            let before = shared::load_u32(at);
            if counted {
                mem::store_u32(places.word(own), before + (same & warp::lanes_below()).count_ones());
            }
            warp::barrier(warp::ALL);
            if counted && warp::elect(same) {
                shared::store_u32(at, before + same.count_ones());
            }
            warp::barrier(warp::ALL);
        }
        pair += thread::WARP;
    }
}

/// Counts tokens per rank, and writes each token's routes: which rank, and the place among the block's tokens for it.
#[inline(always)]
unsafe fn count_tokens(block: &Block) {
    let args = block.args;
    let shape = &args.exchange.shape;
    let Shared { totals, warp_counts, .. } = block.shared;
    let ranks = shape.ranks;
    let width = shape.route_width();
    let mut round = block.tokens.first;
    while round < block.tokens.end {
        let token = round + thread::index();
        let active = token < block.tokens.end;
        // SAFETY: the contract; arrays in shared memory are written and read in phases parted by barriers; a route is
        // written by the thread that has its token.
        unsafe {
            let mut mask = 0;
            for rank in 0..ranks {
                if rank % 32 == 0 {
                    mask = if active { destinations::mask(shape, args.topk_idx, token, rank) } else { 0 };
                }
                let votes = warp::ballot(warp::ALL, mask >> (rank % 32) & 1 != 0);
                if thread::lane() == 0 {
                    let at = warp_counts + 4 * (thread::warp_index() * ranks + rank);
                    shared::store_u32(at, votes.count_ones());
                }
            }
            block::barrier();
            // Each count becomes the sum of those before it; a lane has a warp's.
            for rank in thread::warp_strided(ranks) {
                let at = warp_counts + 4 * (thread::lane() * ranks + rank);
                let counted = if thread::lane() < thread::warps() { shared::load_u32(at) } else { 0 };
                let before = shared::load_u32(totals + 4 * rank);
                let sum = before + warp::inclusive_sum(counted);
                // All lanes have read before one of them writes.
                warp::barrier(warp::ALL);
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
        }
        round += thread::block_size();
        if round < block.tokens.end {
            // The next round's counts take the place of this one's.
            block::barrier();
        }
    }
}
