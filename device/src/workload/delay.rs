//! A kernel that takes a given time: for measurements in which something has to be over, and checks in which a rank is late.

use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock};
use crate::kernel::kernel;

/// Arguments of [`Delay`].
///
/// Contract: `zero` is a u64 that is 0, and that nobody writes meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DelayArgs {
    /// A word that stays 0.
    pub zero: Address,
    /// How long, in nanoseconds.
    pub ns: u64,
}

kernel!(
    /// Waits. Any grid.
    Delay, tokenrail_delay, DelayArgs, delay
);

unsafe fn delay(args: DelayArgs) {
    if args.ns > 0 && block::is_first_thread() {
        // SAFETY: the contract of DelayArgs. It never gets there, so that the deadline ends it.
        let _ = unsafe { mem::wait_at_least_acquire_sys(args.zero, 1, clock::now_ns() + args.ns) };
    }
}
