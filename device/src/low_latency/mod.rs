//! Dispatch and combine of few tokens in the least time, each in two halves: one sends and ends, one receives.
//!
//! * [`layout`]: sizes, and where everything lies
//! * [`packet`]: 16 bytes of which 4 say that the other 12 have arrived
//! * [`format`](mod@format): what packets carry: bf16, FP8, 10-bit logarithms
//! * [`batch`]: epochs, what peers are told, and statistics
//! * [`dispatch`], [`combine`]: the kernels

pub mod batch;
pub mod combine;
pub mod dispatch;
pub mod far;
pub mod format;
pub mod layout;
pub mod packet;

/// Halves of a kernel, as bits: to run both is one launch less.
pub mod halves {
    /// Sends, and does not wait for what it causes.
    pub const SEND: u32 = 1;
    /// Waits for what peers send, and puts it where it belongs.
    pub const RECEIVE: u32 = 2;
    /// One after the other.
    pub const BOTH: u32 = SEND | RECEIVE;
}
