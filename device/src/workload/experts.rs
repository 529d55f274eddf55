//! A simple known function in place of the experts' networks, so that every output can be checked.

use super::elements::{Elements, Format, apply, pack};
use crate::gpu::mem::{self, Address};
use crate::gpu::thread;
use crate::kernel::kernel;

/// Arguments of [`Experts`].
///
/// Contract: the arrays are as described, aligned to 16 bytes; blocks are whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsArgs {
    /// The received rows.
    pub x: Elements,
    /// i32 `[rows, topk]`: experts of this rank, −1 for none.
    pub topk_idx: Address,
    /// f32 `[rows, topk]`.
    pub topk_weights: Address,
    /// Out: `[rows, hidden]`.
    pub out: Address,
    /// u32: number of rows, read on the device.
    pub rows: Address,
    /// What `out` is: bf16 or f16.
    pub output: Format,
    /// Slots of a row.
    pub topk: u32,
    /// Number, over all ranks, of this rank's first expert.
    pub first_expert: u32,
}

kernel!(
    /// Row by row: the sum over its experts e of weight · (x · a(e) + b(e)), each operation rounded to f32, in
    /// slot order, then to the output's format. Any grid.
    Experts, tokenrail_experts, ExpertsArgs, experts
);

unsafe fn experts(args: ExpertsArgs) {
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    let pairs = args.x.hidden / 2;
    // SAFETY: the contract of ExpertsArgs.
    unsafe {
        let rows = mem::load_u32(args.rows);
        for row in thread::Strided::new(first, rows, thread::grid_size() * thread::warps()) {
            for pair in thread::lane_strided(pairs) {
                let [a, b] = args.x.load_pair(row, pair);
                let (mut sum_a, mut sum_b) = (0.0, 0.0);
                for slot in 0..args.topk {
                    let local = mem::load_u32(args.topk_idx.word(row * args.topk + slot));
                    if local == u32::MAX {
                        continue;
                    }
                    let expert = args.first_expert + local;
                    let weight =
                        f32::from_bits(mem::load_u32(args.topk_weights.word(row * args.topk + slot)));
                    sum_a += weight * apply(expert, a);
                    sum_b += weight * apply(expert, b);
                }
                let at = row as u64 * pairs as u64 + pair as u64;
                mem::store_u32(args.out.offset(4 * at), pack(args.output, sum_a, sum_b));
            }
        }
    }
}
