// Sizes of low-latency calls, and where everything lies: device/src/low_latency/layout.rs. The host makes the layouts.
#pragma once
#include "../wire.cuh"

namespace low_latency {

// Cells of a tile: a lane has three, one in each plane of 32.
constexpr u32 TILE_CELLS = 96;

// What dispatched rows are made into.
namespace element {
constexpr u32 BF16 = 0, E4M3 = 1, E4M3_POWER_OF_TWO = 2, E4M3_UE8M0 = 3;
}

// What combined rows travel as.
namespace wire {
constexpr u32 BF16 = 0, E4M3 = 1, LOG10 = 2;
}

// How a format fills packets.
struct Fill {
    u32 channels;
    u32 words;
    bool grouped;

    DEVICE static constexpr Fill half() { return {8, 4, false}; }
    DEVICE static constexpr Fill byte() { return {16, 4, true}; }
    DEVICE static constexpr Fill log10() { return {16, 5, true}; }

    // Written out, as nvcc would divide by what is not a constant.
    DEVICE u32 cells(u32 hidden) const { return channels == 8 ? div_ceil(hidden, 8) : div_ceil(hidden, 16); }
    DEVICE u32 tiles(u32 hidden) const { return div_ceil(cells(hidden), TILE_CELLS); }
    DEVICE u32 tile_packets() const { return 32 * words + (grouped ? 4 : 0); }
    DEVICE u32 fifth_bytes(u32 hidden) const { return words == 5 ? round_up(4 * cells(hidden), 16) : 0; }
    DEVICE u32 far_row_bytes(u32 hidden) const {
        u32 groups = grouped ? 3 * 16 * tiles(hidden) : 0;
        return 16 * cells(hidden) + fifth_bytes(hidden) + groups;
    }
    DEVICE u32 row_packets(u32 hidden) const { return tiles(hidden) * tile_packets(); }
};

// What a rank tells a peer about a dispatch: words at these places, then the counts of the peer's experts.
namespace summary {
constexpr u32 TOKENS = 0, TOKENS_THERE = 1, INVALID = MAX_U32;
}

// Words for each slot of a token that goes to other nodes.
namespace far_slot {
constexpr u32 WORDS = 2;
}

struct Shape {
    u32 ranks;
    u32 near_ranks;
    u32 experts;
    u32 topk;
    u32 hidden;
    u32 tokens;
    u32 element;
    u32 column_major;
    u32 wire;
    u32 by_slot;

    DEVICE u32 experts_per_rank() const { return at_least_one(div_ceil(experts, at_least_one(ranks))); }
    DEVICE u32 expert_rows() const { return ranks * tokens; }
    DEVICE u32 parts() const { return by_slot != 0 || topk < ranks ? topk : ranks; }
    DEVICE bool quantized() const { return element != element::BF16; }
    DEVICE Fill dispatched() const { return quantized() ? Fill::byte() : Fill::half(); }
    DEVICE Fill combined() const {
        return wire == wire::E4M3 ? Fill::byte() : wire == wire::LOG10 ? Fill::log10() : Fill::half();
    }
    DEVICE u32 row_bytes() const { return quantized() ? hidden : 2 * hidden; }
    DEVICE u32 scale_words() const {
        u32 groups = div_ceil(hidden, SCALE_CHANNELS);
        return !quantized() ? 0 : element == element::E4M3_UE8M0 ? div_ceil(groups, 4) : groups;
    }
    DEVICE ScaleStrides scale_strides() const {
        return column_major == 0 ? ScaleStrides{scale_words(), 1} : ScaleStrides{1, round_up(expert_rows(), 4)};
    }
    DEVICE u32 expert_scale_words() const {
        u32 rows = column_major == 0 ? expert_rows() : round_up(expert_rows(), 4);
        return rows * scale_words();
    }
    DEVICE u32 message_packets() const { return topk + dispatched().row_packets(hidden); }
    DEVICE u32 part_packets() const { return combined().row_packets(hidden); }
    DEVICE u32 far_slots_bytes() const { return round_up(4 * far_slot::WORDS * topk, 16); }
    DEVICE u32 far_message_bytes() const { return far_slots_bytes() + dispatched().far_row_bytes(hidden); }
    DEVICE u32 far_summary_bytes() const { return round_up(4 * summary_words(), 16); }
    DEVICE u32 far_part_bytes() const { return combined().far_row_bytes(hidden); }
    DEVICE u32 parts_of_rank() const { return by_slot != 0 ? topk : 1; }
    DEVICE u32 token_bits() const { return div_ceil(tokens, 32); }
    DEVICE u32 summary_words() const { return summary::TOKENS_THERE + token_bits() + experts_per_rank(); }
    DEVICE u32 summary_packets() const { return div_ceil(summary_words(), 3); }
};

// Byte offsets in one batch's part of an arena.
struct ArenaLayout {
    u64 dispatch_read;
    u64 combine_read;
    u64 summaries;
    u64 messages;
    u64 parts;
    u64 outbox_summaries;
    u64 outbox_messages;
    u64 outbox_parts;
    u64 bytes;
};

// Byte offsets in one batch's workspace.
struct WorkspaceLayout {
    u64 epochs;
    u64 report_claim;
    u64 peers;
    u64 meetings;
    u64 tokens;
    u64 topk_idx;
    u64 sources;
    u64 rows;
    u64 weights;
    u64 part;
    u64 counts;
    u64 ranges;
    u64 totals;
    u64 waited;
    u64 waits;
    u64 bytes;
};

// Of a pair whose expert is another rank's.
constexpr u32 NO_ROW = MAX_U32;

}  // namespace low_latency
