//! Stacks of emulated threads.

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use std::io;

/// Bytes of a thread's stack: kernels are small, and code built without optimisation needs most of it.
const BYTES: usize = 128 << 10;
/// Stacks begin at one of this many cache lines of a page.
const COLOURS: usize = 61;
const CACHE_LINE: usize = 64;

/// A stack whose first byte is a few cache lines below its end. Stacks are whole pages, so the lines that thousands of
/// threads use would otherwise fall into the same few cache sets and push each other out.
pub struct ColouredStack {
    stack: DefaultStack,
    offset: usize,
}

impl ColouredStack {
    /// The `number`th stack of a machine.
    pub fn new(number: usize) -> io::Result<Self> {
        // A step that is coprime to the number of colours, so that neighbours lie apart.
        let offset = number.wrapping_mul(23) % COLOURS * CACHE_LINE;
        Ok(Self { stack: DefaultStack::new(BYTES)?, offset })
    }
}

/// Asks for the part of a stack that its thread needs first when it goes on. With thousands of threads the stacks do
/// not stay in the near caches, and waiting for them, one after the other, would be most of a step.
pub fn prefetch(end: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..8 {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = end.wrapping_add(line * CACHE_LINE).wrapping_sub(CACHE_LINE);
        // SAFETY: a hint, which does nothing where there is no memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = end;
}

// SAFETY: a `DefaultStack`, guard page included, with less than a page given up at its base; the rest is far above the
// minimum size, and a cache line is a multiple of any stack alignment.
unsafe impl Stack for ColouredStack {
    fn base(&self) -> StackPointer {
        let base = self.stack.base();
        StackPointer::new(base.get() - self.offset).unwrap_or(base)
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}
