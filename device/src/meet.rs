//! Where the blocks of a grid meet.

use crate::gpu::{block, mem, mem::Address, thread};

/// Arrives with the whole block; true, on all its threads, for the last block of the grid to arrive. That block has
/// then acquired everything the others wrote before they arrived.
///
/// # Safety
/// `counter` is a u32 that is zero before the first arrival; every block of the grid arrives once.
pub unsafe fn last_block(counter: Address) -> bool {
    // Orders this block's writes before the first thread's addition.
    block::barrier();
    let mut last = false;
    if block::is_first_thread() {
        // SAFETY: the caller vouches for the counter. Each addition releases its block's writes and acquires those of
        // the blocks that added before (acq_rel at gpu scope: both sides are this line).
        unsafe {
            last = mem::fetch_add_acq_rel_gpu_u32(counter, 1) == thread::grid_size() - 1;
            if last {
                // Ready for the next meeting: everybody has arrived at this one.
                mem::store_relaxed_gpu_u32(counter, 0);
            }
        }
    }
    block::barrier_or(last)
}
