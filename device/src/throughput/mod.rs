//! Dispatch and combine for training and prefill: thousands of tokens a rank, each row written once to its final
//! place and each output pulled once.

pub mod combine;
mod destinations;
pub mod dispatch;
pub mod layout;
mod meet;
mod pull;
mod send;
