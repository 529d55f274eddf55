// Dispatch, phase 4 on the receiving side, from rows that have arrived to the expert-major form:
// device/src/throughput/expand.rs.
#pragma once
#include "dispatch.cuh"
#include "send.cuh"

namespace throughput::expand {

using dispatch::Block;
using dispatch::Tokens;

// No expert-major row: for a slot of another rank, or one that was left out.
constexpr u32 NONE = MAX_U32;

// For dispatches without the expert-major form.
DEVICE void nothing(const Block &) {}

// What has arrived beside a row, in so far as this lane has it: its slot's expert, place among the source's pairs of
// it, and weight; its first words of scales.
struct Arrived {
    u32 source, row;
    u32 expert, place, weight;
    u32 scales[2];
};

// Calls `each` with every lane's position, on all lanes together.
template <typename Each>
DEVICE void for_each_position(u32 position, Each &&each) {
    u32 lanes = warp::ballot(warp::ALL, position != NONE);
    while (lanes != 0) {
        each(warp::shuffle(warp::ALL, position, warp::trailing_zeros(lanes)));
        lanes &= lanes - 1;
    }
}

// What an expanding warp works with: its number among the expanding warps of the block, and how many there are.
struct Expansion {
    const Block &block;
    Address own;
    u32 worker, workers;

    DEVICE explicit Expansion(const Block &block)
        : block(block), own(block.args.exchange.own()), worker(thread::warp_index() - block.args.senders),
          workers(at_least_one(thread::warps() - block.args.senders)) {}

    // Where row `row` of the expert-major form begins.
    DEVICE Address expert_row(u32 row) const {
        const Exchange &exchange = block.args.exchange;
        return own.offset(exchange.arena.expert_x + (u64)row * exchange.shape.row_bytes);
    }

    // Says which expert an expert-major row belongs to, and which received row it is a copy of.
    DEVICE void mark(u32 row, u32 expert, u32 source) const {
        const ArenaLayout &arena = block.args.exchange.arena;
        mem::store_u32(own.offset(arena.expert_of_row).word(row), expert);
        mem::store_u32(own.offset(arena.source_row).word(row), source);
    }

    // Marks everything that no pair fills: padding is zeros that belong to no expert, as what lies past the end does.
    DEVICE void pad() const {
        const Exchange &exchange = block.args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        u32 starts = block.shared.starts, ends = block.shared.ends;
        u32 experts = shape.experts_per_rank();
        u32 first = thread::block_index() * workers + worker;
        u32 step = thread::grid_size() * workers;
        ScaleStrides strides = shape.scale_strides(shape.expert_rows);
        for (u32 expert = 0; expert < experts; expert++) {
            u32 end = least(shared::load_u32(starts + 4 * (expert + 1)), shape.expert_rows);
            for (u32 row = shared::load_u32(ends + 4 * expert) + first; row < end; row += step) {
                for (u32 quad = thread::lane(); quad < shape.row_bytes / 16; quad += thread::WARP) {
                    mem::store_quad(expert_row(row).offset(16 * (u64)quad), Quad{});
                }
                for (u32 scale = thread::lane(); scale < shape.scales; scale += thread::WARP) {
                    mem::store_u32(own.offset(arena.expert_scales + 4 * strides.place(row, scale)), 0);
                }
                if (thread::lane() == 0) {
                    mem::store_u32(own.offset(arena.expert_weights).word(row), 0);
                    mark(row, NONE, NONE);
                }
            }
        }
        u32 row = shared::load_u32(starts + 4 * experts) + first * thread::WARP + thread::lane();
        for (; row < shape.expert_rows; row += step * thread::WARP) mark(row, NONE, NONE);
    }

    // Calls `each` with the source, the first row and the row past the last of every chunk of this warp's, once they
    // have arrived.
    template <typename Each>
    DEVICE void for_each_chunk(Each &&each) const {
        const Exchange &exchange = block.args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        u32 ranks = at_least_one(shape.ranks);
        // No block's share is larger, whoever's tokens they are.
        u32 chunks = div_ceil(div_ceil(shape.tokens, at_least_one(thread::grid_size())), CHUNK);
        for (u32 unit = worker; unit < chunks * ranks; unit += workers) {
            u32 source = unit % ranks;
            u32 sent = mem::load_u32(block.count_word(own, source, shape.ranks + counts::TOKENS));
            Tokens share = Tokens::share<true>(least(sent, shape.tokens));
            u32 token = share.first + unit / ranks * CHUNK;
            if (token >= share.end) continue;
            u32 at = source * shape.chunks() + token / CHUNK;
            Address flag = own.offset(arena.chunk_flags).long_at(at);
            u64 seen;
            bool came = mem::wait_at_least_acquire_sys(flag, block.epoch, block.deadline_ns, seen);
            if (!came) exchange.fail(Report(LATE, DATA, source, block.epoch, block.epoch, seen));
            // Lanes that saw the flag just in time do not go on alone.
            if (warp::ballot(warp::ALL, came) != warp::ALL) return;
            u64 range = mem::load_u64(own.offset(arena.chunk_rows).long_at(at));
            u32 first = (u32)(range >> 32);
            each(source, first, first + (u32)range);
        }
    }

    // Where a word of a received row's scales is.
    DEVICE Address scale_at(u32 row, u32 word) const {
        const Exchange &exchange = block.args.exchange;
        ScaleStrides strides = exchange.shape.scale_strides(exchange.shape.rows);
        return own.offset(exchange.arena.scales + 4 * strides.place(row, word));
    }

    // Begins to load what has arrived beside a row.
    DEVICE Arrived load(u32 source, u32 row) const {
        const Shape &shape = block.args.exchange.shape;
        const ArenaLayout &arena = block.args.exchange.arena;
        u32 lane = thread::lane();
        Arrived arrived{source, row, NONE, 0, 0, {0, 0}};
        if (lane < shape.topk) {
            u32 at = row * shape.topk + lane;
            arrived.expert = mem::load_u32(own.offset(arena.topk_idx).word(at));
            arrived.place = mem::load_u32(own.offset(arena.places).word(at));
            arrived.weight = mem::load_u32(own.offset(arena.topk_weights).word(at));
        }
        if (lane < shape.scales) arrived.scales[0] = mem::load_u32(scale_at(row, lane));
        if (lane + thread::WARP < shape.scales) {
            arrived.scales[1] = mem::load_u32(scale_at(row, lane + thread::WARP));
        }
        return arrived;
    }

    // The expert-major row of this lane's slot of a received row, with everything there but the elements written.
    DEVICE u32 place(const Arrived &arrived) const {
        const Exchange &exchange = block.args.exchange;
        const Shape &shape = exchange.shape;
        const ArenaLayout &arena = exchange.arena;
        u32 experts = shape.experts_per_rank();
        u32 lane = thread::lane();
        u32 position = NONE;
        if (arrived.expert < experts) {
            u32 first = block.shared.experts + 4 * (arrived.source * experts + arrived.expert);
            position = shared::load_u32(first) + arrived.place;
            if (position < shape.expert_rows) {
                mem::store_u32(own.offset(arena.expert_weights).word(position), arrived.weight);
                mark(position, arrived.expert, arrived.row);
            } else {
                position = NONE;
            }
        }
        if (lane < shape.topk) {
            u32 at = arrived.row * shape.topk + lane;
            mem::store_u32(exchange.handle(exchange.handle_layout.positions).word(at), position);
        }
        if (shape.scales != 0) {
            ScaleStrides strides = shape.scale_strides(shape.expert_rows);
            for_each_position(position, [&](u32 position) {
                Address to = own.offset(arena.expert_scales + 4 * strides.place(position, 0));
                if (lane < shape.scales) {
                    mem::store_u32(to.offset(4 * strides.place(0, lane)), arrived.scales[0]);
                }
                if (lane + thread::WARP < shape.scales) {
                    mem::store_u32(to.offset(4 * strides.place(0, lane + thread::WARP)), arrived.scales[1]);
                }
                for (u32 scale = lane + 2 * thread::WARP; scale < shape.scales; scale += thread::WARP) {
                    u32 value = mem::load_u32(scale_at(arrived.row, scale));
                    mem::store_u32(to.offset(4 * strides.place(0, scale)), value);
                }
            });
        }
        return position;
    }
};

// Leaves the form empty, for want of room: nothing of an earlier dispatch is to be taken for this one's.
DEVICE void clear(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    Expansion expansion(block);
    u32 worker = thread::block_index() * expansion.workers + expansion.worker;
    u32 first = worker * thread::WARP + thread::lane();
    u32 step = thread::grid_size() * expansion.workers * thread::WARP;
    for (u32 row = first; row < shape.expert_rows; row += step) expansion.mark(row, NONE, NONE);
    Address positions = exchange.handle(exchange.handle_layout.positions);
    for (u32 slot = first; slot < shape.rows * shape.topk; slot += step) mem::store_u32(positions.word(slot), NONE);
}

// Expands by 16-byte loads and stores.
DEVICE void plain(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    u32 row_bytes = exchange.shape.row_bytes;
    Expansion expansion(block);
    expansion.pad();
    expansion.for_each_chunk([&](u32 source, u32 first, u32 end) {
        for (u32 row = first; row < end; row++) {
            u32 position = expansion.place(expansion.load(source, row));
            Address from = expansion.own.offset(exchange.arena.rows).offset((u64)row * row_bytes);
            for_each_position(position, [&](u32 position) {
                for (u32 quad = thread::lane(); quad < row_bytes / 16; quad += thread::WARP) {
                    u64 at = 16 * (u64)quad;
                    mem::store_quad(expansion.expert_row(position).offset(at), mem::load_quad(from.offset(at)));
                }
            });
        }
    });
}

// The next piece of a chunk's rows to load, and its buffer.
struct Ahead {
    const send::Stages &stages;
    Address rows_at;
    u32 row, end, piece, stage;

    DEVICE void load_next() {
        if (row == end) return;
        u64 offset = (u64)row * stages.row_bytes + (u64)(piece * stages.stage_bytes);
        u32 bytes = stages.piece_bytes(piece);
        bulk::mbarrier_arrive_expect(stages.barrier(stage), bytes);
        bulk::load(stages.buffer(stage), rows_at.offset(offset), bytes, stages.barrier(stage));
        stage = stages.after(stage);
        piece++;
        if (piece == stages.pieces) {
            piece = 0;
            row++;
        }
    }
};

// Expands by bulk copies: a row is loaded into shared memory once and stored from there once for each of its pairs. One
// lane drives the copies; loads run `expand_stages − 1` pieces ahead.
DEVICE void bulk(const Block &block) {
    const dispatch::DispatchArgs &args = block.args;
    u32 count = args.expand_stages;
    Expansion expansion(block);
    send::Stages stages(block, args.senders * args.stages + expansion.worker * count, count);
    bool driver = thread::lane() == 0;
    if (driver) {
        for (u32 stage = 0; stage < count; stage++) bulk::mbarrier_init(stages.barrier(stage), 1);
        bulk::fence_proxy_async();
    }
    expansion.pad();
    u32 stage = 0, parity = 0;
    Ahead ahead{stages, expansion.own.offset(args.exchange.arena.rows), 0, 0, 0, 0};
    expansion.for_each_chunk([&](u32 source, u32 first, u32 end) {
        if (first == end) return;
        // Hands the rows, which the chunk's flag released, to the copy engine.
        bulk::fence_proxy_async();
        ahead.row = first;
        ahead.end = end;
        ahead.piece = 0;
        if (driver) {
            // The buffers may still be read by the last chunk's stores.
            bulk::wait_read();
            for (u32 stage = 1; stage < count; stage++) ahead.load_next();
        }
        Arrived arrived = expansion.load(source, first);
        for (u32 row = first; row < end; row++) {
            u32 position = expansion.place(arrived);
            // While this row is stored.
            if (row + 1 < end) arrived = expansion.load(source, row + 1);
            for (u32 piece = 0; piece < stages.pieces; piece++) {
                if (driver) {
                    // The buffer to load next is the one that the last piece's stores read.
                    bulk::wait_read();
                    ahead.load_next();
                    bulk::mbarrier_wait(stages.barrier(stage), parity);
                }
                for_each_position(position, [&](u32 position) {
                    if (driver) {
                        Address to = expansion.expert_row(position).offset(piece * stages.stage_bytes);
                        bulk::store(to, stages.buffer(stage), stages.piece_bytes(piece));
                    }
                });
                if (driver) bulk::commit();
                stage++;
                if (stage == count) {
                    stage = 0;
                    parity ^= 1;
                }
            }
        }
    });
    // The kernel's end tells the reader.
    if (driver) send::written();
}

}  // namespace throughput::expand
