//! Routings that are drawn rather than computed: what a measurement wants is a known spread, and a gate's scores for
//! many tokens take longer than all else.

use super::random::Random;
use super::{GateError, OracleError, Routing};
use std::fmt;

const PERMUTATION: u64 = 5;
const CHOICES: u64 = 6;

/// How evenly tokens are spread over the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Distinct experts, all equally likely.
    Uniform,
    /// Distinct experts, drawn one after the other; the i-th of a seeded order has the chance 1 / (i + 1) of the first.
    Zipf,
    /// The first experts, for every token: all go to rank 0, if it owns as many.
    One,
}

/// A way to draw the experts of tokens.
#[derive(Clone, Debug)]
pub struct Draw {
    spread: Spread,
    topk: usize,
    /// By chance, the most likely first.
    experts: Vec<i32>,
    /// The same order. Integers, so that all platforms draw the same.
    chances: Vec<u64>,
}

impl Draw {
    /// `topk` of `experts` experts a token. The seed decides which experts are the likely ones.
    ///
    /// # Errors
    /// [`OracleError::Gate`] if there are no such numbers of experts.
    pub fn new(spread: Spread, experts: usize, topk: usize, seed: u64) -> Result<Self, OracleError> {
        let within = |field, value, most, why| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(GateError::OutOfRange { field, value, least: 1, most, why })
        };
        within("experts", experts, i32::MAX as usize, "an id is an i32")?;
        within("topk", topk, experts, "experts")?;
        let mut order: Vec<i32> = (0..experts as i32).collect();
        if spread == Spread::Zipf {
            let mut random = Random::stream(seed, PERMUTATION);
            (0..experts)
                .for_each(|at| order.swap(at, at + below(&mut random, (experts - at) as u64) as usize));
        }
        let chances =
            (1..=experts as u64).map(|place| if spread == Spread::Zipf { (1 << 32) / place } else { 1 });
        Ok(Self { spread, topk, experts: order, chances: chances.collect() })
    }

    /// The experts of so many tokens, in the order in which they were drawn, and weights that sum to 1.
    pub fn route(&self, seed: u64, tokens: usize) -> Routing {
        let mut random = Random::stream(seed, CHOICES);
        let mut routing = Routing { topk: self.topk, topk_idx: Vec::new(), topk_weights: Vec::new() };
        let (mut order, mut chances) = (self.experts.clone(), self.chances.clone());
        let total: u64 = chances.iter().sum();
        for _ in 0..tokens {
            match self.spread {
                Spread::One => {}
                // Any order is as good to begin with as any other.
                Spread::Uniform => (0..self.topk).for_each(|slot| {
                    let left = (order.len() - slot) as u64;
                    order.swap(slot, slot + below(&mut random, left) as usize);
                }),
                Spread::Zipf => {
                    order.copy_from_slice(&self.experts);
                    chances.copy_from_slice(&self.chances);
                    let mut left = total;
                    for slot in 0..self.topk {
                        let mut at = slot;
                        let mut point = below(&mut random, left);
                        while point >= chances[at] {
                            point -= chances[at];
                            at += 1;
                        }
                        left -= chances[at];
                        // What was taken moves to the front, where it is out of the way.
                        order.swap(slot, at);
                        chances.swap(slot, at);
                    }
                }
            }
            routing.topk_idx.extend(&order[..self.topk]);
            // 24 bits, which f32 has, and never 0.
            let drawn: Vec<f32> = (0..self.topk).map(|_| ((random.next() >> 40) + 1) as f32).collect();
            let sum: f32 = drawn.iter().sum();
            routing.topk_weights.extend(drawn.iter().map(|weight| weight / sum));
        }
        routing
    }
}

/// A number below `limit`; the bias of the remainder does not matter here.
fn below(random: &mut Random, limit: u64) -> u64 {
    random.next() % limit
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = match self.spread {
            Spread::Uniform => "uniform",
            Spread::Zipf => "zipf",
            Spread::One => "one",
        };
        write!(f, "{name} experts={} topk={}", self.experts.len(), self.topk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use std::collections::HashSet;

    /// How often each expert is drawn, the most frequent first.
    fn frequencies(routing: &Routing, experts: usize) -> Vec<usize> {
        let mut counts = vec![0; experts];
        routing.topk_idx.iter().for_each(|&expert| counts[expert as usize] += 1);
        counts.sort_by(|a, b| b.cmp(a));
        counts
    }

    #[test]
    fn experts_of_a_token_are_distinct_and_weights_sum_to_1() -> Result<(), OracleError> {
        for spread in [Spread::Uniform, Spread::Zipf, Spread::One] {
            for (experts, topk) in [(16, 4), (5, 5), (1, 1)] {
                let routing = Draw::new(spread, experts, topk, 3)?.route(1, 200);
                assert_eq!((routing.topk_idx.len(), routing.topk_weights.len()), (200 * topk, 200 * topk));
                for (chosen, weights) in routing.topk_idx.chunks(topk).zip(routing.topk_weights.chunks(topk))
                {
                    assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), topk, "{spread:?}");
                    assert!(chosen.iter().all(|expert| (0..experts as i32).contains(expert)));
                    assert_abs_diff_eq!(weights.iter().sum::<f32>(), 1.0, epsilon = 1e-5);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn spreads_are_what_they_are_called() -> Result<(), OracleError> {
        let tokens = 20_000;
        let uniform = frequencies(&Draw::new(Spread::Uniform, 16, 2, 3)?.route(1, tokens), 16);
        assert!((2300..2700).contains(&uniform[0]) && (2300..2700).contains(&uniform[15]), "{uniform:?}");
        // With one draw a token, chances are 1, 1/2, 1/3 … of the first's, which is 1 / H(8).
        let zipf = frequencies(&Draw::new(Spread::Zipf, 8, 1, 3)?.route(1, tokens), 8);
        let harmonic: f64 = (1..=8).map(|place| 1.0 / f64::from(place)).sum();
        for (place, count) in (1..).zip(zipf) {
            let expected = tokens as f64 / (f64::from(place) * harmonic);
            assert_abs_diff_eq!(count as f64, expected, epsilon = 0.08 * expected);
        }
        assert_eq!(Draw::new(Spread::One, 8, 3, 3)?.route(1, 2).topk_idx, [0, 1, 2, 0, 1, 2]);
        Ok(())
    }

    #[test]
    fn seeds_decide() -> Result<(), OracleError> {
        let draw = |seed, tokens_seed| {
            Ok::<_, OracleError>(Draw::new(Spread::Zipf, 64, 4, seed)?.route(tokens_seed, 8))
        };
        assert_eq!(draw(1, 2)?, draw(1, 2)?);
        assert_ne!(draw(1, 2)?, draw(2, 2)?);
        assert_ne!(draw(1, 2)?, draw(1, 3)?);
        Ok(())
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let says = |experts, topk| {
            Draw::new(Spread::Uniform, experts, topk, 0).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(says(0, 1), Err("experts = 0: must be 1 to 2147483647 (an id is an i32)".into()));
        assert_eq!(says(4, 5), Err("topk = 5: must be 1 to 4 (experts)".into()));
        assert_eq!(says(4, 0), Err("topk = 0: must be 1 to 4 (experts)".into()));
    }
}
