// Dispatch, phase 3, from everybody's counts to rows: device/src/throughput/plan.rs.
#pragma once
#include "across/counts.cuh"
#include "dispatch.cuh"

namespace throughput::plan {

using dispatch::Block;

// What is to be done: send rows, fill the expert-major form.
struct Plan {
    bool send, expand;
};

// The plan to do nothing, of which `arrive` is told.
DEVICE Plan nothing(const Block &block) {
    if (block::is_first_thread()) block.give_up();
    return {false, false};
}

// False, and a report, if a peer's input is invalid or it does not follow the same handle. The block's last warp looks:
// the first ones place ranks.
DEVICE bool agree(const Block &block, Address own) {
    const Exchange &exchange = block.args.exchange;
    u32 ranks = exchange.shape.ranks;
    bool cached = block.args.cached != 0;
    bool good = true;
    bool looks = thread::warp_index() + 1 == thread::warps();
    for (u32 peer = thread::lane(); peer < (looks ? ranks : 0); peer += thread::WARP) {
        u32 status = mem::load_u32(block.count_word(own, peer, ranks + counts::STATUS));
        u32 high = mem::load_u32(block.count_word(own, peer, ranks + counts::HANDLE_HIGH));
        u32 low = mem::load_u32(block.count_word(own, peer, ranks + counts::HANDLE_LOW));
        u64 handle = (u64)high << 32 | low;
        u64 expected = cached ? mem::load_u64(exchange.handle(exchange.handle_layout.id))
                              : exchange.handle_id(block.epoch);
        if (status == counts::INVALID) {
            good = false;
            exchange.fail(block.report(PEER_INPUT, peer, 0, 1));
        } else if ((status == counts::CACHED) != cached || handle != expected) {
            good = false;
            exchange.fail(block.report(HANDLE, peer, expected, handle));
        }
    }
    return good;
}

// Works out the first rows of this block and this rank on every rank. False, and a report, if a rank has no room.
DEVICE bool place_ranks(const Block &block, Address own) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 ranks = shape.ranks;
    Address block_base = exchange.work(exchange.work_layout.block_base).word(thread::block_index() * ranks);
    bool good = true;
    // A warp takes a rank, a lane a source.
    for (u32 rank = thread::warp_index(); rank < ranks; rank += thread::warps()) {
        u32 before = 0, all = 0, mine = 0;
        for (u32 source = thread::lane(); source < ranks; source += thread::WARP) {
            u32 tokens = mem::load_u32(block.count_word(own, source, rank));
            before += source < exchange.rank ? tokens : 0;
            mine += source == exchange.rank ? tokens : 0;
            all += tokens;
        }
        before = warp::sum(before);
        all = warp::sum(all);
        mine = warp::sum(mine);
        if (thread::lane() != 0) continue;
        u32 first = least(before, shape.rows);
        shared::store_u32(block.shared.base + 4 * rank, before + mem::load_u32(block_base.word(rank)));
        shared::store_u32(block.shared.first + 4 * rank, first);
        shared::store_u32(block.shared.mine + 4 * rank, least(before + mine, shape.rows) - first);
        if (all > shape.rows && shape.cap == 0) {
            good = false;
            exchange.fail(block.report(CAPACITY, rank, shape.rows, all));
        }
    }
    return good;
}

// Works out the first rows on this node of the rail's other ranks, and how many tokens these have.
DEVICE void place_rail(const Block &block, Address own) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 ranks = shape.ranks, nodes = at_least_one(shape.far_nodes());
    across::Rail rail(shape, exchange.rank);
    for (u32 far = thread::index(); far < shape.far_nodes(); far += thread::block_size()) {
        u32 tokens;
        if (block.args.cached == 0) {
            u32 sent = mem::load_u32(block.count_word(own, rail.rank(far), ranks + counts::TOKENS));
            tokens = least(sent, shape.tokens);
        } else {
            tokens = mem::load_u32(exchange.handle(exchange.handle_layout.far_tokens).word(far));
        }
        shared::store_u32(block.shared.far_tokens + 4 * far, tokens);
    }
    if (block.args.cached != 0) return;
    // A warp takes a pair of them, a lane a source.
    for (u32 pair = thread::warp_index(); pair < shape.near_ranks * shape.far_nodes(); pair += thread::warps()) {
        u32 near = pair / nodes, far = pair % nodes;
        u32 before = 0;
        for (u32 source = thread::lane(); source < rail.rank(far); source += thread::WARP) {
            before += mem::load_u32(block.count_word(own, source, block.first_near + near));
        }
        before = warp::sum(before);
        if (thread::lane() == 0) shared::store_u32(block.shared.far_first + 4 * pair, before);
    }
}

// Works out the expert-major rows at which each expert begins, and each source's pairs of it. False if there are not
// enough.
DEVICE bool place_experts(const Block &block, Address own) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    u32 ranks = shape.ranks, experts = shape.experts_per_rank();
    u32 table = block.shared.experts, starts = block.shared.starts;
    for (u32 pair = thread::index(); pair < ranks * experts; pair += thread::block_size()) {
        u32 source = pair / experts, expert = pair % experts;
        u32 counted =
            block.args.cached == 0
                ? mem::load_u32(block.count_word(own, source, ranks + counts::FIXED + expert))
                : mem::load_u32(exchange.handle(exchange.handle_layout.expert_counts).word(pair));
        shared::store_u32(table + 4 * (source * experts + expert), counted);
    }
    block::barrier();
    if (thread::warp_index() == 0) {
        u32 start = 0;
        for (u32 first = 0; first < experts; first += thread::WARP) {
            u32 expert = first + thread::lane();
            u32 counted = 0;
            if (expert < experts) {
                for (u32 source = 0; source < ranks; source++) {
                    counted += shared::load_u32(table + 4 * (source * experts + expert));
                }
            }
            u32 alignment = at_least_one(shape.alignment);
            u32 padded = div_ceil(counted, alignment) * alignment;
            u32 sum = warp::inclusive_sum(padded);
            if (expert < experts) {
                u32 place = start + sum - padded;
                shared::store_u32(starts + 4 * expert, place);
                for (u32 source = 0; source < ranks; source++) {
                    u32 at = table + 4 * (source * experts + expert);
                    u32 counted = shared::load_u32(at);
                    shared::store_u32(at, place);
                    place += counted;
                }
                shared::store_u32(block.shared.ends + 4 * expert, place);
            }
            start += warp::shuffle(warp::ALL, sum, thread::WARP - 1);
        }
        if (thread::lane() == 0) shared::store_u32(starts + 4 * experts, start);
    }
    block::barrier();
    // Too many are a failure that `arrive` reports.
    return shape.cap != 0 || shared::load_u32(starts + 4 * experts) <= shape.expert_rows;
}

// Waits for all ranks' counts and works out where this block's tokens begin on each rank and, with the expert-major
// form, where each source's pairs begin.
template <bool BY_EXPERT, bool ACROSS>
DEVICE Plan plan(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Shape &shape = exchange.shape;
    bool good = true;
    for (u32 peer = thread::index(); peer < shape.ranks; peer += thread::block_size()) {
        if (ACROSS && !block.is_near(peer)) {
            good &= across::counts::wait(block, peer);
            continue;
        }
        good &= exchange.wait_flag(exchange.arena.count_flags, peer, block.epoch, block.deadline_ns, COUNTS);
    }
    if (block::barrier_or(!good)) return nothing(block);
    Address own = exchange.own();
    bool agreed = agree(block, own);
    if (block.args.cached == 0) {
        agreed &= place_ranks(block, own);
    } else {
        // Where the outbox begins for each rank; the rest is in the routes.
        for (u32 rank = thread::index(); rank < shape.ranks; rank += thread::block_size()) {
            u64 sent = mem::load_u64(exchange.handle(exchange.handle_layout.sent).long_at(rank));
            shared::store_u32(block.shared.first + 4 * rank, (u32)(sent >> 32));
        }
    }
    if (ACROSS) place_rail(block, own);
    if (block::barrier_or(!agreed)) return nothing(block);
    return {true, BY_EXPERT && place_experts(block, own)};
}

}  // namespace throughput::plan
