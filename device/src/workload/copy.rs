//! A bulk copy between two places, which may lie on different GPUs: the ceiling that dispatch and combine are
//! measured against.

use crate::gpu::mem::Address;
use crate::gpu::{bulk, shared, thread};
use crate::kernel::kernel;

/// Arguments of [`struct@Copy`].
///
/// Contract: both places hold `pieces * piece_bytes` bytes, aligned to 16; blocks are whole warps; the launch has
/// [`shared_bytes`] of shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopyArgs {
    /// Where from.
    pub from: Address,
    /// Where to.
    pub to: Address,
    /// How many pieces.
    pub pieces: u32,
    /// Bytes of a piece, a multiple of 16.
    pub piece_bytes: u32,
}

kernel!(
    /// One lane of each warp moves pieces through two buffers in shared memory. Any grid. sm_90.
    Copy, tokenrail_copy, CopyArgs, copy
);

/// Buffers of a warp.
const STAGES: u32 = 2;

/// Dynamic shared memory of a block of `warps` warps.
pub const fn shared_bytes(warps: u32, piece_bytes: u32) -> u32 {
    (8 * warps * STAGES).next_multiple_of(128) + warps * STAGES * piece_bytes
}

unsafe fn copy(args: CopyArgs) {
    if thread::lane() != 0 {
        return;
    }
    let warp = thread::warp_index();
    let barrier = |stage: u32| shared::base() + 8 * (warp * STAGES + stage);
    let buffers = shared::base() + (8 * thread::warps() * STAGES).next_multiple_of(128);
    let buffer = |stage: u32| buffers + (warp * STAGES + stage) * args.piece_bytes;
    let at = |piece: u32| piece as u64 * args.piece_bytes as u64;
    let step = thread::grid_size() * thread::warps();
    // SAFETY: the contract of CopyArgs; mbarriers and buffers are this lane's own, and a buffer is loaded into only
    // after the store that read it.
    unsafe {
        let load = |piece: u32, stage: u32| {
            if piece < args.pieces {
                bulk::mbarrier_arrive_expect(barrier(stage), args.piece_bytes);
                bulk::load(buffer(stage), args.from.offset(at(piece)), args.piece_bytes, barrier(stage));
            }
        };
        bulk::mbarrier_init(barrier(0), 1);
        bulk::mbarrier_init(barrier(1), 1);
        bulk::fence_proxy_async();
        let first = thread::block_index() * thread::warps() + warp;
        load(first, 0);
        let (mut stage, mut parity) = (0, 0);
        for piece in thread::Strided::new(first, args.pieces, step) {
            bulk::wait_read();
            load(piece + step, 1 - stage);
            bulk::mbarrier_wait(barrier(stage), parity);
            bulk::store(args.to.offset(at(piece)), buffer(stage), args.piece_bytes);
            bulk::commit();
            parity ^= stage;
            stage = 1 - stage;
        }
        bulk::wait_written();
    }
}
