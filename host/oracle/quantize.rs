//! bf16 to FP8 e4m3 with one scale per 128 channels: an f32, or a power of two.

use super::{E4M3_MAX, OracleError, e4m3_to_f32, f32_to_e4m3, ue8m0_to_f32};
use half::bf16;

/// Channels that share a scale. The last group of a row may be shorter.
pub const SCALE_GROUP: usize = 128;

/// Groups whose largest magnitude is smaller are scaled as if it were this, so that zeros have a scale too.
pub const AMAX_FLOOR: f32 = 1e-4;

/// Rows of e4m3 and their scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The codes: `[rows, hidden]`.
    pub rows: Vec<u8>,
    /// What the codes of a group are multiplied by to get the values back: the bits of f32,
    /// `[rows, ceil(hidden / 128)]`, or four UE8M0 bytes a word, `[rows, ceil(hidden / 512)]`, the first group's lowest.
    pub scales: Vec<u32>,
}

/// Quantises the rows of `x`, `[rows, hidden]`, with f32 scales.
///
/// Per group: amax = max |x|, at least [`AMAX_FLOOR`]; scale = amax / 448; code = e4m3(x · (448 / amax)). Every
/// operation is rounded to f32. NaN counts for nothing in amax and becomes NaN.
///
/// # Errors
/// [`OracleError`] if `hidden` is 0 or `x` is not whole rows.
pub fn quantize(x: &[bf16], hidden: usize) -> Result<Quantized, OracleError> {
    let mut quantized = Quantized { rows: Vec::with_capacity(x.len()), scales: Vec::new() };
    for group in rows(x, hidden)?.flat_map(|row| row.chunks(SCALE_GROUP)) {
        let amax = amax(group);
        quantized.scales.push((amax / E4M3_MAX).to_bits());
        let factor = E4M3_MAX / amax;
        quantized.rows.extend(group.iter().map(|value| f32_to_e4m3(value.to_f32() * factor)));
    }
    Ok(quantized)
}

/// Quantises the rows of `x`, `[rows, hidden]`, with UE8M0 scales.
///
/// Per group: amax as in [`quantize`], an infinite one as the largest f32; scale = the smallest power of two with
/// 448 · scale ≥ amax; code = e4m3(x / scale).
///
/// # Errors
/// [`OracleError`] if `hidden` is 0 or `x` is not whole rows.
pub fn quantize_ue8m0(x: &[bf16], hidden: usize) -> Result<Quantized, OracleError> {
    let mut quantized = Quantized { rows: Vec::with_capacity(x.len()), scales: Vec::new() };
    for row in rows(x, hidden)? {
        for groups in row.chunks(4 * SCALE_GROUP) {
            let mut word = [0; 4];
            for (group, byte) in groups.chunks(SCALE_GROUP).zip(&mut word) {
                *byte = scale_code(amax(group));
                let scale = ue8m0_to_f32(*byte);
                quantized.rows.extend(group.iter().map(|value| f32_to_e4m3(value.to_f32() / scale)));
            }
            quantized.scales.push(u32::from_le_bytes(word));
        }
    }
    Ok(quantized)
}

/// The rows of `x`.
fn rows(x: &[bf16], hidden: usize) -> Result<std::slice::ChunksExact<'_, bf16>, OracleError> {
    if hidden == 0 {
        return Err(OracleError::Size { field: "hidden", value: 0, limit: "must be at least 1" });
    }
    if !x.len().is_multiple_of(hidden) {
        return Err(OracleError::Length {
            field: "x",
            value: x.len(),
            expected: x.len().next_multiple_of(hidden),
        });
    }
    Ok(x.chunks_exact(hidden))
}

/// The largest magnitude of a group, and at least [`AMAX_FLOOR`].
fn amax(group: &[bf16]) -> f32 {
    group.iter().fold(AMAX_FLOOR, |amax, value| amax.max(value.to_f32().abs()))
}

/// The UE8M0 code of the smallest power of two that takes `amax` to 448 or less. f64 holds every one exactly.
fn scale_code(amax: f32) -> u8 {
    let amax = f64::from(amax.min(f32::MAX));
    let (mut code, mut reaches) = (0, f64::from(E4M3_MAX) * 2f64.powi(-127));
    while reaches < amax {
        (code, reaches) = (code + 1, 2.0 * reaches);
    }
    code
}

/// The values of one group's codes.
pub fn dequantize(codes: &[u8], scale: f32) -> Vec<f32> {
    codes.iter().map(|&code| e4m3_to_f32(code) * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::hidden_states;
    use approx::assert_relative_eq;

    #[test]
    fn groups_have_their_own_scales() -> Result<(), OracleError> {
        // Two rows of 144 channels: a whole group and a short one each.
        let mut x = vec![bf16::ZERO; 2 * 144];
        x[5] = bf16::from_f32(-4.0);
        x[130] = bf16::from_f32(0.5);
        x[144 + 143] = bf16::from_f32(1024.0);
        let quantized = quantize(&x, 144)?;
        let scales = [4.0f32 / 448.0, 0.5 / 448.0, 1e-4 / 448.0, 1024.0 / 448.0];
        assert_eq!(quantized.scales, scales.map(f32::to_bits));
        let codes: Vec<_> = quantized.rows.iter().enumerate().filter(|&(_, &code)| code != 0).collect();
        assert_eq!(codes, [(5, &0xfe), (130, &0x7e), (144 + 143, &0x7e)]);
        Ok(())
    }

    #[test]
    fn values_come_back_within_half_a_step() -> Result<(), OracleError> {
        let x = hidden_states(7, 3, 448);
        let quantized = quantize(&x, 448)?;
        assert_eq!(quantized.scales.len(), 3 * 4);
        for (row, (x, codes)) in x.chunks(448).zip(quantized.rows.chunks(448)).enumerate() {
            for (group, (x, codes)) in x.chunks(128).zip(codes.chunks(128)).enumerate() {
                let scale = f32::from_bits(quantized.scales[row * 4 + group]);
                for (x, value) in x.iter().zip(dequantize(codes, scale)) {
                    // Half of 2^-3 of the value, and half of a subnormal step, and what f32 loses.
                    assert_relative_eq!(x.to_f32(), value, max_relative = 0.0626, epsilon = scale * 0.000977);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn nan_stays_and_the_rest_is_as_without() -> Result<(), OracleError> {
        let mut x = hidden_states(8, 1, 128);
        let without = quantize(&x, 128)?;
        let largest = without.rows.iter().position(|code| code & 0x7f == 0x7e);
        let other = if largest == Some(9) { 10 } else { 9 };
        x[other] = bf16::NAN;
        let with = quantize(&x, 128)?;
        assert_eq!(with.scales, without.scales);
        for (at, (with, without)) in with.rows.iter().zip(without.rows).enumerate() {
            assert_eq!(*with, if at == other { 0x7f } else { without });
        }
        Ok(())
    }

    #[test]
    fn powers_of_two_by_hand() -> Result<(), OracleError> {
        // 448 needs the scale 1, the next bf16, 450, needs 2; 1e-4 / 448 is above 2^-23, and 0.875 / 448 is 2^-9.
        let mut x = vec![bf16::ZERO; 640];
        for (group, value) in [448.0, 450.0, 0.0, -0.875].into_iter().enumerate() {
            x[128 * group] = bf16::from_f32(value);
        }
        x[639] = bf16::INFINITY;
        let quantized = quantize_ue8m0(&x, 640)?;
        assert_eq!(quantized.scales, [u32::from_le_bytes([127, 128, 105, 118]), 247]);
        let codes: Vec<_> = [0, 128, 256, 384, 639].map(|at| quantized.rows[at]).into();
        // 450 / 2 = 225 is nearest to 224.
        assert_eq!(codes, [0x7e, 0x76, 0, 0xfe, 0x7e]);
        Ok(())
    }

    #[test]
    fn powers_of_two_are_the_smallest_that_do() {
        for bits in (AMAX_FLOOR.to_bits()..f32::MAX.to_bits()).step_by(10_007) {
            let amax = f32::from_bits(bits);
            let scale = f64::from(ue8m0_to_f32(scale_code(amax)));
            assert!(448.0 * scale >= f64::from(amax) && 224.0 * scale < f64::from(amax), "{amax:e}");
        }
    }

    #[test]
    fn rows_must_be_whole() {
        let error = quantize(&[bf16::ONE; 20], 16).unwrap_err();
        assert_eq!(error.to_string(), "x has 20 elements, but must have 32");
        assert!(quantize(&[], 0).is_err());
    }
}
