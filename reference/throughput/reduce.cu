// What the experts have left becomes the rows that combine reads: device/src/throughput/reduce.rs.
#include "../wire.cuh"
#include "sums.cuh"

namespace throughput::reduce {

struct ReduceArgs {
    Exchange exchange;
    Address outputs;
    Address weights;
    Address slots;
    u32 by_expert;
};

// One of a row's pairs, on all lanes, if there is one.
struct Pair {
    bool there;
    Address from;
    float weight;
};

// The pairs of a row, one a lane.
struct Pairs {
    Address from;
    float weight;
    // Lanes that have one, in slot order.
    u32 lanes;

    DEVICE Pairs(const ReduceArgs &args, u32 slots) {
        const Exchange &exchange = args.exchange;
        Address positions = exchange.handle(exchange.handle_layout.positions);
        u32 position = MAX_U32, bits = 0;
        if (thread::lane() < exchange.shape.topk) {
            u32 slot = slots + thread::lane();
            position = mem::load_u32(positions.word(slot));
            if (!args.weights.is_null()) bits = mem::load_u32(args.weights.word(slot));
        }
        lanes = warp::ballot(warp::ALL, position != MAX_U32);
        from = args.outputs.offset((u64)position * exchange.shape.output_bytes());
        weight = __uint_as_float(bits);
    }

    // The pair of the first of `left`, which it takes away, if there is any.
    DEVICE Pair take(u32 &left) const {
        if (left == 0) return {false, NULL_ADDRESS, 0};
        u32 lane = warp::trailing_zeros(left);
        left &= left - 1;
        Address at{warp::shuffle_u64(warp::ALL, from.at, lane)};
        return {true, at, __uint_as_float(warp::shuffle(warp::ALL, __float_as_uint(weight), lane))};
    }

    // Writes the sum, which the lanes of the warp divide.
    template <typename Half>
    DEVICE void sum(const ReduceArgs &args, Address out) const {
        u32 quads = args.exchange.shape.output_bytes() / 16;
        bool weighted = !args.weights.is_null();
        // Whole warps, so that lanes past the end still take part in the shuffles.
        for (u32 quad = thread::lane(); quad - thread::lane() < quads; quad += thread::WARP) {
            bool inside = quad < quads;
            u64 at = 16 * (u64)quad;
            Sums sums = Sums::zero();
            bool empty = true;
            u32 left = lanes;
            while (left != 0) {
                // Four at a time, so that their loads are on their way together.
                Pair pairs[4];
                Quad loaded[4];
#pragma unroll
                for (int pair = 0; pair < 4; pair++) pairs[pair] = take(left);
#pragma unroll
                for (int pair = 0; pair < 4; pair++) {
                    loaded[pair] = pairs[pair].there && inside ? mem::load_quad(pairs[pair].from.offset(at)) : Quad{};
                }
#pragma unroll
                for (int pair = 0; pair < 4; pair++) {
                    if (!pairs[pair].there) continue;
                    Sums value = Sums::first<Half>(loaded[pair]);
                    if (weighted) value = value.times(pairs[pair].weight);
                    if (empty) {
                        sums = value;
                    } else {
                        sums.add(value);
                    }
                    empty = false;
                }
            }
            if (inside) mem::store_quad(out.offset(at), sums.round<Half>());
        }
    }
};

template <typename Half>
DEVICE void reduce_of(const ReduceArgs &args) {
    const Exchange &exchange = args.exchange;
    const Shape &shape = exchange.shape;
    const ArenaLayout &arena = exchange.arena;
    u32 quads = shape.output_bytes() / 16;
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    Address own = exchange.own();
    u32 rows = mem::load_u32(exchange.handle(exchange.handle_layout.received));
    for (u32 row = first; row < rows; row += thread::grid_size() * thread::warps()) {
        u32 slots = row * shape.topk;
        if (!args.slots.is_null()) {
            for (u32 slot = thread::lane(); slot < shape.topk; slot += thread::WARP) {
                u32 value = mem::load_u32(args.slots.word(slots + slot));
                mem::store_u32(own.offset(arena.slot_outputs).word(slots + slot), value);
            }
        }
        if (args.outputs.is_null()) continue;
        Address out = own.offset(arena.outputs).offset(16 * (u64)row * quads);
        if (args.by_expert == 0) {
            Address from = args.outputs.offset(16 * (u64)row * quads);
            for (u32 quad = thread::lane(); quad < quads; quad += thread::WARP) {
                u64 at = 16 * (u64)quad;
                mem::store_quad(out.offset(at), mem::load_quad(from.offset(at)));
            }
        } else {
            Pairs(args, slots).sum<Half>(args, out);
        }
    }
}

DEVICE void reduce(const ReduceArgs &args) {
    if (args.exchange.shape.f16 == 0) {
        reduce_of<Bf16>(args);
    } else {
        reduce_of<F16>(args);
    }
}

}  // namespace throughput::reduce

KERNEL(tokenrail_reduce, throughput::reduce::ReduceArgs, throughput::reduce::reduce(args))
