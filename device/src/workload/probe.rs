//! Uses the wrappers of [`crate::gpu`] that no other kernel shows the results of, so that both machines, and the CPU's
//! own arithmetic, can be compared word by word.

use crate::gpu::convert::{
    bf16x2_to_f32, e4m3_to_f32, f16x2_to_f32, f32_to_bf16x2, f32_to_e4m3x2, f32_to_f16x2, ue8m0_to_f32,
};
use crate::gpu::mem::{self, Address, Quad};
use crate::gpu::{block, clock, shared, thread, warp};
use crate::kernel::kernel;

/// Threads of the one block.
pub const THREADS: u32 = 64;
/// Words that a thread writes.
pub const WORDS: u32 = 20;
/// Dynamic shared memory of the block, in bytes.
pub const SHARED_BYTES: u32 = 4 * THREADS + 16;
/// Words of scratch memory: a counter for each atomic, a word to exchange, then an aligned quad for each thread.
pub const SCRATCH_WORDS: u32 = 4 + 4 * THREADS;

/// Arguments of [`Probe`].
///
/// Contract: the arrays are as described and aligned to 16 bytes; one block of [`THREADS`] threads with
/// [`SHARED_BYTES`] of shared memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProbeArgs {
    /// Out: u32 `[THREADS, WORDS]`.
    pub out: Address,
    /// u32 `[SCRATCH_WORDS]`, zeroed.
    pub scratch: Address,
    /// f32 `[THREADS]`: numbers to convert.
    pub numbers: Address,
}

kernel!(
    /// Writes what each wrapper gives, a word a wrapper.
    Probe, tokenrail_probe, ProbeArgs, probe
);

unsafe fn probe(args: ProbeArgs) {
    let (index, lane) = (thread::index(), thread::lane());
    let words = shared::base();
    let mut next = 0;
    // SAFETY: the contract of ProbeArgs; threads write their own words, or by atomics, or one writes what the others
    // read behind a barrier.
    unsafe {
        let mut put = |value: u32| {
            mem::store_u32(args.out.word(index * WORDS + next), value);
            next += 1;
        };
        put(warp::shuffle(warp::ALL, 3 * index, (lane + 1) % thread::WARP));
        put((warp::shuffle_u64(warp::ALL, (index as u64) << 33, lane / 2) >> 32) as u32);
        put(warp::ballot(warp::ALL, lane.is_multiple_of(3)));
        put(warp::match_any(warp::ALL, index / 5));
        put(warp::inclusive_sum(index));
        put(warp::sum(index));
        put(warp::max_f32(-(((lane + 7) % thread::WARP) as f32)).to_bits());
        // Eight lanes on their own.
        let some = 0xff00;
        put(if some >> lane & 1 != 0 { warp::elect(some) as u32 + warp::ballot(some, lane != 9) } else { 0 });

        // Every thread's word, read by its mirror image behind a numbered barrier.
        shared::store_u32(words + 4 * index, 7 * index);
        block::named_barrier(3, THREADS);
        put(shared::load_u32(words + 4 * (THREADS - 1 - index)));
        put(block::barrier_or(index == 40) as u32);

        mem::fetch_add_relaxed_gpu_u32(args.scratch, index);
        mem::fetch_add_acq_rel_sys_u32(args.scratch.word(1), 1);
        let won = mem::compare_exchange_acq_rel_gpu_u32(args.scratch.word(2), 0, index + 1) == 0;
        block::barrier();
        put(mem::load_relaxed_gpu_u32(args.scratch) + 1000 * mem::load_acquire_gpu_u32(args.scratch.word(1)));
        let winner = mem::load_acquire_gpu_u32(args.scratch.word(2)) == index + 1;
        put((won == winner) as u32);

        let own = args.scratch.word(4 + 4 * index);
        mem::store_quad(own, Quad([index, index + 1, index + 2, index + 3]));
        mem::fence_acq_rel_gpu();
        let Quad([a, b, c, d]) = mem::load_quad(own);
        mem::store_relaxed_sys_u64(own, (a as u64) << 32 | b as u64);
        mem::fence_acq_rel_sys();
        mem::store_release_sys_u64(own, mem::load_acquire_sys_u64(own));
        mem::store_release_gpu_u32(own.word(2), c * d);
        put(mem::load_relaxed_sys_u64(own) as u32
            + (mem::load_u64(own) >> 32) as u32
            + mem::load_u32(own.word(2)));

        let number = f32::from_bits(mem::load_u32(args.numbers.word(index)));
        let pair = f32_to_bf16x2(number, -number);
        let [low, high] = bf16x2_to_f32(pair);
        put(pair);
        let codes = f32_to_e4m3x2(number, high);
        put(codes as u32 | ((low.to_bits() >> 16) << 16));
        let earlier = clock::now_ns();
        let sum = e4m3_to_f32(codes as u8) + e4m3_to_f32((codes >> 8) as u8);
        put(if clock::now_ns() >= earlier { sum.to_bits() } else { u32::MAX });
        let pair = f32_to_f16x2(number, -number);
        let [low, high] = f16x2_to_f32(pair);
        put(pair);
        put(low.to_bits());
        put(high.to_bits());
        // Codes 0 to 252 in steps of 4, and the last.
        put(ue8m0_to_f32(if index == THREADS - 1 { 255 } else { 4 * index as u8 }).to_bits());
    }
}
