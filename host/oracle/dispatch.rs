//! What dispatch must deliver.

use super::{Placement, Received, Side, TokenBatch};

/// How many tokens go where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Tokens that go to each rank; a token counts once for a rank.
    pub tokens_per_rank: Vec<u32>,
    /// Tokens that go to each node; a token counts once for a node.
    pub tokens_per_node: Vec<u32>,
    /// (token, slot) pairs of each expert.
    pub tokens_per_expert: Vec<u32>,
    /// Which token goes to which rank: `[tokens, ranks]`.
    pub is_token_in_rank: Vec<bool>,
}

/// The layout of one rank's tokens. Node n has `ranks_per_node` ranks from n · `ranks_per_node` on.
///
/// # Panics
/// If `ranks_per_node` is 0.
pub fn layout(batch: &TokenBatch, placement: &Placement, ranks_per_node: usize) -> Layout {
    let mut layout = Layout {
        tokens_per_rank: vec![0; placement.ranks()],
        tokens_per_node: vec![0; placement.ranks().div_ceil(ranks_per_node)],
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
        let ranks = layout.is_token_in_rank[token * placement.ranks()..].chunks(ranks_per_node);
        for (ranks, tokens) in ranks.zip(&mut layout.tokens_per_node) {
            *tokens += u32::from(ranks.contains(&true));
        }
    }
    layout
}

/// What every rank holds after all have dispatched: `batches[r]` are the tokens of rank r. With a `capacity`, rows of a
/// rank from that one on are dropped, and counted in [`Received::dropped`] alone.
///
/// # Panics
/// If there is not one batch a rank, or the batches differ in hidden size, element, slots or sides.
pub fn dispatch(batches: &[TokenBatch], placement: &Placement, capacity: Option<usize>) -> Vec<Received> {
    assert_eq!(batches.len(), placement.ranks(), "one batch a rank");
    (0..placement.ranks()).map(|rank| receive(batches, placement, rank, capacity)).collect()
}

fn receive(batches: &[TokenBatch], placement: &Placement, rank: usize, capacity: Option<usize>) -> Received {
    let TokenBatch { hidden, element, topk, .. } = batches[0];
    let side_bytes = |batch: &TokenBatch| batch.sides.iter().map(|side| side.bytes).collect::<Vec<_>>();
    let own = placement.experts_of(rank);
    let mut received = Received {
        rank,
        hidden,
        element,
        rows: Vec::new(),
        scales: Vec::new(),
        sides: batches[0].sides.iter().map(|side| Side { bytes: side.bytes, data: Vec::new() }).collect(),
        topk,
        topk_idx: Vec::new(),
        topk_weights: Vec::new(),
        source_rank: Vec::new(),
        source_token: Vec::new(),
        tokens_per_source: vec![0; placement.ranks()],
        tokens_per_expert: vec![0; own.len()],
        dropped: 0,
    };
    for (source, batch) in batches.iter().enumerate() {
        assert_eq!(
            (batch.hidden, batch.element, batch.topk),
            (hidden, element, topk),
            "same shape on all ranks"
        );
        assert_eq!(side_bytes(batch), side_bytes(&batches[0]), "same sides on all ranks");
        for token in (0..batch.tokens).filter(|&token| placement.goes_to(batch.experts_of(token), rank)) {
            if capacity.is_some_and(|capacity| received.tokens() >= capacity) {
                received.dropped += 1;
                continue;
            }
            received.rows.extend_from_slice(batch.row(token));
            received.scales.extend_from_slice(batch.scales_of(token));
            for (to, from) in received.sides.iter_mut().zip(&batch.sides) {
                to.data.extend_from_slice(from.of(token));
            }
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
        let layout = layout(&batches[0], &placement, 1);
        assert_eq!(layout.tokens_per_rank, [2, 2]);
        assert_eq!(layout.tokens_per_node, [2, 2]);
        assert_eq!(layout.tokens_per_expert, [1, 2, 1, 1]);
        assert_eq!(layout.is_token_in_rank, [true, true, true, false, false, true]);
        Ok(())
    }

    #[test]
    fn dispatch_by_hand() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let received = dispatch(&batches, &placement, None);
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

    #[test]
    fn a_token_counts_once_for_a_node() -> Result<(), OracleError> {
        // Five ranks with an expert each; the last node has one rank.
        let placement = Placement::new(5, 5)?;
        let routing = Routing {
            topk: 3,
            topk_idx: vec![0, 1, 4, 2, 3, -1, 3, 1, 3, -1, -1, -1],
            topk_weights: vec![1.0; 12],
        };
        let batch = TokenBatch::bf16(&[bf16::ONE; 32], 8, routing)?;
        assert_eq!(layout(&batch, &placement, 2).tokens_per_node, [2, 2, 1]);
        assert_eq!(layout(&batch, &placement, 8).tokens_per_node, [3]);
        Ok(())
    }

    #[test]
    fn what_has_no_room_is_dropped() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let received = dispatch(&batches, &placement, Some(1));
        assert_eq!(
            (received[0].source_rank.as_slice(), received[0].source_token.as_slice()),
            (&[0][..], &[0][..])
        );
        assert_eq!(received[0].topk_idx, [-1, 0]);
        assert_eq!(received[0].tokens_per_source, [1, 0]);
        assert_eq!(received[0].tokens_per_expert, [1, 0]);
        assert_eq!((received[0].dropped, received[1].dropped), (2, 1));
        assert_eq!(dispatch(&batches, &placement, Some(3)), dispatch(&batches, &placement, None));
        assert_eq!(dispatch(&batches, &placement, Some(0))[0].tokens(), 0);
        Ok(())
    }

    #[test]
    fn sides_travel_with_their_tokens() -> Result<(), OracleError> {
        let (mut batches, placement) = example()?;
        for (batch, first) in batches.iter_mut().zip([10, 40]) {
            let data = (first..first + 3 * batch.tokens as u8).collect();
            let sides = vec![Side { bytes: 3, data }, Side { bytes: 0, data: Vec::new() }];
            *batch = batch.clone().with_sides(sides)?;
        }
        let received = dispatch(&batches, &placement, None);
        assert_eq!(received[0].sides[0].data, [10, 11, 12, 13, 14, 15, 40, 41, 42]);
        assert_eq!(received[1].sides[0].data, [10, 11, 12, 16, 17, 18]);
        assert_eq!(received[1].sides[1], Side { bytes: 0, data: Vec::new() });
        Ok(())
    }
}
