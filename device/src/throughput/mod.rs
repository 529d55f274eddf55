//! Dispatch and combine for training and prefill: thousands of tokens a rank, each row written once to its final
//! place and each output pulled once.

pub mod across;
mod announce;
mod arrive;
pub mod combine;
mod count;
mod destinations;
pub mod dispatch;
mod expand;
pub mod layout;
mod plan;
mod pull;
pub mod reduce;
mod send;
mod sums;
