//! The host's side of the ring that kernels put commands into.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use tokenrail_device::gpu::mem::Quad;
use tokenrail_device::internode::command::Command;
use tokenrail_device::internode::ring::Ring;

/// How many places ahead lines are fetched.
const AHEAD: u64 = 48;

/// Takes commands out of a ring, in their order.
pub struct Consumer {
    /// The places, as pairs of u64.
    commands: u64,
    /// Where it tells how many it has taken.
    told: u64,
    taken: u64,
    log2: u32,
}

/// What lies in a ring is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCommand(pub [u32; 4]);

impl Consumer {
    /// Of this ring.
    ///
    /// # Safety
    /// `ring` keeps its contract as long as this is used, its host memory is mapped at the same addresses on the host, and
    /// no other consumer reads it.
    pub unsafe fn new(ring: &Ring) -> Self {
        Self { commands: ring.commands.0, told: ring.taken.0, taken: 0, log2: ring.log2 }
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        // SAFETY: `new`'s promise: live and aligned; kernels and this side only use atomic accesses.
        unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at as usize)) }
    }

    /// The next command, if there is one, which stays there until [`Consumer::take`].
    pub fn next(&self) -> Option<Result<Command, NoCommand>> {
        let at = self.commands + 16 * (self.taken & ((1 << self.log2) - 1));
        // Partner: `Ring::push`, one store of 16 bytes. The half with the generation first: once it is there the other is, too.
        let high = self.word(at + 8).load(Ordering::Acquire);
        if (high >> 56) as u32 != Ring::generation(self.taken as u32, self.log2) {
            return None;
        }
        let low = self.word(at).load(Ordering::Relaxed);
        let words = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
        Some(Command::decode(Quad(words)).ok_or(NoCommand(words)))
    }

    /// About how many wait: no more than there are, and more than half of them.
    pub fn waiting(&self) -> u64 {
        let is_there = |ahead: u64| {
            let place = self.taken + ahead;
            let at = self.commands + 16 * (place & ((1 << self.log2) - 1)) + 8;
            (self.word(at).load(Ordering::Relaxed) >> 56) as u32 == Ring::generation(place as u32, self.log2)
        };
        let mut found = 0;
        while found < 1 << self.log2 && is_there(found) {
            found = 2 * found + 1;
        }
        found.div_ceil(2)
    }

    /// Goes on to the one after.
    pub fn take(&mut self) {
        self.taken += 1;
        // At the beginning of a line.
        if self.taken.is_multiple_of(4) {
            self.fetch(self.taken + AHEAD);
        }
    }

    /// Has the line of a place on its way: a GPU's writes are not in this core's cache.
    fn fetch(&self, place: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = self.commands + 16 * (place & ((1 << self.log2) - 1));
            // SAFETY: prefetching is allowed at any address; this is one of the ring.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(with_exposed_provenance_mut::<i8>(at as usize)) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = place;
    }

    /// Tells kernels that wait for room.
    pub fn tell(&self) {
        // Partner: `Ring::wait_for_room` (acquire). What it releases: the reading of the places.
        self.word(self.told).store(self.taken, Ordering::Release);
    }
}
