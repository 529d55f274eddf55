//! The machine under the kernels.
//!
//! Kernels call these modules and nothing else that is GPU specific. The wrappers here are documented with the PTX
//! instruction they become and the least architecture that has it; `ptx.rs` and `emulated.rs` are the two machines.
//! Names follow cuda_std where it has one (`thread`, `warp`, `shared`).

pub mod block;
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
pub mod bulk;
pub mod clock;
pub mod convert;
pub mod mem;
pub mod shared;
pub mod thread;
pub mod warp;

/// The same number, but not so that the compiler knows: what is made of it is made here and now, and not ahead of a loop, where
/// it would take a register; and no loop becomes two, one for each outcome of a question about it.
#[inline(always)]
pub(crate) fn opaque(value: u64) -> u64 {
    machine::opaque(value)
}

#[cfg(not(target_arch = "nvptx64"))]
#[path = "emulated.rs"]
mod machine;
#[cfg(target_arch = "nvptx64")]
#[path = "ptx.rs"]
mod machine;
