// Dispatch, phase 2, what every rank tells every other before a row moves: device/src/throughput/announce.rs.
#pragma once
#include "across/counts.cuh"
#include "dispatch.cuh"

namespace throughput::announce {

using dispatch::Block;

// The words between the counts.
DEVICE u32 fixed(const Block &block, u32 word, u32 status, u64 id) {
    switch (word) {
        case counts::STATUS: return status;
        case counts::HANDLE_LOW: return (u32)id;
        case counts::HANDLE_HIGH: return (u32)(id >> 32);
        default: return block.all_tokens;
    }
}

// This rank's counts.
struct Counted {
    const Block &block;
    u32 status;
    u64 id;

    DEVICE u32 operator()(u32 word) const {
        u32 ranks = block.args.exchange.shape.ranks;
        return word < ranks ? shared::load_u32(block.shared.totals + 4 * word) : fixed(block, word - ranks, status, id);
    }
};

// No counts, and the handle's name.
struct Cached {
    const Block &block;
    u64 id;

    DEVICE u32 operator()(u32 word) const {
        u32 ranks = block.args.exchange.shape.ranks;
        return word < ranks ? 0 : fixed(block, word - ranks, counts::CACHED, id);
    }
};

// Writes the words before the counts per expert to every peer, and then its flag. By the whole block.
template <bool ACROSS, typename Value>
DEVICE void tell(const Block &block, const Value &value) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u64 own_counts = exchange.arena.counts_of(shape, block.epoch, exchange.rank);
    if (ACROSS) {
        // First those that take longest.
        for (u32 peer = thread::warp_index(); peer < shape.ranks; peer += thread::warps()) {
            if (block.is_near(peer)) continue;
            for (u32 word = thread::lane(); word < shape.ranks + counts::FIXED; word += thread::WARP) {
                mem::store_u32(across::counts::outbox(block, peer).word(word), value(word));
            }
        }
        block::barrier();
        if (thread::warp_index() == 0) across::counts::post(block);
    }
    for (u32 peer = thread::warp_index(); peer < shape.ranks; peer += thread::warps()) {
        if (ACROSS && !block.is_near(peer)) continue;
        Address arena = exchange.peer(peer);
        for (u32 word = thread::lane(); word < shape.ranks + counts::FIXED; word += thread::WARP) {
            mem::store_u32(arena.offset(own_counts).word(word), value(word));
        }
        warp::barrier(warp::ALL);
        if (thread::lane() == 0) {
            Address flag = arena.offset(exchange.arena.count_flags).long_at(exchange.rank);
            mem::store_release_sys_u64(flag, block.epoch);
        }
    }
}

// This rank's tokens to each rank, and each block's share of the rows.
DEVICE void sum_tokens(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    u32 ranks = exchange.shape.ranks;
    Address block_counts = exchange.work(exchange.work_layout.block_counts);
    Address block_base = exchange.work(exchange.work_layout.block_base);
    // A warp takes a rank, a lane a block.
    for (u32 rank = thread::warp_index(); rank < ranks; rank += thread::warps()) {
        u32 total = 0;
        for (u32 first = 0; first < thread::grid_size(); first += thread::WARP) {
            u32 other = first + thread::lane();
            bool inside = other < thread::grid_size();
            u32 counted = inside ? mem::load_u32(block_counts.word(other * (ranks + 1) + rank)) : 0;
            u32 sum = warp::inclusive_sum(counted);
            if (inside) mem::store_u32(block_base.word(other * ranks + rank), total + sum - counted);
            total += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
        }
        if (thread::lane() == 0) shared::store_u32(block.shared.totals + 4 * rank, total);
    }
}

// Writes this rank's pairs of an expert to the expert's owner.
template <bool ACROSS>
DEVICE void tell_owner(const Block &block, u32 expert, u32 pairs) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u64 own_counts = exchange.arena.counts_of(shape, block.epoch, exchange.rank);
    u32 peer = expert / shape.experts_per_rank(), local = expert % shape.experts_per_rank();
    Address words = ACROSS && !block.is_near(peer) ? across::counts::outbox(block, peer)
                                                   : exchange.peer(peer).offset(own_counts);
    mem::store_u32(words.word(shape.ranks + counts::FIXED + local), pairs);
}

// By all warps, once the plan is made: each sends its share of the counts per expert. Nobody waits for them: the flags
// behind the rows cover them.
DEVICE void send_expert_counts(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    u32 experts = exchange.shape.experts;
    Address block_experts = exchange.work(exchange.work_layout.block_experts);
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    for (u32 expert = first; expert < experts; expert += thread::grid_size() * thread::warps()) {
        u32 counted = 0;
        for (u32 other = thread::lane(); other < thread::grid_size(); other += thread::WARP) {
            counted += mem::load_u32(block_experts.word(other * experts + expert));
        }
        counted = warp::sum(counted);
        if (thread::lane() == 0) tell_owner<false>(block, expert, counted);
    }
}

// Sends this rank's pairs of an expert to the expert's owner, and makes each block's count the sum of those before it.
template <bool ACROSS>
DEVICE void place_blocks(const Block &block, u32 expert) {
    const Exchange &exchange = block.args.exchange;
    u32 experts = exchange.shape.experts;
    Address block_experts = exchange.work(exchange.work_layout.block_experts);
    u32 sum = 0;
    for (u32 first = 0; first < thread::grid_size(); first += 4) {
        // Four at a time, so that their loads are on their way together.
        u32 counted[4];
#pragma unroll
        for (u32 next = 0; next < 4; next++) {
            Address at = block_experts.word((first + next) * experts + expert);
            counted[next] = first + next < thread::grid_size() ? mem::load_u32(at) : 0;
        }
#pragma unroll
        for (u32 next = 0; next < 4; next++) {
            Address at = block_experts.word((first + next) * experts + expert);
            if (first + next < thread::grid_size()) mem::store_u32(at, sum);
            sum += counted[next];
        }
    }
    tell_owner<ACROSS>(block, expert, sum);
}

// By the last block: adds the blocks' counts up and writes this rank's to every peer.
template <bool BY_EXPERT, bool ACROSS>
DEVICE void announce(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    u32 ranks = exchange.shape.ranks;
    sum_tokens(block);
    bool invalid = false;
    Address block_counts = exchange.work(exchange.work_layout.block_counts);
    for (u32 other = thread::index(); other < thread::grid_size(); other += thread::block_size()) {
        invalid |= mem::load_u32(block_counts.word(other * (ranks + 1) + ranks)) != 0;
    }
    if (BY_EXPERT || ACROSS) {
        // Receivers place rows by these as soon as the flag has come. To other nodes they go with all other counts.
        for (u32 expert = thread::index(); expert < exchange.shape.experts; expert += thread::block_size()) {
            place_blocks<ACROSS>(block, expert);
        }
    }
    invalid = block::barrier_or(invalid);
    u64 id = exchange.handle_id(block.epoch);
    if (block::is_first_thread()) {
        mem::store_u32(exchange.handle(exchange.handle_layout.tokens), block.all_tokens);
        mem::store_u64(exchange.handle(exchange.handle_layout.id), id);
    }
    tell<ACROSS>(block, Counted{block, invalid ? counts::INVALID : counts::GOOD, id});
}

// By one block: names the handle that this dispatch follows to every peer, in place of counts.
template <bool ACROSS>
DEVICE void announce_handle(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    u64 id = mem::load_u64(exchange.handle(exchange.handle_layout.id));
    tell<ACROSS>(block, Cached{block, id});
}

}  // namespace throughput::announce
