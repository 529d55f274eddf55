//! A known function in place of the experts' networks, simple enough to be recomputed anywhere.

use super::row::values;
use super::{ExpertMajor, Placement, Received};
use crate::Half;

/// The function in words.
pub const EXPERT_FUNCTION: &str = "expert e maps x to x * a + b with a = 1 + (e mod 7) / 8 and b = ((e mod 5) - 2) / 16; \
    a row's output is the sum over its slots, in slot order, of weight * expert(x), every operation rounded to f32, \
    and the sum, which starts at 0, rounded to the outputs' type";

/// Factor and addend of expert `e`, counted over all ranks: 1 + (e mod 7) / 8 and ((e mod 5) − 2) / 16, both exact.
pub fn expert_coefficients(expert: usize) -> (f32, f32) {
    (1.0 + (expert % 7) as f32 * 0.125, ((expert % 5) as f32 - 2.0) * 0.0625)
}

/// What a rank's experts make of the rows it received: `[received, hidden]`.
///
/// For every element the sum of weight · expert(x) over the rank's slots in slot order, starting at 0, each operation
/// rounded to f32, and the sum rounded to `half`.
///
/// # Panics
/// If rows are opaque.
pub fn experts(received: &Received, placement: &Placement, half: Half) -> Vec<u16> {
    let first = placement.experts_of(received.rank).start;
    let mut outputs = Vec::with_capacity(received.tokens() * received.hidden);
    for row in 0..received.tokens() {
        let chosen: Vec<(f32, f32, f32)> = received
            .experts_of(row)
            .iter()
            .zip(received.weights_of(row))
            .filter(|&(&local, _)| local >= 0)
            .map(|(&local, &weight)| {
                let (factor, addend) = expert_coefficients(first + local as usize);
                (weight, factor, addend)
            })
            .collect();
        let x = values(received.element, received.row(row), received.scales_of(row));
        outputs.extend(x.into_iter().map(|x| {
            let mut sum = 0.0;
            for &(weight, factor, addend) in &chosen {
                sum += weight * (x * factor + addend);
            }
            half.round(sum)
        }));
    }
    outputs
}

/// What a rank's experts make of rows that lie by expert, without weights: `[rows, hidden]`. Every operation is rounded
/// to f32, and the result to `half`. Padding rows give 0.
///
/// # Panics
/// If rows are opaque.
pub fn experts_by_expert(rows: &ExpertMajor, rank: usize, placement: &Placement, half: Half) -> Vec<u16> {
    let first = placement.experts_of(rank).start;
    let mut outputs = Vec::with_capacity(rows.len() * rows.hidden);
    for row in 0..rows.len() {
        match usize::try_from(rows.expert_of_row[row]) {
            Err(_) => outputs.extend(vec![0; rows.hidden]),
            Ok(local) => {
                let (factor, addend) = expert_coefficients(first + local);
                let x = values(rows.element, rows.row(row), rows.scales_of(row));
                outputs.extend(x.into_iter().map(|x| half.round(x * factor + addend)));
            }
        }
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Element;
    use crate::oracle::{OracleError, Routing, TokenBatch, dispatch, e4m3_to_f32, expert_major, f32_to_e4m3};
    use half::bf16;

    fn bits(value: f32) -> u16 {
        Half::Bf16.round(value)
    }

    #[test]
    fn by_hand() -> Result<(), OracleError> {
        // Experts 2 and 3 live on rank 1: factors 1.25 and 1.375, addends 0 and 0.0625.
        let placement = Placement::new(2, 4)?;
        let routing = |topk_idx: &[i32], topk_weights: &[f32]| Routing {
            topk: 3,
            topk_idx: topk_idx.to_vec(),
            topk_weights: topk_weights.to_vec(),
        };
        let batches = [
            TokenBatch::bf16(&[bf16::from_f32(2.0); 8], 8, routing(&[3, 0, 2], &[0.5, 100.0, 2.0]))?,
            TokenBatch::bf16(&[], 8, routing(&[], &[]))?,
        ];
        let received = dispatch(&batches, &placement, None);
        // 0.5 · (2 · 1.375 + 0.0625) + 2 · (2 · 1.25) = 6.40625
        assert_eq!(experts(&received[1], &placement, Half::Bf16), [bits(6.40625); 8]);
        // 100 · (2 · 1 − 0.125)
        assert_eq!(experts(&received[0], &placement, Half::Bf16), [bits(187.5); 8]);
        assert_eq!(experts(&received[0], &placement, Half::F16), [Half::F16.round(187.5); 8]);
        // Each expert by itself: 2 · 1.25 and 2 · 1.375 + 0.0625, with a row of padding after the first.
        let rows = expert_major(&received[1], 2, 2, None);
        let outputs = experts_by_expert(&rows, 1, &placement, Half::Bf16);
        assert_eq!(outputs, [2.5, 0.0, 2.8125, 0.0].map(|value| [bits(value); 8]).concat());
        Ok(())
    }

    /// Both sums are 0 when each operation is rounded, and are not with fused multiply-adds.
    #[test]
    fn each_operation_is_rounded() -> Result<(), OracleError> {
        let placement = Placement::new(1, 5)?;
        let x: Vec<bf16> = (0..16).map(|at| bf16::from_f32(1.0 + at as f32 / 128.0)).collect();
        let routing = Routing { topk: 2, topk_idx: vec![1, 1], topk_weights: vec![1.0 / 3.0, -1.0 / 3.0] };
        let received = dispatch(&[TokenBatch::bf16(&x, 16, routing)?], &placement, None);
        assert_eq!(experts(&received[0], &placement, Half::Bf16), [0; 16]);

        // Expert 4: −1/12 · 1.5 + 0.125, where 1/12 is inexact.
        let mut batch =
            TokenBatch::fp8(&x, 16, Routing { topk: 1, topk_idx: vec![4], topk_weights: vec![1.0] })?;
        batch.rows.fill(f32_to_e4m3(-1.0));
        batch.scales.fill((1.0f32 / 12.0).to_bits());
        let received = dispatch(&[batch], &placement, None);
        assert_eq!(experts(&received[0], &placement, Half::Bf16), [0; 16]);
        Ok(())
    }

    #[test]
    fn fp8_is_scaled_by_group() -> Result<(), OracleError> {
        // 128 channels around 1 and a short group of 16 around 1000: each has its own scale.
        let x: Vec<bf16> = (0..144).map(|at| bf16::from_f32(if at < 128 { 0.875 } else { 1000.0 })).collect();
        let routing = Routing { topk: 1, topk_idx: vec![2], topk_weights: vec![1.0] };
        let placement = Placement::new(1, 3)?;
        let received = dispatch(&[TokenBatch::fp8(&x, 144, routing)?], &placement, None);
        assert_eq!(received[0].scales, [0.875f32 / 448.0, 1000.0 / 448.0].map(f32::to_bits));
        assert!(received[0].rows.iter().all(|&code| e4m3_to_f32(code) == 448.0));
        let outputs = experts(&received[0], &placement, Half::Bf16);
        let expected = |scale: f32| bits(448.0 * scale * 1.25);
        assert_eq!(outputs[..128], [expected(0.875 / 448.0); 128]);
        assert_eq!(outputs[128..], [expected(1000.0 / 448.0); 16]);
        Ok(())
    }

    #[test]
    fn every_element_is_read() -> Result<(), OracleError> {
        // 3 is exact in all of them, also times a power of two that takes it near 448.
        let x = [bf16::from_f32(3.0); 640];
        let placement = Placement::new(1, 3)?;
        for element in [Element::Bf16, Element::F16, Element::Fp8E4m3Ue8m0] {
            let routing = Routing { topk: 1, topk_idx: vec![2], topk_weights: vec![1.0] };
            let received = dispatch(&[TokenBatch::of(element, &x, 640, routing)?], &placement, None);
            assert_eq!(experts(&received[0], &placement, Half::F16), [Half::F16.round(3.75); 640]);
        }
        Ok(())
    }
}
