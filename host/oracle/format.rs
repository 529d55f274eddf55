//! Number formats, written from their definitions.

use crate::Half;
use half::{bf16, f16};

/// The largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// f32 to bf16, to nearest even. NaN becomes 0x7fff.
pub fn f32_to_bf16(value: f32) -> bf16 {
    if value.is_nan() { bf16::from_bits(0x7fff) } else { bf16::from_f32(value) }
}

impl Half {
    /// The value of these bits, exact.
    pub fn to_f32(self, bits: u16) -> f32 {
        match self {
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
            Self::F16 => f16::from_bits(bits).to_f32(),
        }
    }

    /// The bits of `value`, to nearest even. NaN becomes 0x7fff.
    pub fn round(self, value: f32) -> u16 {
        match self {
            _ if value.is_nan() => 0x7fff,
            Self::Bf16 => bf16::from_f32(value).to_bits(),
            Self::F16 => f16::from_f32(value).to_bits(),
        }
    }
}

/// The value of a UE8M0 code, exact: 2^(code − 127), and NaN for 255.
pub fn ue8m0_to_f32(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        // Exact: both factors are powers of two.
        0 => power_of_two(-126) / 2.0,
        code => power_of_two(i32::from(code) - 127),
    }
}

/// The value of an FP8 e4m3 code, exact.
///
/// OCP 8-bit Floating Point Specification 1.0, E4M3: a sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no
/// infinities; all ones is NaN; exponent 0 is subnormal.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(code >> 3 & 0xf);
    let mantissa = f32::from(code & 0x7);
    if code & 0x7f == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        sign * mantissa / 8.0 * power_of_two(-6)
    } else {
        sign * (1.0 + mantissa / 8.0) * power_of_two(exponent - 7)
    }
}

/// f32 to FP8 e4m3, to nearest even, saturating to ±448. NaN becomes 0x7f.
pub fn f32_to_e4m3(value: f32) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(E4M3_MAX);
    // All codes of one exponent are 2^(exponent − 3) apart, and subnormals as far as the smallest normals.
    let exponent = floor_log2(magnitude).max(-6);
    let steps = (magnitude / power_of_two(exponent - 3)).round_ties_even();
    // Steps 0 to 7 exist only at exponent −6, where they are the subnormals; 8 to 15 are a normal's mantissa and its
    // implied one; 16 carries into the next exponent by itself.
    sign | ((exponent + 6) * 8 + steps as i32) as u8
}

/// 2^exponent, for exponents of normal f32.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The exponent of a positive normal f32; −127 for smaller ones.
fn floor_log2(value: f32) -> i32 {
    (value.to_bits() >> 23) as i32 - 127
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::random::Random;

    #[test]
    fn known_e4m3_values() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 0.001953125), // the smallest subnormal, 2^-9
            (0x07, 0.013671875), // the largest, 7 · 2^-9
            (0x08, 0.015625),    // the smallest normal, 2^-6
            (0x38, 1.0),
            (0x39, 1.125),
            (0x40, 2.0),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(e4m3_to_f32(code), value, "{code:#04x}");
        }
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn every_code_comes_back() {
        for code in 0..=255u8 {
            let value = e4m3_to_f32(code);
            assert_eq!(f32_to_e4m3(value), if value.is_nan() { 0x7f } else { code });
        }
        assert_eq!(f32_to_e4m3(-f32::NAN), 0x7f);
    }

    #[test]
    fn ties_go_to_even_and_neighbours_of_ties_to_the_nearest() {
        for below in 0..0x7eu8 {
            // Exact: both have at most 5 significant bits.
            let tie = (e4m3_to_f32(below) + e4m3_to_f32(below + 1)) / 2.0;
            let even = below + (below & 1);
            for (value, code) in [(tie, even), (tie.next_down(), below), (tie.next_up(), below + 1)] {
                assert_eq!(f32_to_e4m3(value), code, "{value:e}");
                assert_eq!(f32_to_e4m3(-value), code | 0x80, "{:e}", -value);
            }
        }
    }

    #[test]
    fn large_values_saturate() {
        for value in [448.0, 448.1, 464.0, 480.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((f32_to_e4m3(value), f32_to_e4m3(-value)), (0x7e, 0xfe), "{value}");
        }
    }

    #[test]
    fn nearest_of_all_codes() {
        let mut random = Random::new(3);
        for _ in 0..20_000 {
            // Any sign and mantissa, exponents from far below the smallest subnormal to just above the largest code.
            let bits = random.next() as u32;
            let value = f32::from_bits(bits & 0x807f_ffff | (127 - 15 + (bits >> 23 & 0xff) % 26) << 23);
            let distance = |code: u8| (f64::from(e4m3_to_f32(code)) - f64::from(value)).abs();
            let least =
                (0..0x7f).map(|code| distance(code | (bits >> 24) as u8 & 0x80)).fold(f64::MAX, f64::min);
            assert_eq!(distance(f32_to_e4m3(value)), least, "{value:e}");
        }
    }

    #[test]
    fn larger_values_have_no_smaller_codes() {
        let mut random = Random::new(4);
        let mut values: Vec<f32> = (0..20_000).map(|_| random.normal() * 20.0).collect();
        values.sort_by(f32::total_cmp);
        let rounded: Vec<f32> = values.into_iter().map(|value| e4m3_to_f32(f32_to_e4m3(value))).collect();
        assert!(rounded.is_sorted());
        assert!(rounded[0] < -20.0 && rounded[19_999] > 20.0);
    }

    #[test]
    fn f16_to_nearest_even() {
        for (value, bits) in [
            (1.0, 0x3c00),
            (-0.0, 0x8000),
            (2049.0, 0x6800),
            (2051.0, 0x6802),
            (65504.0, 0x7bff),
            (65519.9, 0x7bff),
            (65520.0, 0x7c00),
            (0.000061035156, 0x0400), // the smallest normal, 2^-14
            (5.9604645e-8, 0x0001),   // the smallest subnormal, 2^-24
            (2.9802322e-8, 0x0000),   // half of it
            (f32::NAN, 0x7fff),
            (-f32::NAN, 0x7fff),
        ] {
            assert_eq!(Half::F16.round(value), bits, "{value:e}");
        }
        for bits in 0..=u16::MAX {
            for half in [Half::Bf16, Half::F16] {
                let value = half.to_f32(bits);
                assert_eq!(half.round(value), if value.is_nan() { 0x7fff } else { bits });
            }
        }
    }

    #[test]
    fn ue8m0_values() {
        for (code, value) in [(127, 1.0), (128, 2.0), (126, 0.5), (0, 5.877472e-39), (254, 1.7014118e38)] {
            assert_eq!(ue8m0_to_f32(code), value);
        }
        assert!(ue8m0_to_f32(255).is_nan());
    }

    #[test]
    fn bf16_to_nearest_even() {
        for (bits, rounded) in [
            (0x3f80_8000, 0x3f80),
            (0x3f81_8000, 0x3f82),
            (0x3f80_8001, 0x3f81),
            (0x7f7f_ffff, 0x7f80),
            (0xff80_0001, 0x7fff),
            (0x8000_0000, 0x8000),
        ] {
            assert_eq!(f32_to_bf16(f32::from_bits(bits)).to_bits(), rounded, "{bits:#x}");
        }
    }
}
