//! What combine must deliver.

use super::tensor::nth;
use super::{Placement, TokenBatch};
use crate::Half;

/// The sums that come back to the tokens of every rank, `[tokens, hidden]` each.
///
/// `outputs[r]` are the rows that rank r's experts made of what it received, with the `capacity` that it had. A token's
/// rows are added in f32, by ascending rank, then the biases, up to two and each `[tokens, hidden]` for every rank, in
/// their order; the sum is rounded once. It begins with the first row, not with 0, so a lone −0 stays. A token none of
/// whose rows arrived begins with 0.
///
/// # Panics
/// If there is not one batch, output and bias a rank, or an output or a bias is too short.
pub fn combine(
    outputs: &[Vec<u16>],
    batches: &[TokenBatch],
    placement: &Placement,
    half: Half,
    biases: &[Vec<Vec<u16>>],
    capacity: Option<usize>,
) -> Vec<Vec<u16>> {
    combine_on_nodes(outputs, batches, placement, placement.ranks(), half, biases, capacity)
}

/// The sums of [`combine`] where node n has the `ranks_per_node` ranks from n · `ranks_per_node` on and ranks of other nodes
/// are reached through a proxy.
///
/// What a node other than the token's own holds of it is added there, in f32 and by ascending rank, and rounded once: its
/// partial. The token's sum is made in f32, by ascending node: of its own node each rank's row is added by itself, by
/// ascending rank, of another the partial; then the biases. It begins with the first of these, and is rounded once.
///
/// # Panics
/// As [`combine`], and if `ranks_per_node` is 0.
pub fn combine_on_nodes(
    outputs: &[Vec<u16>],
    batches: &[TokenBatch],
    placement: &Placement,
    ranks_per_node: usize,
    half: Half,
    biases: &[Vec<Vec<u16>>],
    capacity: Option<usize>,
) -> Vec<Vec<u16>> {
    assert_eq!(outputs.len(), placement.ranks(), "one output a rank");
    let node = |rank: usize| rank / ranks_per_node;
    let ranks = routes(batches, placement, capacity).into_iter().zip(batches).enumerate();
    ranks
        .map(|(source, (routes, batch))| {
            let row = |array: &[u16], row| -> Vec<f32> {
                nth(array, row, batch.hidden).iter().map(|&bits| half.to_f32(bits)).collect()
            };
            let tokens = routes.into_iter().enumerate().flat_map(|(token, route)| {
                let parts = route.chunk_by(|&(a, _), &(b, _)| node(a) == node(b)).flat_map(|of_node| {
                    let rows = of_node.iter().map(|&(rank, at)| row(&outputs[rank], at));
                    if node(of_node[0].0) == node(source) {
                        return rows.collect::<Vec<_>>();
                    }
                    let partial = add_up(rows).unwrap_or_default();
                    vec![partial.into_iter().map(|sum| half.to_f32(half.round(sum))).collect()]
                });
                let parts = parts.collect::<Vec<_>>();
                let none = parts.is_empty().then(|| vec![0.0; batch.hidden]);
                let biases = biases.iter().map(|bias| row(&bias[source], token));
                let sums = add_up(none.into_iter().chain(parts).chain(biases)).unwrap_or_default();
                sums.into_iter().map(|sum| half.round(sum))
            });
            tokens.collect()
        })
        .collect()
}

/// The sum of rows, which begins with the first; `None` without any.
fn add_up(rows: impl Iterator<Item = Vec<f32>>) -> Option<Vec<f32>> {
    rows.reduce(|mut sums, row| {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        sums
    })
}

/// The number that comes back to each slot of the tokens of every rank, `[tokens, topk]` each.
///
/// `weights[r]` are `[received, topk]` on rank r. A slot gets what lies in its own place in the token's row on the rank
/// that owns its expert; 0 if the slot is empty or the row was dropped.
///
/// # Panics
/// If there is not one batch and array of weights a rank, or one is too short.
pub fn combine_weights(
    weights: &[Vec<f32>],
    batches: &[TokenBatch],
    placement: &Placement,
    capacity: Option<usize>,
) -> Vec<Vec<f32>> {
    assert_eq!(weights.len(), placement.ranks(), "one array of weights a rank");
    let ranks = routes(batches, placement, capacity).into_iter().zip(batches);
    ranks
        .map(|(routes, batch)| {
            let mut combined = Vec::with_capacity(batch.topk_idx.len());
            for (token, route) in routes.iter().enumerate() {
                for (slot, &expert) in batch.experts_of(token).iter().enumerate() {
                    let owner = usize::try_from(expert).ok().map(|expert| placement.rank_of(expert));
                    let there = route.iter().find(|&&(rank, _)| Some(rank) == owner);
                    combined
                        .push(there.map_or(0.0, |&(rank, row)| nth(&weights[rank], row, batch.topk)[slot]));
                }
            }
            combined
        })
        .collect()
}

/// For every token of every source the rows that it has, as (rank, row there), by ascending rank; those that were
/// dropped are not among them.
fn routes(
    batches: &[TokenBatch],
    placement: &Placement,
    capacity: Option<usize>,
) -> Vec<Vec<Vec<(usize, usize)>>> {
    assert_eq!(batches.len(), placement.ranks(), "one batch a rank");
    // Rows lie by source rank, then by token, which is the order they are counted in here.
    let mut next_row = vec![0; placement.ranks()];
    let mut route = |experts: &[i32]| {
        let mut rows = Vec::new();
        for rank in (0..placement.ranks()).filter(|&rank| placement.goes_to(experts, rank)) {
            if capacity.is_none_or(|capacity| next_row[rank] < capacity) {
                rows.push((rank, next_row[rank]));
                next_row[rank] += 1;
            }
        }
        rows
    };
    let of = |batch: &TokenBatch| (0..batch.tokens).map(|token| route(batch.experts_of(token))).collect();
    batches.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleError, Routing};
    use half::{bf16, f16};

    fn routing(topk: usize, topk_idx: Vec<i32>) -> Routing {
        Routing { topk, topk_weights: vec![1.0; topk_idx.len()], topk_idx }
    }

    /// A row of 8 for each value.
    fn rows(values: &[f32]) -> Vec<u16> {
        values.iter().flat_map(|&value| [Half::Bf16.round(value); 8]).collect()
    }

    /// Three ranks with an expert each. The first has three tokens: one that goes everywhere, one that goes nowhere, and
    /// one for rank 1 only. Slot order must not matter.
    fn example() -> Result<(Vec<TokenBatch>, Placement), OracleError> {
        let batches = vec![
            TokenBatch::bf16(&[bf16::ONE; 24], 8, routing(3, vec![2, 0, 1, -1, -1, -1, 1, -1, 1]))?,
            TokenBatch::bf16(&[], 8, routing(3, vec![]))?,
            TokenBatch::bf16(&[], 8, routing(3, vec![]))?,
        ];
        Ok((batches, Placement::new(3, 3)?))
    }

    #[test]
    fn sums_are_f32_in_rank_order_and_rounded_once() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let combine = |outputs: &[Vec<u16>]| combine(outputs, &batches, &placement, Half::Bf16, &[], None);
        let big = f32::from_bits((127 + 30) << 23);
        // (2^30 − 2^30) + 1: with the 1 added before the other two have met, the sum is 0. The lone −0 keeps its sign.
        let combined = combine(&[rows(&[big]), rows(&[-big, -0.0]), rows(&[1.0])]);
        assert_eq!(combined[0], [[0x3f80; 8], [0x0000; 8], [0x8000; 8]].concat());
        // 1 + 2^-8 + 2^-9 rounds to 1 + 2^-7; rounded after each sum it would stay 1.
        let combined = combine(&[rows(&[1.0]), rows(&[0.00390625, 0.0]), rows(&[0.001953125])]);
        assert_eq!(combined[0][..8], rows(&[1.0078125]));
        Ok(())
    }

    #[test]
    fn f16_sums() -> Result<(), OracleError> {
        let placement = Placement::new(2, 2)?;
        let batches = [
            TokenBatch::f16(&[bf16::ONE; 8], 8, routing(2, vec![0, 1]))?,
            TokenBatch::f16(&[], 8, routing(2, vec![]))?,
        ];
        // 2048 + 1.5 is halfway to nothing: 2050 is nearest, and bf16 would have none of it.
        let outputs = [2048.0, 1.5].map(|value| vec![f16::from_f32(value).to_bits(); 8]);
        let combined = combine(&outputs, &batches, &placement, Half::F16, &[], None);
        assert_eq!(combined[0], [f16::from_f32(2050.0).to_bits(); 8]);
        Ok(())
    }

    #[test]
    fn what_another_node_holds_is_rounded_before_it_is_added() -> Result<(), OracleError> {
        // Four ranks with an expert each. Rank 2's token goes everywhere, and in the second place to its own node.
        let placement = Placement::new(4, 4)?;
        let none = || TokenBatch::bf16(&[], 8, routing(4, vec![]));
        let token = TokenBatch::bf16(&[bf16::ONE; 8], 8, routing(4, vec![3, 1, 0, 2]))?;
        let batches = [none()?, none()?, token, none()?];
        let (big, small) = (f32::from_bits((127 + 30) << 23), 0.00390625);
        let sum = |outputs: [f32; 4], per_node| {
            let outputs = outputs.map(|value| rows(&[value]));
            combine_on_nodes(&outputs, &batches, &placement, per_node, Half::Bf16, &[], None).swap_remove(2)
        };
        // 1 + 2^-8 rounds to 1, and 1 + 2^-8 to 1 again; in one sum it is 1 + 2^-7.
        assert_eq!(sum([1.0, small, small, 0.0], 2), rows(&[1.0]));
        assert_eq!(sum([1.0, small, small, 0.0], 4), rows(&[1.0078125]));
        // Its own node's rows are added one by one: 2^30 + (1 − 2^30) would be 0.
        assert_eq!(sum([0.0, big, -big, 1.0], 2), rows(&[1.0]));
        // A lone −0 of another node stays one.
        assert_eq!(sum([-0.0; 4], 1), rows(&[-0.0]));
        Ok(())
    }

    #[test]
    fn biases_come_last_and_in_order() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let big = f32::from_bits((127 + 30) << 23);
        let outputs = [rows(&[1.0]), rows(&[-big, -0.0]), rows(&[0.0])];
        let bias = |values: &[f32]| vec![rows(values), vec![], vec![]];
        let biases = [bias(&[big, -0.0, -0.0]), bias(&[3.0, -0.0, 2.0])];
        let combined =
            |biases| combine(&outputs, &batches, &placement, Half::Bf16, biases, None).swap_remove(0);
        // (1 − 2^30) loses the 1. Nothing but −0 added to 0 gives 0; −0 and −0 give −0.
        assert_eq!(combined(&biases[..1]), rows(&[0.0, 0.0, -0.0]));
        assert_eq!(combined(&biases), rows(&[3.0, 0.0, 2.0]));
        Ok(())
    }

    #[test]
    fn dropped_rows_are_not_summed() -> Result<(), OracleError> {
        let (mut batches, placement) = example()?;
        batches[1] = TokenBatch::bf16(&[bf16::ONE; 8], 8, routing(3, vec![0, 2, -1]))?;
        let outputs = [rows(&[1.0]), rows(&[2.0]), rows(&[4.0])];
        // Room for one row a rank: rank 0's last token finds none, nor does rank 1's only one.
        let combined = combine(&outputs, &batches, &placement, Half::Bf16, &[], Some(1));
        assert_eq!(combined, [rows(&[7.0, 0.0, 0.0]), rows(&[0.0]), vec![]]);
        Ok(())
    }

    #[test]
    fn weights_come_back_to_their_slots() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let weights = [vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0, 7.0, 8.0, 9.0], vec![10.0, 11.0, 12.0]];
        let combined = combine_weights(&weights, &batches, &placement, None);
        assert_eq!(combined, [vec![10.0, 2.0, 6.0, 0.0, 0.0, 0.0, 7.0, 0.0, 9.0], vec![], vec![]]);
        let combined = combine_weights(&weights, &batches, &placement, Some(1));
        assert_eq!(combined[0], [10.0, 2.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        Ok(())
    }
}
