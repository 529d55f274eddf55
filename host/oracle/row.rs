//! What a row of each element is made of.

use super::quantize::{SCALE_GROUP, dequantize};
use super::ue8m0_to_f32;
use crate::{Element, Half};

/// Bytes of a row of `hidden` elements.
pub fn row_bytes(element: Element, hidden: usize) -> usize {
    match element {
        Element::Bf16 | Element::F16 => 2 * hidden,
        Element::Fp8E4m3 | Element::Fp8E4m3Ue8m0 => hidden,
        Element::Opaque { row_bytes, .. } => row_bytes as usize,
    }
}

/// Words of scales of a row of `hidden` elements.
pub fn scale_words(element: Element, hidden: usize) -> usize {
    match element {
        Element::Bf16 | Element::F16 => 0,
        Element::Fp8E4m3 => hidden.div_ceil(SCALE_GROUP),
        Element::Fp8E4m3Ue8m0 => hidden.div_ceil(SCALE_GROUP).div_ceil(4),
        Element::Opaque { scale_words, .. } => scale_words as usize,
    }
}

/// The elements of a row as f32.
///
/// # Panics
/// If the row is opaque.
pub fn values(element: Element, row: &[u8], scales: &[u32]) -> Vec<f32> {
    let halves = |half: Half| {
        let pairs = row.as_chunks().0.iter();
        pairs.map(|&pair| half.to_f32(u16::from_le_bytes(pair))).collect()
    };
    let scaled = |scales: Vec<f32>| {
        let groups = row.chunks(SCALE_GROUP).zip(scales);
        groups.flat_map(|(codes, scale)| dequantize(codes, scale)).collect()
    };
    match element {
        Element::Bf16 => halves(Half::Bf16),
        Element::F16 => halves(Half::F16),
        Element::Fp8E4m3 => scaled(scales.iter().map(|&bits| f32::from_bits(bits)).collect()),
        Element::Fp8E4m3Ue8m0 => {
            scaled(scales.iter().flat_map(|word| word.to_le_bytes()).map(ue8m0_to_f32).collect())
        }
        Element::Opaque { .. } => panic!("opaque rows have no values"),
    }
}
