//! Dispatch, phase 2: what every rank tells every other before a row moves.

use super::across;
use super::dispatch::Block;
use crate::gpu::mem;
use crate::gpu::{block, shared, thread, warp};
use crate::wire::counts;

/// By the last block: adds the blocks' counts up and writes this rank's to every peer.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); all blocks have counted.
#[inline(always)]
pub unsafe fn announce<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    let ranks = exchange.shape.ranks;
    let totals = block.shared.totals;
    // SAFETY: the contract; the blocks' counts were acquired at the meeting, and shared memory is written and read in
    // phases parted by barriers.
    unsafe {
        sum_tokens(block);
        let mut invalid = false;
        let block_counts = exchange.work(exchange.work.block_counts);
        for other in thread::strided(thread::grid_size()) {
            invalid |= mem::load_u32(block_counts.word(other * (ranks + 1) + ranks)) != 0;
        }
        if BY_EXPERT || ACROSS {
            // Receivers place rows by these as soon as the flag has come. To other nodes they go with all other counts.
            for expert in thread::strided(exchange.shape.experts) {
                place_blocks::<ACROSS>(block, expert);
            }
        }
        let invalid = block::barrier_or(invalid);
        if block::is_first_thread() {
            mem::store_u32(exchange.handle(exchange.handle.tokens), block.all_tokens);
            mem::store_u64(exchange.handle(exchange.handle.id), exchange.handle_id(block.epoch));
        }
        let status = if invalid { counts::INVALID } else { counts::GOOD };
        let id = exchange.handle_id(block.epoch);
        tell::<ACROSS>(block, |word| {
            if word < ranks {
                shared::load_u32(totals + 4 * word)
            } else {
                fixed(block, word - ranks, status, id)
            }
        });
    }
}

/// By one block: names the handle that this dispatch follows to every peer, in place of counts.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs), `cached`.
#[inline(always)]
pub unsafe fn announce_handle<const ACROSS: bool>(block: &Block) {
    let exchange = &block.args.exchange;
    let ranks = exchange.shape.ranks;
    // SAFETY: the contract, passed on.
    unsafe {
        let id = mem::load_u64(exchange.handle(exchange.handle.id));
        tell::<ACROSS>(
            block,
            |word| {
                if word < ranks { 0 } else { fixed(block, word - ranks, counts::CACHED, id) }
            },
        );
    }
}

/// The words between the counts.
#[inline(always)]
fn fixed(block: &Block, word: u32, status: u32, id: u64) -> u32 {
    match word {
        counts::STATUS => status,
        counts::HANDLE_LOW => id as u32,
        counts::HANDLE_HIGH => (id >> 32) as u32,
        _ => block.all_tokens,
    }
}

/// Writes the words before the counts per expert to every peer, and then its flag. By the whole block.
#[inline(always)]
unsafe fn tell<const ACROSS: bool>(block: &Block, value: impl Fn(u32) -> u32) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let own_counts = exchange.arena.counts_of(shape, block.epoch, exchange.rank);
    if ACROSS {
        // First those that take longest.
        for peer in thread::warp_strided(shape.ranks) {
            if block.is_near(peer) {
                continue;
            }
            for word in thread::lane_strided(shape.ranks + counts::FIXED) {
                // SAFETY: the contract; the words are in the set of the outbox that no NIC reads any more.
                unsafe { mem::store_u32(across::counts::outbox(block, peer).word(word), value(word)) };
            }
        }
        block::barrier();
        if thread::warp_index() == 0 {
            // SAFETY: the contract; the counts per expert were written before the barrier, too.
            unsafe { across::counts::post(block) };
        }
    }
    for peer in thread::warp_strided(shape.ranks) {
        if ACROSS && !block.is_near(peer) {
            continue;
        }
        // SAFETY: the contract; the words are this rank's, in the set that no peer reads any more.
        unsafe {
            let arena = exchange.peer(peer);
            for word in thread::lane_strided(shape.ranks + counts::FIXED) {
                mem::store_u32(arena.offset(own_counts).word(word), value(word));
            }
            warp::barrier(warp::ALL);
            if thread::lane() == 0 {
                // Partner: `plan`'s wait for count_flags on `peer` (acquire, sys). What it releases: this warp's
                // stores, by way of the warp's barrier; the counts per expert, if they were sent before, and
                // `block_base` and `block_experts` for the other blocks of the own rank, by way of the block's.
                let flag = arena.offset(exchange.arena.count_flags).long(exchange.rank);
                mem::store_release_sys_u64(flag, block.epoch);
            }
        }
    }
}

/// This rank's tokens to each rank, and each block's share of the rows.
#[inline(always)]
unsafe fn sum_tokens(block: &Block) {
    let exchange = &block.args.exchange;
    let ranks = exchange.shape.ranks;
    let block_counts = exchange.work(exchange.work.block_counts);
    let block_base = exchange.work(exchange.work.block_base);
    // A warp takes a rank, a lane a block.
    for rank in thread::warp_strided(ranks) {
        let mut total = 0;
        let mut first = 0;
        while first < thread::grid_size() {
            let other = first + thread::lane();
            let inside = other < thread::grid_size();
            // SAFETY: the contract; all lanes of the warp take the same way.
            unsafe {
                let counted =
                    if inside { mem::load_u32(block_counts.word(other * (ranks + 1) + rank)) } else { 0 };
                let sum = warp::inclusive_sum(counted);
                if inside {
                    mem::store_u32(block_base.word(other * ranks + rank), total + sum - counted);
                }
                total += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
            }
            first += thread::WARP;
        }
        if thread::lane() == 0 {
            // SAFETY: the array has a word for every rank.
            unsafe { shared::store_u32(block.shared.totals + 4 * rank, total) };
        }
    }
}

/// By all warps, once the plan is made: each sends its share of the counts per expert. Nobody waits for them: the flags
/// behind the rows cover them.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); the own rank's count flag was acquired.
#[inline(always)]
pub unsafe fn send_expert_counts(block: &Block) {
    let exchange = &block.args.exchange;
    let experts = exchange.shape.experts;
    let block_experts = exchange.work(exchange.work.block_experts);
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    for expert in thread::Strided::new(first, experts, thread::grid_size() * thread::warps()) {
        let mut counted = 0;
        for other in thread::lane_strided(thread::grid_size()) {
            // SAFETY: the contract; the counts were acquired with the own rank's flag.
            counted += unsafe { mem::load_u32(block_experts.word(other * experts + expert)) };
        }
        let counted = warp::sum(counted);
        if thread::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { tell_owner::<false>(block, expert, counted) };
        }
    }
}

/// Writes this rank's pairs of an expert to the expert's owner.
#[inline(always)]
unsafe fn tell_owner<const ACROSS: bool>(block: &Block, expert: u32, pairs: u32) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let own_counts = exchange.arena.counts_of(shape, block.epoch, exchange.rank);
    let (peer, local) = (expert / shape.experts_per_rank(), expert % shape.experts_per_rank());
    // SAFETY: the contract; the word is this rank's.
    unsafe {
        let words = if ACROSS && !block.is_near(peer) {
            across::counts::outbox(block, peer)
        } else {
            exchange.peer(peer).offset(own_counts)
        };
        mem::store_u32(words.word(shape.ranks + counts::FIXED + local), pairs);
    }
}

/// Sends this rank's pairs of an expert to the expert's owner, and makes each block's count the sum of those before it.
#[inline(always)]
unsafe fn place_blocks<const ACROSS: bool>(block: &Block, expert: u32) {
    let exchange = &block.args.exchange;
    let experts = exchange.shape.experts;
    let block_experts = exchange.work(exchange.work.block_experts);
    let at = |block: u32| block_experts.word(block * experts + expert);
    let mut sum = 0;
    let mut first = 0;
    while first < thread::grid_size() {
        // SAFETY: the contract; counts of blocks past the last are not touched.
        unsafe {
            // Four at a time, so that their loads are on their way together.
            let counted = |next: u32| {
                if first + next < thread::grid_size() { mem::load_u32(at(first + next)) } else { 0 }
            };
            let (a, b, c, d) = (counted(0), counted(1), counted(2), counted(3));
            let base = |next: u32, sum: u32| {
                if first + next < thread::grid_size() {
                    mem::store_u32(at(first + next), sum);
                }
            };
            base(0, sum);
            base(1, sum + a);
            base(2, sum + a + b);
            base(3, sum + a + b + c);
            sum += a + b + c + d;
        }
        first += 4;
    }
    // SAFETY: the caller's promise.
    unsafe { tell_owner::<ACROSS>(block, expert, sum) };
}
