//! How many multiprocessors an operation should take: what this machine's links and multiprocessors give, measured; a
//! model of what an operation asks of both; and what was found best by trying.
//!
//! All rates are in GB/s, 10^9 bytes a second, of bytes that are copied: one that is read and written counts once.

mod bandwidth;
mod copy;
#[cfg(feature = "tuning")]
mod file;
mod flag;
mod model;
mod ranks;

pub use bandwidth::Bandwidths;
pub use copy::{CopyKernel, copy_engine_times};
#[cfg(feature = "tuning")]
pub use file::{Entry, Tuning, TuningError};
pub use flag::flag_times;
pub use model::{HEADROOM, Operation, destinations, row_bytes};
