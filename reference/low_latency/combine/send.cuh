// The sending half of low-latency combine: device/src/low_latency/combine/send.rs.
#pragma once
#include "../../meet.cuh"
#include "../far.cuh"
#include "../format.cuh"
#include "args.cuh"

namespace low_latency {
namespace combine {

// Where a tile of a part of what `token` gets lies, from the beginning of the parts on.
DEVICE Address part_at(const Shape &shape, Address parts, u32 token, u32 part, u32 tile) {
    u64 row = (u64)(token * shape.parts() + part) * shape.part_packets();
    return packet::nth(parts, row + tile * shape.combined().tile_packets());
}

// Adds a row, times a weight, to sums; the first is not added to zero, so that −0 stays what it is.
template <class F>
DEVICE void add(Values &sums, const Values &values, float weight, bool is_first) {
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
#pragma unroll
        for (u32 at = 0; at < 8 * F::QUADS; at++) {
            float product = values.of[plane][at] * weight;
            sums.of[plane][at] = is_first ? product : sums.of[plane][at] + product;
        }
    }
}

// `bits` without the lowest `count` ones.
DEVICE u32 without_lowest(u32 bits, u32 count) {
    for (u32 gone = 0; gone < count; gone++) bits &= bits - 1;
    return bits;
}

// Word `word` of what the dispatch kept of `source`.
DEVICE u32 kept(const CombineArgs &args, u32 source, u32 word) {
    const Batch &batch = args.batch;
    u32 words = 1 + batch.shape.token_bits();
    return mem::load_u32(batch.work(batch.work_layout.sources).word(source * words + word));
}

// The most tokens that a rank has dispatched, on all lanes.
DEVICE u32 most_tokens(const CombineArgs &args) {
    u32 most_so_far = 0;
    for (u32 source = thread::lane(); source < args.batch.shape.ranks; source += thread::WARP) {
        most_so_far = most(most_so_far, kept(args, source, 0));
    }
    return warp::max_within(thread::WARP, most_so_far);
}

// Rows that are on their way at once: this lane's part of the tile.
template <u32 AHEAD>
struct Ahead {
    Quads rows[AHEAD];
};

// A tile of what goes back to a token.
struct Row {
    const CombineArgs &args;
    const Batch &batch;
    const Shape &shape;
    Peers peers;
    u32 source;
    u32 token;
    u32 tile;
    u32 tag;

    DEVICE Row(const CombineArgs &args, Peers peers, u32 source, u32 token, u32 tile, u32 tag)
        : args(args), batch(args.batch), shape(args.batch.shape), peers(peers), source(source), token(token),
          tile(tile), tag(tag) {}

    // Whether the token came to this rank.
    DEVICE bool came_here() const {
        u32 bits = kept(args, source, 1 + token / 32);
        return (bits >> (token % 32) & 1) != 0;
    }

    DEVICE u32 message() const { return source * shape.tokens + token; }

    // Which part of what the token gets comes from this rank.
    DEVICE u32 part() const { return mem::load_u32(batch.work(batch.work_layout.part).word(message())); }

    // This lane's slot: the row that its expert had, `NO_ROW` for none, and bits of the weight.
    DEVICE u32 slot(u32 &weight) const {
        const WorkspaceLayout &work = batch.work_layout;
        weight = 0;
        if (thread::lane() >= shape.topk) return NO_ROW;
        u32 index = message() * shape.topk + thread::lane();
        u32 row = mem::load_u32(batch.work(work.rows).word(index));
        weight = mem::load_u32(batch.work(work.weights).word(index));
        return row;
    }

    // The rows of the slots `slots` that come first, as many as are wanted on their way at once.
    template <class F, u32 AHEAD>
    DEVICE Ahead<AHEAD> ahead(u32 row, u32 slots) const {
        Ahead<AHEAD> ahead{};
#pragma unroll
        for (u32 index = 0; index < AHEAD; index++) {
            u32 left = without_lowest(slots, index);
            if (left != 0) {
                ahead.rows[index] = load<F>(warp::shuffle(warp::ALL, row, warp::trailing_zeros(left)));
            }
        }
        return ahead;
    }

    // The weighted sum of the rows of this rank's experts. Of a token that did not come here it is of no use.
    template <class F, u32 AHEAD>
    DEVICE Values sum() const {
        Values sums{};
        bool came = came_here();
        u32 weights, row = slot(weights);
        u32 slots = warp::ballot(warp::ALL, came && row != NO_ROW);
        bool is_first = true;
        while (slots != 0) {
            Ahead<AHEAD> rows = ahead<F, AHEAD>(row, slots);
#pragma unroll
            for (u32 index = 0; index < AHEAD; index++) {
                if (slots != 0) {
                    u32 weight = warp::shuffle(warp::ALL, weights, warp::trailing_zeros(slots));
                    add<F>(sums, values<F>(rows.rows[index]), __uint_as_float(weight), is_first);
                    is_first = false;
                    slots &= slots - 1;
                }
            }
        }
        return sums;
    }

    // Sends the rows of this rank's experts as they are.
    template <class F, u32 AHEAD, bool FAR>
    DEVICE void write_slots() const {
        u32 weights, row = slot(weights);
        u32 slots = warp::ballot(warp::ALL, row != NO_ROW);
        while (slots != 0) {
            Ahead<AHEAD> rows = ahead<F, AHEAD>(row, slots);
#pragma unroll
            for (u32 index = 0; index < AHEAD; index++) {
                if (slots != 0) {
                    u32 slot = warp::trailing_zeros(slots);
                    write<F, FAR>(slot, slot, values<F>(rows.rows[index]));
                    slots &= slots - 1;
                }
            }
        }
    }

    // This lane's part of the tile of a row of `y`.
    template <class F>
    DEVICE Quads load(u32 row) const {
        Address from = args.y.offset((u64)row * 2 * shape.hidden);
        Quads quads{};
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 cell = tile * TILE_CELLS + 32 * plane + thread::lane();
#pragma unroll
            for (u32 quad = 0; quad < F::QUADS; quad++) {
                u32 at = cell * F::QUADS + quad;
                if (at < shape.hidden / 8) quads.of[plane][quad] = mem::load_quad(from.offset(16 * (u64)at));
            }
        }
        return quads;
    }

    // Offset of this row, of slot `slot` or 0, in the outbox, from the beginning of the batch's part on.
    DEVICE u64 outbox(u32 slot) const {
        u64 row = message() * shape.parts_of_rank() + slot;
        return batch.arena.outbox_parts + row * shape.far_part_bytes();
    }

    // Sends the tile, of slot `slot` or 0, as part `part` of what the token gets. Partner: `receive`, on the source.
    template <class F, bool FAR>
    DEVICE void write(u32 part, u32 slot, const Values &values) const {
        Fill fill = shape.combined();
        if (FAR && batch.is_far(source)) {
            far::write_tile<F>(batch.own.offset(outbox(slot)), fill, shape.hidden, tile, F::encode(values));
            return;
        }
        u32 cells = fill.cells(shape.hidden) - tile * TILE_CELLS;
        Address parts = peers.of(source).offset(batch.arena.parts);
        packet::write_tile<F>(part_at(shape, parts, token, part, tile), cells, F::encode(values), tag);
    }
};

// Has the proxy send what the outbox holds, once all blocks have written it. By the whole block.
DEVICE void post(const CombineArgs &args, Peers peers, u64 epoch, u64 deadline_ns) {
    const Batch &batch = args.batch;
    const Shape &shape = batch.shape;
    const internode::Link &link = batch.link;
    u32 channel = link.channel + channel::COMBINE;
    if (!last_block(batch.work(batch.work_layout.meetings).word(channel::COMBINE))) return;
    internode::Ring::release();
    u32 most = at_least_one(most_tokens(args));
    for (u32 message = thread::warp_index(); message < shape.ranks * most; message += thread::warps()) {
        u32 source = message / most, token = message % most;
        Row row(args, peers, source, token, 0, packet::tag(epoch));
        if (!batch.is_far(source) || !row.came_here()) continue;
        u32 slot, part;
        bool has;
        if (shape.by_slot != 0) {
            u32 weight;
            slot = part = thread::lane();
            has = row.slot(weight) != NO_ROW;
        } else {
            slot = 0;
            part = row.part();
            has = thread::lane() == 0;
        }
        u64 from = link.part + row.outbox(slot);
        Address there = part_at(shape, {link.part + batch.arena.parts}, token, part, 0);
        // By the lane that `receive` expects.
        auto command = internode::Command::put({source, link.lane_of(token)}, channel, from, there.at,
                                               shape.far_part_bytes());
        batch.push(has, command, epoch, deadline_ns);
    }
    // Places in the ring are in the order of the puts and, behind the barrier, the signals.
    block::barrier();
    if (thread::warp_index() == 0) batch.signal_far(channel::COMBINE, epoch, deadline_ns);
}

// Sends back what this rank's experts have made.
template <class F, u32 AHEAD, bool FAR>
DEVICE void send(const CombineArgs &args) {
    const Batch &batch = args.batch;
    const Shape &shape = batch.shape;
    u32 tiles = at_least_one(shape.combined().tiles(shape.hidden));
    u64 epoch = batch.next(Step::COMBINE_SENT);
    u64 deadline_ns = clock_::now_ns() + batch.timeout_ns;
    Peers peers = Peers::load(batch, shared::base());
    batch.acknowledge<FAR>(deadline_ns);
    u32 most = at_least_one(most_tokens(args));
    Share items(shape.ranks * most * tiles);
    auto row_of = [&](u32 item) {
        u32 message = item / tiles, tile = item % tiles;
        return Row(args, peers, message / most, message % most, tile, packet::tag(epoch));
    };
    // What the first one comes to is known before peers are ready for it.
    Values sums{};
    bool has_first = false;
    u32 first = items.item;
    if (shape.by_slot == 0) {
        has_first = items.has();
        items.advance();
        if (has_first) {
            Row row = row_of(first);
            sums = row.sum<F, AHEAD>();
        }
    }
    bool ready = batch.may_send(batch.arena.combine_read, epoch, deadline_ns);
    if (block::barrier_or(!ready)) return;
    batch.add_up_waits();
    if (has_first && row_of(first).came_here()) {
        Row row = row_of(first);
        row.write<F, FAR>(row.part(), 0, sums);
    }
    for (; items.has(); items.advance()) {
        Row row = row_of(items.item);
        if (!row.came_here()) continue;
        if (shape.by_slot != 0) {
            row.write_slots<F, AHEAD, FAR>();
        } else {
            Values sums = row.sum<F, AHEAD>();
            row.write<F, FAR>(row.part(), 0, sums);
        }
    }
    if (FAR) post(args, peers, epoch, deadline_ns);
    batch.count(Step::COMBINE_SENT, epoch);
}

}  // namespace combine
}  // namespace low_latency
