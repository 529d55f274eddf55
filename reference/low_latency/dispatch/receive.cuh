// The receiving half of low-latency dispatch: device/src/low_latency/dispatch/receive.rs.
#pragma once
#include "../far.cuh"
#include "../format.cuh"
#include "args.cuh"

namespace low_latency {
namespace dispatch {

// Address in shared memory of word `word` of what `source` has told.
DEVICE u32 told(const Shape &shape, u32 source, u32 word) {
    return shared::base() + 4 * (source * 3 * shape.summary_packets() + word);
}

// Whether `token` of `source` comes here.
DEVICE bool comes(const Shape &shape, u32 source, u32 token) {
    u32 bits = shared::load_u32(told(shape, source, summary::TOKENS_THERE + token / 32));
    return (bits >> (token % 32) & 1) != 0;
}

// What was there of a row, arrived or not: this lane's slot, and its part of the tile.
struct Look {
    Quad slot;
    packet::Peek row;
};

struct Receiver {
    const DispatchArgs &args;
    const Batch &batch;
    const Shape &shape;
    u64 epoch;
    u32 tag;
    u64 started_ns;
    u64 deadline_ns;

    DEVICE Receiver(const DispatchArgs &args, u64 epoch, u64 started_ns)
        : args(args), batch(args.batch), shape(args.batch.shape), epoch(epoch), tag(packet::tag(epoch)),
          started_ns(started_ns), deadline_ns(started_ns + args.batch.timeout_ns) {}

    // All of it; false, and a report, if something does not come.
    template <class F, bool FAR>
    DEVICE bool all() const {
        u32 tiles = at_least_one(shape.dispatched().tiles(shape.hidden));
        if (!summaries<FAR>()) return false;
        u32 most = most_tokens();
        Share items(shape.ranks * most * tiles);
        // The first one is looked at while rows are counted.
        bool has_first = items.has();
        u32 first = has_first ? items.item : 0;
        u32 tile = first % tiles;
        u32 source = first / tiles / at_least_one(most), token = first / tiles % at_least_one(most);
        bool is_near = !FAR || !batch.is_far(source);
        Look look = look_at<F>(has_first && is_near, source, token, tile);
        count();
        block::barrier();
        bool comes_first = has_first && comes(shape, source, token);
        if (comes_first && is_near && !row<F>(source, token, tile, look)) return false;
        if (FAR && comes_first && !is_near && !far_row<F>(source, token, tile)) return false;
        for (items.advance(); items.has(); items.advance()) {
            tile = items.item % tiles;
            source = items.item / tiles / at_least_one(most);
            token = items.item / tiles % at_least_one(most);
            if (!comes(shape, source, token)) continue;
            if (FAR && batch.is_far(source)) {
                if (!far_row<F>(source, token, tile)) return false;
                continue;
            }
            look = look_at<F>(true, source, token, tile);
            if (!row<F>(source, token, tile, look)) return false;
        }
        return true;
    }

    // Notes that something of `source` was waited for.
    DEVICE void has_waited(u32 source) const {
        batch.has_waited(Waited::DISPATCH, epoch, source, clock_::now_ns() - started_ns);
    }

    // Waits for every source's summary; false, and a report, if one does not come.
    template <bool FAR>
    DEVICE bool summaries() const {
        u32 packets = at_least_one(shape.summary_packets());
        bool late = false;
        Address from = batch.own.offset(batch.arena.summaries);
        for (u32 index = thread::index(); index < shape.ranks * packets; index += thread::block_size()) {
            u32 source = index / packets;
            if (FAR && batch.is_far(source)) {
                late |= !far_summary(source, index % packets);
                continue;
            }
            // Partner: `Routing::tell_summary`, on the source.
            Three data;
            bool waited;
            u32 seen;
            if (packet::read(packet::nth(from, index), tag, deadline_ns, data, waited, seen)) {
                if (waited && index % packets == 0) has_waited(source);
                u32 at = told(shape, source, 3 * (index % packets));
                shared::store_u32(at, data.words[0]);
                shared::store_u32(at + 4, data.words[1]);
                shared::store_u32(at + 8, data.words[2]);
            } else {
                late = true;
                batch.late(SUMMARY, source, epoch, tag, seen);
            }
        }
        return !block::barrier_or(late);
    }

    // Waits for what a rank of another node has sent on a lane; false, and a report, if it does not come.
    DEVICE bool arrived(u32 source, u32 lane, Phase phase) const {
        // Partner: `Batch::signal_far`, on the source.
        if (batch.link.has_come(channel::DISPATCH, source, lane, epoch)) return true;
        u64 seen;
        if (batch.link.wait(channel::DISPATCH, source, lane, epoch, deadline_ns, seen)) {
            has_waited(source);
            return true;
        }
        batch.late(phase, source, epoch, epoch, seen);
        return false;
    }

    // Brings as much of a summary from another node to shared memory as a packet would have held.
    DEVICE bool far_summary(u32 source, u32 packet) const {
        Address from = packet::nth(batch.own.offset(batch.arena.summaries), source * shape.summary_packets());
        if (!arrived(source, 0, SUMMARY)) return false;
        for (u32 word = 3 * packet; word < 3 * packet + 3; word++) {
            u32 value = word < shape.summary_words() ? mem::load_u32(from.word(word)) : 0;
            shared::store_u32(told(shape, source, word), value);
        }
        return true;
    }

    // Takes in a tile of a row from another node; false, and a report, if it does not come.
    template <class F>
    DEVICE bool far_row(u32 source, u32 token, u32 tile) const {
        u32 lane = thread::lane(), mine = shape.experts_per_rank();
        bool come = arrived(source, batch.link.lane_of(token), ROWS);
        if (warp::ballot(warp::ALL, !come) != 0) return false;
        Address message = message_of(source, token);
        u64 slot = lane < shape.topk ? mem::load_u64(message.long_at(lane)) : NO_ROW;
        u32 row = (u32)slot, weight = (u32)(slot >> 32);
        u32 rank = row == NO_ROW ? MAX_U32 : (row >> 16) / mine;
        bool first = (warp::match_any(warp::ALL, rank) & warp::lanes_below()) == 0;
        u32 part = __popc(warp::ballot(warp::ALL, first && rank < batch.rank));
        u32 place = rank == batch.rank ? row - (rank * mine << 16) : NO_ROW;
        Address from = message.offset(shape.far_slots_bytes());
        Tile read = far::read_tile<F>(from, shape.dispatched(), shape.hidden, tile);
        deliver<F>(source, token, tile, {{place, weight, part}}, read);
        return true;
    }

    // The most tokens that a source has.
    DEVICE u32 most_tokens() const {
        u32 most_so_far = 0;
        for (u32 source = 0; source < shape.ranks; source++) {
            u32 tokens = shared::load_u32(told(shape, source, summary::TOKENS));
            most_so_far = most(most_so_far, tokens == summary::INVALID ? 0 : tokens);
        }
        return most_so_far;
    }

    // Makes each source's counts the first rows of its tokens. The first block tells the user, and keeps what the
    // combine needs.
    DEVICE void count() const {
        const WorkspaceLayout &work = batch.work_layout;
        bool first = thread::block_index() == 0;
        u32 counts = summary::TOKENS_THERE + shape.token_bits();
        for (u32 expert = thread::index(); expert < shape.experts_per_rank(); expert += thread::block_size()) {
            u32 row = 0;
            for (u32 source = 0; source < shape.ranks; source++) {
                u32 at = told(shape, source, counts + expert);
                u32 rows = shared::load_u32(at);
                shared::store_u32(at, row);
                if (first) {
                    Address range = batch.work(work.ranges).long_at(expert * shape.ranks + source);
                    mem::store_u64(range, (u64)row << 32 | rows);
                }
                row += rows;
            }
            if (first) {
                mem::store_u32(batch.work(work.counts).word(expert), row);
                Address total = batch.work(work.totals).long_at(expert);
                mem::store_u64(total, mem::load_u64(total) + row);
            }
        }
        if (!first) return;
        u32 words = shape.token_bits();
        for (u32 index = thread::index(); index < shape.ranks * words; index += thread::block_size()) {
            u32 source = index / at_least_one(words), word = index % at_least_one(words);
            u32 bits = shared::load_u32(told(shape, source, summary::TOKENS_THERE + word));
            mem::store_u32(batch.work(work.sources).word(source * (1 + words) + 1 + word), bits);
        }
        for (u32 source = thread::index(); source < shape.ranks; source += thread::block_size()) {
            u32 tokens = shared::load_u32(told(shape, source, summary::TOKENS));
            bool invalid = tokens == summary::INVALID;
            if (invalid && source != batch.rank) batch.fail(Report(PEER_INPUT, NO_PHASE, source, epoch, 0, 0));
            mem::store_u32(batch.work(work.sources).word(source * (1 + words)), invalid ? 0 : tokens);
        }
    }

    // Address of what `source` sends for `token`.
    DEVICE Address message_of(u32 source, u32 token) const {
        u64 index = (u64)(source * shape.tokens + token) * shape.message_packets();
        return packet::nth(batch.own.offset(batch.arena.messages), index);
    }

    // Looks at a tile of a row and at what is said of the row, if there is one.
    template <class F>
    DEVICE Look look_at(bool is_there, u32 source, u32 token, u32 tile) const {
        Fill fill = shape.dispatched();
        u32 cells = fill.cells(shape.hidden) - tile * TILE_CELLS;
        Address message = message_of(source, token);
        Look look{};
        if (is_there) {
            if (thread::lane() < shape.topk) {
                look.slot = mem::load_relaxed_sys_b128(packet::nth(message, thread::lane()));
            }
            Address from = packet::nth(message, shape.topk + tile * fill.tile_packets());
            look.row = packet::Peek::at<F>(from, cells);
        }
        return look;
    }

    // Takes in a tile of a row that was looked at; false, and a report, if it does not come.
    template <class F>
    DEVICE bool row(u32 source, u32 token, u32 tile, const Look &look) const {
        Fill fill = shape.dispatched();
        u32 cells = fill.cells(shape.hidden) - tile * TILE_CELLS;
        u32 lane = thread::lane();
        packet::Peek peek = look.row;
        // Partner of the packets: `Routing::tell_message` and `send`, on the source.
        Address message = message_of(source, token);
        Address from = packet::nth(message, shape.topk + tile * fill.tile_packets());
        bool has_slot = lane < shape.topk;
        bool come = peek.has_come<F>(cells, tag) && (!has_slot || look.slot.words[3] == tag);
        Three slot{{NO_ROW, 0, 0}};
        if (has_slot) slot = {{look.slot.words[0], look.slot.words[1], look.slot.words[2]}};
        if (warp::ballot(warp::ALL, !come) != 0) {
            bool came = true, waited;
            u32 seen = 0;
            if (has_slot) came = packet::read(packet::nth(message, lane), tag, deadline_ns, slot, waited, seen);
            if (came) came = peek.wait<F>(from, cells, tag, deadline_ns, seen);
            if (!came) batch.late(ROWS, source, epoch, tag, seen);
            if (warp::ballot(warp::ALL, !came) != 0) return false;
            if (lane == 0) has_waited(source);
        }
        deliver<F>(source, token, tile, slot, peek.tile<F>());
        return true;
    }

    // Copies a tile to every expert that the row is for. `slot` is this lane's of the message.
    template <class F>
    DEVICE void deliver(u32 source, u32 token, u32 tile, const Three &slot, const Tile &row) const {
        const WorkspaceLayout &work = batch.work_layout;
        u32 place = slot.words[0], weight = slot.words[1], part = slot.words[2];
        bool here = place != NO_ROW;
        u32 counts = summary::TOKENS_THERE + shape.token_bits();
        Three scales{};
        if (F::GROUPED) scales = scale_words(row);
        u32 expert = place >> 16;
        u32 at = NO_ROW;
        if (here) {
            u32 first = shared::load_u32(told(shape, source, counts + expert));
            at = expert * shape.expert_rows() + first + (place & 0xffff);
        }
        if (tile == 0) {
            u32 message = source * shape.tokens + token;
            if (thread::lane() < shape.topk) {
                u32 index = message * shape.topk + thread::lane();
                mem::store_u32(batch.work(work.rows).word(index), at);
                mem::store_u32(batch.work(work.weights).word(index), weight);
            }
            if (thread::lane() == 0) mem::store_u32(batch.work(work.part).word(message), part);
        }
        u32 same = warp::match_any(warp::ALL, at);
        u32 left = warp::ballot(warp::ALL, here && (same & warp::lanes_below()) == 0);
        while (left != 0) {
            u32 lane = warp::trailing_zeros(left);
            u32 to = warp::shuffle(warp::ALL, at, lane), of = warp::shuffle(warp::ALL, expert, lane);
            store_row(to, tile, row);
            if (F::GROUPED) store_scales(of, to - of * shape.expert_rows(), tile, scales);
            left &= left - 1;
        }
    }

    DEVICE void store_row(u32 at, u32 tile, const Tile &row) const {
        u32 cells = shape.dispatched().cells(shape.hidden);
        Address to = args.out.offset((u64)at * shape.row_bytes());
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 cell = tile * TILE_CELLS + 32 * plane + thread::lane();
            if (cell < cells) {
                Quad quad{{row.words[0][plane], row.words[1][plane], row.words[2][plane], row.words[3][plane]}};
                mem::store_quad(to.offset(16 * (u64)cell), quad);
            }
        }
    }

    DEVICE bool is_packed() const { return shape.element == element::E4M3_UE8M0; }

    // The words of scales that a tile brings, by plane: on the first four lanes one of a group each, or, packed, on all
    // lanes those of four.
    DEVICE Three scale_words(const Tile &row) const {
        Three scales{{row.groups[0], row.groups[1], row.groups[2]}};
        if (!is_packed()) return scales;
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 packed = 0;
#pragma unroll
            for (u32 lane = 0; lane < 4; lane++) {
                packed |= warp::shuffle(warp::ALL, row.groups[plane], lane) << (8 * lane);
            }
            scales.words[plane] = packed;
        }
        return scales;
    }

    DEVICE void store_scales(u32 expert, u32 row, u32 tile, const Three &scales) const {
        ScaleStrides strides = shape.scale_strides();
        u64 of_expert = (u64)expert * shape.expert_scale_words();
        u32 planes = 3 * tile, lanes = is_packed() ? 1 : 4;
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 word = (planes + plane) * lanes + thread::lane();
            if (thread::lane() < lanes && word < shape.scale_words()) {
                u64 at = of_expert + strides.place(row, word);
                mem::store_u32(args.out_scales.offset(4 * at), scales.words[plane]);
            }
        }
    }

    // Makes the message void whose turn it is, if its source has not sent it, so that none gets as old as tags are
    // unique.
    DEVICE void void_one() const {
        if (thread::block_index() + 1 != thread::grid_size() || thread::warp_index() + 1 != thread::warps()) return;
        u32 turn = (u32)(epoch % at_least_one(shape.expert_rows()));
        u32 source = turn / at_least_one(shape.tokens), token = turn % at_least_one(shape.tokens);
        if (shape.expert_rows() > 0 && !comes(shape, source, token)) {
            packet::void_all(message_of(source, token), shape.message_packets());
        }
    }
};

// Receives what is for this rank's experts.
template <bool FAR>
DEVICE void receive(const DispatchArgs &args) {
    const Batch &batch = args.batch;
    u64 epoch = batch.next(Step::DISPATCH_RECEIVED);
    Receiver receiver(args, epoch, clock_::now_ns());
    bool received = batch.shape.quantized() ? receiver.all<E4m3, FAR>() : receiver.all<Bf16, FAR>();
    if (!received) return;
    if (FAR) {
        bool all = batch.all_lanes(channel::DISPATCH, epoch, receiver.deadline_ns, ROWS);
        if (block::barrier_or(!all)) return;
    }
    receiver.void_one();
    batch.count(Step::DISPATCH_RECEIVED, epoch);
}

}  // namespace dispatch
}  // namespace low_latency
