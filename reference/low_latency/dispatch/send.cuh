// The sending half of low-latency dispatch: device/src/low_latency/dispatch/send.rs.
#pragma once
#include "../far.cuh"
#include "../format.cuh"
#include "routing.cuh"

namespace low_latency {
namespace dispatch {

// What to send for a tile of a row that has `cells` cells from there on. The warp together.
template <class F>
struct Outgoing;

template <>
struct Outgoing<Bf16> {
    DEVICE static Tile tile(const DispatchArgs &, const Quads &quads, u32) {
        Tile tile{};
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
#pragma unroll
            for (u32 word = 0; word < 4; word++) tile.words[word][plane] = quads.of[plane][0].words[word];
        }
        return tile;
    }
};

template <>
struct Outgoing<E4m3> {
    DEVICE static Tile tile(const DispatchArgs &args, const Quads &quads, u32 cells) {
        u32 element = args.batch.shape.element;
        Scaling scaling = element == element::E4M3                ? Scaling::F32
                          : element == element::E4M3_POWER_OF_TWO ? Scaling::POWER_OF_TWO
                                                                  : Scaling::UE8M0;
        return quantize(values<E4m3>(quads), scaling, cells);
    }
};

// This lane's part of a tile of a row; zeros if there is none.
template <class F>
DEVICE Quads load(const DispatchArgs &args, bool is_there, u32 item, u32 tiles, u32 cells) {
    u32 index = is_there ? item : 0;
    u32 token = index / tiles, tile = index % tiles;
    Address row = args.x.offset((u64)token * 2 * args.batch.shape.hidden);
    Quads quads{};
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
        u32 cell = tile * TILE_CELLS + 32 * plane + thread::lane();
        if (is_there && cell < cells) {
#pragma unroll
            for (u32 quad = 0; quad < F::QUADS; quad++) {
                u64 at = (u64)cell * F::QUADS + quad;
                quads.of[plane][quad] = mem::load_quad(row.offset(16 * at));
            }
        }
    }
    return quads;
}

// Sends a tile of a row to every rank that the token goes to. Partner: the receiving half, there.
template <class F, bool FAR>
DEVICE void write(const Routing &routing, u32 token, u32 tile, const Tile &made) {
    const Shape &shape = routing.shape;
    Fill fill = shape.dispatched();
    u32 left = fill.cells(shape.hidden) - tile * TILE_CELLS;
    u32 leaders, rank = routing.destinations(token, leaders);
    u32 peers = leaders;
    if (FAR) {
        u32 far = warp::ballot(warp::ALL, routing.batch.is_far(rank)) & leaders;
        peers &= ~far;
        if (far != 0) {
            Address row = routing.far_message(token).offset(shape.far_slots_bytes());
            far::write_tile<F>(row, fill, shape.hidden, tile, made);
        }
    }
    while (peers != 0) {
        u32 peer = warp::shuffle(warp::ALL, rank, warp::trailing_zeros(peers));
        u32 at = shape.topk + tile * fill.tile_packets();
        Address to = packet::nth(routing.message(peer, token), at);
        packet::write_tile<F>(to, left, made, packet::tag(routing.epoch));
        peers &= peers - 1;
    }
}

template <class F, bool FAR>
DEVICE void send_as(const DispatchArgs &args) {
    const Batch &batch = args.batch;
    const Shape &shape = batch.shape;
    Fill fill = shape.dispatched();
    u32 cells = fill.cells(shape.hidden), tiles = at_least_one(fill.tiles(shape.hidden));
    u64 epoch = batch.next(Step::DISPATCH_SENT);
    u64 deadline_ns = clock_::now_ns() + batch.timeout_ns;
    Share items(args.tokens * tiles);
    // Ahead of all else, as they take longest.
    bool has_first = items.has();
    u32 first = items.item;
    Quads quads = load<F>(args, has_first, first, tiles, cells);
    u32 told = thread::block_index() + thread::warp_index() * thread::grid_size();
    u32 first_weight = told < args.tokens ? weight_of(args, told) : 0;
    Tile made{};
    Routing routing(args, epoch);
    bool ready = routing.begin<FAR>(deadline_ns, [&] {
        if (has_first) made = Outgoing<F>::tile(args, quads, cells - first % tiles * TILE_CELLS);
    });
    if (!ready) return;
    batch.add_up_waits();
    // Rows go first: they are the most.
    auto write_item = [&](u32 item, const Tile &made) {
        u32 token = item / tiles, tile = item % tiles;
        if (token < routing.tokens) write<F, FAR>(routing, token, tile, made);
    };
    if (has_first) write_item(first, made);
    routing.tell<FAR>(first_weight);
    for (items.advance(); items.has(); items.advance()) {
        u32 item = items.item;
        Quads quads = load<F>(args, true, item, tiles, cells);
        write_item(item, Outgoing<F>::tile(args, quads, cells - item % tiles * TILE_CELLS));
    }
    if (FAR) routing.post(deadline_ns);
    batch.count(Step::DISPATCH_SENT, epoch);
}

// Sends this rank's tokens.
template <bool FAR>
DEVICE void send(const DispatchArgs &args) {
    if (args.batch.shape.quantized()) {
        send_as<E4m3, FAR>(args);
    } else {
        send_as<Bf16, FAR>(args);
    }
}

}  // namespace dispatch
}  // namespace low_latency
