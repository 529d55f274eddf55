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
    use crate::oracle::random::Random;
    use half::bf16;

    /// 1 to 128 values that span 0 to 60 octaves, anywhere in f32, with some zeros. Subnormals are among them.
    fn group(random: &mut Random) -> Vec<f32> {
        let mut below = |limit: u64| (random.next() >> 16) % limit;
        let (count, top, span) = (1 + below(128), 1 + below(254), 1 + below(61));
        (0..count)
            .map(|_| {
                let exponent = top.saturating_sub(below(span)) as u32;
                let magnitude = if below(20) == 0 { 0 } else { exponent << 23 | below(1 << 23) as u32 };
                f32::from_bits((below(2) as u32) << 31 | magnitude)
            })
            .collect()
    }

    /// The greatest error of values for which the larger bound counts, and of those for which the smaller one does, in
    /// units of what [`CombineFormat`] allows.
    type Worst = [f64; 2];

    fn worst(group: &[f32], format: CombineFormat, mut worst: Worst) -> Worst {
        let magnitudes = || group.iter().map(|value| value.abs());
        let amax = f64::from(magnitudes().fold(0.0, f32::max));
        // bf16 bits, rounded outward.
        let most = magnitudes().map(|value| value.to_bits().div_ceil(1 << 16)).max().unwrap_or(0).min(0x7f7f);
        let least = magnitudes().filter(|&value| value != 0.0).map(|value| value.to_bits() >> 16).min();
        let octaves = (f64::from(most - least.unwrap_or(most)) / 128.0).min(32.0);
        for (&sent, arrived) in group.iter().zip(through_the_wire(group, format)) {
            assert_eq!(sent.is_sign_negative(), arrived.is_sign_negative());
            let (sent, arrived) = (f64::from(sent.abs()), f64::from(arrived.abs()));
            let (value, small, allowed) = match format {
                CombineFormat::Bf16 => unreachable!("it has no bound of its own"),
                CombineFormat::Fp8 => {
                    let least = amax.max(1e-4) * 2f64.powi(-18);
                    (sent, sent / 16.0 < least, (sent / 16.0).max(least))
                }
                CombineFormat::Log10 => {
                    let value = sent.min(f64::from(bf16::MAX));
                    let least = (amax * 2f64.powi(-32)).max(2f64.powi(-126));
                    let small = value < least;
                    (value, small, if small { 0.504 * least } else { value * octaves / 1000.0 })
                }
            };
            let error = (value - arrived).abs();
            assert!(error <= allowed, "{format:?}: {sent:e} became {arrived:e}, amax {amax:e}");
            if error > 0.0 {
                let worst = &mut worst[usize::from(small)];
                *worst = worst.max(error / allowed);
            }
        }
        worst
    }

    #[test]
    fn errors_stay_within_what_is_stated_and_come_near_it() {
        let mut random = Random::new(9);
        let (mut fp8, mut log) = ([0.0; 2], [0.0; 2]);
        for _ in 0..10_000 {
            let group = group(&mut random);
            fp8 = worst(&group, CombineFormat::Fp8, fp8);
            log = worst(&group, CombineFormat::Log10, log);
        }
        assert!([fp8, log].concat().into_iter().all(|worst| worst > 0.5), "{fp8:?} {log:?}");
    }

    #[test]
    fn errors_of_ties_stay_within_what_is_stated() {
        // Halfway between codes, and just above a power of two or below it, f32's rounding takes errors past octaves / 1018.
        for steps in [1u32, 2, 5, 8, 128, 129, 1024, 4096] {
            let (base, range) = (0x3f80_0000, steps << 16);
            let ties = (0..509).map(|code| base + ((2 * code + 1) * u64::from(range) / 1018) as u32);
            let near: Vec<u32> = ties.flat_map(|tie| tie - 40..=tie + 40).collect();
            for near in near.chunks(126) {
                let all = [base, base + range].into_iter().chain(near.iter().copied());
                let group: Vec<f32> =
                    all.map(|bits| f32::from_bits(bits.clamp(base, base + range))).collect();
                worst(&group, CombineFormat::Log10, [0.0; 2]);
            }
        }
    }

    #[test]
    fn where_logarithms_end() {
        let log = |group: &[f32]| through_the_wire(group, CombineFormat::Log10);
        // Subnormals are too far apart for the steps of normal neighbours.
        assert_eq!(log(&[2f32.powi(-120), 2f32.powi(-140)]), [2f32.powi(-120), 0.0]);
        let most = f32::from(bf16::MAX);
        assert_eq!(log(&[f32::MAX, -most]), [most, -most]);
        // The least of 32 octaves below 1 is half a step of nothing: ties go up.
        let least = 2f32.powi(-32);
        assert_eq!(log(&[1.0, least / 2.0, (least / 2.0).next_down()]), [1.0, least, 0.0]);
    }

    #[test]
    fn what_is_not_finite() {
        // A lone NaN stays alone in either format; an infinite scale leaves nothing of its group, but of no other.
        let mut row = vec![1.0; 130];
        row[3] = f32::NAN;
        let fp8 = |row: &[f32]| through_the_wire(row, CombineFormat::Fp8);
        assert!(fp8(&row).iter().enumerate().all(|(at, value)| value.is_nan() == (at == 3)));
        row[3] = f32::NEG_INFINITY;
        assert!(fp8(&row).iter().enumerate().all(|(at, value)| value.is_nan() == (at < 128)));
        let log = through_the_wire(&row, CombineFormat::Log10);
        assert!(log.iter().enumerate().all(|(at, value)| value.is_nan() == (at == 3)));
        let bf16 = through_the_wire(&[f32::MAX, -f32::NAN], CombineFormat::Bf16);
        assert_eq!(bf16.map_bits(), [0x7f80_0000, 0x7fff_0000]);
    }

    #[test]
    fn by_hand() {
        let log = |group: &[f32]| through_the_wire(group, CombineFormat::Log10);
        // Ends that are bf16 are exact.
        assert_eq!(log(&[1.0, -4.0, 0.0, -0.0]).map_bits(), [1.0, -4.0, 0.0, -0.0].map(f32::to_bits));
        // An octave is 509 steps of 2^23 / 509 = 16480.57 bits.
        let above = |bits: u32| f32::from_bits(1f32.to_bits() + bits);
        assert_eq!(
            log(&[1.0, 2.0, above(8240), above(8241), above(24720)])[2..],
            [1.0, above(16481), above(16481)]
        );
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
