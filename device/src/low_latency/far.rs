//! Rows on their way to other nodes: without tags, since bytes are dear there. A rank writes them into an *outbox* in its own
//! arena, and its proxy sends them from there; flags tell of their arrival.
//!
//! A row is its cells of 16 bytes, then the fifth words of the cells that have one, then a word for each 128 channels of the
//! formats that have those: [`Fill::far_row_bytes`].

use super::layout::{Fill, TILE_CELLS};
use super::packet::{Filled, Tile};
use crate::gpu::mem::{self, Address, Quad};
use crate::gpu::thread;
use crate::unroll::unroll;

/// Where a row's parts begin.
#[derive(Clone, Copy)]
struct Places {
    cells: u32,
    fifths: Address,
    groups: Address,
}

impl Places {
    #[inline(always)]
    fn new(row: Address, fill: Fill, hidden: u32) -> Self {
        let cells = fill.cells(hidden);
        let fifths = row.offset(16 * cells as u64);
        Self { cells, fifths, groups: fifths.offset(fill.fifth_bytes(hidden) as u64) }
    }
}

/// The cell of this lane in a plane of a tile.
#[inline(always)]
fn cell(tile: u32, plane: usize) -> u32 {
    tile * TILE_CELLS + 32 * plane as u32 + thread::lane()
}

/// The word of this lane's 128 channels in a plane of a tile.
#[inline(always)]
fn group(tile: u32, plane: usize) -> u32 {
    (3 * tile + plane as u32) * 4 + thread::lane()
}

/// Writes a tile of a row, a warp together.
///
/// # Safety
/// `row` is one of the outbox, aligned to 16 bytes, that no proxy reads now.
#[inline(always)]
pub unsafe fn write_tile<F: Filled>(row: Address, fill: Fill, hidden: u32, tile: u32, made: &Tile) {
    let places = Places::new(row, fill, hidden);
    unroll!(PLANE in 3 {
        let cell = cell(tile, PLANE);
        let word = |at: usize| made.words[at][PLANE];
        // SAFETY: the caller's promise; the cell is one of the row's, its last plane may be shorter.
        unsafe {
            if cell < places.cells {
                let quad = Quad([word(0), word(1), word(2), word(3)]);
                mem::store_quad(row.offset(16 * cell as u64), quad);
                if F::WORDS == 5 {
                    mem::store_u32(places.fifths.word(cell), word(4));
                }
            }
            if F::GROUPED && thread::lane() < 4 {
                mem::store_u32(places.groups.word(group(tile, PLANE)), made.groups[PLANE]);
            }
        }
    });
}

/// Reads a tile of a row that has arrived, a warp together.
///
/// # Safety
/// `row` is one of this rank's arena, and this thread has acquired the flag behind it.
#[inline(always)]
pub unsafe fn read_tile<F: Filled>(row: Address, fill: Fill, hidden: u32, tile: u32) -> Tile {
    let places = Places::new(row, fill, hidden);
    let mut read = Tile::ZERO;
    unroll!(PLANE in 3 {
        let cell = cell(tile, PLANE);
        // SAFETY: the caller's promise; as above.
        unsafe {
            if cell < places.cells {
                let Quad(words) = mem::load_quad(row.offset(16 * cell as u64));
                unroll!(WORD in 4 {
                    read.words[WORD][PLANE] = words[WORD];
                });
                if F::WORDS == 5 {
                    read.words[4][PLANE] = mem::load_u32(places.fifths.word(cell));
                }
            }
            if F::GROUPED && thread::lane() < 4 {
                read.groups[PLANE] = mem::load_u32(places.groups.word(group(tile, PLANE)));
            }
        }
    });
    read
}
