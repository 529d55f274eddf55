//! What dispatch must deliver.

use super::{Placement, Received, TokenBatch};

/// How many tokens go where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens that go to each rank; a token counts once for a rank.
    pub tokens_per_rank: Vec<u32>,
    /// (token, slot) pairs of each expert.
    pub tokens_per_expert: Vec<u32>,
    /// Which token goes to which rank: `[tokens, ranks]`.
    pub is_token_in_rank: Vec<bool>,
}

/// The layout of one rank's tokens.
pub fn layout(batch: &TokenBatch, placement: &Placement) -> Layout {
    let mut layout = Layout {
        tokens_per_rank: vec![0; placement.ranks()],
        tokens_per_expert: vec![0; placement.experts()],
        is_token_in_rank: Vec::with_capacity(batch.tokens * placement.ranks()),
    };
    for token in 0..batch.tokens {
        let experts = batch.experts_of(token);
        for &expert in experts.iter().filter(|&&expert| expert >= 0) {
            layout.tokens_per_expert[expert as usize] += 1;
        }
        for rank in 0..placement.ranks() {
            let inside = placement.goes_to(experts, rank);
            layout.tokens_per_rank[rank] += u32::from(inside);
            layout.is_token_in_rank.push(inside);
        }
    }
    layout
}

/// What every rank holds after all have dispatched: `batches[r]` are the tokens of rank r.
///
/// # Panics
/// If there is not one batch a rank, or the batches differ in hidden size, element or slots.
pub fn dispatch(batches: &[TokenBatch], placement: &Placement) -> Vec<Received> {
    assert_eq!(batches.len(), placement.ranks(), "one batch a rank");
    (0..placement.ranks()).map(|rank| receive(batches, placement, rank)).collect()
}

fn receive(batches: &[TokenBatch], placement: &Placement, rank: usize) -> Received {
    let TokenBatch { hidden, element, topk, .. } = batches[0];
    let own = placement.experts_of(rank);
    let mut received = Received {
        rank,
        hidden,
        element,
        rows: Vec::new(),
        scales: Vec::new(),
        topk,
        topk_idx: Vec::new(),
        topk_weights: Vec::new(),
        source_rank: Vec::new(),
        source_token: Vec::new(),
        tokens_per_source: vec![0; placement.ranks()],
        tokens_per_expert: vec![0; own.len()],
    };
    for (source, batch) in batches.iter().enumerate() {
        assert_eq!(
            (batch.hidden, batch.element, batch.topk),
            (hidden, element, topk),
            "same shape on all ranks"
        );
        for token in (0..batch.tokens).filter(|&token| placement.goes_to(batch.experts_of(token), rank)) {
            received.rows.extend_from_slice(batch.row(token));
            received.scales.extend_from_slice(batch.row_scale_values(token));
            for (&expert, &weight) in batch.experts_of(token).iter().zip(batch.weights_of(token)) {
                if expert >= 0 && own.contains(&(expert as usize)) {
                    let local = expert as usize - own.start;
                    received.topk_idx.push(local as i32);
                    received.topk_weights.push(weight);
                    received.tokens_per_expert[local] += 1;
                } else {
                    received.topk_idx.push(-1);
                    received.topk_weights.push(0.0);
                }
            }
            received.source_rank.push(source as i32);
            received.source_token.push(token as i32);
            received.tokens_per_source[source] += 1;
        }
    }
    received
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleError, Routing};
    use half::bf16;

    /// Two ranks with two experts each; rank 0 has three tokens, rank 1 has one. Row t of rank r is all 10·r + t + 1.
    fn example() -> Result<(Vec<TokenBatch>, Placement), OracleError> {
        let batch = |rank: usize, topk_idx: &[i32]| {
            let tokens = topk_idx.len() / 2;
            let x: Vec<_> =
                (0..8 * tokens).map(|at| bf16::from_f32((10 * rank + at / 8 + 1) as f32)).collect();
            let topk_weights = (0..topk_idx.len()).map(|at| 0.25 + at as f32).collect();
            TokenBatch::bf16(&x, 8, Routing { topk: 2, topk_idx: topk_idx.to_vec(), topk_weights })
        };
        Ok((vec![batch(0, &[2, 0, 1, 1, -1, 3])?, batch(1, &[0, 1])?], Placement::new(2, 4)?))
    }

    #[test]
    fn layout_by_hand() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let layout = layout(&batches[0], &placement);
        assert_eq!(layout.tokens_per_rank, [2, 2]);
        assert_eq!(layout.tokens_per_expert, [1, 2, 1, 1]);
        assert_eq!(layout.is_token_in_rank, [true, true, true, false, false, true]);
        Ok(())
    }

    #[test]
    fn dispatch_by_hand() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let received = dispatch(&batches, &placement);
        let values = |received: &Received| -> Vec<f32> {
            let first = |row| bf16::from_le_bytes([received.row(row)[0], received.row(row)[1]]).to_f32();
            (0..received.tokens()).map(first).collect()
        };

        assert_eq!(values(&received[0]), [1.0, 2.0, 11.0]);
        assert_eq!(received[0].source_rank, [0, 0, 1]);
        assert_eq!(received[0].source_token, [0, 1, 0]);
        assert_eq!(received[0].topk_idx, [-1, 0, 1, 1, 0, 1]);
        assert_eq!(received[0].topk_weights, [0.0, 1.25, 2.25, 3.25, 0.25, 1.25]);
        assert_eq!(received[0].tokens_per_source, [2, 1]);
        // Token 1 names expert 1 twice: one row, two pairs.
        assert_eq!(received[0].tokens_per_expert, [2, 3]);

        assert_eq!(values(&received[1]), [1.0, 3.0]);
        assert_eq!(received[1].topk_idx, [0, -1, -1, 1]);
        assert_eq!(received[1].topk_weights, [0.25, 0.0, 0.0, 5.25]);
        assert_eq!(received[1].tokens_per_source, [2, 0]);
        assert_eq!(received[1].tokens_per_expert, [1, 1]);
        Ok(())
    }
}
