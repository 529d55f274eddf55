//! Reduce: what the experts have left, expert-major or in foreign memory, becomes the one row of each received row that
//! combine reads. No communication.

use super::sums::{Bf16, F16, Half, Sums};
use crate::gpu::mem::{self, Address};
use crate::gpu::thread;
use crate::kernel::kernel;
use crate::wire::Exchange;

/// Arguments of [`Reduce`].
///
/// Contract: [`Exchange`]'s, with a handle that a dispatch has filled, one with the expert-major form if `by_expert`;
/// the arrays are as described, aligned to 16 bytes; blocks are whole warps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReduceArgs {
    /// The exchange this belongs to.
    pub exchange: Exchange,
    /// bf16 or f16 `[expert row, hidden]` if `by_expert`, `[row, hidden]` otherwise; null if the rows are where combine
    /// reads them.
    pub outputs: Address,
    /// f32 `[row, topk]`: what a pair's row is multiplied by, with `by_expert`; null for the sum alone.
    pub weights: Address,
    /// f32 `[row, topk]`, to be sent back to the slots; null for none, or if they are where combine reads them.
    pub slots: Address,
    /// 1 if `outputs` are expert-major.
    pub by_expert: u32,
}

kernel!(
    /// A warp takes a row: with expert-major outputs the sum over its slots in f32, in slot order, rounded once; a copy
    /// otherwise. Any grid.
    Reduce, tokenrail_reduce, ReduceArgs, reduce
);

unsafe fn reduce(args: ReduceArgs) {
    // SAFETY: the contract of ReduceArgs, passed on.
    unsafe { if args.exchange.shape.f16 == 0 { reduce_of::<Bf16>(&args) } else { reduce_of::<F16>(&args) } }
}

#[inline(always)]
unsafe fn reduce_of<H: Half>(args: &ReduceArgs) {
    let exchange = &args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let quads = shape.output_bytes() / 16;
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    // SAFETY: the contract of ReduceArgs: positions are those of expert-major rows that exist.
    unsafe {
        let own = exchange.own();
        let rows = mem::load_u32(exchange.handle(exchange.handle.received));
        let positions = exchange.handle(exchange.handle.positions);
        for row in thread::Strided::new(first, rows, thread::grid_size() * thread::warps()) {
            let slots = row * shape.topk;
            if !args.slots.is_null() {
                for slot in thread::lane_strided(shape.topk) {
                    let value = mem::load_u32(args.slots.word(slots + slot));
                    mem::store_u32(own.offset(arena.slot_outputs).word(slots + slot), value);
                }
            }
            if args.outputs.is_null() {
                continue;
            }
            for quad in thread::lane_strided(quads) {
                let of = |row: u32| 16 * (row as u64 * quads as u64 + quad as u64);
                let out = own.offset(arena.outputs).offset(of(row));
                if args.by_expert == 0 {
                    mem::store_quad(out, mem::load_quad(args.outputs.offset(of(row))));
                    continue;
                }
                let mut sums = Sums::ZERO;
                let mut empty = true;
                for slot in slots..slots + shape.topk {
                    let position = mem::load_u32(positions.word(slot));
                    if position == u32::MAX {
                        continue;
                    }
                    let mut value = Sums::first::<H>(mem::load_quad(args.outputs.offset(of(position))));
                    if !args.weights.is_null() {
                        value = value.times(f32::from_bits(mem::load_u32(args.weights.word(slot))));
                    }
                    if empty {
                        sums = value
                    } else {
                        sums.add(value)
                    }
                    empty = false;
                }
                mem::store_quad(out, sums.round::<H>());
            }
        }
    }
}
