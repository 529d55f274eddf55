//! How experts are chosen from a gate's scores.

use super::GateError;
use std::fmt;

/// A way to choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// Group-limited top-k of sigmoid scores (DeepSeek-V3 Technical Report, arXiv 2412.19437, section 2.1.2).
    ///
    /// A bias that balances the load is added to the scores for choosing only. The groups whose two best experts have
    /// the largest sum are kept; of their experts the best are taken. Weights are the scores without bias, made to
    /// sum to `scale`.
    DeepSeekV3 {
        /// Experts to choose from.
        experts: usize,
        /// Groups of neighbouring experts, of equal size.
        groups: usize,
        /// Groups that are kept for a token.
        top_groups: usize,
        /// Experts of a token.
        topk: usize,
        /// Sum of a token's weights.
        scale: f32,
    },
    /// Top-k of softmax scores; weights are made to sum to 1.
    Softmax {
        /// Experts to choose from.
        experts: usize,
        /// Experts of a token.
        topk: usize,
    },
}

impl Gate {
    /// DeepSeek-V3's own: 256 experts in 8 groups of which 4 are kept, 8 experts a token, weights that sum to 2.5.
    pub const DEEPSEEK_V3: Self =
        Self::DeepSeekV3 { experts: 256, groups: 8, top_groups: 4, topk: 8, scale: 2.5 };

    /// Experts to choose from.
    pub fn experts(&self) -> usize {
        match *self {
            Self::DeepSeekV3 { experts, .. } | Self::Softmax { experts, .. } => experts,
        }
    }

    /// Experts of a token.
    pub fn topk(&self) -> usize {
        match *self {
            Self::DeepSeekV3 { topk, .. } | Self::Softmax { topk, .. } => topk,
        }
    }

    /// Checks that there can be such a gate.
    ///
    /// # Errors
    /// [`GateError`] with the first setting that cannot be.
    pub fn check(&self) -> Result<(), GateError> {
        within("experts", self.experts(), 1, i32::MAX as usize, "an id is an i32")?;
        match *self {
            Self::DeepSeekV3 { experts, groups, top_groups, topk, scale } => {
                within("groups", groups, 1, experts, "a group has an expert")?;
                if !experts.is_multiple_of(groups) {
                    return Err(GateError::Groups { experts, groups });
                }
                within("top_groups", top_groups, 1, groups, "groups")?;
                within("topk", topk, 1, top_groups * (experts / groups), "experts in top_groups groups")?;
                if !(scale.is_finite() && scale > 0.0) {
                    return Err(GateError::Scale { value: scale });
                }
                Ok(())
            }
            Self::Softmax { experts, topk } => within("topk", topk, 1, experts, "experts"),
        }
    }

    /// The experts of one token, best first, and their weights. Of equal scores the lower index wins.
    ///
    /// `logits` and `bias` have one value an expert; [`Gate::Softmax`] does not look at `bias`.
    ///
    /// # Panics
    /// If a slice is too short, or the gate has not passed [`check`](Self::check).
    pub fn choose(&self, logits: &[f32], bias: &[f32]) -> (Vec<usize>, Vec<f32>) {
        match *self {
            Self::DeepSeekV3 { experts, groups, top_groups, topk, scale } => {
                let scores: Vec<f32> = logits.iter().map(|&logit| 1.0 / (1.0 + (-logit).exp())).collect();
                let biased: Vec<f32> = (0..experts).map(|expert| scores[expert] + bias[expert]).collect();
                let group_size = experts / groups;
                let group_scores: Vec<f32> =
                    biased.chunks_exact(group_size).map(|group| sum(&pick(group, &best(group, 2)))).collect();
                let kept = best(&group_scores, top_groups);
                let candidates: Vec<usize> =
                    (0..experts).filter(|expert| kept.contains(&(expert / group_size))).collect();
                let chosen = pick(&candidates, &best(&pick(&biased, &candidates), topk));
                let chosen_scores = pick(&scores, &chosen);
                // The addend keeps the division defined when all scores are 0.
                let total = sum(&chosen_scores) + 1e-20;
                let weights = chosen_scores.iter().map(|score| score / total * scale).collect();
                (chosen, weights)
            }
            Self::Softmax { topk, .. } => {
                let chosen = best(logits, topk);
                // Softmax over all experts, renormalised over some, is softmax over those.
                let powers: Vec<f32> =
                    chosen.iter().map(|&at| (logits[at] - logits[chosen[0]]).exp()).collect();
                let total = sum(&powers);
                (chosen, powers.iter().map(|power| power / total).collect())
            }
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::DeepSeekV3 { experts, groups, top_groups, topk, scale } => write!(
                f,
                "deepseek-v3 experts={experts} groups={groups} top_groups={top_groups} topk={topk} scale={scale}"
            ),
            Self::Softmax { experts, topk } => write!(f, "softmax experts={experts} topk={topk}"),
        }
    }
}

fn within(
    field: &'static str,
    value: usize,
    least: usize,
    most: usize,
    why: &'static str,
) -> Result<(), GateError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(GateError::OutOfRange { field, value, least, most, why })
}

/// Indices of the `count` largest scores, best first; of equal ones the lower index comes first.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // A stable sort, and a total order because a score may be NaN.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(count);
    order
}

fn pick<T: Copy>(values: &[T], indices: &[usize]) -> Vec<T> {
    indices.iter().map(|&index| values[index]).collect()
}

fn sum(values: &[f32]) -> f32 {
    values.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// The score of a logit.
    fn sigmoid(logit: f32) -> f32 {
        1.0 / (1.0 + (-logit).exp())
    }

    #[test]
    fn groups_limit_the_choice() {
        let gate = Gate::DeepSeekV3 { experts: 8, groups: 4, top_groups: 2, topk: 3, scale: 2.5 };
        // The best expert is alone in group 1; groups 0 and 3 have the best pairs.
        let logits = [1.0, 0.9, 1.2, -9.0, 0.0, 0.0, 0.8, 1.1];
        let (chosen, weights) = gate.choose(&logits, &[0.0; 8]);
        assert_eq!(chosen, [7, 0, 1]);
        let scores: Vec<f32> = chosen.iter().map(|&expert| sigmoid(logits[expert])).collect();
        for (weight, score) in weights.iter().zip(&scores) {
            assert_relative_eq!(*weight, 2.5 * score / sum(&scores), max_relative = 1e-6);
        }
    }

    #[test]
    fn bias_chooses_but_does_not_weigh() {
        let gate = Gate::DeepSeekV3 { experts: 4, groups: 1, top_groups: 1, topk: 2, scale: 1.0 };
        let (chosen, weights) = gate.choose(&[2.0, 1.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 9.0]);
        assert_eq!(chosen, [3, 0]);
        assert_relative_eq!(weights[0] / weights[1], sigmoid(0.0) / sigmoid(2.0), max_relative = 1e-6);
    }

    #[test]
    fn lower_index_wins_ties() {
        let gate = Gate::DeepSeekV3 { experts: 8, groups: 4, top_groups: 2, topk: 3, scale: 1.0 };
        assert_eq!(gate.choose(&[0.5; 8], &[0.0; 8]).0, [0, 1, 2]);
        assert_eq!(Gate::Softmax { experts: 4, topk: 2 }.choose(&[0.0, 1.0, 1.0, 1.0], &[]).0, [1, 2]);
    }

    #[test]
    fn softmax_weights() {
        let (chosen, weights) =
            Gate::Softmax { experts: 4, topk: 2 }.choose(&[1000.0, 0.0, 1001.0, 5.0], &[]);
        assert_eq!(chosen, [2, 0]);
        assert_relative_eq!(weights[0] / weights[1], 1f32.exp(), max_relative = 1e-6);
        assert_relative_eq!(sum(&weights), 1.0, max_relative = 1e-6);
    }

    #[test]
    fn nan_is_survived() {
        let (chosen, _) = Gate::Softmax { experts: 4, topk: 4 }.choose(&[f32::NAN, 1.0, -f32::NAN, 2.0], &[]);
        assert_eq!(chosen, [0, 3, 1, 2]);
    }

    #[test]
    fn errors_name_field_value_and_limit() {
        let says = |experts, groups, top_groups, topk, scale| {
            let gate = Gate::DeepSeekV3 { experts, groups, top_groups, topk, scale };
            gate.check().map_err(|error| error.to_string())
        };
        assert_eq!(Gate::DEEPSEEK_V3.check(), Ok(()));
        let error = |message: &str| Err(message.to_string());
        assert_eq!(says(0, 1, 1, 1, 1.0), error("experts = 0: must be 1 to 2147483647 (an id is an i32)"));
        assert_eq!(says(10, 4, 1, 1, 1.0), error("experts = 10: must be a multiple of groups = 4"));
        assert_eq!(says(8, 0, 1, 1, 1.0), error("groups = 0: must be 1 to 8 (a group has an expert)"));
        assert_eq!(says(8, 4, 5, 1, 1.0), error("top_groups = 5: must be 1 to 4 (groups)"));
        assert_eq!(says(8, 4, 2, 5, 1.0), error("topk = 5: must be 1 to 4 (experts in top_groups groups)"));
        assert_eq!(says(8, 4, 2, 4, 0.0), error("scale = 0: must be finite and above 0"));
        let softmax = Gate::Softmax { experts: 8, topk: 9 }.check();
        assert_eq!(softmax.unwrap_err().to_string(), "topk = 9: must be 1 to 8 (experts)");
    }

    #[test]
    fn display_is_what_a_dump_records() {
        let text = "deepseek-v3 experts=256 groups=8 top_groups=4 topk=8 scale=2.5";
        assert_eq!(Gate::DEEPSEEK_V3.to_string(), text);
        assert_eq!(Gate::Softmax { experts: 4, topk: 2 }.to_string(), "softmax experts=4 topk=2");
    }
}
