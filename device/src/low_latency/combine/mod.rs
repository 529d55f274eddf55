//! Low-latency combine: what the experts made of a token's row comes back to it, weighted and summed.
//!
//! The sending half has a warp for each tile of each row that came here ([`send`]): it sums the rows of this rank's experts
//! with the weights that came with the token, or takes each as it is. The receiving half has one for each tile of this
//! rank's tokens ([`receive`]): it sums what ranks, or slots, have sent, in their order.

pub mod receive;
pub mod send;

use super::batch::Batch;
use super::format::{Bf16, E4m3, Log10, Wire};
use super::halves;
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
    /// Low-latency combine, or a half of it, of rows that travel as bf16.
    Combine, tokenrail_low_latency_combine, CombineArgs, combine_bf16
);

kernel!(
    /// [`struct@Combine`] of rows that travel as FP8.
    CombineFp8, tokenrail_low_latency_combine_fp8, CombineArgs, combine_fp8
);

kernel!(
    /// [`struct@Combine`] of rows that travel as 10-bit logarithms.
    CombineLog10, tokenrail_low_latency_combine_log10, CombineArgs, combine_log10
);

kernel!(
    /// [`struct@Combine`] where some ranks are on other nodes.
    CombineAcross, tokenrail_low_latency_combine_across, CombineArgs, across_bf16
);

kernel!(
    /// [`CombineFp8`] where some ranks are on other nodes.
    CombineFp8Across, tokenrail_low_latency_combine_fp8_across, CombineArgs, across_fp8
);

kernel!(
    /// [`CombineLog10`] where some ranks are on other nodes.
    CombineLog10Across, tokenrail_low_latency_combine_log10_across, CombineArgs, across_log10
);

#[inline(always)]
unsafe fn across_bf16(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<Bf16, 1, true>(&args) }
}

#[inline(always)]
unsafe fn across_fp8(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<E4m3, 1, true>(&args) }
}

#[inline(always)]
unsafe fn across_log10(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<Log10, 1, true>(&args) }
}

#[inline(always)]
unsafe fn combine_bf16(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<Bf16, 4, false>(&args) }
}

#[inline(always)]
unsafe fn combine_fp8(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<E4m3, 1, false>(&args) }
}

#[inline(always)]
unsafe fn combine_log10(args: CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe { combine::<Log10, 1, false>(&args) }
}

/// `AHEAD` rows, 1 to 4, are on their way to a warp at once. `FAR`: there are ranks of other nodes.
#[inline(always)]
unsafe fn combine<F: Wire, const AHEAD: usize, const FAR: bool>(args: &CombineArgs) {
    // SAFETY: the contract of CombineArgs, passed on.
    unsafe {
        if args.halves & halves::SEND != 0 {
            send::send::<F, AHEAD, FAR>(args);
        }
        if args.halves == halves::BOTH {
            // For the counts of epochs.
            block::barrier();
        }
        if args.halves & halves::RECEIVE != 0 {
            receive::receive::<F, AHEAD, FAR>(args);
        }
    }
}
