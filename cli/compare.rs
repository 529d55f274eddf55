//! Comparison of what a rank has with what it must have, bit for bit.

use half::{bf16, f16};
use std::fmt;
use tokenrail::{Element, Half};

/// The first place where a tensor is not what it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    rank: usize,
    tensor: &'static str,
    what: What,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    Length { found: usize, expected: usize },
    Element { row: usize, column: usize, found: String, expected: String, differing: usize, elements: usize },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {}: {} ", self.rank, self.tensor)?;
        match &self.what {
            What::Length { found, expected } => write!(f, "has {found} elements, expected {expected}"),
            What::Element { row, column, found, expected, differing, elements } => write!(
                f,
                "differs at row {row}, column {column}: {found}, expected {expected}; {differing} of {elements} \
                 elements differ"
            ),
        }
    }
}

/// An element of a tensor.
pub trait Value: Copy {
    /// Its bits: equal ones make equal values, also for NaN and zeros.
    fn bits(self) -> u32;
    /// For people.
    fn show(self) -> String;
}

macro_rules! integers {
    ($($ty:ty)*) => {$(
        impl Value for $ty {
            fn bits(self) -> u32 { self as u32 }
            fn show(self) -> String { self.to_string() }
        }
    )*};
}
integers! { u32 i32 }

/// An e4m3 code, or a truth value.
impl Value for u8 {
    fn bits(self) -> u32 {
        self.into()
    }
    fn show(self) -> String {
        format!("{self:#04x}")
    }
}

impl Value for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
    fn show(self) -> String {
        format!("{self} ({:#010x})", self.to_bits())
    }
}

macro_rules! halves {
    ($($ty:ty)*) => {$(
        impl Value for $ty {
            fn bits(self) -> u32 { self.to_bits().into() }
            fn show(self) -> String { format!("{self} ({:#06x})", self.to_bits()) }
        }
    )*};
}
halves! { bf16 f16 }

/// Compares the tensors of one rank.
pub struct Comparison {
    rank: usize,
    /// One for each tensor that differs.
    pub differences: Vec<Difference>,
}

impl Comparison {
    /// Nothing compared yet.
    pub fn new(rank: usize) -> Self {
        Self { rank, differences: Vec::new() }
    }

    /// Compares a tensor whose rows have `width` elements.
    pub fn tensor<T: Value>(&mut self, tensor: &'static str, width: usize, found: &[T], expected: &[T]) {
        let differs = |index: &usize| found[*index].bits() != expected[*index].bits();
        let what = if found.len() != expected.len() {
            What::Length { found: found.len(), expected: expected.len() }
        } else if let Some(first) = (0..found.len()).find(differs) {
            What::Element {
                row: first / width,
                column: first % width,
                found: found[first].show(),
                expected: expected[first].show(),
                differing: (first..found.len()).filter(differs).count(),
                elements: found.len(),
            }
        } else {
            return;
        };
        self.differences.push(Difference { rank: self.rank, tensor, what });
    }

    /// Compares rows of dispatched elements, which are held as bytes.
    pub fn rows(
        &mut self,
        tensor: &'static str,
        element: Element,
        hidden: usize,
        found: &[u8],
        expected: &[u8],
    ) {
        let half = match element {
            Element::Bf16 => Half::Bf16,
            Element::F16 => Half::F16,
            Element::Fp8E4m3 | Element::Fp8E4m3Ue8m0 => return self.tensor(tensor, hidden, found, expected),
            Element::Opaque { row_bytes, .. } => {
                return self.tensor(tensor, row_bytes as usize, found, expected);
            }
        };
        let bits = |bytes: &[u8]| -> Vec<u16> {
            bytes.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect()
        };
        // Equal rows, the rule, are not worth converting.
        if found != expected {
            self.halves(tensor, half, hidden, &bits(found), &bits(expected));
        }
    }

    /// Compares rows of 2-byte elements, which are held as their bits.
    pub fn halves(
        &mut self,
        tensor: &'static str,
        half: Half,
        hidden: usize,
        found: &[u16],
        expected: &[u16],
    ) {
        if found == expected {
            return;
        }
        match half {
            Half::Bf16 => {
                self.tensor(tensor, hidden, &of(found, bf16::from_bits), &of(expected, bf16::from_bits))
            }
            Half::F16 => {
                self.tensor(tensor, hidden, &of(found, f16::from_bits), &of(expected, f16::from_bits))
            }
        }
    }

    /// Compares the scales that go with rows of these elements.
    pub fn scales(
        &mut self,
        tensor: &'static str,
        element: Element,
        width: usize,
        found: &[u32],
        expected: &[u32],
    ) {
        match element {
            Element::Fp8E4m3 => {
                self.tensor(tensor, width, &of(found, f32::from_bits), &of(expected, f32::from_bits))
            }
            _ => self.tensor(tensor, width, found, expected),
        }
    }
}

fn of<T: Copy, U>(values: &[T], from: impl Fn(T) -> U) -> Vec<U> {
    values.iter().map(|&value| from(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(compare: impl FnOnce(&mut Comparison)) -> Vec<String> {
        let mut comparison = Comparison::new(3);
        compare(&mut comparison);
        comparison.differences.iter().map(Difference::to_string).collect()
    }

    #[test]
    fn first_difference_is_named() {
        let said = says(|compare| compare.tensor("recv_topk_idx", 2, &[1, 2, 3, 9, 9], &[1, 2, 3, -1, 5]));
        assert_eq!(
            said,
            ["rank 3: recv_topk_idx differs at row 1, column 1: 9, expected -1; 2 of 5 elements differ"]
        );
        let said = says(|compare| compare.rows("x", Element::Bf16, 2, &[0, 0, 0, 0x80], &[0, 0, 0, 0]));
        assert_eq!(
            said,
            [
                "rank 3: x differs at row 0, column 1: -0 (0x8000), expected 0 (0x0000); 1 of 2 elements differ"
            ]
        );
        let said = says(|compare| compare.rows("x", Element::F16, 1, &[0, 0x3c], &[0, 0x40]));
        assert_eq!(
            said,
            ["rank 3: x differs at row 0, column 0: 1 (0x3c00), expected 2 (0x4000); 1 of 1 elements differ"]
        );
        let said = says(|compare| compare.tensor("recv_source_rank", 1, &[1u32], &[1, 2]));
        assert_eq!(said, ["rank 3: recv_source_rank has 1 elements, expected 2"]);
    }

    #[test]
    fn bits_decide() {
        assert!(says(|compare| compare.tensor("nan", 1, &[f32::NAN], &[f32::NAN])).is_empty());
        assert_eq!(says(|compare| compare.tensor("zero", 1, &[0.0f32], &[-0.0])).len(), 1);
    }
}
