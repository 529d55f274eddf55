//! Barriers of a block.

use super::{machine, thread};

/// Waits for every thread of the block and orders their memory accesses (`barrier.cta.sync.aligned 0`, sm_70).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn barrier() {
    machine::block_barrier();
}

/// Waits for `threads` threads (a multiple of 32) at the barrier `id`, 1 to 15 (`barrier.cta.sync id, threads`, sm_70).
/// Barrier 0 is [`barrier`]'s.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn named_barrier(id: u32, threads: u32) {
    machine::named_barrier(id, threads);
}

/// [`barrier`], and whether any thread passed true (`barrier.cta.red.or.pred.aligned 0`, sm_70).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn barrier_or(predicate: bool) -> bool {
    machine::block_barrier_or(predicate)
}

/// True on the block's first thread.
pub fn is_first_thread() -> bool {
    thread::index() == 0
}
