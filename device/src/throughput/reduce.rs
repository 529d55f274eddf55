//! Reduce: what the experts have left, expert-major or in foreign memory, becomes the one row of each received row that
//! combine reads. No communication.

use super::sums::{Bf16, F16, Half, Sums};
use crate::gpu::mem::{self, Address, Quad};
use crate::gpu::{thread, warp};
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
    // SAFETY: the contract of ReduceArgs.
    unsafe {
        let own = exchange.own();
        let rows = mem::load_u32(exchange.handle(exchange.handle.received));
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
            let out = own.offset(arena.outputs).offset(16 * row as u64 * quads as u64);
            if args.by_expert == 0 {
                let from = args.outputs.offset(16 * row as u64 * quads as u64);
                for quad in thread::lane_strided(quads) {
                    let at = 16 * quad as u64;
                    mem::store_quad(out.offset(at), mem::load_quad(from.offset(at)));
                }
            } else {
                Pairs::of(args, slots).sum::<H>(args, out);
            }
        }
    }
}

/// The pairs of a row, one a lane.
struct Pairs {
    /// Where this lane's row begins.
    from: Address,
    weight: f32,
    /// Lanes that have one, in slot order.
    lanes: u32,
}

/// One of a row's pairs, on all lanes.
#[derive(Clone, Copy)]
struct Pair {
    from: Address,
    weight: f32,
}

impl Pairs {
    #[inline(always)]
    unsafe fn of(args: &ReduceArgs, slots: u32) -> Self {
        let exchange = &args.exchange;
        let positions = exchange.handle(exchange.handle.positions);
        let (mut position, mut weight) = (u32::MAX, 0);
        if thread::lane() < exchange.shape.topk {
            let slot = slots + thread::lane();
            // SAFETY: the contract of ReduceArgs.
            unsafe {
                position = mem::load_u32(positions.word(slot));
                if !args.weights.is_null() {
                    weight = mem::load_u32(args.weights.word(slot));
                }
            }
        }
        let lanes = warp::ballot(warp::ALL, position != u32::MAX);
        let from = args.outputs.offset(position as u64 * exchange.shape.output_bytes() as u64);
        Self { from, weight: f32::from_bits(weight), lanes }
    }

    /// The pair of the first of `lanes`, which it takes away, if there is any.
    #[inline(always)]
    fn take(&self, lanes: &mut u32) -> Option<Pair> {
        if *lanes == 0 {
            return None;
        }
        let lane = lanes.trailing_zeros();
        *lanes &= *lanes - 1;
        let from = Address(warp::shuffle_u64(warp::ALL, self.from.0, lane));
        let weight = f32::from_bits(warp::shuffle(warp::ALL, self.weight.to_bits(), lane));
        Some(Pair { from, weight })
    }

    /// Writes the sum, which the lanes of the warp divide.
    #[inline(always)]
    unsafe fn sum<H: Half>(&self, args: &ReduceArgs, out: Address) {
        let quads = args.exchange.shape.output_bytes() / 16;
        let weighted = !args.weights.is_null();
        let mut quad = thread::lane();
        // Whole warps, so that lanes past the end still take part in the shuffles.
        while quad - thread::lane() < quads {
            let inside = quad < quads;
            let at = 16 * quad as u64;
            let load = |pair: Option<Pair>| match pair {
                // SAFETY: the contract of ReduceArgs: positions are those of rows that exist.
                Some(pair) if inside => unsafe { mem::load_quad(pair.from.offset(at)) },
                _ => Quad::default(),
            };
            let (mut sums, mut empty) = (Sums::ZERO, true);
            let mut add = |pair: Option<Pair>, quad: Quad| {
                let Some(pair) = pair else { return };
                let value = Sums::first::<H>(quad);
                let value = if weighted { value.times(pair.weight) } else { value };
                if empty {
                    sums = value
                } else {
                    sums.add(value)
                }
                empty = false;
            };
            let mut lanes = self.lanes;
            while lanes != 0 {
                // Four at a time, so that their loads are on their way together.
                let pairs = [(); 4].map(|()| self.take(&mut lanes));
                let [a, b, c, d] = pairs.map(load);
                add(pairs[0], a);
                add(pairs[1], b);
                add(pairs[2], c);
                add(pairs[3], d);
            }
            if inside {
                // SAFETY: the row is this warp's.
                unsafe { mem::store_quad(out.offset(at), sums.round::<H>()) };
            }
            quad += thread::WARP;
        }
    }
}
