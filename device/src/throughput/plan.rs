//! Dispatch, phase 3: from everybody's counts to rows.

use super::across;
use super::dispatch::Block;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, shared, thread, warp};
use crate::trace::{About, Activity};
use crate::wire::{Failure, Phase, counts};

/// What is to be done.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Send rows. Decided alike by all blocks and ranks, unless a peer is late.
    pub send: bool,
    /// Fill the expert-major form. This rank's own matter.
    pub expand: bool,
}

/// The plan to do nothing, of which `arrive` is told.
#[inline(always)]
unsafe fn nothing(block: &Block) -> Plan {
    if block::is_first_thread() {
        // SAFETY: the contract.
        unsafe { block.give_up() };
    }
    Plan { send: false, expand: false }
}

/// Waits for all ranks' counts and works out where this block's tokens begin on each rank and, with the expert-major
/// form, where each source's pairs begin.
///
/// # Safety
/// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); the whole block calls it.
#[inline(always)]
pub unsafe fn plan<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) -> Plan {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let mut good = true;
    // SAFETY: the contract; counts are read only once their flags were acquired, by threads that the barrier puts
    // behind the threads that waited.
    unsafe {
        for peer in thread::strided(shape.ranks) {
            if ACROSS && !block.is_near(peer) {
                good &= across::counts::wait(block, peer);
                continue;
            }
            // Partner: `announce` on `peer` (release, sys).
            let flags = exchange.arena.count_flags;
            good &= exchange.wait_flag(flags, peer, block.epoch, block.deadline_ns, Phase::Counts);
        }
        let bad = block::barrier_or(!good);
        exchange.trace.end_warp(Activity::Barrier, About::NOTHING);
        if bad {
            return nothing(block);
        }
        let own = exchange.own();
        let mut agreed = agree(block, own);
        if block.args.cached == 0 {
            agreed &= place_ranks(block, own);
        } else {
            // Where the outbox begins for each rank; the rest is in the routes.
            for rank in thread::strided(shape.ranks) {
                let sent = mem::load_u64(exchange.handle(exchange.handle.sent).long(rank));
                shared::store_u32(block.shared.first + 4 * rank, (sent >> 32) as u32);
            }
        }
        if ACROSS {
            place_rail(block, own);
        }
        if block::barrier_or(!agreed) {
            return nothing(block);
        }
        let expand = BY_EXPERT && place_experts(block, own);
        Plan { send: true, expand }
    }
}

/// False, and a report, if a peer's input is invalid or it does not follow the same handle. The block's last warp looks:
/// the first ones place ranks.
#[inline(always)]
unsafe fn agree(block: &Block, own: Address) -> bool {
    let exchange = &block.args.exchange;
    let ranks = exchange.shape.ranks;
    let cached = block.args.cached != 0;
    let mut good = true;
    let looks = thread::warp_index() + 1 == thread::warps();
    for peer in thread::lane_strided(if looks { ranks } else { 0 }) {
        // SAFETY: the contract; `plan` has acquired the counts.
        unsafe {
            let word = |word: u32| mem::load_u32(block.count_word(own, peer, ranks + word));
            let status = word(counts::STATUS);
            let handle = (word(counts::HANDLE_HIGH) as u64) << 32 | word(counts::HANDLE_LOW) as u64;
            let expected = if cached {
                mem::load_u64(exchange.handle(exchange.handle.id))
            } else {
                exchange.handle_id(block.epoch)
            };
            if status == counts::INVALID {
                good = false;
                exchange.fail(block.report(Failure::PeerInput, peer, 0, 1));
            } else if (status == counts::CACHED) != cached || handle != expected {
                good = false;
                exchange.fail(block.report(Failure::Handle, peer, expected, handle));
            }
        }
    }
    good
}

/// Works out the first rows of this block and this rank on every rank. False, and a report, if a rank has no room.
#[inline(always)]
unsafe fn place_ranks(block: &Block, own: Address) -> bool {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let ranks = shape.ranks;
    let block_base = exchange.work(exchange.work.block_base).word(thread::block_index() * ranks);
    let mut good = true;
    // A warp takes a rank, a lane a source.
    for rank in thread::warp_strided(ranks) {
        // SAFETY: the contract; `plan` has acquired the counts; all lanes of the warp take the same way.
        unsafe {
            let (mut before, mut all, mut mine) = (0, 0, 0);
            for source in thread::lane_strided(ranks) {
                let tokens = mem::load_u32(block.count_word(own, source, rank));
                before += if source < exchange.rank { tokens } else { 0 };
                mine += if source == exchange.rank { tokens } else { 0 };
                all += tokens;
            }
            let (before, all, mine) = (warp::sum(before), warp::sum(all), warp::sum(mine));
            if thread::lane() != 0 {
                continue;
            }
            let first = before.min(shape.rows);
            shared::store_u32(block.shared.base + 4 * rank, before + mem::load_u32(block_base.word(rank)));
            shared::store_u32(block.shared.first + 4 * rank, first);
            shared::store_u32(block.shared.mine + 4 * rank, (before + mine).min(shape.rows) - first);
            if all > shape.rows && shape.cap == 0 {
                good = false;
                exchange.fail(block.report(Failure::Capacity, rank, shape.rows.into(), all.into()));
            }
        }
    }
    good
}

/// Works out the first rows on this node of the rail's other ranks, and how many tokens these have.
#[inline(always)]
unsafe fn place_rail(block: &Block, own: Address) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (ranks, nodes) = (shape.ranks, shape.far_nodes().max(1));
    let rail = across::Rail::new(shape, exchange.rank);
    // SAFETY: the contract; `plan` has acquired the counts, and the handle's were written by the dispatch that made it; all
    // lanes of a warp take the same way.
    unsafe {
        for far in thread::strided(shape.far_nodes()) {
            let tokens = if block.args.cached == 0 {
                let word = ranks + counts::TOKENS;
                mem::load_u32(block.count_word(own, rail.rank(far), word)).min(shape.tokens)
            } else {
                mem::load_u32(exchange.handle(exchange.handle.far_tokens).word(far))
            };
            shared::store_u32(block.shared.far_tokens + 4 * far, tokens);
        }
        if block.args.cached != 0 {
            return;
        }
        // A warp takes a pair of them, a lane a source.
        for pair in thread::warp_strided(shape.near_ranks * shape.far_nodes()) {
            let (near, far) = (pair / nodes, pair % nodes);
            let mut before = 0;
            for source in thread::lane_strided(rail.rank(far)) {
                before += mem::load_u32(block.count_word(own, source, block.first_near + near));
            }
            let before = warp::sum(before);
            if thread::lane() == 0 {
                shared::store_u32(block.shared.far_first + 4 * pair, before);
            }
        }
    }
}

/// Works out the expert-major rows at which each expert begins, and each source's pairs of it. False if there are not
/// enough.
#[inline(always)]
unsafe fn place_experts(block: &Block, own: Address) -> bool {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (ranks, experts) = (shape.ranks, shape.experts_per_rank());
    let (table, starts) = (block.shared.experts, block.shared.starts);
    let at = |source: u32, expert: u32| table + 4 * (source * experts + expert);
    // SAFETY: the contract; `plan` has acquired the counts; shared memory is written and read in phases parted by
    // barriers.
    unsafe {
        for pair in thread::strided(ranks * experts) {
            let (source, expert) = (pair / experts, pair % experts);
            let counted = if block.args.cached == 0 {
                mem::load_u32(block.count_word(own, source, ranks + counts::FIXED + expert))
            } else {
                mem::load_u32(exchange.handle(exchange.handle.expert_counts).word(pair))
            };
            shared::store_u32(at(source, expert), counted);
        }
        block::barrier();
        if thread::warp_index() == 0 {
            let mut start = 0;
            let mut first = 0;
            while first < experts {
                let expert = first + thread::lane();
                let mut counted = 0;
                if expert < experts {
                    for source in 0..ranks {
                        counted += shared::load_u32(at(source, expert));
                    }
                }
                let alignment = shape.alignment.max(1);
                let padded = counted.div_ceil(alignment) * alignment;
                let sum = warp::inclusive_sum(padded);
                if expert < experts {
                    let mut place = start + sum - padded;
                    shared::store_u32(starts + 4 * expert, place);
                    for source in 0..ranks {
                        let counted = shared::load_u32(at(source, expert));
                        shared::store_u32(at(source, expert), place);
                        place += counted;
                    }
                    shared::store_u32(block.shared.ends + 4 * expert, place);
                }
                start += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
                first += thread::WARP;
            }
            if thread::lane() == 0 {
                shared::store_u32(starts + 4 * experts, start);
            }
        }
        block::barrier();
        // Too many are a failure that `arrive` reports.
        shape.cap != 0 || shared::load_u32(starts + 4 * experts) <= shape.expert_rows
    }
}
