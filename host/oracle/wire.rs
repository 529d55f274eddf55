//! What becomes of the rows of a low-latency combine on their way.

use super::{AMAX_FLOOR, E4M3_MAX, SCALE_GROUP, e4m3_to_f32, f32_to_e4m3};
use crate::{CombineFormat, Half};

/// What arrives of a row that travels as `format`.
pub fn through_the_wire(row: &[f32], format: CombineFormat) -> Vec<f32> {
    let through_group = match format {
        CombineFormat::Bf16 => |group: &[f32]| -> Vec<f32> {
            group.iter().map(|&value| Half::Bf16.to_f32(Half::Bf16.round(value))).collect()
        },
        CombineFormat::Fp8 => fp8,
        CombineFormat::Log10 => |group: &[f32]| LogGroup::new(group).through(group),
    };
    row.chunks(SCALE_GROUP).flat_map(through_group).collect()
}

fn fp8(group: &[f32]) -> Vec<f32> {
    let amax = group.iter().fold(AMAX_FLOOR, |amax, value| amax.max(value.abs()));
    let (scale, factor) = (amax / E4M3_MAX, E4M3_MAX / amax);
    group.iter().map(|&value| e4m3_to_f32(f32_to_e4m3(value * factor)) * scale).collect()
}

/// The bits of infinity.
const INFINITE: u32 = 0x7f80_0000;
/// The code of what is not finite.
const NOT_FINITE: u32 = 511;
/// Steps between codes 1 and 510.
const STEPS: u16 = 509;

/// The range of a group's logarithms: the top halves of the f32 bits of the smallest and the largest magnitude, rounded
/// outward, at most 32 octaves apart.
struct LogGroup {
    low: u32,
    high: u32,
}

impl LogGroup {
    fn new(group: &[f32]) -> Self {
        let magnitudes = group.iter().map(|value| value.abs().to_bits()).filter(|&bits| bits < INFINITE);
        let high = magnitudes.clone().max().map_or(0, |most| (most + 0xffff) >> 16).min(0x7f7f);
        let low = magnitudes.filter(|&bits| bits != 0).min().map_or(0, |least| least >> 16);
        Self { low: low.max(high.saturating_sub(32 << 7)), high }
    }

    fn base(&self) -> u32 {
        self.low << 16
    }

    fn range(&self) -> f32 {
        ((self.high - self.low) << 16) as f32
    }

    fn through(&self, group: &[f32]) -> Vec<f32> {
        group.iter().map(|&value| self.decode(self.encode(value.abs()), value.is_sign_negative())).collect()
    }

    /// The code of a magnitude.
    fn encode(&self, magnitude: f32) -> u32 {
        let bits = magnitude.to_bits();
        if bits >= INFINITE {
            return NOT_FINITE;
        }
        if bits == 0 {
            return 0;
        }
        if bits < self.base() {
            return u32::from(magnitude * 2.0 >= f32::from_bits(self.base()));
        }
        let inverse = if self.range() == 0.0 { 0.0 } else { f32::from(STEPS) / self.range() };
        let steps = (bits - self.base()) as f32 * inverse + 0.5;
        1 + (steps as u32).min(STEPS.into())
    }

    fn decode(&self, code: u32, negative: bool) -> f32 {
        let magnitude = match code {
            0 => 0,
            NOT_FINITE => return f32::from_bits(0x7fff_ffff),
            code => {
                let step = self.range() / f32::from(STEPS);
                self.base() + ((code - 1) as f32 * step + 0.5) as u32
            }
        };
        f32::from_bits(u32::from(negative) << 31 | magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Groups whose magnitudes span from a few to far more octaves than codes reach.
    fn groups() -> impl Strategy<Value = Vec<f32>> {
        (1usize..=128, 0u32..60, -40i32..20).prop_flat_map(|(count, octaves, top)| {
            let value =
                (any::<bool>(), 0.0..=f64::from(octaves), 0u8..20).prop_map(move |(negative, down, zero)| {
                    let magnitude = if zero == 0 { 0.0 } else { (f64::from(top) - down).exp2() as f32 };
                    if negative { -magnitude } else { magnitude }
                });
            proptest::collection::vec(value, count)
        })
    }

    /// The largest error of a group in units of what is allowed for each value.
    fn worst(group: &[f32], format: CombineFormat, allowed: impl Fn(f64, f64) -> f64) -> f64 {
        let amax = group.iter().fold(0f64, |amax, &value| amax.max(f64::from(value.abs())));
        let arrived = through_the_wire(group, format);
        let errors = group.iter().zip(arrived).map(|(&sent, arrived)| {
            let error = (f64::from(sent) - f64::from(arrived)).abs();
            if error == 0.0 { 0.0 } else { error / allowed(f64::from(sent.abs()), amax) }
        });
        errors.fold(0.0, f64::max)
    }

    fn fp8_allowed(value: f64, amax: f64) -> f64 {
        // And what f32 loses in three operations.
        (value / 16.0).max(amax.max(1e-4) * 2f64.powi(-18)) * (1.0 + 1e-5)
    }

    fn log_allowed(group: &[f32]) -> impl Fn(f64, f64) -> f64 {
        let range = LogGroup::new(group);
        let octaves = f64::from(range.high - range.low) / 128.0;
        move |value, amax| {
            let least = amax * 2f64.powi(-32);
            // The rounding of both ends to bf16, and what f32 loses of positions.
            if value < least { least / 2.0 * (1.0 + 1.0 / 64.0) } else { value * (octaves / 1018.0 + 1e-6) }
        }
    }

    proptest! {
        #[test]
        fn errors_stay_within_what_is_stated(group in groups()) {
            let fp8 = worst(&group, CombineFormat::Fp8, fp8_allowed);
            prop_assert!(fp8 <= 1.0, "fp8: {fp8}");
            let log = worst(&group, CombineFormat::Log10, log_allowed(&group));
            prop_assert!(log <= 1.0, "log: {log}");
        }
    }

    #[test]
    fn errors_come_near_what_is_stated() {
        let group: Vec<f32> = (0..128).map(|at| (f64::from(at) / 9.0).exp2() as f32).collect();
        // 17 lies between 16 and 18.
        assert!(worst(&[448.0, 17.0], CombineFormat::Fp8, fp8_allowed) > 0.8);
        assert!(worst(&group, CombineFormat::Log10, log_allowed(&group)) > 0.8);
    }

    #[test]
    fn by_hand() {
        let log = |group: &[f32]| through_the_wire(group, CombineFormat::Log10);
        // Both ends are exact, and so is the middle: 254.5 steps of 1 / 254.5 octave lie between 1 and 2.
        assert_eq!(log(&[1.0, -4.0, 0.0, -0.0]).map_bits(), [1.0, -4.0, 0.0, -0.0].map(f32::to_bits));
        // A group of one value, and one of nothing.
        assert_eq!(log(&[-3.0; 5]), [-3.0; 5]);
        assert_eq!(log(&[0.0; 3]), [0.0; 3]);
        // What is too small goes to the nearer of zero and the least.
        let least = 2f32.powi(-32);
        assert_eq!(log(&[1.0, least * 0.75, least * 0.25]), [1.0, least, 0.0]);
        // What is not finite becomes NaN, and the rest is as without.
        let odd = log(&[f32::INFINITY, 1.0, f32::NAN, 2.0]);
        assert_eq!(odd.map_bits(), [0x7fff_ffff, 1f32.to_bits(), 0x7fff_ffff, 2f32.to_bits()]);
        let fp8 = through_the_wire(&[448.0, 3.1, -0.0], CombineFormat::Fp8);
        assert_eq!(fp8.map_bits(), [448.0, 3.0, -0.0].map(f32::to_bits));
        assert_eq!(through_the_wire(&[1.0 + 1.0 / 256.0], CombineFormat::Bf16), [1.0]);
    }

    trait MapBits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl MapBits for Vec<f32> {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|value| value.to_bits()).collect()
        }
    }
}
