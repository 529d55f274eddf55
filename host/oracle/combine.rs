//! What combine must deliver.

use super::{Placement, TokenBatch, f32_to_bf16};
use half::bf16;

/// The sums that come back to the tokens of every rank, `[tokens, hidden]` each.
///
/// `outputs[r]` are the rows that rank r's experts made of what it received. A token's rows are added in f32, by
/// ascending rank, and rounded once. The sum begins with the first row, not with 0, so a lone −0 stays. A token that
/// went nowhere gives 0.
///
/// # Panics
/// If there is not one batch and one output a rank, or an output is too short.
pub fn combine(outputs: &[Vec<bf16>], batches: &[TokenBatch], placement: &Placement) -> Vec<Vec<bf16>> {
    assert_eq!((outputs.len(), batches.len()), (placement.ranks(), placement.ranks()), "one of each a rank");
    let mut next_row = vec![0; placement.ranks()];
    batches.iter().map(|batch| sums(outputs, batch, placement, &mut next_row)).collect()
}

/// One source's share. `next_row[r]` is the first row on rank r that is not yet summed: rows lie there by source rank,
/// then by token, which is the order they are asked for.
fn sums(
    outputs: &[Vec<bf16>],
    batch: &TokenBatch,
    placement: &Placement,
    next_row: &mut [usize],
) -> Vec<bf16> {
    let hidden = batch.hidden;
    let mut combined = Vec::with_capacity(batch.tokens * hidden);
    for token in 0..batch.tokens {
        let mut sum: Option<Vec<f32>> = None;
        for rank in (0..placement.ranks()).filter(|&rank| placement.goes_to(batch.experts_of(token), rank)) {
            let output = &outputs[rank][next_row[rank] * hidden..][..hidden];
            next_row[rank] += 1;
            match &mut sum {
                None => sum = Some(output.iter().map(|value| value.to_f32()).collect()),
                Some(sum) => sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += value.to_f32()),
            }
        }
        combined.extend(sum.unwrap_or_else(|| vec![0.0; hidden]).into_iter().map(f32_to_bf16));
    }
    combined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleError, Routing};

    #[test]
    fn sums_are_f32_in_rank_order_and_rounded_once() -> Result<(), OracleError> {
        let placement = Placement::new(3, 3)?;
        let routing =
            |topk_idx: Vec<i32>| Routing { topk: 3, topk_weights: vec![1.0; topk_idx.len()], topk_idx };
        let batches = [
            // Slot order must not matter; the second token goes nowhere, the third to rank 1 only.
            TokenBatch::bf16(&[bf16::ONE; 24], 8, routing(vec![2, 0, 1, -1, -1, -1, 1, -1, 1]))?,
            TokenBatch::bf16(&[], 8, routing(vec![]))?,
            TokenBatch::bf16(&[], 8, routing(vec![]))?,
        ];
        let rows = |values: &[f32]| values.iter().flat_map(|&value| [bf16::from_f32(value); 8]).collect();
        let big = f32::from_bits((127 + 30) << 23);
        // (2^30 − 2^30) + 1: with the 1 added before the other two have met, the sum is 0. The lone −0 keeps its sign.
        let outputs = [rows(&[big]), rows(&[-big, -0.0]), rows(&[1.0])];
        let combined = combine(&outputs, &batches, &placement);
        let bits: Vec<u16> = combined[0].iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [[0x3f80; 8], [0x0000; 8], [0x8000; 8]].concat());
        // 1 + 2^-8 + 2^-9 rounds to 1 + 2^-7; rounded after each sum it would stay 1.
        let outputs = [rows(&[1.0]), rows(&[0.00390625, 0.0]), rows(&[0.001953125])];
        assert_eq!(combine(&outputs, &batches, &placement)[0][0], bf16::from_f32(1.0078125));
        Ok(())
    }
}
