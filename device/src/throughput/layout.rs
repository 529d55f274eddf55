//! Layout: how many tokens go to each rank, node and expert, and which token goes to which rank. No communication.

use super::destinations;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, shared, thread};
use crate::kernel::kernel;
use crate::wire::Shape;

/// Arguments of [`Layout`].
///
/// Contract: the arrays are as described, all but `is_token_in_rank` zeroed, and the launch has [`shared_bytes`] of
/// shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LayoutArgs {
    /// The sizes all ranks agree on.
    pub shape: Shape,
    /// i32 `[tokens, topk]`.
    pub topk_idx: Address,
    /// Out: u32 `[ranks]`; a token counts once for a rank.
    pub tokens_per_rank: Address,
    /// Out: u32 `[nodes]`; a token counts once for a node.
    pub tokens_per_node: Address,
    /// Out: u32 `[experts]`; (token, slot) pairs.
    pub tokens_per_expert: Address,
    /// Out: u8 `[tokens, ranks]`, 0 or 1.
    pub is_token_in_rank: Address,
    /// Tokens in this call.
    pub tokens: u32,
}

kernel!(
    /// Counts tokens per rank, node and expert and writes who goes where. Any grid.
    Layout, tokenrail_layout, LayoutArgs, layout
);

/// Dynamic shared memory of a block: its counts.
pub const fn shared_bytes(shape: &Shape) -> u32 {
    4 * (shape.ranks + shape.nodes() + shape.experts)
}

unsafe fn layout(args: LayoutArgs) {
    let shape = &args.shape;
    let counts = shared::base();
    let (nodes, experts) = (shape.ranks, shape.ranks + shape.nodes());
    let words = experts + shape.experts;
    // SAFETY: the contract of LayoutArgs; shared memory is zeroed, added to and read in phases parted by barriers.
    unsafe {
        for word in thread::strided(words) {
            shared::store_u32(counts + 4 * word, 0);
        }
        block::barrier();

        let first = thread::block_index() * thread::block_size() + thread::index();
        let step = thread::grid_size() * thread::block_size();
        for token in thread::Strided::new(first, args.tokens, step) {
            for slot in 0..shape.topk {
                let expert = mem::load_u32(args.topk_idx.word(token * shape.topk + slot));
                if expert < shape.experts {
                    shared::add_u32(counts + 4 * (experts + expert), 1);
                }
            }
            let mut mask = 0;
            // The node of the rank at hand, how many ranks of it are left, and whether the token goes there.
            let (mut node, mut left, mut in_node) = (0, shape.ranks_per_node, false);
            for rank in 0..shape.ranks {
                if rank % 32 == 0 {
                    mask = destinations::mask(shape, args.topk_idx, token, rank);
                }
                let inside = mask >> (rank % 32) & 1;
                let at = token as u64 * shape.ranks as u64 + rank as u64;
                mem::store_u8(args.is_token_in_rank.offset(at), inside as u8);
                if inside != 0 {
                    shared::add_u32(counts + 4 * rank, 1);
                }
                in_node |= inside != 0;
                left -= 1;
                if left == 0 || rank + 1 == shape.ranks {
                    if in_node {
                        shared::add_u32(counts + 4 * (nodes + node), 1);
                    }
                    (node, left, in_node) = (node + 1, shape.ranks_per_node, false);
                }
            }
        }
        block::barrier();

        for word in thread::strided(words) {
            let count = shared::load_u32(counts + 4 * word);
            if count != 0 {
                let total = if word < nodes {
                    args.tokens_per_rank.word(word)
                } else if word < experts {
                    args.tokens_per_node.word(word - nodes)
                } else {
                    args.tokens_per_expert.word(word - experts)
                };
                // Nobody reads the totals before the kernel ends, so relaxed is enough.
                mem::fetch_add_relaxed_gpu_u32(total, count);
            }
        }
    }
}
