// Dispatch, phase 1, what a block's tokens are and where they go: device/src/throughput/count.rs.
#pragma once
#include "destinations.cuh"
#include "dispatch.cuh"

namespace throughput::count {

using dispatch::Block;

// A group's share of the block's pairs: whole warps' worth, the first and the one past the last.
struct Pairs {
    u32 first, end;
};
DEVICE Pairs share(const Block &block, u32 group) {
    u32 topk = block.args.exchange.shape.topk;
    u32 first = block.tokens.first * topk, end = block.tokens.end * topk;
    u32 share = div_ceil(div_ceil(end - first, at_least_one(block.args.groups)), thread::WARP) * thread::WARP;
    first = least(end, first + group * share);
    return {first, least(end, first + share)};
}

// Adds a pair to its expert's count in a group. False, and a report, if the id is out of range.
DEVICE bool count_pair(const Block &block, u32 group, u32 pair, u32 expert) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    if (expert < shape.experts) {
        shared::add_u32(block.shared.experts + 4 * (group * shape.experts + expert), 1);
    } else if (expert != MAX_U32) {
        u32 topk = at_least_one(shape.topk);
        Report report = block.report(EXPERT_OUT_OF_RANGE, exchange.rank, shape.experts, expert);
        report.token = pair / topk;
        report.slot = pair % topk;
        exchange.fail(report);
        return false;
    }
    return true;
}

// Adds the block's pairs to their experts' counts, each group's apart, and keeps the routing in the handle. False, and
// a report, on a thread that has seen an id out of range.
DEVICE bool count_pairs(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    Address kept = exchange.handle(exchange.handle_layout.topk_idx);
    bool valid = true;
    u32 group = thread::warp_index();
    // One group is the whole block's work; of several each is a warp's.
    u32 pair = 0, end = 0, step = 1;
    if (block.args.groups == 1) {
        group = 0;
        Pairs pairs = share(block, 0);
        pair = pairs.first + thread::index();
        end = pairs.end;
        step = thread::block_size();
    } else if (group < block.args.groups) {
        Pairs pairs = share(block, group);
        pair = pairs.first + thread::lane();
        end = pairs.end;
        step = thread::WARP;
    }
    for (; pair < end; pair += 4 * step) {
        // Four at a time, so that their loads are on their way together.
        u32 experts[4];
#pragma unroll
        for (u32 next = 0; next < 4; next++) {
            u32 at = pair + next * step;
            experts[next] = at < end ? mem::load_u32(block.args.topk_idx.word(at)) : MAX_U32;
        }
#pragma unroll
        for (u32 next = 0; next < 4; next++) {
            u32 at = pair + next * step;
            if (at < end) {
                mem::store_u32(kept.word(at), experts[next]);
                valid &= count_pair(block, group, at, experts[next]);
            }
        }
    }
    return valid;
}

// Numbers the pairs of each expert in the order of tokens and slots, from the block's first.
DEVICE void place_pairs(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 group = thread::warp_index();
    if (group >= block.args.groups) return;
    Address places = exchange.handle(exchange.handle_layout.places);
    Pairs pairs = share(block, group);
    // Whole warps, so that lanes past the end still take part.
    for (u32 pair = pairs.first; pair < pairs.end; pair += thread::WARP) {
        u32 own = pair + thread::lane();
        u32 expert = own < pairs.end ? mem::load_u32(block.args.topk_idx.word(own)) : MAX_U32;
        bool counted = expert < shape.experts;
        u32 same = warp::match_any(warp::ALL, expert);
        u32 at = block.shared.experts + 4 * (group * shape.experts + (counted ? expert : 0));
        u32 before = shared::load_u32(at);
        if (counted) mem::store_u32(places.word(own), before + __popc(same & warp::lanes_below()));
        warp::barrier(warp::ALL);
        if (counted && warp::elect(same)) shared::store_u32(at, before + __popc(same));
        warp::barrier(warp::ALL);
    }
}

// Counts tokens per rank, and writes each token's routes: which rank, and the place among the block's tokens for it.
DEVICE void count_tokens(const Block &block) {
    const dispatch::DispatchArgs &args = block.args;
    const Shape &shape = args.exchange.shape;
    u32 totals = block.shared.totals, warp_counts = block.shared.warp_counts;
    u32 ranks = shape.ranks;
    u32 width = shape.route_width();
    u32 round = block.tokens.first;
    while (round < block.tokens.end) {
        u32 token = round + thread::index();
        bool active = token < block.tokens.end;
        u32 mask = 0;
        for (u32 rank = 0; rank < ranks; rank++) {
            if (rank % 32 == 0) mask = active ? destinations::mask(shape, args.topk_idx, token, rank) : 0;
            u32 votes = warp::ballot(warp::ALL, (mask >> (rank % 32) & 1) != 0);
            if (thread::lane() == 0) {
                shared::store_u32(warp_counts + 4 * (thread::warp_index() * ranks + rank), __popc(votes));
            }
        }
        block::barrier();
        // Each count becomes the sum of those before it; a lane has a warp's.
        for (u32 rank = thread::warp_index(); rank < ranks; rank += thread::warps()) {
            u32 at = warp_counts + 4 * (thread::lane() * ranks + rank);
            u32 counted = thread::lane() < thread::warps() ? shared::load_u32(at) : 0;
            u32 before = shared::load_u32(totals + 4 * rank);
            u32 sum = before + warp::inclusive_sum(counted);
            // All lanes have read before one of them writes.
            warp::barrier(warp::ALL);
            if (thread::lane() < thread::warps()) shared::store_u32(at, sum - counted);
            if (thread::lane() == thread::WARP - 1) shared::store_u32(totals + 4 * rank, sum);
        }
        block::barrier();

        u32 used = 0;
        for (u32 rank = 0; rank < ranks; rank++) {
            // With up to 32 ranks the mask is still the one from above.
            if (rank % 32 == 0 && ranks > 32) {
                mask = active ? destinations::mask(shape, args.topk_idx, token, rank) : 0;
            }
            bool inside = (mask >> (rank % 32) & 1) != 0;
            u32 votes = warp::ballot(warp::ALL, inside);
            if (inside) {
                u32 before = shared::load_u32(warp_counts + 4 * (thread::warp_index() * ranks + rank));
                u32 place = before + __popc(votes & warp::lanes_below());
                mem::store_u64(block.routes(token).long_at(used), (u64)rank << 32 | place);
                used++;
            }
        }
        for (; active && used < width; used++) mem::store_u64(block.routes(token).long_at(used), NO_ROUTE);
        round += thread::block_size();
        // The next round's counts take the place of this one's.
        if (round < block.tokens.end) block::barrier();
    }
}

// The block's tokens per rank and pairs per expert; for each token its place among the block's tokens for a rank and,
// with the expert-major form, for each pair its place among the block's pairs of the expert.
template <bool BY_EXPERT>
DEVICE void count(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 ranks = shape.ranks, experts = shape.experts;
    for (u32 rank = thread::index(); rank < ranks; rank += thread::block_size()) {
        shared::store_u32(block.shared.totals + 4 * rank, 0);
    }
    for (u32 word = thread::index(); word < block.args.groups * experts; word += thread::block_size()) {
        shared::store_u32(block.shared.experts + 4 * word, 0);
    }
    block::barrier();
    bool invalid = !count_pairs(block);
    if (!block.tokens_fit) {
        invalid = true;
        if (block::is_first_thread()) {
            u32 seen = mem::load_u32(block.args.tokens_at);
            exchange.fail(block.report(TOO_MANY_TOKENS, exchange.rank, shape.tokens, seen));
        }
    }
    count_tokens(block);
    invalid = block::barrier_or(invalid);

    Address counts =
        exchange.work(exchange.work_layout.block_counts).word(thread::block_index() * (ranks + 1));
    for (u32 rank = thread::index(); rank < ranks; rank += thread::block_size()) {
        mem::store_u32(counts.word(rank), shared::load_u32(block.shared.totals + 4 * rank));
    }
    if (block::is_first_thread()) mem::store_u32(counts.word(ranks), invalid);
    Address per_expert = exchange.work(exchange.work_layout.block_experts).word(thread::block_index() * experts);
    for (u32 expert = thread::index(); expert < experts; expert += thread::block_size()) {
        // The counts of each group become those of the groups before.
        u32 sum = 0;
        for (u32 group = 0; group < block.args.groups; group++) {
            u32 at = block.shared.experts + 4 * (group * experts + expert);
            u32 counted = shared::load_u32(at);
            if (BY_EXPERT) shared::store_u32(at, sum);
            sum += counted;
        }
        mem::store_u32(per_expert.word(expert), sum);
    }
    if (BY_EXPERT) {
        block::barrier();
        place_pairs(block);
    }
}

}  // namespace throughput::count
