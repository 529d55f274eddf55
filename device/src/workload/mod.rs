//! Kernels that stand in for a model, and that measure the machine.

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
pub mod copy;
pub mod experts;
pub mod probe;
