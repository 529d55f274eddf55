//! A synthetic gate: the weights that turn hidden states into a gate's scores.

use super::random::Random;
use super::{Gate, OracleError, Routing};
use half::bf16;

const WEIGHTS: u64 = 3;
const BIAS: u64 = 4;

/// Standard deviation of the bias: enough to change a choice now and then.
const BIAS_DEVIATION: f32 = 0.01;

/// Most weights: 1 GiB of them.
const MAX_WEIGHTS: usize = 1 << 28;

/// A [`Gate`] with weights made from a seed.
#[derive(Clone, Debug)]
pub struct Router {
    gate: Gate,
    hidden: usize,
    /// `[hidden, experts]`
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Router {
    /// Roughly normal weights for which hidden states of deviation 1 give logits of deviation 1, and a small bias.
    ///
    /// # Errors
    /// [`OracleError`] if the gate is not possible, or `hidden` is 0 or so large that the weights exceed 1 GiB.
    pub fn new(gate: Gate, hidden: usize, seed: u64) -> Result<Self, OracleError> {
        gate.check()?;
        if hidden == 0 || hidden.saturating_mul(gate.experts()) > MAX_WEIGHTS {
            let limit = "must be at least 1, and hidden · experts at most 268435456, for a synthetic gate";
            return Err(OracleError::Size { field: "hidden", value: hidden, limit });
        }
        let deviation = 1.0 / (hidden as f32).sqrt();
        let normal = |purpose, count, deviation: f32| -> Vec<f32> {
            let mut random = Random::stream(seed, purpose);
            (0..count).map(|_| random.normal() * deviation).collect()
        };
        let weights = normal(WEIGHTS, hidden * gate.experts(), deviation);
        let bias = normal(BIAS, gate.experts(), BIAS_DEVIATION);
        Ok(Self { gate, hidden, weights, bias })
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Chooses the experts of every row of `x`, `[tokens, hidden]`.
    ///
    /// The same on every run of one build; `exp` may differ in the last bit between platforms.
    ///
    /// # Errors
    /// [`OracleError::Length`] if `x` is not whole rows.
    pub fn route(&self, x: &[bf16]) -> Result<Routing, OracleError> {
        if !x.len().is_multiple_of(self.hidden) {
            let expected = x.len().next_multiple_of(self.hidden);
            return Err(OracleError::Length { field: "x", value: x.len(), expected });
        }
        let mut routing = Routing { topk: self.gate.topk(), topk_idx: Vec::new(), topk_weights: Vec::new() };
        for row in x.chunks_exact(self.hidden) {
            let (chosen, weights) = self.gate.choose(&self.logits(row), &self.bias);
            routing.topk_idx.extend(chosen.into_iter().map(|expert| expert as i32));
            routing.topk_weights.extend(weights);
        }
        Ok(routing)
    }

    /// Row times weights, all experts at once: the inner loop runs over neighbouring elements.
    fn logits(&self, row: &[bf16]) -> Vec<f32> {
        let mut logits = vec![0.0; self.gate.experts()];
        for (x, weights) in row.iter().zip(self.weights.chunks_exact(self.gate.experts())) {
            let x = x.to_f32();
            logits.iter_mut().zip(weights).for_each(|(logit, weight)| *logit += x * weight);
        }
        logits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::hidden_states;
    use approx::{assert_abs_diff_eq, assert_relative_eq};
    use std::collections::HashSet;

    #[test]
    fn deepseek_v3_routing_keeps_its_limits_and_spreads() -> Result<(), OracleError> {
        let x = hidden_states(1, 64, 512);
        let routing = Router::new(Gate::DEEPSEEK_V3, 512, 9)?.route(&x)?;
        assert_eq!((routing.topk, routing.topk_idx.len(), routing.topk_weights.len()), (8, 512, 512));
        for (experts, weights) in routing.topk_idx.chunks(8).zip(routing.topk_weights.chunks(8)) {
            let groups: HashSet<_> = experts.iter().map(|expert| expert / 32).collect();
            assert!(groups.len() <= 4);
            assert_eq!(experts.iter().collect::<HashSet<_>>().len(), 8);
            assert!(experts.iter().all(|expert| (0..256).contains(expert)));
            assert_abs_diff_eq!(weights.iter().sum::<f32>(), 2.5, epsilon = 1e-5);
        }
        let used: HashSet<_> = routing.topk_idx.iter().collect();
        assert!(used.len() > 150, "512 choices fall on {} experts only", used.len());
        Ok(())
    }

    #[test]
    fn seeds_decide() -> Result<(), OracleError> {
        let gate = Gate::Softmax { experts: 64, topk: 4 };
        let x = hidden_states(2, 16, 128);
        assert_eq!(Router::new(gate, 128, 1)?.route(&x)?, Router::new(gate, 128, 1)?.route(&x)?);
        assert_ne!(Router::new(gate, 128, 1)?.route(&x)?, Router::new(gate, 128, 2)?.route(&x)?);
        Ok(())
    }

    #[test]
    fn logits_are_dot_products() -> Result<(), OracleError> {
        let router = Router::new(Gate::Softmax { experts: 3, topk: 1 }, 8, 5)?;
        let x = hidden_states(3, 1, 8);
        for (expert, logit) in router.logits(&x).into_iter().enumerate() {
            let dot: f64 =
                (0..8).map(|at| f64::from(x[at].to_f32()) * f64::from(router.weights[at * 3 + expert])).sum();
            assert_relative_eq!(f64::from(logit), dot, max_relative = 1e-4);
        }
        Ok(())
    }

    #[test]
    fn bad_input_is_refused() -> Result<(), OracleError> {
        let gate = Gate::Softmax { experts: 4, topk: 1 };
        for hidden in [0, MAX_WEIGHTS / 4 + 1, usize::MAX] {
            assert!(matches!(Router::new(gate, hidden, 1), Err(OracleError::Size { field: "hidden", .. })));
        }
        assert!(Router::new(Gate::Softmax { experts: 4, topk: 5 }, 8, 1).is_err());
        let error = Router::new(gate, 8, 1)?.route(&[bf16::ONE; 9]).unwrap_err();
        assert_eq!(error.to_string(), "x has 9 elements, but must have 16");
        Ok(())
    }
}
