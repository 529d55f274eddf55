// The pulling and summing of a rank's tokens, warp by warp: device/src/throughput/pull.rs.
#pragma once
#include "../gpu.cuh"
#include "combine.cuh"
#include "sums.cuh"

namespace throughput::pull {

using combine::CombineArgs;

// This lane's route of `token`; `NO_ROUTE` on lanes without. Lanes with one come first, in ascending order of the
// ranks.
DEVICE u64 route(const CombineArgs &args, u32 token) {
    const Exchange &exchange = args.exchange;
    u32 width = exchange.shape.route_width();
    if (thread::lane() >= width) return NO_ROUTE;
    Address routes = exchange.handle(exchange.handle_layout.routes);
    return mem::load_u64(routes.long_at(token * width).long_at(thread::lane()));
}

// Where this lane's partial row of `token` begins, on the rank that holds it or in the inbox; null on lanes without a
// route.
DEVICE Address partial_row(const CombineArgs &args, u32 token) {
    const Exchange &exchange = args.exchange;
    const Shape &shape = exchange.shape;
    u64 route = pull::route(args, token);
    if (route == NO_ROUTE) return NULL_ADDRESS;
    u32 rank = (u32)(route >> 32);
    u64 row = (u32)route;
    Address region;
    if (args.from_inbox != 0 && rank != exchange.rank) {
        u64 first = mem::load_u64(exchange.handle(exchange.handle_layout.sent).long_at(rank)) >> 32;
        region = exchange.own().offset(exchange.arena.inbox);
        row = (u64)rank * shape.tokens + (row - first);
    } else {
        region = exchange.peer(rank).offset(exchange.arena.outputs);
    }
    return region.offset(row * shape.output_bytes());
}

// Every `step`th number from `now` to an end.
struct Strided {
    u32 now, end, step;

    DEVICE bool next(u32 &item) {
        if (now >= end) return false;
        item = now;
        now += step;
        return true;
    }
};

// This warp's tokens: every `warps in the grid`th, so that all warps have their share of any range.
DEVICE Strided tokens(u32 all) {
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    return {first, all, thread::grid_size() * thread::warps()};
}

// Pulls what each slot's owner has for it.
DEVICE void slots(const CombineArgs &args, u32 all) {
    const Exchange &exchange = args.exchange;
    const Shape &shape = exchange.shape;
    Strided items = tokens(all);
    u32 token;
    while (items.next(token)) {
        u64 own_route = route(args, token);
        u32 slot = thread::lane();
        bool inside = slot < shape.topk;
        u32 at = token * shape.topk + slot;
        u32 expert = inside ? mem::load_u32(exchange.handle(exchange.handle_layout.topk_idx).word(at)) : MAX_U32;
        u32 value = 0;
        for (u32 lanes = warp::ballot(warp::ALL, own_route != NO_ROUTE); lanes != 0; lanes &= lanes - 1) {
            u64 route = warp::shuffle_u64(warp::ALL, own_route, warp::trailing_zeros(lanes));
            u32 rank = (u32)(route >> 32), row = (u32)route;
            if (expert < shape.experts && expert / shape.experts_per_rank() == rank) {
                Address from = exchange.peer(rank).offset(exchange.arena.slot_outputs);
                value = mem::load_u32(from.word(row * shape.topk + slot));
            }
        }
        if (inside) mem::store_u32(args.slots_out.word(at), value);
    }
}

// Rounds a quad at `offset` of the output and writes it, the biases added first if there are any.
template <typename Half, bool BIASED>
DEVICE void finish(const CombineArgs &args, Sums sums, u64 offset) {
    if (BIASED) {
        if (!args.bias[0].is_null()) sums.add(Sums::first<Half>(mem::load_quad(args.bias[0].offset(offset))));
        if (!args.bias[1].is_null()) sums.add(Sums::first<Half>(mem::load_quad(args.bias[1].offset(offset))));
    }
    mem::store_quad(args.out.offset(offset), sums.round<Half>());
}

// A job: what a warp sums: for each of some items, rows that become one.
//   items()          this warp's, one by one by `bool next(u32 &item)`
//   row(item)        where this lane's row begins; null on lanes without. Lanes with one come first, in the order in
//                    which they are added. All lanes of a warp
//   parts(item)      how many rows it has. All lanes of a warp
//   write<Half, BIASED>(item, at, sums)
//                    writes 16 bytes of what the rows have become, from byte `at` on
//   done(item)       all of it is written, by all lanes of the warp, which call this together

// The rank's tokens, whose rows the ranks have that they went to.
struct Tokens {
    const CombineArgs &args;
    u32 all;

    DEVICE Strided items() { return tokens(all); }
    DEVICE Address row(u32 item) { return partial_row(args, item); }
    DEVICE u32 parts(u32 item) { return __popc(warp::ballot(warp::ALL, route(args, item) != NO_ROUTE)); }
    template <typename Half, bool BIASED>
    DEVICE void write(u32 item, u64 at, const Sums &sums) {
        finish<Half, BIASED>(args, sums, (u64)item * args.exchange.shape.output_bytes() + at);
    }
    DEVICE void done(u32) {}
};

// By 16-byte loads.
struct Plain {
    DEVICE void begin() {}

    template <typename Half, bool BIASED, typename Job>
    DEVICE void pull(const CombineArgs &args, Job &job) {
        u32 quads = args.exchange.shape.output_bytes() / 16;
        auto items = job.items();
        u32 item;
        while (items.next(item)) {
            Address from = job.row(item);
            u32 count = __popc(warp::ballot(warp::ALL, !from.is_null()));
            // Whole warps, so that lanes past the end still take part in the shuffles.
            for (u32 quad = thread::lane(); quad - thread::lane() < quads; quad += thread::WARP) {
                Sums sums = Sums::zero();
                for (u32 part = 0; part < count; part++) {
                    Address row{warp::shuffle_u64(warp::ALL, from.at, part)};
                    if (quad < quads) {
                        Sums value = Sums::first<Half>(mem::load_quad(row.offset(16 * (u64)quad)));
                        if (part == 0) {
                            sums = value;
                        } else {
                            sums.add(value);
                        }
                    }
                }
                if (quad < quads) job.template write<Half, BIASED>(item, 16 * (u64)quad, sums);
            }
            job.done(item);
        }
    }
};

// By bulk copies, summed from shared memory. A stage holds one piece of every partial row of an item, each pulled by
// the lane that has it; `stages - 1` pieces are on their way while one is summed.
struct Bulk {
    u32 stages;
    u32 piece_bytes;
    u32 stage_bytes;
    // In shared memory: this warp's mbarriers and stages.
    u32 barriers;
    u32 buffers;
    // The stage of the next piece, and the parity of its mbarrier.
    u32 stage;
    u32 parity;

    DEVICE explicit Bulk(const CombineArgs &args)
        : stages(args.stages), piece_bytes(args.piece_bytes),
          stage_bytes(piece_bytes * args.exchange.shape.route_width()), stage(0), parity(0) {
        combine::Shared layout(thread::warps(), stages);
        u32 first = thread::warp_index() * stages;
        barriers = shared::base() + layout.barriers + 8 * first;
        buffers = shared::base() + layout.stages + first * stage_bytes;
    }

    DEVICE u32 barrier(u32 of) const { return barriers + 8 * of; }
    DEVICE u32 buffer(u32 of) const { return buffers + of * stage_bytes; }

    DEVICE void begin() {
        if (thread::lane() == 0) {
            for (u32 of = 0; of < stages; of++) bulk::mbarrier_init(barrier(of), 1);
        }
        // Hands the mbarriers, and the outputs that the ready flags released, to the copy engine.
        bulk::fence_proxy_async();
        warp::barrier(warp::ALL);
    }

    template <typename Half, bool BIASED, typename Job>
    DEVICE void pull(const CombineArgs &args, Job &job) {
        u32 output_bytes = args.exchange.shape.output_bytes();
        u32 pieces = div_ceil(output_bytes, at_least_one(piece_bytes));
        auto bytes_of = [&](u32 piece) { return least(output_bytes - piece * piece_bytes, piece_bytes); };

        // The next piece to pull: its item's partial rows, and its stage.
        auto ahead = job.items();
        u32 ahead_item = 0, ahead_piece = 0, ahead_stage = stage;
        bool is_ahead = ahead.next(ahead_item);
        Address ahead_row = NULL_ADDRESS;
        auto pull_next = [&]() __attribute__((always_inline)) {
            if (!is_ahead) return;
            if (ahead_piece == 0) ahead_row = job.row(ahead_item);
            u32 bytes = bytes_of(ahead_piece);
            u32 count = __popc(warp::ballot(warp::ALL, !ahead_row.is_null()));
            if (thread::lane() == 0) bulk::mbarrier_arrive_expect(barrier(ahead_stage), count * bytes);
            warp::barrier(warp::ALL);
            if (!ahead_row.is_null()) {
                u32 to = buffer(ahead_stage) + thread::lane() * piece_bytes;
                bulk::load(to, ahead_row.offset(ahead_piece * piece_bytes), bytes, barrier(ahead_stage));
            }
            ahead_stage = ahead_stage + 1 == stages ? 0 : ahead_stage + 1;
            ahead_piece++;
            if (ahead_piece == pieces) {
                ahead_piece = 0;
                is_ahead = ahead.next(ahead_item);
            }
        };
        for (u32 of = 1; of < stages; of++) pull_next();
        auto items = job.items();
        u32 item;
        while (items.next(item)) {
            u32 count = job.parts(item);
            for (u32 piece = 0; piece < pieces; piece++) {
                pull_next();
                u64 out = piece * piece_bytes;
                bulk::mbarrier_wait(barrier(stage), parity);
                u32 quads = bytes_of(piece) / 16;
                for (u32 quad = thread::lane(); quad < quads; quad += thread::WARP) {
                    u32 at = buffer(stage) + 16 * quad;
                    Sums sums = count == 0 ? Sums::zero() : Sums::first<Half>(shared::load_quad(at));
                    for (u32 part = 1; part < count; part++) {
                        sums.add(Sums::first<Half>(shared::load_quad(at + part * piece_bytes)));
                    }
                    job.template write<Half, BIASED>(item, out + 16 * (u64)quad, sums);
                }
                // Everybody has read the stage before it is pulled into again.
                warp::barrier(warp::ALL);
                stage++;
                if (stage == stages) {
                    stage = 0;
                    parity ^= 1;
                }
            }
            job.done(item);
        }
    }
};

// Calls one of four forms of a job, so that the innermost loop has no branch that is decided by the arguments.
template <typename Pull, typename Job>
DEVICE void by_format_and_bias(const CombineArgs &args, Job &job, Pull &pull) {
    bool f16 = args.exchange.shape.f16 != 0, biased = !(args.bias[0].is_null() && args.bias[1].is_null());
    if (!f16 && !biased) {
        pull.template pull<Bf16, false>(args, job);
    } else if (!f16) {
        pull.template pull<Bf16, true>(args, job);
    } else if (!biased) {
        pull.template pull<F16, false>(args, job);
    } else {
        pull.template pull<F16, true>(args, job);
    }
}

// Pulls and sums the rank's tokens.
template <typename Pull>
DEVICE void tokens_of_all_ranks(const CombineArgs &args, u32 all, Pull &pull) {
    pull.begin();
    Tokens job{args, all};
    by_format_and_bias(args, job, pull);
}

}  // namespace throughput::pull
