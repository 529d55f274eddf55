// A block's tokens for other nodes, written to the outbox, and put: device/src/throughput/across/pack.rs.
#pragma once
#include "../dispatch.cuh"
#include "../send.cuh"
#include "lanes.cuh"
#include "message.cuh"

namespace throughput::across::pack {

using dispatch::Block;
using dispatch::DispatchArgs;
using dispatch::SIDE_BYTES;
using send::rank_of;
using send::row_of;

// Whether the rail has forwarded the dispatch before; false, and a report, if it has not in time. A block's threads
// share the rail.
DEVICE bool may_pack(const Block &block, Rail rail) {
    const Exchange &exchange = block.args.exchange;
    bool may = true;
    for (u32 far = thread::index(); far < exchange.shape.far_nodes(); far += thread::block_size()) {
        // Partner: `finish` on the rail's rank there, by way of its proxy.
        Address flag = exchange.own().offset(exchange.arena.forwarded).long_at(far);
        u64 before = block.epoch - 1, seen;
        if (!mem::wait_at_least_acquire_sys(flag, before, block.deadline_ns, seen)) {
            exchange.fail(Report(LATE, FORWARDED, rail.rank(far), block.epoch, before, seen));
            may = false;
        }
    }
    return may;
}

// What the message says of this lane's slot, and the slot's rank if it is on another node; `MAX_U32` if not.
struct Packed {
    Slot slot;
    u32 far_rank;
};

template <bool BY_EXPERT>
DEVICE Packed slot(const Block &block, u32 token) {
    const DispatchArgs &args = block.args;
    const Exchange &exchange = args.exchange;
    const Shape &shape = exchange.shape;
    Slot slot = Slot::none();
    u32 far_rank = MAX_U32;
    u32 pair = token * shape.topk + thread::lane();
    u32 rank = MAX_U32;
    if (thread::lane() < shape.topk) {
        Address ids = args.cached != 0 ? exchange.handle(exchange.handle_layout.topk_idx) : args.topk_idx;
        slot.expert = mem::load_u32(ids.word(pair));
        if (!args.topk_weights.is_null()) slot.weight = mem::load_u32(args.topk_weights.word(pair));
        if (slot.expert < shape.experts) {
            rank = slot.expert / shape.experts_per_rank();
            far_rank = block.is_near(rank) ? MAX_U32 : rank;
        }
    }
    bool inside = thread::lane() < shape.route_width();
    u64 own_route = inside ? mem::load_u64(block.routes(token).long_at(thread::lane())) : NO_ROUTE;
    for (u32 lanes = warp::ballot(warp::ALL, own_route != NO_ROUTE); lanes != 0; lanes &= lanes - 1) {
        u64 route = warp::shuffle_u64(warp::ALL, own_route, warp::trailing_zeros(lanes));
        if (rank_of(route) == rank) slot.index = row_of(route);
    }
    if (far_rank != MAX_U32) {
        if (args.cached == 0) {
            Address base = exchange.work(exchange.work_layout.block_base);
            slot.index += mem::load_u32(base.word(thread::block_index() * shape.ranks + far_rank));
        }
        if (BY_EXPERT) {
            slot.place = mem::load_u32(exchange.handle(exchange.handle_layout.places).word(pair));
            if (args.cached == 0) {
                Address base = exchange.work(exchange.work_layout.block_experts);
                slot.place += mem::load_u32(base.word(thread::block_index() * shape.experts + slot.expert));
            }
        }
    }
    return {slot, far_rank};
}

// Writes the token's part of every side tensor.
DEVICE void pack_sides(const Block &block, u32 token, Address to) {
    for (u32 side = 0; side < MAX_SIDES; side++) {
        u32 at = block.shared.sides + SIDE_BYTES * side;
        u64 words = shared::load_u64(at);
        Address from = Address{shared::load_u64(at + 8)}.offset(4 * (u64)token * words);
        for (u32 word = thread::lane(); word < (u32)words; word += thread::WARP) {
            mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
        }
        to = to.offset(4 * words);
    }
}

// Writes a token's message and puts it to each node, if it goes to another. A warp.
template <bool BY_EXPERT>
DEVICE void pack_token(const Block &block, Rail rail, u32 token) {
    const Exchange &exchange = block.args.exchange;
    const Link &link = block.link;
    const Shape &shape = exchange.shape;
    const ArenaLayout &arena = exchange.arena;
    Packed packed = slot<BY_EXPERT>(block, token);
    if (warp::ballot(warp::ALL, packed.far_rank != MAX_U32) == 0) return;
    Message message = Message::nth(shape, exchange.own().offset(arena.far_outbox), token);
    if (thread::lane() < shape.topk) message.set_slot(thread::lane(), packed.slot);
    if (thread::lane() == 0) message.set_epoch(block.epoch);
    Address scales = message.scales(shape);
    for (u32 word = thread::lane(); word < shape.scales; word += thread::WARP) {
        mem::store_u32(scales.word(word), mem::load_u32(send::scale_at(block, token, word)));
    }
    if (shape.side_words[0] != 0) pack_sides(block, token, message.sides(shape));
    Address from = block.args.x.offset((u64)token * shape.row_bytes);
    Address to = message.row(shape);
    for (u32 quad = thread::lane(); quad < shape.row_bytes / 16; quad += thread::WARP) {
        u64 at = 16 * (u64)quad;
        mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
    }

    // One lane for each node.
    u32 node = packed.far_rank == MAX_U32 ? MAX_U32 : rail.far_node(packed.far_rank);
    u32 same = warp::match_any(warp::ALL, node);
    bool leads = node != MAX_U32 && (same & warp::lanes_below()) == 0;
    node = leads ? node : 0;
    u64 there = (u64)rail.own_node(node) * shape.tokens + token;
    u32 bytes = shape.message_bytes();
    Command command = Command::put({rail.rank(node), lane_of(link, token)}, link.channel + channel::MESSAGES,
                                   link.part + arena.far_outbox + (u64)token * bytes,
                                   link.part + arena.far_inbox + there * bytes, bytes);
    warp::barrier(warp::ALL);
    Ring::release();
    push(exchange, link, leads, command, block.epoch, block.deadline_ns);
}

// Packs and puts the block's tokens, once the rail has done with those of the dispatch before. What is wrong with a
// dispatch keeps nobody from it: nothing is forwarded then, and ranks stay in step.
template <bool BY_EXPERT>
DEVICE void pack(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Link &link = block.link;
    Lanes lanes{exchange, link, channel::MESSAGES, block.epoch, block.deadline_ns};
    bool ready = may_pack(block, lanes.rail());
    if (block.args.cached == 0 && block::is_first_thread()) {
        // Partner: `announce`, on this rank (release, sys): the blocks' first tokens are there then.
        ready &= exchange.wait_flag(exchange.arena.count_flags, exchange.rank, block.epoch, block.deadline_ns, COUNTS);
    }
    if (block::barrier_or(!ready)) {
        block.give_up();
        return;
    }
    for (u32 lane = 0; lane < link.lanes; lane++) {
        u32 first = block.tokens.first + thread::warp_index();
        for (u32 token = first; token < block.tokens.end; token += thread::warps()) {
            if (lane_of(link, token) == lane) pack_token<BY_EXPERT>(block, lanes.rail(), token);
        }
        lanes.done(lane);
    }
}

}  // namespace throughput::across::pack
