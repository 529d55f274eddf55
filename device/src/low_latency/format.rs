//! What packets carry: rows as bf16, as FP8 with a scale for 128 channels, as 10-bit logarithms.
//!
//! 128 channels of the formats that group them are the cells of 8 neighbouring lanes in a plane. All lanes of a warp work
//! together; cells past the end of a row are zeros.

use super::packet::{Filled, Tile};
use crate::gpu::convert::{bf16x2_to_f32, e4m3_to_f32, f32_to_bf16x2, f32_to_e4m3x2};
use crate::gpu::mem::Quad;
use crate::gpu::{thread, warp};
use crate::quantize::{AMAX_FLOOR, E4M3_MAX, inverse, larger, scale_code};
use crate::unroll::unroll;

/// Lanes that have 128 channels between them.
const GROUP_LANES: u32 = 8;

/// bf16.
pub struct Bf16;
/// FP8 e4m3 with scales.
pub struct E4m3;
/// Sign and 9 bits of logarithm.
pub struct Log10;

impl Filled for Bf16 {
    const WORDS: usize = 4;
    const GROUPED: bool = false;
}

impl Filled for E4m3 {
    const WORDS: usize = 4;
    const GROUPED: bool = true;
}

impl Filled for Log10 {
    const WORDS: usize = 5;
    const GROUPED: bool = true;
}

/// The f32 values of a lane's cells, by plane; of bf16 the first eight of each.
pub type Values = [[f32; 16]; 3];

/// A lane's quads of bf16 in a tile of a row, by plane: the second ones where cells have 16 channels.
pub type Quads = [[Quad; 2]; 3];

/// No quads.
pub const ZEROS: Quads = [[Quad([0; 4]); 2]; 3];

/// The values of a lane's quads.
#[inline(always)]
pub fn values<F: Wire>(quads: &Quads) -> Values {
    let mut values = [[0.0; 16]; 3];
    unroll!(PLANE in 3 {
        unroll!(QUAD in 2 {
            if QUAD < F::QUADS {
                let eight = unpack(quads[PLANE][QUAD]);
                unroll!(AT in 8 {
                    values[PLANE][8 * QUAD + AT] = eight[AT];
                });
            }
        });
    });
    values
}

/// A format of rows that come back.
pub trait Wire: Filled {
    /// Quads of bf16 that a cell is made of.
    const QUADS: usize;
    /// What to send. The warp together.
    fn encode(values: &Values) -> Tile;
    /// What has arrived. The warp together.
    fn decode(tile: &Tile) -> Values;
}

/// The values of a quad of bf16.
#[inline(always)]
fn unpack(quad: Quad) -> [f32; 8] {
    let [a, b] = bf16x2_to_f32(quad.0[0]);
    let [c, d] = bf16x2_to_f32(quad.0[1]);
    let [e, f] = bf16x2_to_f32(quad.0[2]);
    let [g, h] = bf16x2_to_f32(quad.0[3]);
    [a, b, c, d, e, f, g, h]
}

/// Eight values from `first` on, rounded to bf16.
#[inline(always)]
pub fn pack(values: &[f32; 16], first: usize) -> Quad {
    let two = |at: usize| f32_to_bf16x2(values[first + at], values[first + at + 1]);
    Quad([two(0), two(2), two(4), two(6)])
}

/// From each lane's word for the group that it is of, by plane, to what the first four lanes send.
#[inline(always)]
fn gather(groups: [u32; 3]) -> [u32; 3] {
    let from = GROUP_LANES * (thread::lane() % 4);
    groups.map(|word| warp::shuffle(warp::ALL, word, from))
}

/// From what the first four lanes have received to each lane's word for the group that it is of.
#[inline(always)]
fn spread(groups: [u32; 3]) -> [u32; 3] {
    groups.map(|word| warp::shuffle(warp::ALL, word, thread::lane() / GROUP_LANES))
}

/// How FP8 is scaled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// By amax / 448, whose bits are a group's word.
    F32,
    /// By a power of two, the bits of whose f32 are a group's word.
    PowerOfTwo,
    /// By a power of two, whose UE8M0 code is a group's word.
    Ue8m0,
}

/// Values as FP8. Cells past the end of a row, of which `cells` are left, have zeros for scales.
#[inline(always)]
pub fn quantize(values: &Values, scaling: Scaling, cells: u32) -> Tile {
    let mut tile = Tile::ZERO;
    let mut groups = [0; 3];
    unroll!(PLANE in 3 {
        let values = &values[PLANE];
        let mut amax = AMAX_FLOOR;
        unroll!(AT in 16 {
            amax = larger(amax, values[AT]);
        });
        // No negative number and no NaN: bits are in the order of the values.
        let amax = f32::from_bits(warp::max_within(GROUP_LANES, amax.to_bits()));
        let code = scale_code(amax);
        let factor = if scaling == Scaling::F32 { E4M3_MAX / amax } else { inverse(code) };
        let word = match scaling {
            Scaling::F32 => (amax / E4M3_MAX).to_bits(),
            // A normal number for every amax.
            Scaling::PowerOfTwo => code << 23,
            Scaling::Ue8m0 => code,
        };
        groups[PLANE] = if 32 * PLANE as u32 + thread::lane() < cells { word } else { 0 };
        unroll!(WORD in 4 {
            let [a, b] = [values[4 * WORD] * factor, values[4 * WORD + 1] * factor];
            let [c, d] = [values[4 * WORD + 2] * factor, values[4 * WORD + 3] * factor];
            tile.words[WORD][PLANE] = (f32_to_e4m3x2(c, d) as u32) << 16 | f32_to_e4m3x2(a, b) as u32;
        });
    });
    tile.groups = gather(groups);
    tile
}

impl Wire for Bf16 {
    const QUADS: usize = 1;

    #[inline(always)]
    fn encode(values: &Values) -> Tile {
        let mut tile = Tile::ZERO;
        unroll!(PLANE in 3 {
            let Quad([a, b, c, d]) = pack(&values[PLANE], 0);
            tile.words[0][PLANE] = a;
            tile.words[1][PLANE] = b;
            tile.words[2][PLANE] = c;
            tile.words[3][PLANE] = d;
        });
        tile
    }

    #[inline(always)]
    fn decode(tile: &Tile) -> Values {
        let mut values = [[0.0; 16]; 3];
        unroll!(PLANE in 3 {
            unroll!(WORD in 4 {
                let [low, high] = bf16x2_to_f32(tile.words[WORD][PLANE]);
                values[PLANE][2 * WORD] = low;
                values[PLANE][2 * WORD + 1] = high;
            });
        });
        values
    }
}

impl Wire for E4m3 {
    const QUADS: usize = 2;

    #[inline(always)]
    fn encode(values: &Values) -> Tile {
        // What scales there are past the end matters to nobody here.
        quantize(values, Scaling::F32, u32::MAX)
    }

    #[inline(always)]
    fn decode(tile: &Tile) -> Values {
        let scales = spread(tile.groups);
        let mut values = [[0.0; 16]; 3];
        unroll!(PLANE in 3 {
            let scale = f32::from_bits(scales[PLANE]);
            unroll!(AT in 16 {
                let byte = (tile.words[AT / 4][PLANE] >> (8 * (AT % 4))) as u8;
                values[PLANE][AT] = e4m3_to_f32(byte) * scale;
            });
        });
        values
    }
}

/// Octaves below the largest magnitude that logarithms reach, in steps of bf16's last bit.
const OCTAVES: u32 = 32 << 7;
/// Steps between the lowest and the highest code.
const STEPS: f32 = 509.0;
/// The code of what is not finite.
const NOT_FINITE: u32 = 511;
/// The bits of infinity.
const INFINITE: u32 = 0x7f80_0000;

/// A group's codes go from the smallest magnitude, `low`, to the largest, `high`, both bf16 bits and rounded outward, in
/// equal steps of an f32's bits: of a logarithm that is straight between powers of two.
impl Wire for Log10 {
    const QUADS: usize = 2;

    #[inline(always)]
    fn encode(values: &Values) -> Tile {
        let mut tile = Tile::ZERO;
        let mut groups = [0; 3];
        unroll!(PLANE in 3 {
            let values = &values[PLANE];
            let (mut most, mut least) = (0, 0);
            unroll!(AT in 16 {
                let magnitude = values[AT].to_bits() & 0x7fff_ffff;
                let finite = magnitude < INFINITE;
                most = most.max(if finite { magnitude } else { 0 });
                // The least as the largest of the complements; zeros do not count.
                least = least.max(if finite && magnitude != 0 { !magnitude } else { 0 });
            });
            let most = warp::max_within(GROUP_LANES, most);
            let least = warp::max_within(GROUP_LANES, least);
            let high = ((most + 0xffff) >> 16).min(0x7f7f);
            let low = if least == 0 { 0 } else { !least >> 16 }.max(high.saturating_sub(OCTAVES));
            groups[PLANE] = high << 16 | low;
            let (base, range) = (low << 16, (high - low) << 16);
            let inverse = if range == 0 { 0.0 } else { STEPS / range as f32 };
            unroll!(AT in 16 {
                let code = log_code(values[AT].to_bits(), base, inverse);
                tile.words[10 * AT / 32][PLANE] |= code << (10 * AT % 32);
                if 10 * AT % 32 > 22 {
                    tile.words[(10 * AT / 32 + 1) % 5][PLANE] |= code >> ((32 - 10 * AT % 32) % 32);
                }
            });
        });
        tile.groups = gather(groups);
        tile
    }

    #[inline(always)]
    fn decode(tile: &Tile) -> Values {
        let groups = spread(tile.groups);
        let mut values = [[0.0; 16]; 3];
        unroll!(PLANE in 3 {
            let (high, low) = (groups[PLANE] >> 16, groups[PLANE] & 0xffff);
            let (base, step) = (low << 16, ((high - low) << 16) as f32 / STEPS);
            unroll!(AT in 16 {
                let mut code = tile.words[10 * AT / 32][PLANE] >> (10 * AT % 32);
                if 10 * AT % 32 > 22 {
                    code |= tile.words[(10 * AT / 32 + 1) % 5][PLANE] << ((32 - 10 * AT % 32) % 32);
                }
                values[PLANE][AT] = log_value(code & 0x3ff, base, step);
            });
        });
        values
    }
}

/// Sign and code of an f32's bits: 0 for zero, then the steps from `base` on.
#[inline(always)]
fn log_code(bits: u32, base: u32, inverse: f32) -> u32 {
    let magnitude = bits & 0x7fff_ffff;
    let code = if magnitude >= INFINITE {
        NOT_FINITE
    } else if magnitude == 0 {
        0
    } else if magnitude < base {
        // The nearer of zero and the smallest.
        (f32::from_bits(magnitude) * 2.0 >= f32::from_bits(base)) as u32
    } else {
        1 + nearest((magnitude - base) as f32 * inverse).min(STEPS as u32)
    };
    bits >> 31 << 9 | code
}

#[inline(always)]
fn log_value(code: u32, base: u32, step: f32) -> f32 {
    let magnitude = match code & 0x1ff {
        0 => 0,
        NOT_FINITE => return f32::from_bits(0x7fff_ffff),
        code => base + nearest((code - 1) as f32 * step),
    };
    f32::from_bits(code >> 9 << 31 | magnitude)
}

/// The nearest whole number of one that is not negative; halves go up.
#[inline(always)]
fn nearest(value: f32) -> u32 {
    (value + 0.5) as u32
}
