//! Who this thread is. Blocks and grids are one-dimensional. On every architecture.

use super::machine;

/// Threads in a warp.
pub const WARP: u32 = 32;

/// This thread's number in its block (`%tid.x`).
pub fn index() -> u32 {
    machine::thread_index()
}

/// This block's number in the grid (`%ctaid.x`).
pub fn block_index() -> u32 {
    machine::block_index()
}

/// The multiprocessor that this thread runs on (`%smid`; on the emulator, which has none, the block's number).
pub fn multiprocessor() -> u32 {
    machine::multiprocessor()
}

/// Threads in a block (`%ntid.x`).
pub fn block_size() -> u32 {
    machine::block_size()
}

/// Blocks in the grid (`%nctaid.x`).
pub fn grid_size() -> u32 {
    machine::grid_size()
}

/// This thread's number in its warp.
pub fn lane() -> u32 {
    index() % WARP
}

/// This warp's number in its block.
pub fn warp_index() -> u32 {
    index() / WARP
}

/// Warps in a block.
pub fn warps() -> u32 {
    block_size() / WARP
}

/// Stops the kernel and, on a GPU, loses the context (`trap`): for what cannot happen.
pub fn trap() -> ! {
    machine::trap()
}

/// This thread's share of `0..n` when the whole block divides it: `index()`, `index() + block_size()`, …
pub fn strided(n: u32) -> Strided {
    Strided { next: index(), end: n, step: block_size() }
}

/// This lane's share of `0..n` when the warp divides it.
pub fn lane_strided(n: u32) -> Strided {
    Strided { next: lane(), end: n, step: WARP }
}

/// This warp's share of `0..n` when the block's warps divide it.
pub fn warp_strided(n: u32) -> Strided {
    Strided { next: warp_index(), end: n, step: warps() }
}

/// Every `step`th number from a start to an end; `core`'s `step_by` brings a panic along.
#[derive(Clone, Copy)]
pub struct Strided {
    next: u32,
    end: u32,
    step: u32,
}

impl Strided {
    /// `start`, `start + step`, … below `end`.
    pub fn new(start: u32, end: u32, step: u32) -> Self {
        Self { next: start, end, step }
    }
}

impl Iterator for Strided {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        if self.next >= self.end {
            return None;
        }
        let current = self.next;
        self.next += self.step;
        Some(current)
    }
}
