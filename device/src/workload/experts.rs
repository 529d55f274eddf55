//! A simple known function in place of the experts' networks, so that every output can be checked.

use crate::gpu::convert::{bf16x2_to_f32, e4m3_to_f32, f32_to_bf16x2};
use crate::gpu::mem::{self, Address};
use crate::gpu::thread;
use crate::kernel::kernel;
use crate::wire::SCALE_CHANNELS;

/// Arguments of [`Experts`].
///
/// Contract: the arrays are as described, aligned to 16 bytes; `hidden` makes rows of whole 16 bytes; blocks are
/// whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsArgs {
    /// bf16, or e4m3 if `scales` is not 0, `[rows, hidden]`.
    pub x: Address,
    /// f32 `[rows, scales]`; null without scales.
    pub x_scales: Address,
    /// i32 `[rows, topk]`: experts of this rank, −1 for none.
    pub topk_idx: Address,
    /// f32 `[rows, topk]`.
    pub topk_weights: Address,
    /// Out: bf16 `[rows, hidden]`.
    pub out: Address,
    /// u32: number of rows, read on the device.
    pub rows: Address,
    /// Elements of a row.
    pub hidden: u32,
    /// Scales of a row; 0 for bf16.
    pub scales: u32,
    /// Slots of a row.
    pub topk: u32,
    /// Number, over all ranks, of this rank's first expert.
    pub first_expert: u32,
}

kernel!(
    /// Row by row: the sum over its experts e of weight · (x · a(e) + b(e)), each operation rounded to f32, in
    /// slot order, then bf16. Any grid.
    Experts, tokenrail_experts, ExpertsArgs, experts
);

/// Expert `e` multiplies by 1 + (e mod 7) / 8.
fn factor(expert: u32) -> f32 {
    1.0 + (expert % 7) as f32 * 0.125
}

/// Expert `e` adds ((e mod 5) − 2) / 16.
fn addend(expert: u32) -> f32 {
    ((expert % 5) as f32 - 2.0) * 0.0625
}

unsafe fn experts(args: ExpertsArgs) {
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    let pairs = args.hidden / 2;
    // SAFETY: the contract of ExpertsArgs.
    unsafe {
        let rows = mem::load_u32(args.rows);
        for row in thread::Strided::new(first, rows, thread::grid_size() * thread::warps()) {
            for pair in thread::lane_strided(pairs) {
                let [a, b] = load_pair(&args, row, pair);
                let (mut sum_a, mut sum_b) = (0.0, 0.0);
                for slot in 0..args.topk {
                    let local = mem::load_u32(args.topk_idx.word(row * args.topk + slot));
                    if local == u32::MAX {
                        continue;
                    }
                    let expert = args.first_expert + local;
                    let weight =
                        f32::from_bits(mem::load_u32(args.topk_weights.word(row * args.topk + slot)));
                    sum_a += weight * (a * factor(expert) + addend(expert));
                    sum_b += weight * (b * factor(expert) + addend(expert));
                }
                let at = row as u64 * pairs as u64 + pair as u64;
                mem::store_u32(args.out.offset(4 * at), f32_to_bf16x2(sum_a, sum_b));
            }
        }
    }
}

/// Two neighbouring elements of a row as f32.
unsafe fn load_pair(args: &ExpertsArgs, row: u32, pair: u32) -> [f32; 2] {
    let at = row as u64 * (args.hidden / 2) as u64 + pair as u64;
    // SAFETY: the contract of ExpertsArgs. A pair of codes is read as half of a word.
    unsafe {
        if args.scales == 0 {
            return bf16x2_to_f32(mem::load_u32(args.x.offset(4 * at)));
        }
        let word = mem::load_u32(args.x.offset(2 * (at & !1)));
        let codes = if at & 1 == 0 { word } else { word >> 16 };
        let scale = args.x_scales.word(row * args.scales + 2 * pair / SCALE_CHANNELS);
        let scale = f32::from_bits(mem::load_u32(scale));
        [e4m3_to_f32(codes as u8) * scale, e4m3_to_f32((codes >> 8) as u8) * scale]
    }
}
