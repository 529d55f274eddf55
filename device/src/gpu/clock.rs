//! Time.

use super::machine;

/// Nanoseconds since some fixed moment, the same for all SMs of a GPU (`%globaltimer`, sm_30).
pub fn now_ns() -> u64 {
    machine::now_ns()
}
