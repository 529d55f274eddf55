//! Packets: 16 bytes that are written and read at once, 12 of data and a tag. Who reads the tag has the data: no fence, and
//! no flag after it.
//!
//! Both sides use 16-byte relaxed accesses of system scope, which are single-copy atomic (PTX ISA, "Vector Data-types"
//! and "Memory Consistency Model": `.b128`). Nothing else is ordered by them.

use crate::gpu::mem::{self, Address, Quad};
use crate::gpu::thread;
use crate::unroll::unroll;

/// Bytes of a packet.
pub const PACKET_BYTES: u64 = 16;

/// What packets of an epoch end in. Never 0, which is what fresh memory holds, and what is stored where a packet is made
/// void. Comes again after 2^32 − 1 epochs: [`void`] sees to it that no packet gets so old.
#[inline(always)]
pub fn tag(epoch: u64) -> u32 {
    (epoch % u32::MAX as u64) as u32 + 1
}

/// A lane's part of a tile.
#[derive(Clone, Copy)]
pub struct Tile {
    /// By packet, by plane: word `i` of the plane's cell is in packet `i`. The last is not always used.
    pub words: [[u32; 3]; 5],
    /// On the first four lanes, by plane: the word that goes with the lane'th 128 channels of the plane.
    pub groups: [u32; 3],
}

impl Tile {
    /// All zeros.
    pub const ZERO: Self = Self { words: [[0; 3]; 5], groups: [0; 3] };
}

/// How a format fills packets, known when compiling. See [`Fill`](super::layout::Fill).
pub trait Filled {
    /// Words of a cell.
    const WORDS: usize;
    /// Whether a word goes with each 128 channels.
    const GROUPED: bool;
}

/// Address of packet `index` from `at` on.
#[inline(always)]
pub fn nth(at: Address, index: u64) -> Address {
    at.offset(PACKET_BYTES * index)
}

/// Writes a packet.
///
/// # Safety
/// `to` is a packet in an arena, and its reader has told that it is done with what was there.
#[inline(always)]
pub unsafe fn write(to: Address, data: [u32; 3], tag: u32) {
    let [a, b, c] = data;
    // SAFETY: the caller's promise.
    unsafe { mem::store_relaxed_sys_b128(to, Quad([a, b, c, tag])) };
}

/// Waits for a packet of this rank's arena: its data, and whether it was not there at first. What its tag was instead if it
/// does not come in time.
///
/// # Safety
/// `from` is a packet.
#[inline(always)]
pub unsafe fn read(from: Address, tag: u32, deadline_ns: u64) -> Result<([u32; 3], bool), Late> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut waited = false;
        loop {
            let Quad([a, b, c, seen]) = mem::load_relaxed_sys_b128(from);
            if seen == tag {
                return Ok(([a, b, c], waited));
            }
            if !mem::wait_tag(from, tag, deadline_ns) {
                return Err(Late { seen });
            }
            waited = true;
        }
    }
}

/// Makes packets void, a warp together. Others may look at them meanwhile, for nothing.
///
/// # Safety
/// `from` is the first of `count` packets of this rank's arena that nobody writes or waits for meanwhile.
#[inline(always)]
pub unsafe fn void(from: Address, count: u32) {
    for index in thread::lane_strided(count) {
        // SAFETY: the caller's promise.
        unsafe { mem::store_relaxed_sys_b128(nth(from, index.into()), Quad::default()) };
    }
}

/// Writes a tile whose row has `cells` cells from its beginning on, a warp together.
///
/// # Safety
/// As [`write()`].
#[inline(always)]
pub unsafe fn write_tile<F: Filled>(to: Address, cells: u32, tile: &Tile, tag: u32) {
    let lane = thread::lane();
    let own = nth(to, lane.into());
    // SAFETY: the caller's promise.
    unsafe {
        if lane < cells {
            unroll!(WORD in 5 {
                if WORD < F::WORDS {
                    write(nth(own, 32 * WORD as u64), tile.words[WORD], tag);
                }
            });
        }
        if F::GROUPED && lane < 4 {
            write(nth(own, 32 * F::WORDS as u64), tile.groups, tag);
        }
    }
}

/// What is there of a tile, arrived or not.
#[derive(Clone, Copy)]
pub struct Peek {
    packets: [Quad; 5],
    groups: Quad,
}

impl Peek {
    /// Nothing.
    pub const NOTHING: Self = Self { packets: [Quad([0; 4]); 5], groups: Quad([0; 4]) };

    /// Looks at a tile whose row has `cells` cells from its beginning on. All loads are on their way at once.
    ///
    /// # Safety
    /// `from` is a tile of this rank's arena.
    #[inline(always)]
    pub unsafe fn at<F: Filled>(from: Address, cells: u32) -> Self {
        let lane = thread::lane();
        let own = nth(from, lane.into());
        let mut peek = Self::NOTHING;
        // SAFETY: the caller's promise.
        unsafe {
            if lane < cells {
                unroll!(WORD in 5 {
                    if WORD < F::WORDS {
                        peek.packets[WORD] = mem::load_relaxed_sys_b128(nth(own, 32 * WORD as u64));
                    }
                });
            }
            if F::GROUPED && lane < 4 {
                peek.groups = mem::load_relaxed_sys_b128(nth(own, 32 * F::WORDS as u64));
            }
        }
        peek
    }

    /// Whether all of this lane's packets have arrived.
    #[inline(always)]
    pub fn has_come<F: Filled>(&self, cells: u32, tag: u32) -> bool {
        let lane = thread::lane();
        let mut come = true;
        if lane < cells {
            unroll!(WORD in 5 {
                come &= WORD >= F::WORDS || self.packets[WORD].0[3] == tag;
            });
        }
        if F::GROUPED && lane < 4 {
            come &= self.groups.0[3] == tag;
        }
        come
    }

    /// Waits for what has not arrived. `cells` and `from` are those of [`Peek::at`].
    ///
    /// # Safety
    /// As [`Peek::at`].
    #[inline(always)]
    pub unsafe fn wait<F: Filled>(
        &mut self,
        from: Address,
        cells: u32,
        tag: u32,
        deadline_ns: u64,
    ) -> Result<(), Late> {
        let lane = thread::lane();
        let own = nth(from, lane.into());
        // SAFETY: the caller's promise.
        unsafe {
            while !self.has_come::<F>(cells, tag) {
                let mut late = false;
                if lane < cells {
                    for word in 0..F::WORDS {
                        late |= !mem::wait_tag(nth(own, 32 * word as u64), tag, deadline_ns);
                    }
                }
                if F::GROUPED && lane < 4 {
                    late |= !mem::wait_tag(nth(own, 32 * F::WORDS as u64), tag, deadline_ns);
                }
                if late {
                    return Err(Late { seen: self.packets[0].0[3] });
                }
                *self = Self::at::<F>(from, cells);
            }
        }
        Ok(())
    }

    /// What has arrived.
    #[inline(always)]
    pub fn tile<F: Filled>(&self) -> Tile {
        let mut tile = Tile::ZERO;
        unroll!(WORD in 5 {
            if WORD < F::WORDS {
                let [a, b, c, _] = self.packets[WORD].0;
                tile.words[WORD] = [a, b, c];
            }
        });
        let [a, b, c, _] = self.groups.0;
        tile.groups = [a, b, c];
        tile
    }
}

/// Something has not come in time.
#[derive(Clone, Copy)]
pub struct Late {
    /// The tag in its place, of one packet.
    pub seen: u32,
}
