//! tokenrail: dispatch and combine for expert parallelism, in Rust down to the kernels.
//!
//! In a mixture-of-experts layer every token is routed to a few experts, which live on different ranks. **Dispatch**
//! writes each token's row once, straight to its final place on every rank that owns one of its experts;
//! **combine** pulls the experts' results back and sums them.
//!
//! ```
//! use tokenrail::{Backend, Config, Exchange, Group, Input};
//!
//! // Two ranks on the emulator; every rank is a thread.
//! let members = Group::in_process(2, &Backend::emulator(0))?;
//! std::thread::scope(|scope| {
//!     let ranks: Vec<_> = members.into_iter().map(|member| scope.spawn(move || rank(member))).collect();
//!     ranks.into_iter().try_for_each(|rank| rank.join().expect("no rank panics"))
//! })?;
//!
//! fn rank(member: tokenrail::Member) -> Result<(), tokenrail::Error> {
//!     // 4 experts, 2 a token, rows of 64 bf16, at most 8 tokens a rank.
//!     let mut exchange = Exchange::new(member, &Config::new(4, 2, 64, 8))?;
//!     let gpu = exchange.gpu().clone();
//!     let stream = gpu.stream()?;
//!     let x = gpu.upload(&[half::bf16::ONE; 3 * 64])?;
//!     let topk_idx = gpu.upload(&[0, 3, 1, 2, 2, -1])?;
//!     let topk_weights = gpu.upload(&[0.5f32; 6])?;
//!     let input = Input { x: &x, x_scales: None, topk_idx: &topk_idx, topk_weights: &topk_weights, tokens: 3 };
//!
//!     let received = exchange.dispatch(&stream, &input)?;
//!     let counts = exchange.counts(&stream, &received)?; // waits; an engine may leave them on the device
//!     // … run the experts here: read `received.x()`, write `received.outputs()` …
//!     gpu.copy(&stream, received.x(), received.outputs(), counts.rows as usize * 64 * 2)?;
//!     let combined = gpu.alloc(3 * 64 * 2)?;
//!     exchange.combine(&stream, &received, &combined)?;
//!     exchange.finish(&stream)
//! }
//! # Ok::<(), tokenrail::Error>(())
//! ```
#![deny(missing_docs)]

mod arena;
pub mod config;
mod error;
pub mod exchange;
pub mod gpu;
mod group;
pub mod oracle;

pub use config::{Config, Element, bytes_for};
pub use error::Error;
pub use exchange::{Counts, Exchange, Input, Layout, Received};
pub use gpu::{Backend, Buffer, Event, Gpu, Stream};
pub use group::{Group, Member};
