//! Low-latency dispatch: every token's row to every rank that owns one of its experts, once, and there to each of these
//! experts.
//!
//! The sending half has a warp for each tile of each row, which quantises it on the way ([`send`]), and for each token one
//! that says which experts it is for and where its row lies among theirs ([`routing`]). The receiving half has a warp for
//! each tile, which copies it to every expert as it arrives ([`receive`]).
//!
//! Placement is a pure function of the routing: an expert's rows lie in the order (source rank, token index). A token has
//! one row at an expert, even if two of its slots name it.

pub mod receive;
pub mod routing;
pub mod send;

use super::batch::Batch;
use super::halves;
use crate::gpu::block;
use crate::gpu::mem::Address;
use crate::kernel::kernel;

/// Arguments of [`Dispatch`].
///
/// Contract: [`Batch`]'s; the arrays are as described, aligned to 16 bytes, and the inputs are not written meanwhile; the
/// launch has the bytes of shared memory that its halves need; the blocks of a kernel that receives are resident at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DispatchArgs {
    /// The batch this belongs to.
    pub batch: Batch,
    /// bf16 `[tokens, hidden]`.
    pub x: Address,
    /// i32 `[tokens, topk]`, −1 for none.
    pub topk_idx: Address,
    /// f32 `[tokens, topk]`; null to send zeros.
    pub topk_weights: Address,
    /// u32: tokens in this call, read on the device; null to take `tokens`.
    pub tokens_at: Address,
    /// Tokens in this call, or as many as the arrays have room for.
    pub tokens: u32,
    /// Bits of [`halves`].
    pub halves: u32,
    /// Out: `[expert of this rank, expert_rows, row_bytes]`.
    pub out: Address,
    /// Out: u32 `[expert of this rank, expert_scale_words]`, as `scale_strides` says.
    pub out_scales: Address,
}

kernel!(
    /// Low-latency dispatch, or a half of it.
    Dispatch, tokenrail_low_latency_dispatch, DispatchArgs, dispatch_near
);

kernel!(
    /// [`struct@Dispatch`] where some ranks are on other nodes.
    DispatchAcross, tokenrail_low_latency_dispatch_across, DispatchArgs, dispatch_across
);

#[inline(always)]
unsafe fn dispatch_near(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { dispatch::<false>(&args) }
}

#[inline(always)]
unsafe fn dispatch_across(args: DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe { dispatch::<true>(&args) }
}

/// `FAR`: there are ranks of other nodes.
#[inline(always)]
unsafe fn dispatch<const FAR: bool>(args: &DispatchArgs) {
    // SAFETY: the contract of DispatchArgs, passed on.
    unsafe {
        if args.halves & halves::SEND != 0 {
            send::send::<FAR>(args);
        }
        if args.halves == halves::BOTH {
            // Both use the same shared memory.
            block::barrier();
        }
        if args.halves & halves::RECEIVE != 0 {
            receive::receive::<FAR>(args);
        }
    }
}
