//! The ring that kernels put commands into. Any number of warps, kernels and streams of one rank do so at the same time;
//! one proxy takes them out.
//!
//! A place in the ring is its producer's as soon as the count of reserved places has passed it, and the proxy's as soon as
//! the command in it has the generation of this lap. The proxy tells how many it has taken; who finds no room waits for
//! that. It reads it over PCIe, so that kernels share what was last seen.

use super::command::Command;
use crate::gpu::mem::{self, Address};
use crate::gpu::{clock, thread, warp};

/// How long who waits for room looks away, and for each command that has to be taken before: about what a proxy needs.
const LOOK_NS: u64 = 1_000;
const LOOK_NS_EACH: u64 = 16;

/// A ring as kernels see it.
///
/// Contract: `commands` is host memory that this GPU can write, of `2^log2` commands, zeroed before the first use; `taken`
/// is a u64 there; `reserved` is a u32 and `seen` a u64 of this GPU's memory, 0 at first. One proxy reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// The places.
    pub commands: Address,
    /// u64: how many commands the proxy has taken.
    pub taken: Address,
    /// u32: how many places have been reserved, modulo 2^32.
    pub reserved: Address,
    /// u64: how many the proxy had taken when somebody last looked.
    pub seen: Address,
    /// Logarithm of the number of places, at most 24.
    pub log2: u32,
}

impl Ring {
    /// No ring.
    pub const NONE: Self = Self {
        commands: Address::NULL,
        taken: Address::NULL,
        reserved: Address::NULL,
        seen: Address::NULL,
        log2: 0,
    };

    /// What commands of a lap are marked with: never what lay there in the lap before, nor 0 in the first.
    #[inline(always)]
    pub const fn generation(place: u32, log2: u32) -> u32 {
        ((place >> log2) + 1) & 0xff
    }

    /// Puts in the commands of those lanes that have one, in the order of lanes; false, on all lanes, if there was no room in
    /// time. All lanes of a warp. What a command refers to has been written before: see [`Ring::release`].
    ///
    /// # Safety
    /// The struct's contract.
    #[inline(always)]
    pub unsafe fn push(&self, has: bool, command: Command, deadline_ns: u64) -> bool {
        let lanes = warp::ballot(warp::ALL, has);
        if lanes == 0 {
            return true;
        }
        let (mut first, mut came) = (0, true);
        // SAFETY: the caller's promise.
        unsafe {
            if thread::lane() == 0 {
                first = mem::fetch_add_relaxed_gpu_u32(self.reserved, lanes.count_ones());
                // One looks for all: it looks over PCIe.
                came = self.wait_for_room(first.wrapping_add(lanes.count_ones() - 1), deadline_ns);
            }
            let first = warp::shuffle(warp::ALL, first, 0);
            let place = first.wrapping_add((lanes & warp::lanes_below()).count_ones());
            let came = warp::shuffle(warp::ALL, came as u32, 0) != 0;
            if has && came {
                let at = self.commands.offset(16 * (place & ((1 << self.log2) - 1)) as u64);
                // Partner: `Ring::next` of the host (two relaxed loads, the later half first). One store, so that the proxy
                // sees all of it or nothing.
                mem::store_relaxed_sys_b128(at, command.encode(Self::generation(place, self.log2)));
            }
            came
        }
    }

    /// Makes what this thread has seen written visible to NICs, for commands that are put in afterwards.
    #[inline(always)]
    pub fn release() {
        mem::fence_acq_rel_sys();
    }

    /// Waits until the place can be written. Whoever is next in line looks again soon, over PCIe, for all that wait; others
    /// the later the further back they are. When a hundred warps looked all the time, the proxy took a quarter as many
    /// commands: each look takes the line away that it tells in.
    #[inline(always)]
    unsafe fn wait_for_room(&self, place: u32, deadline_ns: u64) -> bool {
        let places = 1u32 << self.log2;
        // SAFETY: the contract.
        unsafe {
            if place.wrapping_sub(mem::load_relaxed_sys_u64(self.seen) as u32) < places {
                return true;
            }
            loop {
                // Partner: the proxy's store (release).
                let taken = mem::load_acquire_sys_u64(self.taken);
                // An older look may overwrite a newer one: it is a hint, and never ahead of what was taken.
                mem::store_relaxed_sys_u64(self.seen, taken);
                let ahead = place.wrapping_sub(taken as u32);
                if ahead < places {
                    return true;
                }
                let now_ns = clock::now_ns();
                if now_ns > deadline_ns {
                    return false;
                }
                let missing = (ahead - places + 1) as u64;
                let look_ns = now_ns + LOOK_NS + LOOK_NS_EACH * missing;
                let until_ns = if look_ns < deadline_ns { look_ns } else { deadline_ns };
                // Partner: the line above, of whoever looks. It orders nothing that is relied on.
                let _ = mem::wait_at_least_acquire_sys(self.seen, taken + missing, until_ns);
            }
        }
    }
}
