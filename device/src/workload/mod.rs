//! Kernels that stand in for a model, and that measure the machine.

pub mod commands;
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
pub mod copy;
pub mod delay;
pub mod elements;
pub mod experts;
pub mod experts_by_expert;
pub mod flag;
pub mod probe;
pub mod stream;
