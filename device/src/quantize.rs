//! bf16 rows to FP8 e4m3 with one f32 scale per 128 channels.

use crate::gpu::convert::{bf16x2_to_f32, f32_to_e4m3x2};
use crate::gpu::mem::{self, Address};
use crate::gpu::{thread, warp};
use crate::kernel::kernel;
use crate::wire::SCALE_CHANNELS;

/// The largest e4m3 value.
const E4M3_MAX: f32 = 448.0;

/// Groups smaller than this are scaled as if they reached it, which keeps scales finite for rows of zeros.
const AMAX_FLOOR: f32 = 1e-4;

/// Arguments of [`Quantize`].
///
/// Contract: the arrays are as described, aligned to 16 bytes; `hidden` is a multiple of 16; blocks are whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuantizeArgs {
    /// bf16 `[rows, hidden]`.
    pub x: Address,
    /// Out: e4m3 `[rows, hidden]`.
    pub quantized: Address,
    /// Out: f32 `[rows, ceil(hidden / 128)]`: what a code is multiplied by.
    pub scales: Address,
    /// Number of rows.
    pub rows: u32,
    /// Elements of a row.
    pub hidden: u32,
}

kernel!(
    /// A warp takes a row, 4 channels a lane at a time: scale = amax / 448, code = x · (448 / amax). Any grid.
    Quantize, tokenrail_quantize, QuantizeArgs, quantize
);

unsafe fn quantize(args: QuantizeArgs) {
    let groups = args.hidden.div_ceil(SCALE_CHANNELS);
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    for row in thread::Strided::new(first, args.rows, thread::grid_size() * thread::warps()) {
        for group in 0..groups {
            let channel = group * SCALE_CHANNELS + 4 * thread::lane();
            let inside = channel < args.hidden;
            let at = row as u64 * args.hidden as u64 + channel as u64;
            // SAFETY: the contract of QuantizeArgs; lanes past the end of a short group touch nothing.
            unsafe {
                let packed = if inside { mem::load_u64(args.x.offset(2 * at)) } else { 0 };
                let [a, b] = bf16x2_to_f32(packed as u32);
                let [c, d] = bf16x2_to_f32((packed >> 32) as u32);
                // One by one: a loop over an array goes through local memory.
                let amax = larger(larger(larger(larger(AMAX_FLOOR, a), b), c), d);
                let amax = warp::max_f32(amax);
                let scale = E4M3_MAX / amax;
                if inside {
                    let low = f32_to_e4m3x2(a * scale, b * scale) as u32;
                    let high = f32_to_e4m3x2(c * scale, d * scale) as u32;
                    mem::store_u32(args.quantized.offset(at), high << 16 | low);
                }
                if thread::lane() == 0 {
                    mem::store_u32(args.scales.word(row * groups + group), (amax / E4M3_MAX).to_bits());
                }
            }
        }
    }
}

/// `amax`, or the magnitude of `value` if that is larger. A NaN is not.
fn larger(amax: f32, value: f32) -> f32 {
    let magnitude = f32::from_bits(value.to_bits() & 0x7fff_ffff);
    if magnitude > amax { magnitude } else { amax }
}
