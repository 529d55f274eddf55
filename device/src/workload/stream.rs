//! A kernel that reads memory once and does next to nothing with it: what the expert layers of a decode step come to, which
//! read all weights for few tokens.

use crate::gpu::mem::{self, Address};
use crate::gpu::thread;
use crate::kernel::kernel;
use crate::unroll::unroll;

/// Arguments of [`Stream`].
///
/// Contract: the arrays are as described, aligned to 16 bytes; nobody writes `from` meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StreamArgs {
    /// 16 bytes `[quads]`.
    pub from: Address,
    /// Number of quads.
    pub quads: u32,
    /// Out: u32 `[threads of the grid]`.
    pub sums: Address,
}

kernel!(
    /// Adds up all words, eight quads a thread at a time. Any grid.
    Stream, tokenrail_stream, StreamArgs, stream
);

unsafe fn stream(args: StreamArgs) {
    let index = thread::block_index() * thread::block_size() + thread::index();
    let step = thread::grid_size() * thread::block_size();
    let mut sum = 0u32;
    let mut first = index;
    while first < args.quads {
        let mut quads = [mem::Quad::default(); 8];
        // SAFETY: the contract of StreamArgs.
        unsafe {
            unroll!(AT in 8 {
                let quad = first.wrapping_add(step.wrapping_mul(AT as u32));
                if quad < args.quads {
                    quads[AT] = mem::load_quad(args.from.offset(16 * quad as u64));
                }
            });
        }
        unroll!(AT in 8 {
            let mem::Quad([a, b, c, d]) = quads[AT];
            sum = sum.wrapping_add(a ^ b ^ c ^ d);
        });
        first = first.wrapping_add(step.wrapping_mul(8));
    }
    // SAFETY: as above: a word of its own.
    unsafe { mem::store_u32(args.sums.word(index), sum) };
}
