//! bf16 rows to FP8 e4m3 with one scale per 128 channels: an f32, or a power of two in UE8M0.

use crate::gpu::convert::{bf16x2_to_f32, f32_to_e4m3x2};
use crate::gpu::mem::{self, Address};
use crate::gpu::{thread, warp};
use crate::kernel::kernel;
use crate::wire::SCALE_CHANNELS;

/// The largest e4m3 value.
pub(crate) const E4M3_MAX: f32 = 448.0;

/// Groups smaller than this are scaled as if they reached it, which keeps scales finite for rows of zeros.
pub(crate) const AMAX_FLOOR: f32 = 1e-4;

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
    /// Out: what a code is multiplied by: f32 `[rows, ceil(hidden / 128)]`, or four UE8M0 bytes a word,
    /// `[rows, ceil(hidden / 512)]`, the first group in the low byte.
    pub scales: Address,
    /// Number of rows.
    pub rows: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// 1 for UE8M0 scales, 0 for f32.
    pub ue8m0: u32,
}

kernel!(
    /// A warp takes a row, 4 channels a lane at a time. f32: scale = amax / 448, code = x · (448 / amax). UE8M0: scale =
    /// the smallest power of two that is at least amax / 448, code = x / scale. Any grid.
    Quantize, tokenrail_quantize, QuantizeArgs, quantize
);

unsafe fn quantize(args: QuantizeArgs) {
    let groups = args.hidden.div_ceil(SCALE_CHANNELS);
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    for row in thread::Strided::new(first, args.rows, thread::grid_size() * thread::warps()) {
        // The scales of up to four groups, until their word is whole.
        let mut packed = 0;
        for group in 0..groups {
            let channel = group * SCALE_CHANNELS + 4 * thread::lane();
            let inside = channel < args.hidden;
            let at = row as u64 * args.hidden as u64 + channel as u64;
            // SAFETY: the contract of QuantizeArgs; lanes past the end of a short group touch nothing, and the first
            // alone writes scales.
            unsafe {
                let four = if inside { mem::load_u64(args.x.offset(2 * at)) } else { 0 };
                let [a, b] = bf16x2_to_f32(four as u32);
                let [c, d] = bf16x2_to_f32((four >> 32) as u32);
                // One by one: a loop over an array goes through local memory.
                let amax = larger(larger(larger(larger(AMAX_FLOOR, a), b), c), d);
                let amax = warp::max_f32(amax);
                let code = scale_code(amax);
                let factor = if args.ue8m0 == 0 { E4M3_MAX / amax } else { inverse(code) };
                if inside {
                    let low = f32_to_e4m3x2(a * factor, b * factor) as u32;
                    let high = f32_to_e4m3x2(c * factor, d * factor) as u32;
                    mem::store_u32(args.quantized.offset(at), high << 16 | low);
                }
                packed = if group % 4 == 0 { 0 } else { packed } | code << (8 * (group % 4));
                let whole = group % 4 == 3 || group + 1 == groups;
                if thread::lane() == 0 && args.ue8m0 == 0 {
                    mem::store_u32(args.scales.word(row * groups + group), (amax / E4M3_MAX).to_bits());
                } else if thread::lane() == 0 && whole {
                    mem::store_u32(args.scales.word(row * groups.div_ceil(4) + group / 4), packed);
                }
            }
        }
    }
}

/// The UE8M0 code of the smallest power of two that is at least `amax` / 448, for an `amax` of [`AMAX_FLOOR`] or more.
/// Exact: 448 is 1.75 · 2^8, so for amax = m · 2^e that is 2^(e − 8), or 2^(e − 7) where m is above 1.75.
pub(crate) fn scale_code(amax: f32) -> u32 {
    let (exponent, mantissa) = (amax.to_bits() >> 23, amax.to_bits() & 0x7f_ffff);
    exponent - 8 + (mantissa > 0x60_0000) as u32
}

/// 1 / 2^(code − 127), a normal number for every code that [`scale_code`] gives.
pub(crate) fn inverse(code: u32) -> f32 {
    f32::from_bits((254 - code) << 23)
}

/// `amax`, or the magnitude of `value` if that is larger. A NaN is not.
pub(crate) fn larger(amax: f32, value: f32) -> f32 {
    let magnitude = f32::from_bits(value.to_bits() & 0x7fff_ffff);
    if magnitude > amax { magnitude } else { amax }
}
