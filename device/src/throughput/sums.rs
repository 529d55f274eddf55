//! Sums of rows of 16-bit floats, in f32.

use crate::gpu::convert::{bf16x2_to_f32, f16x2_to_f32, f32_to_bf16x2, f32_to_f16x2};
use crate::gpu::mem::Quad;

/// A 16-bit format.
pub trait Half {
    /// The f32 values of two packed ones, low half first.
    fn unpack(packed: u32) -> [f32; 2];
    /// Two f32, rounded and packed.
    fn pack(low: f32, high: f32) -> u32;
}

/// bf16.
pub struct Bf16;

impl Half for Bf16 {
    #[inline(always)]
    fn unpack(packed: u32) -> [f32; 2] {
        bf16x2_to_f32(packed)
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        f32_to_bf16x2(low, high)
    }
}

/// f16.
pub struct F16;

impl Half for F16 {
    #[inline(always)]
    fn unpack(packed: u32) -> [f32; 2] {
        f16x2_to_f32(packed)
    }

    #[inline(always)]
    fn pack(low: f32, high: f32) -> u32 {
        f32_to_f16x2(low, high)
    }
}

/// Eight f32 sums: what a lane makes of one quad of each row.
pub struct Sums([f32; 8]);

impl Sums {
    /// The sum of nothing.
    pub const ZERO: Self = Self([0.0; 8]);

    /// The first row's part. Not added to zero, so that −0 stays what it is.
    #[inline(always)]
    pub fn first<H: Half>(quad: Quad) -> Self {
        let [a, b] = H::unpack(quad.0[0]);
        let [c, d] = H::unpack(quad.0[1]);
        let [e, f] = H::unpack(quad.0[2]);
        let [g, h] = H::unpack(quad.0[3]);
        Self([a, b, c, d, e, f, g, h])
    }

    /// These times a weight, each product rounded.
    #[inline(always)]
    pub fn times(self, weight: f32) -> Self {
        let [a, b, c, d, e, f, g, h] = self.0;
        Self([a * weight, b * weight, c * weight, d * weight, e * weight, f * weight, g * weight, h * weight])
    }

    /// Adds another row's.
    #[inline(always)]
    pub fn add(&mut self, Self(next): Self) {
        let Self([a, b, c, d, e, f, g, h]) = self;
        *a += next[0];
        *b += next[1];
        *c += next[2];
        *d += next[3];
        *e += next[4];
        *f += next[5];
        *g += next[6];
        *h += next[7];
    }

    /// Rounded, once.
    #[inline(always)]
    pub fn round<H: Half>(&self) -> Quad {
        let [a, b, c, d, e, f, g, h] = self.0;
        Quad([H::pack(a, b), H::pack(c, d), H::pack(e, f), H::pack(g, h)])
    }
}
