// What ranks share: device/src/wire.rs in CUDA C++. The host makes every layout; kernels only read them.
#pragma once
#include "gpu.cuh"

constexpr u32 SCALE_CHANNELS = 128;
constexpr u64 NO_ROUTE = ~0ull;
constexpr u32 MAX_SIDES = 8;
constexpr u32 MAX_LANES = 32;
constexpr u32 CHUNK = 8;

// What stands between the counts per rank and the counts per expert.
namespace counts {
constexpr u32 STATUS = 0, HANDLE_LOW = 1, HANDLE_HIGH = 2, TOKENS = 3, FIXED = 4;
constexpr u32 GOOD = 0, INVALID = 1, CACHED = 2;
}  // namespace counts

enum Failure : u64 { LATE = 1, EXPERT_OUT_OF_RANGE, PEER_INPUT, CAPACITY, HANDLE, TOO_MANY_TOKENS, EXPERT_ROWS };

enum Phase : u64 {
    NO_PHASE, COUNTS, DATA, READY, READ, SUMMARY, ROWS, PARTS, RING, FORWARDED, MESSAGES, PARTIALS
};

// Where the Rust kernels record what warps do. These do not.
struct Trace {
    Address ring;
    u32 call;
};

struct ScaleStrides {
    u32 by_row;
    u32 by_word;

    DEVICE u64 place(u32 row, u32 word) const { return (u64)row * by_row + (u64)word * by_word; }
};

struct Shape {
    u32 ranks;
    u32 ranks_per_node;
    u32 experts;
    u32 topk;
    u32 hidden;
    u32 row_bytes;
    u32 scales;
    u32 column_major;
    u32 side_words[MAX_SIDES];
    u32 tokens;
    u32 rows;
    u32 expert_rows;
    u32 alignment;
    u32 cap;
    u32 f16;
    u32 copy_engine;
    u32 near_ranks;

    DEVICE u32 experts_per_rank() const { return at_least_one(div_ceil(experts, at_least_one(ranks))); }
    DEVICE u32 nodes() const { return div_ceil(ranks, at_least_one(ranks_per_node)); }
    DEVICE bool is_across() const { return near_ranks < ranks; }
    DEVICE u32 far_nodes() const { return ranks / at_least_one(near_ranks) - 1; }
    DEVICE u32 near_width() const { return topk < near_ranks ? topk : near_ranks; }
    DEVICE u32 route_width() const { return topk < ranks ? topk : ranks; }
    DEVICE u32 output_bytes() const { return 2 * hidden; }
    DEVICE u32 count_words() const { return round_up(ranks + counts::FIXED + experts_per_rank(), 4); }
    DEVICE u32 chunks() const { return div_ceil(tokens, CHUNK); }
    DEVICE ScaleStrides scale_strides(u32 of_rows) const {
        return column_major == 0 ? ScaleStrides{scales, 1} : ScaleStrides{1, round_up(of_rows, 4)};
    }
    DEVICE u32 message_scales() const { return 16 + 16 * topk; }
    DEVICE u32 message_sides() const { return message_scales() + round_up(4 * scales, 16); }
    DEVICE u32 message_row() const {
        u32 words = 0;
#pragma unroll
        for (u32 side = 0; side < MAX_SIDES; side++) words += side_words[side];
        return message_sides() + round_up(4 * words, 16);
    }
    DEVICE u32 message_bytes() const { return message_row() + row_bytes; }
    DEVICE u32 partial_bytes() const { return output_bytes() + round_up(4 * topk, 16); }
};

struct ArenaLayout {
    u64 count_flags;
    u64 data_flags;
    u64 ready_flags;
    u64 chunk_flags;
    u64 chunk_rows;
    u64 counts_;
    u64 rows;
    u64 scales;
    u64 topk_idx;
    u64 topk_weights;
    u64 places;
    u64 sources;
    u64 sides[MAX_SIDES];
    u64 outputs;
    u64 slot_outputs;
    u64 expert_x;
    u64 expert_scales;
    u64 expert_weights;
    u64 expert_of_row;
    u64 source_row;
    u64 outbox;
    u64 inbox;
    u64 forwarded;
    u64 count_outbox;
    u64 far_outbox;
    u64 far_inbox;
    u64 partial_outbox;
    u64 partial_inbox;
    u64 bytes;

    DEVICE u64 counts_of(const Shape &shape, u64 epoch, u32 source) const {
        return counts_ + ((epoch % 2) * shape.ranks + source) * 4 * shape.count_words();
    }
    DEVICE u64 count_outbox_of(const Shape &shape, u64 epoch, u32 peer) const {
        return count_outbox + ((epoch % 2) * shape.ranks + peer) * 4 * shape.count_words();
    }
};

struct HandleLayout {
    u64 id;
    u64 tokens;
    u64 received;
    u64 dropped_rows;
    u64 dropped_routes;
    u64 dropped_pairs;
    u64 tokens_per_source;
    u64 tokens_per_expert;
    u64 expert_starts;
    u64 expert_counts;
    u64 sent;
    u64 routes;
    u64 topk_idx;
    u64 places;
    u64 positions;
    u64 far_tokens;
    u64 far_routes;
    u64 bytes;
};

struct WorkspaceLayout {
    u64 dispatch_epoch;
    u64 combine_epoch;
    u64 arrived;
    u64 unsent;
    u64 report_claim;
    u64 peers;
    u64 block_counts;
    u64 block_experts;
    u64 block_base;
    u64 lanes_done;
    u64 bytes;
};

struct Report {
    u64 failure;
    u64 phase;
    u64 peer;
    u64 epoch;
    u64 expected;
    u64 seen;
    u64 token;
    u64 slot;

    DEVICE Report(Failure failure, Phase phase, u32 peer, u64 epoch, u64 expected, u64 seen, u64 token = 0, u64 slot = 0)
        : failure(failure), phase(phase), peer(peer), epoch(epoch), expected(expected), seen(seen), token(token),
          slot(slot) {}
};

DEVICE void write_report(Address claim, Address to, const Report &report) {
    if (mem::compare_exchange_acq_rel_gpu_u32(claim, 0, 1) != 0) return;
    mem::store_u64(to.long_at(1), report.phase);
    mem::store_u64(to.long_at(2), report.peer);
    mem::store_u64(to.long_at(3), report.epoch);
    mem::store_u64(to.long_at(4), report.expected);
    mem::store_u64(to.long_at(5), report.seen);
    mem::store_u64(to.long_at(6), report.token);
    mem::store_u64(to.long_at(7), report.slot);
    mem::store_release_sys_u64(to, report.failure);
}

struct Exchange {
    Shape shape;
    ArenaLayout arena;
    WorkspaceLayout work_layout;
    HandleLayout handle_layout;
    Address workspace;
    Address handle_at;
    Address report;
    Trace trace;
    u64 timeout_ns;
    u32 rank;
    u32 flight;

    // An arena as this GPU sees it.
    DEVICE Address peer(u32 of) const { return {mem::load_u64(workspace.offset(work_layout.peers).long_at(of))}; }
    DEVICE Address own() const { return peer(rank); }
    // A region of the workspace, of the handle.
    DEVICE Address work(u64 offset) const { return workspace.offset(offset); }
    DEVICE Address handle(u64 offset) const { return handle_at.offset(offset); }
    DEVICE u64 handle_id(u64 epoch) const { return epoch << 8 | flight; }
    DEVICE void fail(const Report &why) const { write_report(workspace.offset(work_layout.report_claim), report, why); }
    // Waits for a flag of this rank's arena to reach `epoch`; reports `from` as late if it does not.
    DEVICE bool wait_flag(u64 flags, u32 from, u64 epoch, u64 deadline_ns, Phase phase) const {
        u64 seen;
        if (mem::wait_at_least_acquire_sys(own().offset(flags).long_at(from), epoch, deadline_ns, seen)) return true;
        fail(Report(LATE, phase, from, epoch, epoch, seen));
        return false;
    }
};
