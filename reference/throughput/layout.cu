// Layout, how many tokens go to each rank, node and expert, and which token goes to which rank:
// device/src/throughput/layout.rs.
#include "../gpu.cuh"
#include "../wire.cuh"
#include "destinations.cuh"

namespace throughput::layout {

struct LayoutArgs {
    Shape shape;
    Address topk_idx;
    Address tokens_per_rank;
    Address tokens_per_node;
    Address tokens_per_expert;
    Address is_token_in_rank;
    u32 tokens;
};

DEVICE void layout(const LayoutArgs &args) {
    const Shape &shape = args.shape;
    u32 counts = shared::base();
    u32 nodes = shape.ranks, experts = shape.ranks + shape.nodes();
    u32 words = experts + shape.experts;
    for (u32 word = thread::index(); word < words; word += thread::block_size()) {
        shared::store_u32(counts + 4 * word, 0);
    }
    block::barrier();

    u32 first = thread::block_index() * thread::block_size() + thread::index();
    u32 step = thread::grid_size() * thread::block_size();
    for (u32 token = first; token < args.tokens; token += step) {
        for (u32 slot = 0; slot < shape.topk; slot++) {
            u32 expert = mem::load_u32(args.topk_idx.word(token * shape.topk + slot));
            if (expert < shape.experts) shared::add_u32(counts + 4 * (experts + expert), 1);
        }
        u32 mask = 0;
        // The node of the rank at hand, how many ranks of it are left, and whether the token goes there.
        u32 node = 0, left = shape.ranks_per_node;
        bool in_node = false;
        for (u32 rank = 0; rank < shape.ranks; rank++) {
            if (rank % 32 == 0) mask = destinations::mask(shape, args.topk_idx, token, rank);
            u32 inside = mask >> (rank % 32) & 1;
            u64 at = (u64)token * shape.ranks + rank;
            mem::store_u8(args.is_token_in_rank.offset(at), (u8)inside);
            if (inside != 0) shared::add_u32(counts + 4 * rank, 1);
            in_node |= inside != 0;
            left--;
            if (left == 0 || rank + 1 == shape.ranks) {
                if (in_node) shared::add_u32(counts + 4 * (nodes + node), 1);
                node++;
                left = shape.ranks_per_node;
                in_node = false;
            }
        }
    }
    block::barrier();

    for (u32 word = thread::index(); word < words; word += thread::block_size()) {
        u32 count = shared::load_u32(counts + 4 * word);
        if (count != 0) {
            Address total = word < nodes     ? args.tokens_per_rank.word(word)
                            : word < experts ? args.tokens_per_node.word(word - nodes)
                                             : args.tokens_per_expert.word(word - experts);
            // Nobody reads the totals before the kernel ends, so relaxed is enough.
            mem::fetch_add_relaxed_gpu_u32(total, count);
        }
    }
}

}  // namespace throughput::layout

KERNEL(tokenrail_layout, throughput::layout::LayoutArgs, throughput::layout::layout(args))
