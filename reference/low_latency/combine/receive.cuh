// The receiving half of low-latency combine: device/src/low_latency/combine/receive.rs.
#pragma once
#include "send.cuh"

namespace low_latency {
namespace combine {

// The parts of a token, as each lane of a warp sees them.
struct Parts {
    // The rank that this lane's slot went to, `MAX_U32` for none.
    u32 rank;
    // Bits of what this lane's part is multiplied by.
    u32 weight;
    // When this lane's part is added; `MAX_U32` if it has none.
    u32 order;
    // How many there are.
    u32 count;

    // The lane whose part is added `index`th. All lanes of the warp.
    DEVICE u32 lane(u32 index) const { return warp::trailing_zeros(warp::ballot(warp::ALL, order == index)); }
};

struct Receiver {
    const CombineArgs &args;
    const Batch &batch;
    const Shape &shape;
    u64 epoch;
    u32 tag;
    u64 started_ns;
    u64 deadline_ns;

    DEVICE Receiver(const CombineArgs &args, u64 epoch, u64 started_ns)
        : args(args), batch(args.batch), shape(args.batch.shape), epoch(epoch), tag(packet::tag(epoch)),
          started_ns(started_ns), deadline_ns(started_ns + args.batch.timeout_ns) {}

    // What comes back to `token`, as each lane sees it.
    DEVICE Parts parts_of(u32 token) const {
        u32 rank = MAX_U32, weight = __float_as_uint(1.0f);
        if (thread::lane() < shape.topk) {
            u32 slot = token * shape.topk + thread::lane();
            u32 expert = mem::load_u32(batch.work(batch.work_layout.topk_idx).word(slot));
            if (expert < shape.experts) rank = expert / shape.experts_per_rank();
            if (shape.by_slot != 0) weight = mem::load_u32(args.topk_weights.word(slot));
        }
        u32 same = warp::match_any(warp::ALL, rank);
        bool is_part = rank != MAX_U32 && (shape.by_slot != 0 || (same & warp::lanes_below()) == 0);
        u32 lanes = warp::ballot(warp::ALL, is_part);
        u32 order = __popc(lanes & warp::lanes_below());
        if (shape.by_slot == 0) {
            order = 0;
            for (u32 others = lanes; others != 0; others &= others - 1) {
                order += warp::shuffle(warp::ALL, rank, warp::trailing_zeros(others)) < rank;
            }
        }
        return {rank, weight, is_part ? order : MAX_U32, (u32)__popc(lanes)};
    }

    // Sums a tile of what comes back to a token; false, and a report, if something does not come.
    template <class F, u32 AHEAD, bool FAR>
    DEVICE bool token(u32 token, u32 tile) const {
        u32 cells = shape.combined().cells(shape.hidden) - tile * TILE_CELLS;
        // Partner of the packets: `Row::write`, on the ranks that the token went to.
        Address region = batch.own.offset(batch.arena.parts);
        // Several are looked at before the first is waited for, and the first ones before it is known how many there
        // are: by rank, they lie side by side.
        packet::Peek ahead[AHEAD]{};
        if (shape.by_slot == 0) {
#pragma unroll
            for (u32 number = 0; number < AHEAD; number++) {
                if (number < shape.parts()) {
                    ahead[number] = packet::Peek::at<F>(part_at(shape, region, token, number, tile), cells);
                }
            }
        }
        Parts parts = parts_of(token);
        auto place = [&](u32 index) {
            u32 part = shape.by_slot != 0 ? parts.lane(index) : index;
            return part_at(shape, region, token, part, tile);
        };
        Values sums{};
        for (u32 next = 0; next < parts.count; next += AHEAD) {
            if (next > 0 || shape.by_slot != 0) {
#pragma unroll
                for (u32 number = 0; number < AHEAD; number++) {
                    u32 index = next + number;
                    if (index < parts.count) ahead[number] = packet::Peek::at<F>(place(index), cells);
                }
            }
#pragma unroll
            for (u32 number = 0; number < AHEAD; number++) {
                u32 index = next + number;
                if (index < parts.count) {
                    u32 lane = parts.lane(index);
                    u32 source = warp::shuffle(warp::ALL, parts.rank, lane);
                    float weight = __uint_as_float(warp::shuffle(warp::ALL, parts.weight, lane));
                    if (FAR && batch.is_far(source)) {
                        if (!arrive_far(token, source)) return false;
                        u32 part = shape.by_slot != 0 ? lane : index;
                        Address row = part_at(shape, region, token, part, 0);
                        Tile read = far::read_tile<F>(row, shape.combined(), shape.hidden, tile);
                        add<F>(sums, F::decode(read), weight, index == 0);
                    } else {
                        packet::Peek &peek = ahead[number];
                        if (!arrive<F>(peek, place(index), cells, source)) return false;
                        add<F>(sums, F::decode(peek.tile<F>()), weight, index == 0);
                    }
                }
            }
        }
        store<F>(token, tile, sums);
        return true;
    }

    // Waits for what was looked at; false, and a report, if it does not come.
    template <class F>
    DEVICE bool arrive(packet::Peek &peek, Address from, u32 cells, u32 source) const {
        if (warp::ballot(warp::ALL, !peek.has_come<F>(cells, tag)) == 0) return true;
        u32 seen;
        bool came = peek.wait<F>(from, cells, tag, deadline_ns, seen);
        if (!came) batch.late(PARTS, source, epoch, tag, seen);
        if (warp::ballot(warp::ALL, !came) != 0) return false;
        if (thread::lane() == 0) has_waited(source);
        return true;
    }

    // Waits for what a rank of another node has sent back to a token; false, and a report, if it does not come.
    DEVICE bool arrive_far(u32 token, u32 source) const {
        u32 lane = batch.link.lane_of(token);
        // Partner: `Batch::signal_far`, on the source.
        bool come = batch.link.has_come(channel::COMBINE, source, lane, epoch);
        if (warp::ballot(warp::ALL, !come) == 0) return true;
        u64 seen;
        bool came = batch.link.wait(channel::COMBINE, source, lane, epoch, deadline_ns, seen);
        if (!came) batch.late(PARTS, source, epoch, epoch, seen);
        if (warp::ballot(warp::ALL, !came) != 0) return false;
        if (thread::lane() == 0) has_waited(source);
        return true;
    }

    // Notes that something of `source` was waited for.
    DEVICE void has_waited(u32 source) const {
        batch.has_waited(Waited::COMBINE, epoch, source, clock_::now_ns() - started_ns);
    }

    // Rounds a tile of sums.
    template <class F>
    DEVICE void store(u32 token, u32 tile, const Values &sums) const {
        Address to = args.out.offset((u64)token * 2 * shape.hidden);
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 cell = tile * TILE_CELLS + 32 * plane + thread::lane();
#pragma unroll
            for (u32 quad = 0; quad < F::QUADS; quad++) {
                u32 at = cell * F::QUADS + quad;
                if (at < shape.hidden / 8) mem::store_quad(to.offset(16 * (u64)at), pack(sums.of[plane] + 8 * quad));
            }
        }
    }

    // Makes the part void whose turn it is, if nobody has sent it: see the dispatch's.
    DEVICE void void_one(u32 tokens) const {
        if (thread::block_index() + 1 != thread::grid_size() || thread::warp_index() + 1 != thread::warps()) return;
        u32 width = at_least_one(shape.parts());
        u32 turn = (u32)(epoch % at_least_one(shape.tokens * width));
        u32 token = turn / width, part = turn % width;
        bool sent = false;
        if (token < tokens) {
            Parts parts = parts_of(token);
            u32 number = shape.by_slot != 0 ? thread::lane() : parts.order;
            sent = warp::ballot(warp::ALL, parts.order != MAX_U32 && number == part) != 0;
        }
        if (!sent && token < shape.tokens) {
            Address region = batch.own.offset(batch.arena.parts);
            packet::void_all(part_at(shape, region, token, part, 0), shape.part_packets());
        }
    }
};

// Sums what comes back to this rank's tokens.
template <class F, u32 AHEAD, bool FAR>
DEVICE void receive(const CombineArgs &args) {
    const Batch &batch = args.batch;
    const Shape &shape = batch.shape;
    u32 tiles = at_least_one(shape.combined().tiles(shape.hidden));
    u64 epoch = batch.next(Step::COMBINE_RECEIVED);
    u64 started_ns = clock_::now_ns();
    u32 tokens = mem::load_u32(batch.work(batch.work_layout.tokens));
    Receiver receiver(args, epoch, started_ns);
    for (Share items(tokens * tiles); items.has(); items.advance()) {
        if (!receiver.token<F, AHEAD, FAR>(items.item / tiles, items.item % tiles)) break;
    }
    if (FAR) batch.all_lanes(channel::COMBINE, epoch, receiver.deadline_ns, PARTS);
    receiver.void_one(tokens);
    // All threads have read the epoch.
    block::barrier();
    batch.count(Step::COMBINE_RECEIVED, epoch);
}

}  // namespace combine
}  // namespace low_latency
