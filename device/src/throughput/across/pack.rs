//! A block's tokens for other nodes: written to the outbox, and put.

use super::lanes::Lanes;
use super::message::{Message, Slot};
use super::{Rail, channel, lane_of, push};
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, shared, thread, warp};
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::throughput::dispatch::{Block, SIDE_BYTES};
use crate::throughput::send::{rank_of, row_of, scale_at};
use crate::trace::{About, Activity};
use crate::wire::{Failure, MAX_SIDES, NO_ROUTE, Phase, Report};

/// Packs and puts the block's tokens, once the rail has done with those of the dispatch before. What is wrong with a
/// dispatch keeps nobody from it: nothing is forwarded then, and ranks stay in step.
///
/// # Safety
/// The contract of [`DispatchArgs`](crate::throughput::dispatch::DispatchArgs); tokens are counted; by the whole block.
#[inline(always)]
pub unsafe fn pack<const BY_EXPERT: bool>(block: &Block) {
    let (exchange, link) = (&block.args.exchange, block.link);
    let (channel, epoch, deadline_ns) = (channel::MESSAGES, block.epoch, block.deadline_ns);
    let lanes = Lanes { exchange, link, channel, epoch, deadline_ns };
    // SAFETY: the caller's promise; all threads of the block take the same way.
    unsafe {
        let mut ready = may_pack(block, lanes.rail());
        if block.args.cached == 0 && block::is_first_thread() {
            // Partner: `announce`, on this rank (release, sys): the blocks' first tokens are there then.
            let flags = exchange.arena.count_flags;
            ready &= exchange.wait_flag(flags, exchange.rank, epoch, deadline_ns, Phase::Counts);
        }
        let late = block::barrier_or(!ready);
        exchange.trace.end_warp(Activity::Barrier, About::NOTHING);
        if late {
            block.give_up();
            return;
        }
        for lane in 0..link.lanes {
            let first = block.tokens.first + thread::warp_index();
            for token in thread::Strided::new(first, block.tokens.end, thread::warps()) {
                if lane_of(link, token) == lane {
                    pack_token::<BY_EXPERT>(block, lanes.rail(), token);
                }
            }
            lanes.done(lane);
        }
    }
}

/// Whether the rail has forwarded the dispatch before; false, and a report, if it has not in time. A block's threads
/// share the rail.
#[inline(always)]
unsafe fn may_pack(block: &Block, rail: Rail) -> bool {
    let exchange = &block.args.exchange;
    let mut may = true;
    for far in thread::strided(exchange.shape.far_nodes()) {
        // SAFETY: the contract. Partner: `finish` on the rail's rank there, by way of its proxy.
        unsafe {
            let flag = exchange.own().offset(exchange.arena.forwarded).long(far);
            exchange.trace.begin();
            let waited = mem::wait_at_least_acquire_sys(flag, block.epoch - 1, block.deadline_ns);
            exchange.trace.end(Activity::WaitForwarded, About::peer(rail.rank(far)));
            if let Err(seen) = waited {
                let (late, phase, peer) = (Failure::Late, Phase::Forwarded, rail.rank(far));
                exchange.fail(Report::new(late, phase, peer, block.epoch, block.epoch - 1, seen));
                may = false;
            }
        }
    }
    may
}

/// Writes a token's message and puts it to each node, if it goes to another. A warp.
#[inline(always)]
unsafe fn pack_token<const BY_EXPERT: bool>(block: &Block, rail: Rail, token: u32) {
    let (exchange, link) = (&block.args.exchange, block.link);
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    // SAFETY: the contract; the message is this token's, and the rail has forwarded the last one; all lanes of the warp
    // take the same way.
    unsafe {
        let (slot, far_rank) = slot::<BY_EXPERT>(block, token);
        if warp::ballot(warp::ALL, far_rank != u32::MAX) == 0 {
            return;
        }
        let message = Message::nth(shape, exchange.own().offset(arena.far_outbox), token);
        if thread::lane() < shape.topk {
            message.set_slot(thread::lane(), slot);
        }
        if thread::lane() == 0 {
            message.set_epoch(block.epoch);
        }
        let scales = message.scales(shape);
        for word in thread::lane_strided(shape.scales) {
            mem::store_u32(scales.word(word), mem::load_u32(scale_at(block, token, word)));
        }
        if shape.side_words[0] != 0 {
            pack_sides(block, token, message.sides(shape));
        }
        let from = block.args.x.offset(token as u64 * shape.row_bytes as u64);
        let to = message.row(shape);
        for quad in thread::lane_strided(shape.row_bytes / 16) {
            let at = 16 * quad as u64;
            mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
        }

        // One lane for each node.
        let node = if far_rank == u32::MAX { u32::MAX } else { rail.far_node(far_rank) };
        let same = warp::match_any(warp::ALL, node);
        let leads = node != u32::MAX && same & warp::lanes_below() == 0;
        let node = if leads { node } else { 0 };
        let there = rail.own_node(node) as u64 * shape.tokens as u64 + token as u64;
        let bytes = shape.message_bytes();
        let command = Command::Put {
            to: Target { peer: rail.rank(node), lane: lane_of(link, token) },
            channel: link.channel + channel::MESSAGES,
            from: link.part + arena.far_outbox + token as u64 * bytes as u64,
            at: link.part + arena.far_inbox + there * bytes as u64,
            bytes,
        };
        warp::barrier(warp::ALL);
        Ring::release();
        push(exchange, link, leads, command, block.epoch, block.deadline_ns);
    }
}

/// What the message says of this lane's slot, and the slot's rank if it is on another node; `u32::MAX` if not.
#[inline(always)]
unsafe fn slot<const BY_EXPERT: bool>(block: &Block, token: u32) -> (Slot, u32) {
    let args = block.args;
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    let (mut slot, mut far_rank) = (Slot::NONE, u32::MAX);
    // SAFETY: the contract; routes and places were written by this block before a barrier, or by the dispatch that made
    // the handle; the blocks' first tokens and pairs were acquired.
    unsafe {
        let pair = token * shape.topk + thread::lane();
        let mut rank = u32::MAX;
        if thread::lane() < shape.topk {
            let kept = args.cached != 0;
            let ids = if kept { exchange.handle(exchange.handle.topk_idx) } else { args.topk_idx };
            slot.expert = mem::load_u32(ids.word(pair));
            if !args.topk_weights.is_null() {
                slot.weight = mem::load_u32(args.topk_weights.word(pair));
            }
            if slot.expert < shape.experts {
                rank = slot.expert / shape.experts_per_rank();
                far_rank = if block.is_near(rank) { u32::MAX } else { rank };
            }
        }
        let inside = thread::lane() < shape.route_width();
        let route = if inside { mem::load_u64(block.routes(token).long(thread::lane())) } else { NO_ROUTE };
        let mut lanes = warp::ballot(warp::ALL, route != NO_ROUTE);
        while lanes != 0 {
            let route = warp::shuffle_u64(warp::ALL, route, lanes.trailing_zeros());
            if rank_of(route) == rank {
                slot.index = row_of(route);
            }
            lanes &= lanes - 1;
        }
        if far_rank != u32::MAX {
            if args.cached == 0 {
                let base = exchange.work(exchange.work.block_base);
                slot.index += mem::load_u32(base.word(thread::block_index() * shape.ranks + far_rank));
            }
            if BY_EXPERT {
                slot.place = mem::load_u32(exchange.handle(exchange.handle.places).word(pair));
                if args.cached == 0 {
                    let base = exchange.work(exchange.work.block_experts);
                    let own = thread::block_index() * shape.experts;
                    slot.place += mem::load_u32(base.word(own + slot.expert));
                }
            }
        }
    }
    (slot, far_rank)
}

/// Writes the token's part of every side tensor.
#[inline(always)]
unsafe fn pack_sides(block: &Block, token: u32, mut to: Address) {
    for side in 0..MAX_SIDES as u32 {
        let at = block.shared.sides + SIDE_BYTES * side;
        // SAFETY: the contract; `list_sides` has written the list, before a barrier.
        unsafe {
            let words = shared::load_u64(at);
            let from = Address(shared::load_u64(at + 8)).offset(4 * token as u64 * words);
            for word in thread::lane_strided(words as u32) {
                mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
            }
            to = to.offset(4 * words);
        }
    }
}
