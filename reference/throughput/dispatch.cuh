// What the phases of dispatch share: the structs of device/src/throughput/dispatch.rs.
#pragma once
#include "../gpu.cuh"
#include "../internode.cuh"
#include "../wire.cuh"

namespace throughput::dispatch {

using internode::Link;

struct DispatchArgs {
    Exchange exchange;
    Address x;
    Address x_scales;
    Address topk_idx;
    Address topk_weights;
    Address sides[MAX_SIDES];
    ScaleStrides x_scale_strides;
    Address tokens_at;
    u32 tokens;
    u32 cached;
    u32 pack;
    u32 senders;
    u32 groups;
    u32 stage_bytes;
    u32 stages;
    u32 expand_stages;
};

struct DispatchAcrossArgs {
    DispatchArgs dispatch;
    Link link;
};

constexpr u32 SIDE_BYTES = 24;

// Offsets in a block's dynamic shared memory.
struct Shared {
    u32 totals;            // u32 [rank]
    u32 base;              // u32 [rank]
    u32 first;             // u32 [rank]
    u32 mine;              // u32 [rank]
    u32 warp_counts;       // u32 [warp, rank]
    u32 experts;           // u32 [group, expert], later [source, expert of this rank]
    u32 starts;            // u32 [expert of this rank + 1]
    u32 ends;              // u32 [expert of this rank]
    u32 sides;             // u64 words, address, offset in the arena [side]
    u32 barriers;          // mbarriers [buffer]
    u32 stages;            // bytes [buffer, stage_bytes]
    u32 forward_barriers;  // mbarriers [warp]
    u32 far_first;         // u32 [near rank, far node]
    u32 far_tokens;        // u32 [far node]
    u32 bytes;

    DEVICE Shared(const Shape &shape, u32 warps, u32 groups, u32 buffers, u32 stage_bytes) {
        u32 ranks = 4 * shape.ranks;
        u32 own = shape.experts_per_rank();
        u32 counted = groups * shape.experts;
        u32 pairs = shape.ranks * own;
        totals = 0;
        base = totals + ranks;
        first = base + ranks;
        mine = first + ranks;
        warp_counts = mine + ranks;
        experts = warp_counts + ranks * warps;
        starts = experts + 4 * most(counted, pairs);
        ends = starts + 4 * (own + 1);
        sides = round_up(ends + 4 * own, 8);
        barriers = sides + SIDE_BYTES * MAX_SIDES;
        stages = round_up(barriers + 8 * buffers, 128);
        // Behind the rest, which has nothing to do with other nodes.
        forward_barriers = stages + buffers * stage_bytes;
        u32 forwarding = shape.is_across() ? warps : 0;
        far_first = forward_barriers + 8 * forwarding;
        far_tokens = far_first + 4 * shape.near_ranks * shape.far_nodes();
        bytes = far_tokens + 4 * shape.far_nodes();
    }

    DEVICE Shared at(u32 from) const {
        Shared moved = *this;
        moved.totals += from;
        moved.base += from;
        moved.first += from;
        moved.mine += from;
        moved.warp_counts += from;
        moved.experts += from;
        moved.starts += from;
        moved.ends += from;
        moved.sides += from;
        moved.barriers += from;
        moved.stages += from;
        moved.forward_barriers += from;
        moved.far_first += from;
        moved.far_tokens += from;
        return moved;
    }
};

// Buffers of all warps of a block.
DEVICE u32 buffers(u32 warps, u32 senders, u32 stages, u32 expand_stages) {
    return senders * stages + (warps - senders) * expand_stages;
}

// A range of tokens.
struct Tokens {
    u32 first, end;

    // This block's share of `tokens` tokens; whole chunks if they are announced by the chunk.
    template <bool BY_EXPERT>
    DEVICE static Tokens share(u32 tokens) {
        u32 share = div_ceil(tokens, at_least_one(thread::grid_size()));
        if (BY_EXPERT) share = div_ceil(share, CHUNK) * CHUNK;
        u32 first = least(tokens, share * thread::block_index());
        return {first, least(tokens, first + share)};
    }
};

// What the phases of one block share.
struct Block {
    const DispatchArgs &args;
    const Link &link;
    u32 first_near;
    Shared shared;
    u32 all_tokens;
    Tokens tokens;
    u64 epoch;
    u64 deadline_ns;
    bool tokens_fit;

    template <bool BY_EXPERT>
    DEVICE static Block make(const DispatchArgs &args, const Link &link) {
        const Exchange &exchange = args.exchange;
        u32 warps = thread::warps();
        u32 count = buffers(warps, args.senders, args.stages, args.expand_stages);
        Shared shared(exchange.shape, warps, args.groups, count, args.stage_bytes);
        u64 epoch = mem::load_u64(exchange.work(exchange.work_layout.dispatch_epoch)) + 1;
        u64 deadline_ns = clock_::now_ns() + exchange.timeout_ns;
        u32 tokens;
        if (args.cached != 0) {
            tokens = mem::load_u32(exchange.handle(exchange.handle_layout.tokens));
        } else if (args.tokens_at.is_null()) {
            tokens = args.tokens;
        } else {
            tokens = mem::load_u32(args.tokens_at);
        }
        bool tokens_fit = tokens <= exchange.shape.tokens;
        u32 all_tokens = tokens_fit ? tokens : 0;
        u32 first_near = exchange.rank - exchange.rank % at_least_one(exchange.shape.near_ranks);
        Tokens own = Tokens::share<BY_EXPERT>(all_tokens);
        return {args, link, first_near, shared.at(shared::base()), all_tokens, own, epoch, deadline_ns, tokens_fit};
    }

    // Address of `token`'s routes.
    DEVICE Address routes(u32 token) const {
        const Exchange &exchange = args.exchange;
        return exchange.handle(exchange.handle_layout.routes).long_at(token * exchange.shape.route_width());
    }

    // Address of a word of the counts that `source` has sent to this rank, of which `own` is the arena.
    DEVICE Address count_word(Address own, u32 source, u32 word) const {
        const Exchange &exchange = args.exchange;
        return own.offset(exchange.arena.counts_of(exchange.shape, epoch, source)).word(word);
    }

    // Whether this rank writes to `rank`'s arena itself.
    DEVICE bool is_near(u32 rank) const { return rank - first_near < args.exchange.shape.near_ranks; }

    // The first rank that this one has flags of in its arena, and how many have.
    struct Near {
        u32 first, count;
    };
    template <bool ACROSS>
    DEVICE Near near() const {
        const Shape &shape = args.exchange.shape;
        return ACROSS ? Near{first_near, shape.near_ranks} : Near{0, shape.ranks};
    }

    // This rank's rows will not all be there: `arrive` is to tell nobody that they are.
    DEVICE void give_up() const {
        const Exchange &exchange = args.exchange;
        mem::store_relaxed_gpu_u32(exchange.work(exchange.work_layout.unsent), 1);
    }

    DEVICE Report report(Failure failure, u32 peer, u64 expected, u64 seen) const {
        return Report(failure, NO_PHASE, peer, epoch, expected, seen);
    }
};

}  // namespace throughput::dispatch
