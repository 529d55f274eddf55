//! What dispatch and combine must yield, on the CPU, and the workload that they are tried with.
//!
//! The reference is plain code that shares nothing with the kernels. Every f32 operation is rounded on its own and
//! sums have a stated order, so results can be compared bit for bit. NaN is always written as 0x7fff (bf16) or 0x7f
//! (e4m3), as GPUs do.
//!
//! ```
//! use tokenrail::Half;
//! use tokenrail::oracle::{self, Gate, Placement, Router, TokenBatch};
//!
//! let gate = Gate::Softmax { experts: 8, topk: 2 };
//! let router = Router::new(gate, 64, 1)?;
//! let placement = Placement::new(2, 8)?;
//! let batches: Vec<TokenBatch> = (0..2)
//!     .map(|rank| {
//!         let x = oracle::hidden_states(rank, 5, 64);
//!         TokenBatch::bf16(&x, 64, router.route(&x)?)?.check(&placement)
//!     })
//!     .collect::<Result<_, oracle::OracleError>>()?;
//!
//! let received = oracle::dispatch(&batches, &placement, None);
//! let outputs: Vec<_> =
//!     received.iter().map(|received| oracle::experts(received, &placement, Half::Bf16)).collect();
//! let combined = oracle::combine(&outputs, &batches, &placement, Half::Bf16, &[], None);
//! assert_eq!(combined[1].len(), 5 * 64);
//! # Ok::<(), oracle::OracleError>(())
//! ```
//!
//! bf16 and f16 results are held as their bits, which [`Half`](crate::Half) reads and rounds.
//!
//! Shapes are written `[outer, inner]` and stored row by row. Functions that take a [`TokenBatch`] may panic if it
//! has not passed [`TokenBatch::check`] for their placement.

mod combine;
mod dispatch;
mod draw;
mod error;
mod expert_major;
mod experts;
mod format;
mod gate;
mod low_latency;
mod placement;
mod quantize;
mod random;
mod router;
mod row;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;
mod workload;

pub use combine::{combine, combine_on_nodes, combine_weights};
pub use dispatch::{Layout, dispatch, layout};
pub use draw::{Draw, Spread};
pub use error::{GateError, OracleError};
pub use expert_major::{ExpertMajor, expert_major, reduce};
pub use experts::{EXPERT_FUNCTION, expert_coefficients, experts, experts_by_expert};
pub use format::{E4M3_MAX, e4m3_to_f32, f32_to_bf16, f32_to_e4m3, ue8m0_to_f32};
pub use gate::Gate;
pub use low_latency::{ExpertRows, low_latency_combine, low_latency_dispatch};
pub use placement::Placement;
pub use quantize::{AMAX_FLOOR, Quantized, SCALE_GROUP, dequantize, quantize, quantize_ue8m0};
pub use router::Router;
pub use tensor::{Received, Routing, Side, TokenBatch};
pub use wire::through_the_wire;
pub use workload::{hidden_states, mask_some};
