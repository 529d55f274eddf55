//! Received rows once more, by expert, as a grouped GEMM reads them.

use super::Received;
use super::row::{row_bytes, scale_words};
use super::tensor::nth;
use crate::{Element, Half};

/// A rank's rows by expert: one for every (received row, slot) with an expert of this rank.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertMajor {
    /// Elements of a row.
    pub hidden: usize,
    /// What the elements are.
    pub element: Element,
    /// By expert, then by received row, then by slot: `[rows, hidden]`. Padding is 0.
    pub rows: Vec<u8>,
    /// `[rows, scale_words]`. Padding is 0.
    pub scales: Vec<u32>,
    /// Weight of the slot that the row stands for, 0 for padding.
    pub weights: Vec<f32>,
    /// Expert of each row, counted from this rank's first, −1 for padding.
    pub expert_of_row: Vec<i32>,
    /// The received row that each is a copy of, −1 for padding.
    pub source_row: Vec<i32>,
    /// First row of each expert, then the number of rows, all with padding: `[local experts + 1]`.
    pub starts: Vec<u32>,
    /// Rows of each expert, without padding: `[local experts]`.
    pub counts: Vec<u32>,
    /// The row of each slot, −1 for none: `[received, topk]`.
    pub positions: Vec<i32>,
    /// Slots for whose rows there was no room.
    pub dropped: u32,
}

impl ExpertMajor {
    /// Number of rows, with padding.
    pub fn len(&self) -> usize {
        self.expert_of_row.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.expert_of_row.is_empty()
    }

    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        nth(&self.rows, row, row_bytes(self.element, self.hidden))
    }

    /// One row's scales.
    pub fn scales_of(&self, row: usize) -> &[u32] {
        nth(&self.scales, row, scale_words(self.element, self.hidden))
    }
}

/// The received rows by expert. Each expert's rows begin at a multiple of `alignment`; so does what would come after the
/// last's. With a `capacity`, rows from that one on are dropped.
///
/// # Panics
/// If a row names an expert that is not below `local_experts`, or `alignment` is 0.
pub fn expert_major(
    received: &Received,
    local_experts: usize,
    alignment: usize,
    capacity: Option<usize>,
) -> ExpertMajor {
    let limit = |row: usize| capacity.map_or(row, |capacity| row.min(capacity));
    let mut pairs = vec![0usize; local_experts];
    for &expert in received.topk_idx.iter().filter(|&&expert| expert >= 0) {
        pairs[expert as usize] += 1;
    }
    let mut starts = vec![0];
    for (expert, pairs) in pairs.iter().enumerate() {
        starts.push((starts[expert] + pairs).next_multiple_of(alignment));
    }
    let rows = limit(starts[local_experts]);
    let (bytes, words) =
        (row_bytes(received.element, received.hidden), scale_words(received.element, received.hidden));
    let mut by_expert = ExpertMajor {
        hidden: received.hidden,
        element: received.element,
        rows: vec![0; rows * bytes],
        scales: vec![0; rows * words],
        weights: vec![0.0; rows],
        expert_of_row: vec![-1; rows],
        source_row: vec![-1; rows],
        starts: starts.iter().map(|&start| limit(start) as u32).collect(),
        counts: vec![0; local_experts],
        positions: vec![-1; received.topk_idx.len()],
        dropped: 0,
    };
    let mut next = starts;
    for (at, &expert) in received.topk_idx.iter().enumerate().filter(|&(_, &expert)| expert >= 0) {
        let (row, position) = (at / received.topk, next[expert as usize]);
        next[expert as usize] += 1;
        if position >= rows {
            by_expert.dropped += 1;
            continue;
        }
        by_expert.rows[position * bytes..][..bytes].copy_from_slice(received.row(row));
        by_expert.scales[position * words..][..words].copy_from_slice(received.scales_of(row));
        by_expert.weights[position] = received.topk_weights[at];
        by_expert.expert_of_row[position] = expert;
        by_expert.source_row[position] = row as i32;
        by_expert.counts[expert as usize] += 1;
        by_expert.positions[at] = position as i32;
    }
    by_expert
}

/// One row for each received row again: the sum, over its slots that have a row, in slot order, of weight · output, or
/// of the outputs alone; `[received, hidden]`.
///
/// `outputs` are `[rows, hidden]`, `positions` and `weights` `[received, topk]`. Each product is rounded to f32, sums
/// begin with the first, and are rounded to `half` once. Without any slot the row is 0.
///
/// # Panics
/// If `topk` is 0, or an array is too short.
pub fn reduce(
    outputs: &[u16],
    positions: &[i32],
    weights: Option<&[f32]>,
    topk: usize,
    hidden: usize,
    half: Half,
) -> Vec<u16> {
    let mut reduced = Vec::with_capacity(positions.len() / topk * hidden);
    for (row, positions) in positions.chunks(topk).enumerate() {
        let chosen: Vec<(usize, &[u16])> = positions
            .iter()
            .enumerate()
            .filter(|&(_, &position)| position >= 0)
            .map(|(slot, &position)| (slot, nth(outputs, position as usize, hidden)))
            .collect();
        reduced.extend((0..hidden).map(|at| {
            let terms = chosen.iter().map(|&(slot, output)| {
                let output = half.to_f32(output[at]);
                weights.map_or(output, |weights| weights[row * topk + slot] * output)
            });
            half.round(terms.reduce(|sum, term| sum + term).unwrap_or(0.0))
        }));
    }
    reduced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleError, Placement, Routing, TokenBatch, dispatch};
    use half::bf16;

    /// A rank with three experts and three rows of 1, 2 and 3; the middle expert has no pair, the last has three.
    fn received() -> Result<Received, OracleError> {
        let x: Vec<bf16> = (0..24).map(|at| bf16::from_f32((at / 8 + 1) as f32)).collect();
        let routing = Routing {
            topk: 2,
            topk_idx: vec![2, 0, 2, -1, 0, 2],
            topk_weights: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        };
        let batch = TokenBatch::bf16(&x, 8, routing)?;
        Ok(dispatch(&[batch], &Placement::new(1, 3)?, None).swap_remove(0))
    }

    fn firsts(by_expert: &ExpertMajor) -> Vec<f32> {
        let first = |row| bf16::from_le_bytes([by_expert.row(row)[0], by_expert.row(row)[1]]).to_f32();
        (0..by_expert.len()).map(first).collect()
    }

    #[test]
    fn by_hand() -> Result<(), OracleError> {
        let by_expert = expert_major(&received()?, 3, 4, None);
        assert_eq!(by_expert.starts, [0, 4, 4, 8]);
        assert_eq!(by_expert.counts, [2, 0, 3]);
        assert_eq!(by_expert.expert_of_row, [0, 0, -1, -1, 2, 2, 2, -1]);
        assert_eq!(by_expert.source_row, [0, 2, -1, -1, 0, 1, 2, -1]);
        assert_eq!(by_expert.weights, [2.0, 5.0, 0.0, 0.0, 1.0, 3.0, 6.0, 0.0]);
        assert_eq!(by_expert.positions, [4, 0, 5, -1, 1, 6]);
        assert_eq!(firsts(&by_expert), [1.0, 3.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.0]);
        assert_eq!(by_expert.dropped, 0);

        let close = expert_major(&received()?, 3, 1, Some(5));
        assert_eq!(
            (close.starts.as_slice(), close.positions.as_slice()),
            (&[0, 2, 2, 5][..], &[2, 0, 3, -1, 1, 4][..])
        );
        Ok(())
    }

    #[test]
    fn what_has_no_room_is_dropped() -> Result<(), OracleError> {
        let by_expert = expert_major(&received()?, 3, 4, Some(6));
        assert_eq!((by_expert.len(), by_expert.dropped), (6, 1));
        assert_eq!(by_expert.starts, [0, 4, 4, 6]);
        assert_eq!(by_expert.counts, [2, 0, 2]);
        assert_eq!(by_expert.positions, [4, 0, 5, -1, 1, -1]);
        let none = expert_major(&received()?, 3, 4, Some(0));
        assert_eq!((none.is_empty(), none.dropped, none.starts), (true, 5, vec![0; 4]));
        Ok(())
    }

    #[test]
    fn scales_go_along() -> Result<(), OracleError> {
        let routing = Routing { topk: 1, topk_idx: vec![1, 0], topk_weights: vec![1.0; 2] };
        let rows = (0..32).collect();
        let batch = TokenBatch::opaque(rows, 16, vec![7, 8, 9, 10], 2, 8, routing)?;
        let received = dispatch(&[batch], &Placement::new(1, 2)?, None);
        let by_expert = expert_major(&received[0], 2, 2, None);
        assert_eq!(by_expert.scales, [9, 10, 0, 0, 7, 8, 0, 0]);
        assert_eq!(by_expert.rows[..32], [(16..32).collect::<Vec<u8>>(), vec![0; 16]].concat());
        Ok(())
    }

    #[test]
    fn reduced_by_hand() {
        let bits = |value: f32| Half::Bf16.round(value);
        let outputs = [1.0, -2.0, 4.0, -0.0].map(bits);
        let positions = [2, 0, -1, 1, -1, -1, 3, -1];
        let weights = [0.5, 3.0, 9.0, 0.25, 9.0, 9.0, 2.0, 9.0];
        let reduced = reduce(&outputs, &positions, Some(&weights), 2, 1, Half::Bf16);
        assert_eq!(reduced, [5.0, -0.5, 0.0, -0.0].map(bits));
        assert_eq!(reduce(&outputs, &positions, None, 2, 1, Half::Bf16), [5.0, -2.0, 0.0, -0.0].map(bits));
    }

    #[test]
    fn reduced_in_slot_order_and_rounded_once() {
        let bits = |value: f32| Half::Bf16.round(value);
        let big = f32::from_bits((127 + 30) << 23);
        let outputs = [big, -big, 1.0].map(bits);
        let reduced = |positions| reduce(&outputs, positions, None, 3, 1, Half::Bf16);
        assert_eq!(reduced(&[0, 1, 2, 0, 2, 1]), [1.0, 0.0].map(bits));
        let outputs = [1.0, 0.00390625, 0.001953125].map(bits);
        assert_eq!(reduce(&outputs, &[0, 1, 2], None, 3, 1, Half::Bf16), [bits(1.0078125)]);
    }
}
