//! Tokens as they are before and after dispatch.

use super::quantize::{Quantized, quantize, quantize_ue8m0};
use super::row::{row_bytes, scale_words};
use super::{OracleError, Placement};
use crate::{Element, Half};
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

/// Bytes that travel with every token beside its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Bytes of a token.
    pub bytes: usize,
    /// `[tokens, bytes]`, or `[received, bytes]`.
    pub data: Vec<u8>,
}

impl Side {
    /// One token's bytes.
    pub fn of(&self, token: usize) -> &[u8] {
        nth(&self.data, token, self.bytes)
    }
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
    /// What groups of elements are multiplied by, as [`Element`] says: bits of f32, or packed UE8M0:
    /// `[tokens, scale_words]`.
    pub scales: Vec<u32>,
    /// What else travels with a token.
    pub sides: Vec<Side>,
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
    /// The scales that came with the rows: `[received, scale_words]`.
    pub scales: Vec<u32>,
    /// What else came with them.
    pub sides: Vec<Side>,
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
    /// Rows for which there was no room.
    pub dropped: u32,
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

    /// A batch of the bf16 rows `x`, `[tokens, hidden]`, as f16.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn f16(x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        let rows = x.iter().flat_map(|value| Half::F16.round(value.to_f32()).to_le_bytes()).collect();
        Self::new(Element::F16, hidden, rows, Vec::new(), routing)
    }

    /// A batch of the bf16 rows `x`, `[tokens, hidden]`, as FP8 e4m3 with f32 scales.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn fp8(x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        let Quantized { rows, scales } = quantize(x, hidden)?;
        Self::new(Element::Fp8E4m3, hidden, rows, scales, routing)
    }

    /// A batch of the bf16 rows `x`, `[tokens, hidden]`, as FP8 e4m3 with UE8M0 scales.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn fp8_ue8m0(x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        let Quantized { rows, scales } = quantize_ue8m0(x, hidden)?;
        Self::new(Element::Fp8E4m3Ue8m0, hidden, rows, scales, routing)
    }

    /// A batch of rows of any bytes, `[tokens, row_bytes]`, with any scales, `[tokens, scale_words]`. Combined rows have
    /// `hidden` elements.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn opaque(
        rows: Vec<u8>,
        row_bytes: u32,
        scales: Vec<u32>,
        scale_words: u32,
        hidden: usize,
        routing: Routing,
    ) -> Result<Self, OracleError> {
        Self::new(Element::Opaque { row_bytes, scale_words }, hidden, rows, scales, routing)
    }

    /// A batch of the bf16 rows `x`, `[tokens, hidden]`, as `element`; opaque ones are `x`'s own bytes over again, and
    /// words made of them.
    ///
    /// # Errors
    /// [`OracleError`] if rows are not a multiple of 16 bytes or lengths do not agree.
    pub fn of(element: Element, x: &[bf16], hidden: usize, routing: Routing) -> Result<Self, OracleError> {
        match element {
            Element::Bf16 => Self::bf16(x, hidden, routing),
            Element::F16 => Self::f16(x, hidden, routing),
            Element::Fp8E4m3 => Self::fp8(x, hidden, routing),
            Element::Fp8E4m3Ue8m0 => Self::fp8_ue8m0(x, hidden, routing),
            Element::Opaque { row_bytes, scale_words } => {
                let tokens = x.len().checked_div(hidden).unwrap_or(0);
                let bytes = || x.iter().flat_map(|value| value.to_le_bytes()).cycle();
                let rows = bytes().take(tokens * row_bytes as usize).collect();
                let words =
                    x.iter().cycle().map(|value| u32::from(value.to_bits()).wrapping_mul(0x0001_0203));
                let scales = words.take(tokens * scale_words as usize).collect();
                Self::opaque(rows, row_bytes, scales, scale_words, hidden, routing)
            }
        }
    }

    fn new(
        element: Element,
        hidden: usize,
        rows: Vec<u8>,
        scales: Vec<u32>,
        routing: Routing,
    ) -> Result<Self, OracleError> {
        let Routing { topk, topk_idx, topk_weights } = routing;
        let tokens = topk_idx.len().checked_div(topk).unwrap_or(0);
        let sides = Vec::new();
        let batch = Self { tokens, hidden, element, rows, scales, sides, topk, topk_idx, topk_weights };
        batch.check_lengths()?;
        Ok(batch)
    }

    /// The batch with `sides` beside its rows.
    ///
    /// # Errors
    /// [`OracleError::Length`] if one has not its bytes for every token.
    pub fn with_sides(self, sides: Vec<Side>) -> Result<Self, OracleError> {
        let batch = Self { sides, ..self };
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
        if self.hidden == 0 || self.row_bytes() == 0 || !self.row_bytes().is_multiple_of(16) {
            let limit = "a row must be a multiple of 16 bytes, and not empty";
            return Err(OracleError::Size { field: "hidden", value: self.hidden, limit });
        }
        let sides = self.sides.iter().map(|side| ("sides", side.data.len(), side.bytes));
        let arrays = [
            ("rows", self.rows.len(), self.row_bytes()),
            ("scales", self.scales.len(), self.scale_words()),
            ("topk_idx", self.topk_idx.len(), self.topk),
            ("topk_weights", self.topk_weights.len(), self.topk),
        ];
        for (field, value, each) in arrays.into_iter().chain(sides) {
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

    /// Words of scales of a row.
    pub fn scale_words(&self) -> usize {
        scale_words(self.element, self.hidden)
    }

    /// The bytes of one token's row.
    pub fn row(&self, token: usize) -> &[u8] {
        nth(&self.rows, token, self.row_bytes())
    }

    /// One token's scales.
    pub fn scales_of(&self, token: usize) -> &[u32] {
        nth(&self.scales, token, self.scale_words())
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
    pub fn scales_of(&self, row: usize) -> &[u32] {
        nth(&self.scales, row, scale_words(self.element, self.hidden))
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
pub fn nth<T>(array: &[T], index: usize, width: usize) -> &[T] {
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
        let sides = vec![Side { bytes: 3, data: vec![0; 5] }];
        let batch = TokenBatch::bf16(&x, 8, routing(1, &[0, 1]))?;
        assert_eq!(says(batch.with_sides(sides)), "sides has 5 elements, but must have 6");
        let opaque = TokenBatch::opaque(vec![0; 64], 32, vec![0; 5], 3, 8, routing(1, &[0, 1]));
        assert_eq!(says(opaque), "scales has 5 elements, but must have 6");
        Ok(())
    }
}
