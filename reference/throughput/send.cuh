// Dispatch, phase 4, the sending of a block's rows, warp by warp: device/src/throughput/send.rs.
#pragma once
#include "dispatch.cuh"

namespace throughput::send {

using dispatch::Block;
using dispatch::DispatchArgs;
using dispatch::SIDE_BYTES;

DEVICE u32 rank_of(u64 route) { return (u32)(route >> 32); }
DEVICE u32 row_of(u64 route) { return (u32)route; }

// The tokens of a sending warp: every `senders`th of the block's, or every `senders`th chunk of them.
struct Walk {
    u32 token, chunk_end, end, chunk, skip;

    template <bool BY_EXPERT>
    DEVICE static Walk make(const Block &block) {
        u32 chunk = BY_EXPERT ? CHUNK : 1;
        u32 token = block.tokens.first + thread::warp_index() * chunk;
        u32 skip = (block.args.senders - 1) * chunk;
        return {token, token + chunk, block.tokens.end, chunk, skip};
    }

    DEVICE bool next(u32 &current) {
        if (token >= end) return false;
        current = token;
        token++;
        if (token == chunk_end) {
            token += skip;
            chunk_end = token + chunk;
        }
        return true;
    }
};

// The lanes' kept routes without gaps, in the same order: on lane n the nth of them.
DEVICE u64 close_up(u64 route, bool keep) {
    u32 kept = warp::ballot(warp::ALL, keep);
    u64 own = NO_ROUTE;
    u32 place = 0;
    while (kept != 0) {
        u64 moved = warp::shuffle_u64(warp::ALL, route, warp::trailing_zeros(kept));
        if (thread::lane() == place) own = moved;
        place++;
        kept &= kept - 1;
    }
    return own;
}

// Makes this lane's route, whose row counts from the block's first for that rank, the row on the destination, and keeps
// it for combine to follow. NO_ROUTE on lanes that have none, or for whose row there is no room. Once per token.
template <bool ACROSS>
DEVICE u64 resolve(const Block &block, u32 token) {
    const Exchange &exchange = block.args.exchange;
    bool inside = thread::lane() < exchange.shape.route_width();
    Address at = block.routes(token).long_at(thread::lane());
    u64 route = inside ? mem::load_u64(at) : NO_ROUTE;
    if (block.args.cached == 0) {
        if (route != NO_ROUTE) route += shared::load_u32(block.shared.base + 4 * rank_of(route));
        if (exchange.shape.cap != 0) {
            route = close_up(route, route != NO_ROUTE && row_of(route) < exchange.shape.rows);
        }
        if (inside) mem::store_u64(at, route);
    }
    // Rows for other nodes are sent by `pack`.
    return ACROSS && !block.is_near(rank_of(route)) ? NO_ROUTE : route;
}

// Whether a token goes to a rank of this node. Whether there is room for it does not matter.
DEVICE bool goes_near(const Block &block, u32 token) {
    const DispatchArgs &args = block.args;
    const Exchange &exchange = args.exchange;
    const Shape &shape = exchange.shape;
    Address ids = args.cached != 0 ? exchange.handle(exchange.handle_layout.topk_idx) : args.topk_idx;
    bool goes = false;
    for (u32 slot = 0; slot < shape.topk; slot++) {
        u32 expert = mem::load_u32(ids.word(token * shape.topk + slot));
        goes |= expert < shape.experts && block.is_near(expert / shape.experts_per_rank());
    }
    return goes;
}

// Calls `each` with every lane's route, on all lanes together.
template <typename Each>
DEVICE void for_each_route(u64 route, Each &&each) {
    u32 lanes = warp::ballot(warp::ALL, route != NO_ROUTE);
    while (lanes != 0) {
        each(warp::shuffle_u64(warp::ALL, route, warp::trailing_zeros(lanes)));
        lanes &= lanes - 1;
    }
}

// Where the row of `route` is written: its place on the destination, or on the way there in the outbox.
DEVICE Address destination(const Block &block, u64 route) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 rank = rank_of(route);
    u64 row = row_of(route);
    Address arena;
    if (block.args.pack != 0 && rank != exchange.rank) {
        u32 place = row_of(route) - shared::load_u32(block.shared.first + 4 * rank);
        arena = exchange.own().offset(exchange.arena.outbox);
        row = (u64)rank * shape.tokens + place;
    } else {
        arena = exchange.peer(rank).offset(exchange.arena.rows);
    }
    return arena.offset(row * shape.row_bytes);
}

// Where a word of a token's scales is.
DEVICE Address scale_at(const Block &block, u32 token, u32 word) {
    return block.args.x_scales.offset(4 * block.args.x_scale_strides.place(token, word));
}

// The place of a pair among this rank's pairs of its expert; kept for dispatches that follow the handle. Once per pair.
DEVICE u32 place(const Block &block, u32 pair, u32 expert) {
    const Exchange &exchange = block.args.exchange;
    Address at = exchange.handle(exchange.handle_layout.places).word(pair);
    u32 place = mem::load_u32(at);
    if (block.args.cached == 0) {
        Address bases = exchange.work(exchange.work_layout.block_experts);
        place += mem::load_u32(bases.word(thread::block_index() * exchange.shape.experts).word(expert));
        mem::store_u32(at, place);
    }
    return place;
}

// The call's arrays, at a token: where that is from which no lane holds.
struct Given {
    u32 token;

    // Where a word of the row's scales is.
    DEVICE Address scale_at(const Block &block, u32 word) const { return send::scale_at(block, token, word); }

    // Writes the row's part of every side tensor.
    DEVICE void send_sides(const Block &block, Address peer, u32 row) const {
        for (u32 side = 0; side < MAX_SIDES; side++) {
            u32 at = block.shared.sides + SIDE_BYTES * side;
            u64 words = shared::load_u64(at);
            Address from = Address{shared::load_u64(at + 8)}.offset(4 * (u64)token * words);
            Address to = peer.offset(shared::load_u64(at + 16) + 4 * (u64)row * words);
            for (u32 word = thread::lane(); word < (u32)words; word += thread::WARP) {
                mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
            }
        }
    }
};

// Words of scales that a lane holds; a row may have more.
constexpr u32 HELD = 2;

// What travels beside a row, in so far as this lane has it: loaded once for all destinations, while the row is on its
// way. `From` is like `Given`.
struct Companions {
    u32 source, token;
    u32 expert, weight, place;
    u32 scales[HELD];

    template <bool BY_EXPERT>
    DEVICE static Companions load(const Block &block, u32 token) {
        const DispatchArgs &args = block.args;
        const Exchange &exchange = args.exchange;
        const Shape &shape = exchange.shape;
        Companions companions{exchange.rank, token, MAX_U32, 0, 0, {0, 0}};
        if (thread::lane() < shape.topk) {
            u32 pair = token * shape.topk + thread::lane();
            Address ids = args.cached != 0 ? exchange.handle(exchange.handle_layout.topk_idx) : args.topk_idx;
            companions.expert = mem::load_u32(ids.word(pair));
            if (!args.topk_weights.is_null()) companions.weight = mem::load_u32(args.topk_weights.word(pair));
            if (BY_EXPERT && companions.expert < shape.experts) {
                companions.place = send::place(block, pair, companions.expert);
            }
        }
        companions.load_scales(block, Given{token});
        return companions;
    }

    // Begins to load the scales that lanes hold.
    template <typename From>
    DEVICE void load_scales(const Block &block, const From &from) {
        u32 lane = thread::lane(), count = block.args.exchange.shape.scales;
        if (lane < count) scales[0] = mem::load_u32(from.scale_at(block, lane));
        if (lane + thread::WARP < count) scales[1] = mem::load_u32(from.scale_at(block, lane + thread::WARP));
    }

    // Writes them beside the row of `route`: scales, expert ids as numbers of the destination, weights, the source, and
    // side tensors.
    template <bool BY_EXPERT, typename From>
    DEVICE void send(const Block &block, u64 route, const From &from) const {
        const Exchange &exchange = block.args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        u32 rank = rank_of(route), row = row_of(route);
        u32 lane = thread::lane();
        Address peer = exchange.peer(rank);
        if (lane < shape.topk) {
            u32 local = expert - rank * shape.experts_per_rank();
            bool here = expert < shape.experts && local < shape.experts_per_rank();
            u32 at = row * shape.topk + lane;
            mem::store_u32(peer.offset(arena.topk_idx).word(at), here ? local : MAX_U32);
            mem::store_u32(peer.offset(arena.topk_weights).word(at), here ? weight : 0);
            if (BY_EXPERT && here) mem::store_u32(peer.offset(arena.places).word(at), place);
        }
        ScaleStrides strides = shape.scale_strides(shape.rows);
        Address to = peer.offset(arena.scales + 4 * strides.place(row, 0));
        if (lane < shape.scales) mem::store_u32(to.offset(4 * strides.place(0, lane)), scales[0]);
        if (lane + thread::WARP < shape.scales) {
            mem::store_u32(to.offset(4 * strides.place(0, lane + thread::WARP)), scales[1]);
        }
        for (u32 scale = lane + HELD * thread::WARP; scale < shape.scales; scale += thread::WARP) {
            u32 value = mem::load_u32(from.scale_at(block, scale));
            mem::store_u32(to.offset(4 * strides.place(0, scale)), value);
        }
        if (lane == 0) mem::store_u64(peer.offset(arena.sources).long_at(row), (u64)token << 32 | source);
        if (shape.side_words[0] != 0) from.send_sides(block, peer, row);
    }
};

// Puts the side tensors into shared memory, where they can be gone through by a loop: an index at run time would put
// the arguments into local memory. One thread, before a barrier of the block.
DEVICE void list_sides(const Block &block) {
    const DispatchArgs &args = block.args;
#pragma unroll
    for (u32 side = 0; side < MAX_SIDES; side++) {
        u32 at = block.shared.sides + SIDE_BYTES * side;
        shared::store_u64(at, args.exchange.shape.side_words[side]);
        shared::store_u64(at + 8, args.sides[side].at);
        shared::store_u64(at + 16, args.exchange.arena.sides[side]);
    }
}

// Whether `token` is the last of a chunk.
DEVICE bool ends_chunk(const Block &block, u32 token) {
    return (token + 1) % CHUNK == 0 || token + 1 == block.tokens.end;
}

// The rows of a chunk so far: on lane r those for rank r. More ranks than lanes are counted again at the end.
struct Tally {
    u32 first, rows;

    DEVICE static Tally none() { return {0, 0}; }

    DEVICE void add(u64 route) {
        first = rows == 0 ? row_of(route) : first;
        rows++;
    }

    // Counts a token's row to the rank of its route.
    DEVICE void count(u64 route) {
        if (rank_of(route) == thread::lane()) add(route);
    }

    // The rows for `rank` of the tokens `first..end`, by their routes.
    DEVICE static Tally of(const Block &block, u32 rank, u32 first, u32 end) {
        Tally tally = none();
        for (u32 token = first; token < end; token++) {
            for (u32 at = 0; at < block.args.exchange.shape.route_width(); at++) {
                u64 route = mem::load_u64(block.routes(token).long_at(at));
                if (rank_of(route) == rank) tally.add(route);
            }
        }
        return tally;
    }
};

// Tells every peer that the rows of the chunk that ends with `token` are written, and which they are.
template <bool ACROSS>
DEVICE void signal_chunk(const Block &block, u32 token, const Tally &tally) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const ArenaLayout &arena = exchange.arena;
    u32 chunk = token / CHUNK;
    for (u32 rank = thread::lane(); rank < shape.ranks; rank += thread::WARP) {
        if (ACROSS && !block.is_near(rank)) continue;
        Tally own = rank < thread::WARP ? tally : Tally::of(block, rank, chunk * CHUNK, token + 1);
        Address peer = exchange.peer(rank);
        u32 at = exchange.rank * shape.chunks() + chunk;
        mem::store_u64(peer.offset(arena.chunk_rows).long_at(at), (u64)own.first << 32 | own.rows);
        mem::store_release_sys_u64(peer.offset(arena.chunk_flags).long_at(at), block.epoch);
    }
}

// This thread's bulk copies are complete, not merely read, and handed to the ordinary writes that signal them.
DEVICE void written() {
    bulk::wait_written();
    bulk::fence_proxy_async();
}

// Sends the block's rows by 16-byte loads and stores.
template <bool BY_EXPERT, bool ACROSS>
DEVICE void plain(const Block &block) {
    u32 row_bytes = block.args.exchange.shape.row_bytes;
    Tally tally = Tally::none();
    Walk walk = Walk::make<BY_EXPERT>(block);
    u32 token;
    while (walk.next(token)) {
        Address from = block.args.x.offset((u64)token * row_bytes);
        u64 route = resolve<ACROSS>(block, token);
        Companions companions = Companions::load<BY_EXPERT>(block, token);
        for_each_route(route, [&](u64 route) {
            Address to = destination(block, route);
            for (u32 quad = thread::lane(); quad < row_bytes / 16; quad += thread::WARP) {
                u64 at = 16 * (u64)quad;
                mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
            }
            companions.send<BY_EXPERT>(block, route, Given{token});
            if (BY_EXPERT) tally.count(route);
        });
        if (BY_EXPERT && ends_chunk(block, token)) {
            warp::barrier(warp::ALL);
            signal_chunk<ACROSS>(block, token, tally);
            tally = Tally::none();
        }
    }
}

// How a row is cut into pieces, and the buffers of a warp that they go through.
struct Stages {
    u32 row_bytes, stage_bytes, pieces;
    u32 buffers, barriers, count;

    // The warp's `count` buffers begin with the block's `first`.
    DEVICE Stages(const Block &block, u32 first, u32 count)
        : row_bytes(block.args.exchange.shape.row_bytes), stage_bytes(block.args.stage_bytes),
          pieces(div_ceil(row_bytes, at_least_one(stage_bytes))), buffers(block.shared.stages + first * stage_bytes),
          barriers(block.shared.barriers + 8 * first), count(count) {}

    DEVICE u32 piece_bytes(u32 piece) const { return least(row_bytes - piece * stage_bytes, stage_bytes); }
    DEVICE u32 buffer(u32 stage) const { return buffers + stage * stage_bytes; }
    DEVICE u32 barrier(u32 stage) const { return barriers + 8 * stage; }
    DEVICE u32 after(u32 stage) const { return stage + 1 == count ? 0 : stage + 1; }
};

// A row that goes to other nodes alone is not loaded.
template <bool ACROSS>
DEVICE bool is_loaded(const Block &block, u32 token) {
    return !ACROSS || goes_near(block, token);
}

// The next piece to load, and its buffer.
template <bool ACROSS>
struct Ahead {
    const Block &block;
    const Stages &stages;
    Walk walk;
    bool some;
    u32 token, piece, stage;

    DEVICE Ahead(const Block &block, const Stages &stages, const Walk &walk)
        : block(block), stages(stages), walk(walk), some(false), token(0), piece(0), stage(0) {
        find();
    }

    DEVICE void find() {
        do {
            some = walk.next(token);
        } while (some && !is_loaded<ACROSS>(block, token));
    }

    DEVICE void load_next() {
        if (!some) return;
        u64 offset = (u64)token * stages.row_bytes + (u64)(piece * stages.stage_bytes);
        u32 bytes = stages.piece_bytes(piece);
        bulk::mbarrier_arrive_expect(stages.barrier(stage), bytes);
        bulk::load(stages.buffer(stage), block.args.x.offset(offset), bytes, stages.barrier(stage));
        stage = stages.after(stage);
        piece++;
        if (piece == stages.pieces) {
            piece = 0;
            find();
        }
    }
};

// Sends the block's rows by bulk copies: a row is pulled into shared memory once, and pushed from there to each of its
// destinations. One lane drives the copies while all of them write the companions; loads run `stages − 1` pieces ahead.
template <bool BY_EXPERT, bool ACROSS>
DEVICE void bulk(const Block &block) {
    u32 count = block.args.stages;
    Stages stages(block, thread::warp_index() * count, count);
    bool driver = thread::lane() == 0;
    Ahead<ACROSS> ahead(block, stages, Walk::make<BY_EXPERT>(block));
    if (driver) {
        for (u32 stage = 0; stage < count; stage++) bulk::mbarrier_init(stages.barrier(stage), 1);
        bulk::fence_proxy_async();
        for (u32 stage = 1; stage < count; stage++) ahead.load_next();
    }
    u32 stage = 0, parity = 0;
    Tally tally = Tally::none();
    Walk walk = Walk::make<BY_EXPERT>(block);
    u32 token;
    while (walk.next(token)) {
        // While the last row is read; ahead of this row's load rather than behind it.
        u64 route = resolve<ACROSS>(block, token);
        Companions companions = Companions::load<BY_EXPERT>(block, token);
        u32 pieces = is_loaded<ACROSS>(block, token) ? stages.pieces : 0;
        for (u32 piece = 0; piece < pieces; piece++) {
            if (driver) {
                // The buffer to load next is the one that the last piece's stores read.
                bulk::wait_read();
                ahead.load_next();
                bulk::mbarrier_wait(stages.barrier(stage), parity);
            }
            for_each_route(route, [&](u64 route) {
                if (driver) {
                    Address to = destination(block, route).offset(piece * stages.stage_bytes);
                    bulk::store(to, stages.buffer(stage), stages.piece_bytes(piece));
                }
            });
            if (driver) bulk::commit();
            if (piece == 0) {
                for_each_route(route, [&](u64 route) { companions.send<BY_EXPERT>(block, route, Given{token}); });
                if (BY_EXPERT) {
                    for_each_route(route, [&](u64 route) { tally.count(route); });
                }
            }
            stage++;
            if (stage == count) {
                stage = 0;
                parity ^= 1;
            }
        }
        if (BY_EXPERT && ends_chunk(block, token)) {
            if (driver) written();
            warp::barrier(warp::ALL);
            signal_chunk<ACROSS>(block, token, tally);
            tally = Tally::none();
        }
    }
    // `arrive` is about to tell the receivers.
    if (driver) written();
}

}  // namespace throughput::send
