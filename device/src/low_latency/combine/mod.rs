//! Low-latency combine: what the experts made of a token's row comes back to it, weighted and summed.
//!
//! The sending half has a warp for each tile of each row that came here ([`send`]): it sums the rows of this rank's experts
//! with the weights that came with the token, or takes each as it is. The receiving half has one for each tile of this
//! rank's tokens ([`receive`]): it sums what ranks, or slots, have sent, in their order.

pub mod receive;
pub mod send;

use super::batch::Batch;
use super::format::{Bf16, E4m3, Log10};
use super::halves;
use super::layout::Wire;
use crate::gpu::block;
use crate::gpu::mem::Address;
use crate::kernel::kernel;

/// Arguments of [`Combine`].
///
/// Contract: [`Batch`]'s; the arrays are as described, aligned to 16 bytes, and the inputs are not written meanwhile; the
/// launch has [`shared_bytes`](send::shared_bytes) of shared memory if it sends; the blocks of a kernel that receives are
/// resident at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineArgs {
    /// The batch this belongs to.
    pub batch: Batch,
    /// bf16 `[expert of this rank, expert_rows, hidden]`: what the experts made of the rows that they received.
    pub y: Address,
    /// f32 `[tokens, topk]`, of this rank's tokens; read if every slot's row travels.
    pub topk_weights: Address,
    /// Out: bf16 `[tokens, hidden]`.
    pub out: Address,
    /// Bits of [`halves`].
    pub halves: u32,
}

kernel!(
    /// Low-latency combine, or a half of it.
    Combine, tokenrail_low_latency_combine, CombineArgs, combine
);

unsafe fn combine(args: CombineArgs) {
    let wire = args.batch.shape.wire;
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe {
        if wire == Wire::Bf16 as u32 {
            halves_as::<Bf16, 4>(&args);
        } else if wire == Wire::E4m3 as u32 {
            halves_as::<E4m3, 2>(&args);
        } else {
            halves_as::<Log10, 2>(&args);
        }
    }
}

/// `AHEAD` rows are on their way to a warp at once.
#[inline(always)]
unsafe fn halves_as<F: super::format::Wire, const AHEAD: usize>(args: &CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe {
        if args.halves & halves::SEND != 0 {
            send::send::<F, AHEAD>(args);
        }
        if args.halves == halves::BOTH {
            // For the counts of epochs.
            block::barrier();
        }
        if args.halves & halves::RECEIVE != 0 {
            receive::receive::<F, AHEAD>(args);
        }
    }
}
