//! Rows in every format that the test experts read and write, and the function that they apply.

use crate::gpu::convert::{
    bf16x2_to_f32, e4m3_to_f32, f16x2_to_f32, f32_to_bf16x2, f32_to_f16x2, ue8m0_to_f32,
};
use crate::gpu::mem::{self, Address};
use crate::wire::SCALE_CHANNELS;

/// What the elements of a row are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bf16, without scales.
    Bf16 = 0,
    /// f16, without scales.
    F16 = 1,
    /// FP8 e4m3 with one f32 per 128 channels.
    E4m3 = 2,
    /// FP8 e4m3 with one UE8M0 byte per 128 channels, four a word, the first in the low byte.
    E4m3Ue8m0 = 3,
}

/// Rows to read.
///
/// Contract: the arrays are as described, aligned to 16 bytes; rows are whole multiples of 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Elements {
    /// `[rows, hidden]`.
    pub x: Address,
    /// Words of scales; null without.
    pub scales: Address,
    /// Elements of a row.
    pub hidden: u32,
    /// What they are.
    pub format: Format,
    /// Words from a row's scales to the next row's: word w of row r is at r · this + w · `scale_word_stride`.
    pub scale_row_stride: u32,
    /// Words from one word of a row's scales to the next.
    pub scale_word_stride: u32,
}

impl Elements {
    /// Elements 2 · `pair` and the next of a row, as f32.
    ///
    /// # Safety
    /// The struct's contract holds, and there is such a row and pair.
    pub unsafe fn load_pair(&self, row: u32, pair: u32) -> [f32; 2] {
        let at = row as u64 * (self.hidden / 2) as u64 + pair as u64;
        // SAFETY: the contract. A pair of codes is read as half of a word.
        unsafe {
            if self.format == Format::Bf16 {
                return bf16x2_to_f32(mem::load_u32(self.x.offset(4 * at)));
            }
            if self.format == Format::F16 {
                return f16x2_to_f32(mem::load_u32(self.x.offset(4 * at)));
            }
            let word = mem::load_u32(self.x.offset(2 * (at & !1)));
            let codes = if at & 1 == 0 { word } else { word >> 16 };
            let scale = self.scale(row, 2 * pair / SCALE_CHANNELS);
            [e4m3_to_f32(codes as u8) * scale, e4m3_to_f32((codes >> 8) as u8) * scale]
        }
    }

    /// What the codes of a group are multiplied by.
    unsafe fn scale(&self, row: u32, group: u32) -> f32 {
        let word = |word: u32| {
            let at = row as u64 * self.scale_row_stride as u64 + word as u64 * self.scale_word_stride as u64;
            // SAFETY: the contract.
            unsafe { mem::load_u32(self.scales.offset(4 * at)) }
        };
        if self.format == Format::E4m3 {
            return f32::from_bits(word(group));
        }
        ue8m0_to_f32((word(group / 4) >> (8 * (group % 4))) as u8)
    }
}

/// Two neighbouring values as the two halves of a word: f16 if that is the format, else bf16.
pub fn pack(format: Format, low: f32, high: f32) -> u32 {
    if format == Format::F16 { f32_to_f16x2(low, high) } else { f32_to_bf16x2(low, high) }
}

/// Expert `e` makes x · (1 + (e mod 7) / 8) + ((e mod 5) − 2) / 16 of x.
pub fn apply(expert: u32, x: f32) -> f32 {
    let factor = 1.0 + (expert % 7) as f32 * 0.125;
    let addend = ((expert % 5) as f32 - 2.0) * 0.0625;
    x * factor + addend
}
