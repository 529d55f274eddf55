// Dispatch, phase 4 on the way, rows of other nodes' ranks: device/src/throughput/across/forward.rs.
#pragma once
#include "../dispatch.cuh"
#include "../send.cuh"
#include "lanes.cuh"
#include "message.cuh"
#include "walk.cuh"

namespace throughput::across::forward {

using dispatch::Block;
using dispatch::DispatchArgs;
using dispatch::SIDE_BYTES;
using send::Companions;
using send::for_each_route;
using send::rank_of;
using send::row_of;

// Where the row of `route` is written.
DEVICE Address row(const Block &block, u64 route) {
    const Exchange &exchange = block.args.exchange;
    Address rows = exchange.peer(rank_of(route)).offset(exchange.arena.rows);
    return rows.offset((u64)row_of(route) * exchange.shape.row_bytes);
}

// What travels beside a row that has come in a message.
struct Arrived {
    Message message;

    DEVICE Address scale_at(const Block &block, u32 word) const {
        return message.scales(block.args.exchange.shape).word(word);
    }

    DEVICE void send_sides(const Block &block, Address peer, u32 row) const {
        Address from = message.sides(block.args.exchange.shape);
        for (u32 side = 0; side < MAX_SIDES; side++) {
            u32 at = block.shared.sides + SIDE_BYTES * side;
            u64 words = shared::load_u64(at);
            Address to = peer.offset(shared::load_u64(at + 16) + 4 * (u64)row * words);
            for (u32 word = thread::lane(); word < (u32)words; word += thread::WARP) {
                mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
            }
            from = from.offset(4 * words);
        }
    }
};

// The lanes' routes in ascending order, without gaps. They differ.
DEVICE u64 ascending(u64 route) {
    u32 all = warp::ballot(warp::ALL, route != NO_ROUTE);
    u32 place = 0;
    for (u32 lanes = all; lanes != 0; lanes &= lanes - 1) {
        place += warp::shuffle_u64(warp::ALL, route, warp::trailing_zeros(lanes)) < route;
    }
    u64 own = NO_ROUTE;
    for (u32 lanes = all; lanes != 0; lanes &= lanes - 1) {
        u32 from = warp::trailing_zeros(lanes);
        u64 moved = warp::shuffle_u64(warp::ALL, route, from);
        u32 to = warp::shuffle(warp::ALL, place, from);
        own = thread::lane() == to ? moved : own;
    }
    return own;
}

// This lane's slot of a message, and this lane's route: ranks of this node in ascending order, then `NO_ROUTE`.
struct Placed {
    Slot slot;
    u64 route;
};

// Keeps the routes in the handle, or follows those that are there. None if there is no such message. `number` is the
// message's in the inbox. A warp.
DEVICE Placed place(const Block &block, u32 far, u32 number, Message message) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    bool inside = thread::lane() < shape.near_width();
    Address kept = exchange.handle(exchange.handle_layout.far_routes).long_at(number * shape.near_width());
    bool there = message.epoch() == block.epoch;
    Slot slot = there && thread::lane() < shape.topk ? message.slot(thread::lane()) : Slot::none();
    if (block.args.cached != 0) {
        return {slot, there && inside ? mem::load_u64(kept.long_at(thread::lane())) : NO_ROUTE};
    }
    u64 route = NO_ROUTE;
    u32 rank = MAX_U32;
    if (slot.expert < shape.experts) {
        rank = slot.expert / shape.experts_per_rank();
        if (block.is_near(rank)) {
            u32 first = (rank - block.first_near) * shape.far_nodes() + far;
            u32 row = shared::load_u32(block.shared.far_first + 4 * first) + slot.index;
            // What has no room is left out, by its source too.
            if (row < shape.rows) route = (u64)rank << 32 | row;
        }
    }
    u32 same = warp::match_any(warp::ALL, rank);
    bool leads = route != NO_ROUTE && (same & warp::lanes_below()) == 0;
    route = ascending(leads ? route : NO_ROUTE);
    if (inside) mem::store_u64(kept.long_at(thread::lane()), route);
    return {slot, route};
}

// Tells the node's ranks that the rows of a chunk are written, and which they are.
DEVICE void signal_chunk(const Block &block, u32 far, u32 source, u32 first, u32 end) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const ArenaLayout &arena = exchange.arena;
    u32 width = shape.near_width();
    Address routes = exchange.handle(exchange.handle_layout.far_routes);
    for (u32 near = thread::lane(); near < shape.near_ranks; near += thread::WARP) {
        u32 rank = block.first_near + near;
        u32 first_row = 0, rows = 0;
        for (u32 token = first; token < end; token++) {
            for (u32 at = 0; at < width; at++) {
                u32 number = far * shape.tokens + token;
                u64 route = mem::load_u64(routes.long_at(number * width + at));
                if (rank_of(route) == rank) {
                    first_row = rows == 0 ? row_of(route) : first_row;
                    rows++;
                }
            }
        }
        Address peer = exchange.peer(rank);
        u32 at = source * shape.chunks() + first / CHUNK;
        mem::store_u64(peer.offset(arena.chunk_rows).long_at(at), (u64)first_row << 32 | rows);
        // Partner: `expand`'s wait for chunk_flags on `rank` (acquire, sys).
        mem::store_release_sys_u64(peer.offset(arena.chunk_flags).long_at(at), block.epoch);
    }
}

struct FarTokens {
    u32 at;
    DEVICE u32 operator()(u32 far) const { return shared::load_u32(at + 4 * far); }
};

// Forwards this warp's share of the messages. `copy` copies a row to the ranks of the lanes' routes, `complete` waits
// until such copies are written.
template <bool BY_EXPERT, typename Copy, typename Complete>
DEVICE void forward(const Block &block, Copy &&copy, Complete &&complete) {
    const Exchange &exchange = block.args.exchange;
    const Link &link = block.link;
    const Shape &shape = exchange.shape;
    Lanes lanes{exchange, link, channel::MESSAGES, block.epoch, block.deadline_ns};
    u32 workers = thread::grid_size() * block.args.senders;
    // Warps of different blocks first.
    u32 worker = thread::warp_index() * thread::grid_size() + thread::block_index();
    Walk<FarTokens, BY_EXPERT> walk({block.shared.far_tokens}, shape.far_nodes(), link.lanes, worker, workers);
    Address inbox = exchange.own().offset(exchange.arena.far_inbox);
    u32 came_by = MAX_U32;
    Unit unit;
    while (walk.next(unit)) {
        u32 far = unit.source;
        u32 lane = lane_of(link, unit.first);
        // What comes one after the other mostly comes by the same lane.
        if (came_by != far * MAX_LANES + lane) {
            came_by = far * MAX_LANES + lane;
            bool came = lanes.wait(far, lane, MESSAGES);
            if (warp::ballot(warp::ALL, came) != warp::ALL) {
                block.give_up();
                return;
            }
            // Hands the messages, which the flag released, to the copy engine.
            bulk::fence_proxy_async();
        }
        for (u32 token = unit.first; token < unit.end; token++) {
            u32 number = far * shape.tokens + token;
            Message message = Message::nth(shape, inbox, number);
            Placed placed = place(block, far, number, message);
            if (warp::ballot(warp::ALL, placed.route != NO_ROUTE) == 0) continue;
            const Slot &slot = placed.slot;
            u32 source = lanes.rail().rank(far);
            Companions companions{source, token, slot.expert, slot.weight, slot.place, {0, 0}};
            Arrived from{message};
            companions.load_scales(block, from);
            copy(message.row(shape), placed.route);
            for_each_route(placed.route, [&](u64 route) { companions.send<BY_EXPERT>(block, route, from); });
        }
        if (BY_EXPERT) {
            complete();
            warp::barrier(warp::ALL);
            signal_chunk(block, far, lanes.rail().rank(far), unit.first, unit.end);
        }
    }
}

// Copies rows by 16-byte loads and stores.
template <bool BY_EXPERT>
DEVICE void plain(const Block &block) {
    u32 row_bytes = block.args.exchange.shape.row_bytes;
    auto copy = [&](Address from, u64 routes) {
        for_each_route(routes, [&](u64 route) {
            Address to = row(block, route);
            for (u32 quad = thread::lane(); quad < row_bytes / 16; quad += thread::WARP) {
                u64 at = 16 * (u64)quad;
                mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
            }
        });
    };
    forward<BY_EXPERT>(block, copy, [] {});
}

// Copies rows by bulk copies: a row is pulled from the inbox into shared memory once, and pushed from there to each of
// its ranks.
template <bool BY_EXPERT>
DEVICE void bulk(const Block &block) {
    const DispatchArgs &args = block.args;
    u32 row_bytes = args.exchange.shape.row_bytes, stage_bytes = args.stage_bytes;
    u32 pieces = div_ceil(row_bytes, at_least_one(stage_bytes));
    u32 buffer = block.shared.stages + thread::warp_index() * args.stages * stage_bytes;
    u32 barrier = block.shared.forward_barriers + 8 * thread::warp_index();
    bool driver = thread::lane() == 0;
    if (driver) {
        bulk::mbarrier_init(barrier, 1);
        bulk::fence_proxy_async();
    }
    u32 parity = 0;
    auto copy = [&](Address from, u64 routes) {
        for (u32 piece = 0; piece < pieces; piece++) {
            u32 at = piece * stage_bytes;
            u32 bytes = least(row_bytes - at, stage_bytes);
            if (driver) {
                // The last piece's stores read the buffer.
                bulk::wait_read();
                bulk::mbarrier_arrive_expect(barrier, bytes);
                bulk::load(buffer, from.offset(at), bytes, barrier);
                bulk::mbarrier_wait(barrier, parity);
            }
            parity ^= 1;
            for_each_route(routes, [&](u64 route) {
                if (driver) bulk::store(row(block, route).offset(at), buffer, bytes);
            });
            if (driver) bulk::commit();
        }
    };
    auto complete = [&] {
        if (driver) send::written();
    };
    forward<BY_EXPERT>(block, copy, complete);
    // `arrive` is about to tell the receivers.
    complete();
}

}  // namespace throughput::across::forward
