//! Tokens as they are before and after dispatch.

use super::quantize::{SCALE_GROUP, quantize};
use super::{OracleError, Placement};
use crate::Element;
use half::bf16;

/// The experts that a gate chose for some tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// Slots of a token.
    pub topk: usize,
    /// Expert of each slot, −1 for none: `[tokens, topk]`.
    pub topk_idx: Vec<i32>,
    /// Weight of each slot: `[tokens, topk]`.
    pub topk_weights: Vec<f32>,
}

/// The tokens of one rank before dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenBatch {
    /// Number of tokens; may be 0.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// What the elements are.
    pub element: Element,
    /// The elements, little-endian: `[tokens, hidden]`.
    pub rows: Vec<u8>,
    /// For [`Element::Fp8E4m3`], what a group of 128 channels is multiplied by: `[tokens, ceil(hidden / 128)]`.
    pub scales: Vec<f32>,
    /// Slots of a token.
    pub topk: usize,
    /// Expert of each slot, −1 for none: `[tokens, topk]`.
    pub topk_idx: Vec<i32>,
    /// Weight of each slot: `[tokens, topk]`.
    pub topk_weights: Vec<f32>,
}

/// What one rank holds after dispatch. A token has one row, however many of the rank's experts it selected.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The rank.
    pub rank: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// What the elements are.
    pub element: Element,
    /// The elements, by source rank, then by token: `[received, hidden]`.
    pub rows: Vec<u8>,
    /// The scales that came with the rows: `[received, ceil(hidden / 128)]`, or nothing.
    pub scales: Vec<f32>,
    /// Slots of a token.
    pub topk: usize,
    /// Expert of each slot, counted from this rank's first; −1 if the slot is empty or its expert is elsewhere:
    /// `[received, topk]`.
    pub topk_idx: Vec<i32>,
    /// Weight of each slot, 0 where `topk_idx` is −1: `[received, topk]`.
    pub topk_weights: Vec<f32>,
    /// The rank each row came from.
    pub source_rank: Vec<i32>,
    /// The token that each row was there.
    pub source_token: Vec<i32>,
    /// Rows from each rank.
    pub tokens_per_source: Vec<u32>,
    /// (row, slot) pairs of each of this rank's experts.
    pub tokens_per_expert: Vec<u32>,
}

/// Bytes of a row of `hidden` elements.
fn row_bytes(element: Element, hidden: usize) -> usize {
    match element {
        Element::Bf16 => 2 * hidden,
        Element::Fp8E4m3 => hidden,
    }
}

/// Scales of a row of `hidden` elements.
fn row_scales(element: Element, hidden: usize) -> usize {
    match element {
        Element::Bf16 => 0,
        Element::Fp8E4m3 => hidden.div_ceil(SCALE_GROUP),
    }
}

impl TokenBatch {
    /// A batch of bf16 rows `x`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn bf16(x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        let rows = x.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(Element::Bf16, hidden, rows, Vec::new(), routing)
    }

    /// A batch of the bf16 rows `x`, `[tokens, hidden]`, as FP8 e4m3 with scales.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn fp8(x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        let quantized = quantize(x, hidden)?;
        Self::new(Element::Fp8E4m3, hidden, quantized.rows, quantized.scales, routing)
    }

    fn new(
        element: Element,
        hidden: usize,
        rows: Vec<u8>,
        scales: Vec<f32>,
        routing: Routing,
    ) -> Result<Self, OracleError> {
        let Routing { topk, topk_idx, topk_weights } = routing;
        let tokens = topk_idx.len().checked_div(topk).unwrap_or(0);
        let batch = Self { tokens, hidden, element, rows, scales, topk, topk_idx, topk_weights };
        batch.check_lengths()?;
        Ok(batch)
    }

    /// Hands the batch back if its lengths agree and all its experts exist.
    ///
    /// # Errors
    /// [`OracleError`] with the first field that is wrong.
    pub fn check(self, placement: &Placement) -> Result<Self, OracleError> {
        self.check_lengths()?;
        for (index, &value) in self.topk_idx.iter().enumerate() {
            if value < -1 || value >= placement.experts() as i32 {
                let (token, slot) = (index / self.topk, index % self.topk);
                return Err(OracleError::ExpertOutOfRange {
                    token,
                    slot,
                    value,
                    experts: placement.experts(),
                });
            }
        }
        Ok(self)
    }

    fn check_lengths(&self) -> Result<(), OracleError> {
        if self.topk == 0 {
            return Err(OracleError::Size { field: "topk", value: 0, limit: "must be at least 1" });
        }
        if self.hidden == 0 || !self.row_bytes().is_multiple_of(16) {
            let limit = "a row must be a multiple of 16 bytes, and not empty";
            return Err(OracleError::Size { field: "hidden", value: self.hidden, limit });
        }
        for (field, value, each) in [
            ("rows", self.rows.len(), self.row_bytes()),
            ("scales", self.scales.len(), self.row_scales()),
            ("topk_idx", self.topk_idx.len(), self.topk),
            ("topk_weights", self.topk_weights.len(), self.topk),
        ] {
            let expected = self.tokens.saturating_mul(each);
            if value != expected {
                return Err(OracleError::Length { field, value, expected });
            }
        }
        Ok(())
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        row_bytes(self.element, self.hidden)
    }

    /// Scales of a row: 0 for bf16.
    pub fn row_scales(&self) -> usize {
        row_scales(self.element, self.hidden)
    }

    /// The bytes of one token's row.
    pub fn row(&self, token: usize) -> &[u8] {
        nth(&self.rows, token, self.row_bytes())
    }

    /// One token's scales.
    pub fn row_scale_values(&self, token: usize) -> &[f32] {
        nth(&self.scales, token, self.row_scales())
    }

    /// The experts of one token's slots.
    pub fn experts_of(&self, token: usize) -> &[i32] {
        nth(&self.topk_idx, token, self.topk)
    }

    /// The weights of one token's slots.
    pub fn weights_of(&self, token: usize) -> &[f32] {
        nth(&self.topk_weights, token, self.topk)
    }
}

impl Received {
    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.source_rank.len()
    }

    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        nth(&self.rows, row, row_bytes(self.element, self.hidden))
    }

    /// One row's scales.
    pub fn row_scale_values(&self, row: usize) -> &[f32] {
        nth(&self.scales, row, row_scales(self.element, self.hidden))
    }

    /// This rank's experts in one row's slots.
    pub fn experts_of(&self, row: usize) -> &[i32] {
        nth(&self.topk_idx, row, self.topk)
    }

    /// The weights of one row's slots.
    pub fn weights_of(&self, row: usize) -> &[f32] {
        nth(&self.topk_weights, row, self.topk)
    }
}

/// Row `index` of an array whose rows have `width` elements.
fn nth<T>(array: &[T], index: usize, width: usize) -> &[T] {
    &array[index * width..(index + 1) * width]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(topk: usize, topk_idx: &[i32]) -> Routing {
        Routing { topk, topk_idx: topk_idx.to_vec(), topk_weights: vec![0.5; topk_idx.len()] }
    }

    #[test]
    fn errors_name_field_value_and_limit() -> Result<(), OracleError> {
        let x = [bf16::ONE; 16];
        let says = |result: Result<TokenBatch, OracleError>| result.unwrap_err().to_string();
        assert_eq!(
            says(TokenBatch::bf16(&x[..12], 12, routing(1, &[0]))),
            "hidden = 12: a row must be a multiple of 16 bytes, and not empty"
        );
        assert_eq!(
            says(TokenBatch::bf16(&x[..8], 8, routing(1, &[0, 1]))),
            "rows has 16 elements, but must have 32"
        );
        assert_eq!(
            says(TokenBatch::bf16(&x, 8, routing(2, &[0, 1, 2]))),
            "rows has 32 elements, but must have 16"
        );
        assert_eq!(says(TokenBatch::bf16(&x, 8, routing(0, &[]))), "topk = 0: must be at least 1");
        let placement = Placement::new(2, 4)?;
        assert_eq!(
            says(TokenBatch::bf16(&x, 8, routing(2, &[0, 3, -1, 4]))?.check(&placement)),
            "topk_idx[1, 1] = 4: an expert id is −1 or below 4"
        );
        assert!(TokenBatch::bf16(&x, 8, routing(2, &[0, 3, -2, 1]))?.check(&placement).is_err());
        assert!(TokenBatch::fp8(&x, 8, routing(1, &[0, 1])).is_err(), "a row of 8 bytes");
        Ok(())
    }
}
