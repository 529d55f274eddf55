//! Some tokens of each rank, and what combine has to bring for them. A token's sum depends on no other token, so that
//! the reference is computed for these alone.

use crate::reference;
use crate::workload::{Workload, per_rank};
use std::convert::Infallible;
use tokenrail::Config;
use tokenrail::oracle::{self, TokenBatch};

/// Most elements of a rank's tokens that are compared: a second's work of the reference.
const MAX_ELEMENTS: usize = 1 << 21;

/// One rank's.
pub struct Sample {
    /// Ascending.
    pub tokens: Vec<usize>,
    /// Bits, `[tokens, hidden]`.
    pub combined: Vec<u16>,
}

/// Every rank's sample, if its tokens were combined with these settings.
pub fn samples(workload: &Workload, config: &Config) -> Vec<Sample> {
    let hidden = config.hidden as usize;
    let chosen: Vec<Vec<usize>> =
        workload.batches.iter().map(|batch| spread(batch.tokens, (MAX_ELEMENTS / hidden).max(1))).collect();
    let batches: Vec<TokenBatch> =
        workload.batches.iter().zip(&chosen).map(|(batch, tokens)| subset(batch, tokens)).collect();
    let placement = &workload.placement;
    let received = oracle::dispatch(&batches, placement, None);
    let Ok(outputs) = per_rank(workload.ranks, |rank| {
        Ok::<_, Infallible>(reference::work(&received[rank], placement, config).1)
    });
    let combined = oracle::combine(&outputs, &batches, placement, config.combined, &[], None);
    chosen.into_iter().zip(combined).map(|(tokens, combined)| Sample { tokens, combined }).collect()
}

/// Up to `most` of `count` tokens: half of them the first, for small batches are tried too, the others spread over the
/// rest, the last among them.
fn spread(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let first = most / 2;
    let (rest, left) = (count - first, most - first);
    (0..first).chain((1..=left).map(|at| first + rest * at / left - 1)).collect()
}

fn subset(batch: &TokenBatch, tokens: &[usize]) -> TokenBatch {
    TokenBatch {
        tokens: tokens.len(),
        hidden: batch.hidden,
        element: batch.element,
        rows: tokens.iter().flat_map(|&token| batch.row(token)).copied().collect(),
        scales: tokens.iter().flat_map(|&token| batch.scales_of(token)).copied().collect(),
        sides: Vec::new(),
        topk: batch.topk,
        topk_idx: tokens.iter().flat_map(|&token| batch.experts_of(token)).copied().collect(),
        topk_weights: tokens.iter().flat_map(|&token| batch.weights_of(token)).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_distinct_ascending_and_end_with_the_last() {
        for (count, most) in [(0, 3), (3, 3), (4, 3), (100, 7), (1000, 999), (9, 1)] {
            let tokens = spread(count, most);
            assert_eq!(tokens.len(), count.min(most));
            assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
            assert_eq!(tokens.last().copied(), count.checked_sub(1));
        }
    }
}
