// Dispatch, phase 5, what was received, and that all of it is there; by the last block to finish:
// device/src/throughput/arrive.rs.
#pragma once
#include "across/finish.cuh"
#include "dispatch.cuh"

namespace throughput::arrive {

using dispatch::Block;

// Whether this rank has sent its rows: no block has found a reason not to.
DEVICE bool sent(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    return mem::load_relaxed_gpu_u32(exchange.work(exchange.work_layout.unsent)) == 0;
}

// Rows received, by source and in all, and what was left out. One warp.
DEVICE void settle_rows(const Block &block, Address own, bool sent) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const HandleLayout &handle = exchange.handle_layout;
    u32 ranks = shape.ranks;
    u32 all = 0, left_out = 0;
    for (u32 first = 0; first < ranks; first += thread::WARP) {
        u32 source = first + thread::lane();
        u32 tokens = 0, left = 0;
        if (sent && source < ranks) {
            u32 mine = mem::load_u32(block.count_word(own, exchange.rank, source));
            left = mine - shared::load_u32(block.shared.mine + 4 * source);
            tokens = mem::load_u32(block.count_word(own, source, exchange.rank));
        }
        u32 sum = warp::inclusive_sum(tokens);
        u32 before = all + sum - tokens;
        if (source < ranks) {
            u32 here = least(before + tokens, shape.rows) - least(before, shape.rows);
            mem::store_u32(exchange.handle(handle.tokens_per_source).word(source), here);
        }
        all += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
        left_out += warp::sum(left);
    }
    if (thread::lane() == 0) {
        u32 received = least(all, shape.rows);
        mem::store_u32(exchange.handle(handle.received), received);
        mem::store_u32(exchange.handle(handle.dropped_rows), all - received);
        mem::store_u32(exchange.handle(handle.dropped_routes), left_out);
        if (!sent) mem::store_u32(exchange.handle(handle.tokens), 0);
    }
}

// The expert-major form's starts and counts, in so far as there is room.
DEVICE void settle_experts(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const HandleLayout &handle = exchange.handle_layout;
    u32 experts = shape.experts_per_rank();
    u32 starts = block.shared.starts, ends = block.shared.ends;
    bool sent = arrive::sent(block);
    u32 end = sent ? shared::load_u32(starts + 4 * experts) : 0;
    bool fits = end <= shape.expert_rows || shape.cap != 0;
    auto row = [&](u32 at) { return sent && fits ? least(shared::load_u32(at), shape.expert_rows) : 0; };
    for (u32 expert = thread::index(); expert < experts + 1; expert += thread::block_size()) {
        u32 start = row(starts + 4 * expert);
        mem::store_u32(exchange.handle(handle.expert_starts).word(expert), start);
        if (expert < experts) {
            u32 tokens = row(ends + 4 * expert) - start;
            mem::store_u32(exchange.handle(handle.tokens_per_expert).word(expert), tokens);
        }
    }
    if (thread::warp_index() == 0) {
        u32 dropped = 0;
        for (u32 expert = thread::lane(); expert < experts; expert += thread::WARP) {
            if (!sent) continue;
            u32 start = shared::load_u32(starts + 4 * expert);
            u32 pairs = shared::load_u32(ends + 4 * expert) - start;
            u32 row_end = row(ends + 4 * expert);
            dropped += pairs - (row_end - row(starts + 4 * expert));
        }
        dropped = warp::sum(dropped);
        if (thread::lane() == 0) mem::store_u32(exchange.handle(handle.dropped_pairs), dropped);
    }
}

// Keeps in the handle what the counts per rank say. After a failure the handle is one of no tokens and no rows.
template <bool BY_EXPERT, bool ACROSS>
DEVICE void settle(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const HandleLayout &handle = exchange.handle_layout;
    u32 ranks = shape.ranks;
    if (block.args.cached == 0) {
        bool sent = arrive::sent(block);
        Address own = exchange.own();
        for (u32 rank = thread::index(); rank < ranks; rank += thread::block_size()) {
            u64 first = shared::load_u32(block.shared.first + 4 * rank);
            u64 mine = shared::load_u32(block.shared.mine + 4 * rank);
            mem::store_u64(exchange.handle(handle.sent).long_at(rank), sent ? first << 32 | mine : 0);
        }
        if (ACROSS) across::finish::settle(block, sent);
        // The first warps are about to wait for flags.
        if (thread::warp_index() + 1 == thread::warps()) settle_rows(block, own, sent);
        if (BY_EXPERT && sent) {
            u32 experts = shape.experts_per_rank();
            for (u32 pair = thread::index(); pair < ranks * experts; pair += thread::block_size()) {
                u32 word = ranks + counts::FIXED + pair % experts;
                u32 counted = mem::load_u32(block.count_word(own, pair / experts, word));
                mem::store_u32(exchange.handle(handle.expert_counts).word(pair), counted);
            }
        }
    }
    if (BY_EXPERT) settle_experts(block);
}

// Tells every peer that its rows are written. After a failure nothing was sent, and nothing is said.
template <bool ACROSS>
DEVICE void signal(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    if (!sent(block)) return;
    auto [first, count] = block.near<ACROSS>();
    for (u32 near = thread::index(); near < count; near += thread::block_size()) {
        Address flag = exchange.peer(first + near).offset(exchange.arena.data_flags).long_at(exchange.rank);
        mem::store_release_sys_u64(flag, block.epoch);
    }
}

// Pairs received by each of this rank's experts, whose sums are zero.
DEVICE void count_experts(const Block &block, bool arrived) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    const HandleLayout &handle = exchange.handle_layout;
    u32 ranks = shape.ranks, experts = shape.experts_per_rank();
    u32 sums = block.shared.experts;
    Address own = exchange.own();
    bool dropped = arrived && shape.cap != 0 && mem::load_u32(exchange.handle(handle.dropped_rows)) != 0;
    if (arrived && !dropped) {
        // A thread takes a pair, so that all loads are on their way at once.
        for (u32 pair = thread::index(); pair < ranks * experts; pair += thread::block_size()) {
            u32 source = pair / experts, expert = pair % experts;
            u32 counted = mem::load_u32(block.count_word(own, source, ranks + counts::FIXED + expert));
            shared::add_u32(sums + 4 * expert, counted);
        }
    } else if (arrived) {
        // What was announced is more than has come: count what has.
        u32 slots = mem::load_u32(exchange.handle(handle.received)) * shape.topk;
        for (u32 slot = thread::index(); slot < slots; slot += thread::block_size()) {
            u32 expert = mem::load_u32(own.offset(exchange.arena.topk_idx).word(slot));
            if (expert < experts) shared::add_u32(sums + 4 * expert, 1);
        }
    }
    block::barrier();
    for (u32 expert = thread::index(); expert < experts; expert += thread::block_size()) {
        u32 tokens = shared::load_u32(sums + 4 * expert);
        mem::store_u32(exchange.handle(handle.tokens_per_expert).word(expert), tokens);
    }
}

// Waits until all of this rank's rows are there, and moves the epoch on.
template <bool BY_EXPERT, bool ACROSS>
DEVICE void wait(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    bool sent = arrive::sent(block);
    if (!BY_EXPERT) {
        for (u32 expert = thread::index(); expert < shape.experts_per_rank(); expert += thread::block_size()) {
            shared::store_u32(block.shared.experts + 4 * expert, 0);
        }
    }
    bool arrived = sent;
    if (ACROSS) arrived &= across::finish::finish(block);
    if (sent) {
        auto [first, count] = block.near<ACROSS>();
        for (u32 near = thread::index(); near < count; near += thread::block_size()) {
            u64 flags = exchange.arena.data_flags;
            arrived &= exchange.wait_flag(flags, first + near, block.epoch, block.deadline_ns, DATA);
        }
    }
    arrived = !block::barrier_or(!arrived);
    if (block::is_first_thread()) {
        mem::store_u64(exchange.work(exchange.work_layout.dispatch_epoch), block.epoch);
        mem::store_relaxed_gpu_u32(exchange.work(exchange.work_layout.unsent), 0);
        if (!arrived && block.args.cached == 0) mem::store_u32(exchange.handle(exchange.handle_layout.received), 0);
    }
    if (BY_EXPERT) {
        u32 end = shared::load_u32(block.shared.starts + 4 * shape.experts_per_rank());
        if (arrived && end > shape.expert_rows && shape.cap == 0 && block::is_first_thread()) {
            exchange.fail(block.report(EXPERT_ROWS, exchange.rank, shape.expert_rows, end));
        }
    } else if (block.args.cached == 0) {
        count_experts(block, arrived);
    }
}

}  // namespace throughput::arrive
