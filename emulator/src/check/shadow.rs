//! Who last accessed each four bytes of memory.

use super::{Strength, Touch};
use std::collections::HashMap;
use std::panic::Location;

/// Bytes of a cell.
pub const CELL: u64 = 4;
/// Cells of a page.
const CELLS: usize = 64;

/// An access that has been.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    pub slot: u32,
    pub time: u32,
    pub launch: u32,
    pub touch: Touch,
    pub strength: Strength,
    /// By a bulk copy.
    pub bulk: bool,
    /// A bit for each byte of the cell.
    pub bytes: u8,
    pub operation: &'static str,
    pub site: &'static Location<'static>,
}

/// What is remembered of a cell: the last write, later ones of some of its bytes, and the reads since of which none comes
/// after another.
#[derive(Default)]
pub struct Cell {
    pub write: Option<Past>,
    pub parts: Vec<Past>,
    pub reads: Vec<Past>,
}

/// All bytes of a cell.
pub const WHOLE: u8 = (1 << CELL) - 1;

impl Cell {
    /// All writes.
    pub fn writes(&self) -> impl Iterator<Item = &Past> {
        self.write.iter().chain(&self.parts)
    }

    /// Remembers a write, which is compared with those before already.
    pub fn written(&mut self, now: Past) {
        self.reads.retain(|past| past.bytes & !now.bytes != 0);
        self.parts.retain(|past| past.bytes & !now.bytes != 0);
        if now.bytes == WHOLE {
            self.write = Some(now);
        } else {
            self.parts.push(now);
        }
    }
}

/// All cells that were ever accessed.
#[derive(Default)]
pub struct Shadow {
    pages: HashMap<u64, Box<[Cell]>>,
}

/// The addresses that shared memory of the block in this place has here: above all that hosts give out.
pub fn shared_address(at: usize, offset: u32) -> u64 {
    1 << 63 | (at as u64) << 32 | u64::from(offset)
}

impl Shadow {
    /// The cell that holds `address`.
    pub fn cell(&mut self, address: u64) -> &mut Cell {
        let cell = address / CELL;
        let page = self.pages.entry(cell / CELLS as u64);
        let page = page.or_insert_with(|| (0..CELLS).map(|_| Cell::default()).collect());
        &mut page[cell as usize % CELLS]
    }

    /// The block's shared memory is no more.
    pub fn forget_block(&mut self, at: usize) {
        let page_of = |offset: u64| ((1 << 63 | (at as u64) << 32) + offset) / CELL / CELLS as u64;
        let (first, end) = (page_of(0), page_of(1 << 20));
        (first..end).for_each(|page| _ = self.pages.remove(&page));
    }
}
