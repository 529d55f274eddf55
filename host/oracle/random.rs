//! Numbers that depend on nothing but a seed.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
///
/// Written out because a workload named by its seed has to stay the same for good, whatever a crate's next version
/// does, and this is all of it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for a purpose of its own, so that one seed can serve several.
    pub fn stream(seed: u64, purpose: u64) -> Self {
        Self::new(Self::new(Self::new(seed).next() ^ purpose).next())
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// A roughly normal number, mean 0 and deviation 1, never 0 and within ±3.5: the sum of four 16-bit uniforms.
    /// Integers until the last division, so all platforms give the same bits.
    pub fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: i32 = (0..4).map(|lane| (bits >> (16 * lane) & 0xffff) as i32).sum();
        // Four times (2^16 − 1) / 2, moved by a half so that no sum falls on it; and sqrt(4 · 2^32 / 12).
        (sum as f32 - 131_070.5) / 37_837.227
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn known_stream() {
        let mut random = Random::new(1234567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn normal_has_mean_0_and_deviation_1() {
        let mut random = Random::new(1);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = |power: i32| values.iter().map(|value| value.powi(power)).sum::<f64>() / 1e5;
        assert_abs_diff_eq!(mean(1), 0.0, epsilon = 0.02);
        assert_abs_diff_eq!(mean(2), 1.0, epsilon = 0.02);
        assert!(values.iter().all(|&value| value != 0.0 && value.abs() < 3.5));
    }
}
