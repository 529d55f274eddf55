//! The same function where rows lie by expert, as a grouped GEMM has them: one expert a row, no weights.

use super::elements::{Elements, Format, apply, pack};
use crate::gpu::mem::{self, Address};
use crate::gpu::thread;
use crate::kernel::kernel;

/// Arguments of [`ExpertsByExpert`].
///
/// Contract: the arrays are as described, aligned to 16 bytes; blocks are whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsByExpertArgs {
    /// The rows, padding among them.
    pub x: Elements,
    /// i32 `[rows]`: the row's expert of this rank, −1 for padding.
    pub expert_of_row: Address,
    /// Out: `[rows, hidden]`. Padding is not written.
    pub out: Address,
    /// u32: number of rows, read on the device.
    pub rows: Address,
    /// What `out` is: bf16 or f16.
    pub output: Format,
    /// Number, over all ranks, of this rank's first expert.
    pub first_expert: u32,
}

kernel!(
    /// Row by row x · a(e) + b(e), each operation rounded to f32, then to the output's format. Any grid.
    ExpertsByExpert, tokenrail_experts_by_expert, ExpertsByExpertArgs, experts_by_expert
);

unsafe fn experts_by_expert(args: ExpertsByExpertArgs) {
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    let pairs = args.x.hidden / 2;
    // SAFETY: the contract of ExpertsByExpertArgs.
    unsafe {
        let rows = mem::load_u32(args.rows);
        for row in thread::Strided::new(first, rows, thread::grid_size() * thread::warps()) {
            let local = mem::load_u32(args.expert_of_row.word(row));
            if local == u32::MAX {
                continue;
            }
            let expert = args.first_expert + local;
            for pair in thread::lane_strided(pairs) {
                let [a, b] = args.x.load_pair(row, pair);
                let at = row as u64 * pairs as u64 + pair as u64;
                let packed = pack(args.output, apply(expert, a), apply(expert, b));
                mem::store_u32(args.out.offset(4 * at), packed);
            }
        }
    }
}
