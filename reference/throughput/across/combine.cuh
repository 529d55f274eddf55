// Combine across nodes: device/src/throughput/across/combine.rs.
#pragma once
#include "../../meet.cuh"
#include "../pull.cuh"
#include "../send.cuh"
#include "lanes.cuh"
#include "message.cuh"
#include "walk.cuh"

namespace throughput::across::combine {

using send::rank_of;
using send::row_of;
using throughput::combine::CombineAcrossArgs;
using throughput::combine::CombineArgs;

// Where partials of `far`'s tokens are, in the outbox or the inbox that begins at `region`.
DEVICE u64 partial(const Exchange &exchange, u64 region, u32 far, u32 token) {
    const Shape &shape = exchange.shape;
    return region + ((u64)far * shape.tokens + token) * shape.partial_bytes();
}

// This warp's share of the tokens of this rank.
template <typename TokensOf>
DEVICE Walk<TokensOf, false> walk(const Link &link, TokensOf tokens_of, u32 sources) {
    u32 worker = thread::block_index() * thread::warps() + thread::warp_index();
    return {tokens_of, sources, link.lanes, worker, thread::grid_size() * thread::warps()};
}

// What the rank of this lane's expert has for its slot: at `place` of that rank and its row, among the lanes' routes. 0
// if there is no such route.
template <typename Place>
DEVICE u32 slot_value(const Exchange &exchange, u32 expert, u64 own_route, Place place) {
    const Shape &shape = exchange.shape;
    u32 value = 0;
    for (u32 lanes = warp::ballot(warp::ALL, own_route != NO_ROUTE); lanes != 0; lanes &= lanes - 1) {
        u64 route = warp::shuffle_u64(warp::ALL, own_route, warp::trailing_zeros(lanes));
        u32 rank = rank_of(route);
        if (expert < shape.experts && expert / shape.experts_per_rank() == rank) {
            value = mem::load_u32(place(rank, row_of(route)));
        }
    }
    return value;
}

// The rail's tokens, of which this node's ranks have rows. An item is a token's number in the inbox.
struct Forward {
    const CombineArgs &args;
    const Link &link;
    Lanes lanes;
    // The first lane that this warp has something left to put on.
    u32 lane;

    // This lane's route of an item: ranks in ascending order, then `NO_ROUTE`.
    DEVICE u64 route(u32 item) const {
        const Exchange &exchange = args.exchange;
        u32 width = exchange.shape.near_width();
        if (thread::lane() >= width) return NO_ROUTE;
        u32 at = item * width + thread::lane();
        return mem::load_u64(exchange.handle(exchange.handle_layout.far_routes).long_at(at));
    }

    // This warp has put all that goes by lanes before `end`.
    DEVICE void done_before(u32 end) {
        for (; lane < end; lane++) lanes.done(lane);
    }

    // Writes what goes back to the token's slots.
    DEVICE void slots(u32 item, Address to) const {
        const Exchange &exchange = args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        Message message = Message::nth(shape, exchange.own().offset(arena.far_inbox), item);
        u32 slot = thread::lane();
        bool inside = slot < shape.topk;
        u32 expert = inside ? message.slot(slot).expert : MAX_U32;
        u32 value = slot_value(exchange, expert, route(item), [&](u32 rank, u32 row) {
            return exchange.peer(rank).offset(arena.slot_outputs).word(row * shape.topk + slot);
        });
        if (inside) mem::store_u32(to.word(slot), value);
    }

    struct TokensOf {
        const Exchange &exchange;
        DEVICE u32 operator()(u32 far) const {
            return mem::load_u32(exchange.handle(exchange.handle_layout.far_tokens).word(far));
        }
    };

    struct Items {
        const Exchange &exchange;
        Walk<TokensOf, false> walk;

        DEVICE bool next(u32 &item) {
            Unit unit;
            while (walk.next(unit)) {
                item = unit.source * exchange.shape.tokens + unit.first;
                Address routes = exchange.handle(exchange.handle_layout.far_routes);
                // All lanes read the same.
                if (mem::load_u64(routes.long_at(item * exchange.shape.near_width())) != NO_ROUTE) return true;
            }
            return false;
        }
    };
    DEVICE Items items() const {
        const Exchange &exchange = args.exchange;
        return {exchange, walk(link, TokensOf{exchange}, exchange.shape.far_nodes())};
    }

    DEVICE Address row(u32 item) const {
        const Exchange &exchange = args.exchange;
        u64 route = this->route(item);
        if (route == NO_ROUTE) return NULL_ADDRESS;
        Address outputs = exchange.peer(rank_of(route)).offset(exchange.arena.outputs);
        return outputs.offset((u64)row_of(route) * exchange.shape.output_bytes());
    }

    DEVICE u32 parts(u32 item) const { return __popc(warp::ballot(warp::ALL, route(item) != NO_ROUTE)); }

    template <typename Half, bool BIASED>
    DEVICE void write(u32 item, u64 at, const Sums &sums) const {
        const Exchange &exchange = args.exchange;
        Address row = exchange.own().offset(partial(exchange, exchange.arena.partial_outbox, 0, item));
        mem::store_quad(row.offset(at), sums.round<Half>());
    }

    DEVICE void done(u32 item) {
        const Exchange &exchange = args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        u32 tokens = at_least_one(shape.tokens);
        u32 far = item / tokens, token = item % tokens;
        Rail rail = lanes.rail();
        u32 by = lane_of(link, token);
        u64 from = partial(exchange, arena.partial_outbox, 0, item);
        done_before(by);
        slots(item, exchange.own().offset(from + shape.output_bytes()));
        u64 there = partial(exchange, arena.partial_inbox, rail.own_node(far), token);
        Command command = Command::put({rail.rank(far), by}, link.channel + channel::PARTIALS, link.part + from,
                                       link.part + there, shape.partial_bytes());
        // Releases what all lanes of the warp have written.
        warp::barrier(warp::ALL);
        Ring::release();
        push(exchange, link, thread::lane() == 0, command, lanes.epoch, lanes.deadline_ns);
    }
};

// The lanes' rows in their order, without gaps.
DEVICE Address close_up(Address row) {
    Address own = NULL_ADDRESS;
    u32 place = 0;
    for (u32 lanes = warp::ballot(warp::ALL, !row.is_null()); lanes != 0; lanes &= lanes - 1) {
        Address moved{warp::shuffle_u64(warp::ALL, row.at, warp::trailing_zeros(lanes))};
        if (thread::lane() == place) own = moved;
        place++;
    }
    return own;
}

// This rank's tokens: rows of this node's ranks, and partials of other nodes.
struct Own {
    const CombineArgs &args;
    const Link &link;
    Lanes lanes;
    u32 first_near;
    u32 tokens;
    // The lanes, as a bit mask, by which everything has come, or by which it is known not to come in time.
    u32 came;

    DEVICE bool is_near(u32 rank) const { return rank - first_near < args.exchange.shape.near_ranks; }

    // Waits until the token's partials are there; a report if they do not come. A warp.
    DEVICE void wait(u32 token) {
        u32 lane = lane_of(link, token);
        if ((came >> lane & 1) != 0) return;
        u32 nodes = args.exchange.shape.far_nodes();
        for (u32 far = thread::lane(); far < nodes; far += thread::WARP) {
            // What is summed without having come is reported.
            lanes.wait(far, lane, PARTIALS);
        }
        came |= 1u << lane;
        // What some lanes have acquired is there for all, and for the copy engine.
        warp::barrier(warp::ALL);
        bulk::fence_proxy_async();
    }

    // Where the partial of a far rank's node for `token` is.
    DEVICE Address partial_of(u32 rank, u32 token) const {
        const Exchange &exchange = args.exchange;
        u32 far = lanes.rail().far_node(rank);
        return exchange.own().offset(partial(exchange, exchange.arena.partial_inbox, far, token));
    }

    // Brings what each slot's owner has for it.
    DEVICE void slots() {
        const Exchange &exchange = args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        auto items = this->items();
        u32 token;
        while (items.next(token)) {
            wait(token);
            u32 slot = thread::lane();
            bool inside = slot < shape.topk;
            u32 at = token * shape.topk + slot;
            Address ids = exchange.handle(exchange.handle_layout.topk_idx);
            u32 expert = inside ? mem::load_u32(ids.word(at)) : MAX_U32;
            u64 route = pull::route(args, token);
            u32 value = slot_value(exchange, expert, route, [&](u32 rank, u32 row) {
                return is_near(rank)
                           ? exchange.peer(rank).offset(arena.slot_outputs).word(row * shape.topk + slot)
                           : partial_of(rank, token).offset(shape.output_bytes()).word(slot);
            });
            if (inside) mem::store_u32(args.slots_out.word(at), value);
        }
    }

    struct TokensOf {
        u32 tokens;
        DEVICE u32 operator()(u32) const { return tokens; }
    };

    struct Items {
        Walk<TokensOf, false> walk;

        DEVICE bool next(u32 &item) {
            Unit unit;
            if (!walk.next(unit)) return false;
            item = unit.first;
            return true;
        }
    };
    DEVICE Items items() const { return {walk(link, TokensOf{tokens}, 1)}; }

    DEVICE Address row(u32 item) {
        const Exchange &exchange = args.exchange;
        wait(item);
        u64 route = pull::route(args, item);
        u32 rank = rank_of(route);
        bool near = route != NO_ROUTE && is_near(rank);
        // A far node has one partial, at the first of the ranks there.
        bool far = route != NO_ROUTE && !near;
        u32 node = far ? lanes.rail().far_node(rank) : MAX_U32;
        u32 same = warp::match_any(warp::ALL, node);
        bool leads = far && (same & warp::lanes_below()) == 0;
        Address row = NULL_ADDRESS;
        if (near) {
            Address outputs = exchange.peer(rank).offset(exchange.arena.outputs);
            row = outputs.offset((u64)row_of(route) * exchange.shape.output_bytes());
        } else if (leads) {
            row = partial_of(rank, item);
        }
        return close_up(row);
    }

    DEVICE u32 parts(u32 item) { return __popc(warp::ballot(warp::ALL, !row(item).is_null())); }

    template <typename Half, bool BIASED>
    DEVICE void write(u32 item, u64 at, const Sums &sums) const {
        pull::finish<Half, BIASED>(args, sums, (u64)item * args.exchange.shape.output_bytes() + at);
    }

    DEVICE void done(u32) const {}
};

// Sends the rail what this node holds of its tokens, then sums this rank's own.
template <typename Pull>
DEVICE void combine(const CombineAcrossArgs &across_args, Pull pull) {
    const CombineArgs &args = across_args.combine;
    const Link &link = across_args.link;
    const Exchange &exchange = args.exchange;
    u32 near_ranks = at_least_one(exchange.shape.near_ranks);
    u32 first_near = exchange.rank - exchange.rank % near_ranks;
    Address at = exchange.work(exchange.work_layout.combine_epoch);
    u64 epoch = mem::load_u64(at) + 1;
    u64 deadline_ns = clock_::now_ns() + exchange.timeout_ns;
    Lanes lanes{exchange, link, channel::PARTIALS, epoch, deadline_ns};
    if (thread::block_index() == 0) {
        for (u32 near = thread::index(); near < near_ranks; near += thread::block_size()) {
            // Partner: the wait for ready_flags below, on the near rank (acquire, sys). What it releases: the outputs,
            // which stream order puts before this kernel.
            Address flags = exchange.peer(first_near + near).offset(exchange.arena.ready_flags);
            mem::store_release_sys_u64(flags.long_at(exchange.rank), epoch);
        }
    }
    bool late = false;
    for (u32 near = thread::index(); near < near_ranks; near += thread::block_size()) {
        late |= !exchange.wait_flag(exchange.arena.ready_flags, first_near + near, epoch, deadline_ns, READY);
    }
    if (!block::barrier_or(late)) {
        pull.begin();
        Forward forward{args, link, lanes, 0};
        if (exchange.shape.f16 == 0) {
            pull.template pull<Bf16, false>(args, forward);
        } else {
            pull.template pull<F16, false>(args, forward);
        }
        forward.done_before(link.lanes);
        u32 tokens = mem::load_u32(exchange.handle(exchange.handle_layout.tokens));
        Own own{args, link, lanes, first_near, tokens, 0};
        if (!args.slots_out.is_null()) own.slots();
        pull::by_format_and_bias(args, own, pull);
    }
    if (last_block(exchange.work(exchange.work_layout.arrived))) {
        lanes.wait_all(PARTIALS);
        if (block::is_first_thread()) mem::store_u64(at, epoch);
    }
}

}  // namespace throughput::across::combine
