//! Number formats: bf16, f16, FP8 e4m3 and UE8M0 to f32 and back, each rounding to nearest even.
//!
//! f32 arithmetic in kernels is written with plain operators; the builder keeps both lanes from contracting a product
//! and a sum into one rounding, so that results are the same bits everywhere.

use super::machine;

/// The f32 values of two packed bf16, low half first. Exact.
pub fn bf16x2_to_f32(packed: u32) -> [f32; 2] {
    [f32::from_bits(packed << 16), f32::from_bits(packed & 0xffff_0000)]
}

/// Packs two f32 as bf16, `low` into the low half (`cvt.rn.bf16x2.f32`, sm_80). NaN becomes 0x7fff.
pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    machine::f32_to_bf16x2(low, high)
}

/// The f32 values of two packed f16, low half first (`cvt.f32.f16`). Exact; NaN becomes 0x7fffffff.
pub fn f16x2_to_f32(packed: u32) -> [f32; 2] {
    machine::f16x2_to_f32(packed)
}

/// Packs two f32 as f16, `low` into the low half (`cvt.rn.f16x2.f32`, sm_80). NaN becomes 0x7fff.
pub fn f32_to_f16x2(low: f32, high: f32) -> u32 {
    machine::f32_to_f16x2(low, high)
}

/// The f32 value of one UE8M0 scale, exact: 2^(code - 127), and NaN for 255 (OCP microscaling formats specification
/// 1.0).
pub fn ue8m0_to_f32(code: u8) -> f32 {
    f32::from_bits(match code {
        // The one value below f32's normal numbers.
        0 => 1 << 22,
        255 => 0x7fff_ffff,
        code => (code as u32) << 23,
    })
}

/// Packs two f32 as FP8 e4m3, `low` into the low byte, saturating to ±448 (`cvt.rn.satfinite.e4m3x2.f32`, sm_89;
/// integer arithmetic below).
pub fn f32_to_e4m3x2(low: f32, high: f32) -> u16 {
    machine::f32_to_e4m3x2(low, high)
}

/// The f32 value of one FP8 e4m3 code, exact: sign, 4 bits of exponent with bias 7, 3 bits of mantissa, no infinities,
/// NaN is 0x7f and 0xff (OCP 8-bit floating point specification 1.0).
pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = (code as u32 & 0x80) << 24;
    let magnitude = code as u32 & 0x7f;
    if magnitude == 0x7f {
        return f32::from_bits(sign | 0x7fff_ffff);
    }
    // As the top bits of an f32 the code has the value times 2^(7 - 127), normal or not; the product is exact.
    let scaled = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    f32::from_bits(sign | scaled.to_bits())
}

/// One f32 to FP8 e4m3 in integer arithmetic, for machines without the instruction.
#[cfg(not(all(target_arch = "nvptx64", bulk_copy)))]
pub(super) fn f32_to_e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7f;
    }
    // 464 is the midpoint between 448 and the next step, which does not exist: all from there on saturates.
    if magnitude >= 464f32.to_bits() {
        return sign | 0x7e;
    }
    // Below the smallest normal (2^-6) the spacing is 2^-9: adding 2^14 to the magnitude makes f32's own rounding to
    // nearest even happen at that bit, as its spacing there is 2^(14 - 23).
    if magnitude < (121 << 23) {
        let rounded = f32::from_bits(magnitude) + 16384.0;
        return sign | (rounded.to_bits() & 0xff) as u8;
    }
    let odd = (magnitude >> 20) & 1;
    let rounded = magnitude + 0x7_ffff + odd;
    sign | ((rounded >> 20) - ((127 - 7) << 3)) as u8
}
