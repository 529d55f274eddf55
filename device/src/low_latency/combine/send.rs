//! The sending half.

use super::CombineArgs;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, shared, thread, warp};
use crate::low_latency::batch::{Step, share};
use crate::low_latency::format::{Quads, Values, Wire, ZEROS, values};
use crate::low_latency::layout::{NO_ROW, Shape, TILE_CELLS};
use crate::low_latency::packet;
use crate::unroll::unroll;

/// Bytes of a block's dynamic shared memory: for each source its tokens, and a bit for each that came here.
pub const fn shared_bytes(shape: &Shape) -> u32 {
    4 * shape.ranks * (1 + shape.token_bits())
}

/// Sends back what this rank's experts have made.
///
/// # Safety
/// The contract of [`CombineArgs`].
#[inline(always)]
pub unsafe fn send<F: Wire, const AHEAD: usize>(args: &CombineArgs) {
    let batch = &args.batch;
    let (shape, work) = (&batch.shape, &batch.work);
    let tiles = shape.combined().tiles(shape.hidden).max(1);
    let source_words = 1 + shape.token_bits();
    let told = |source: u32, word: u32| shared::base() + 4 * (source * source_words + word);
    // SAFETY: the contract; all lanes of a warp take the same way.
    unsafe {
        let epoch = batch.next(Step::CombineSent);
        let deadline_ns = clock::now_ns() + batch.timeout_ns;
        batch.begin();
        for word in thread::strided(shape.ranks * source_words) {
            shared::store_u32(told(0, word), mem::load_u32(batch.work(work.sources).word(word)));
        }
        let ready = batch.may_send(batch.arena.combine_read, epoch, deadline_ns);
        if block::barrier_or(!ready) {
            return;
        }
        let mut most = 0;
        for source in 0..shape.ranks {
            most = most.max(shared::load_u32(told(source, 0)));
        }
        for item in share(shape.ranks * most * tiles) {
            let (message, tile) = (item / tiles, item % tiles);
            let (source, token) = (message / most.max(1), message % most.max(1));
            let bits = shared::load_u32(told(source, 1 + token / 32));
            if bits >> (token % 32) & 1 != 0 {
                let row = Row { args, source, token, tile, tag: packet::tag(epoch) };
                row.send::<F, AHEAD>();
            }
        }
        batch.count(Step::CombineSent, epoch);
    }
}

/// A tile of what goes back to a token.
struct Row<'a> {
    args: &'a CombineArgs,
    source: u32,
    token: u32,
    tile: u32,
    tag: u32,
}

impl Row<'_> {
    #[inline(always)]
    unsafe fn send<F: Wire, const AHEAD: usize>(&self) {
        let batch = &self.args.batch;
        let (shape, work) = (&batch.shape, &batch.work);
        let message = self.source * shape.tokens + self.token;
        // SAFETY: the contract: rows, weights and parts are those of the dispatch before.
        unsafe {
            let (mut row, mut weight) = (NO_ROW, 0);
            if thread::lane() < shape.topk {
                let slot = message * shape.topk + thread::lane();
                row = mem::load_u32(batch.work(work.rows).word(slot));
                weight = mem::load_u32(batch.work(work.weights).word(slot));
            }
            let part = mem::load_u32(batch.work(work.part).word(message));
            let mut slots = warp::ballot(warp::ALL, row != NO_ROW);
            let mut sums = [[0.0; 16]; 3];
            let mut is_first = true;
            while slots != 0 {
                // The rows of several slots are on their way at once.
                let mut ahead = [ZEROS; AHEAD];
                unroll!(INDEX in 4 {
                    let left = without_lowest(slots, INDEX);
                    if INDEX < AHEAD && left != 0 {
                        let row = warp::shuffle(warp::ALL, row, left.trailing_zeros());
                        ahead[INDEX % AHEAD] = self.load::<F>(row);
                    }
                });
                unroll!(INDEX in 4 {
                    if INDEX < AHEAD && slots != 0 {
                        let slot = slots.trailing_zeros();
                        let values = values::<F>(&ahead[INDEX % AHEAD]);
                        if shape.by_slot != 0 {
                            self.write::<F>(slot, &values);
                        } else {
                            let weight = f32::from_bits(warp::shuffle(warp::ALL, weight, slot));
                            add::<F>(&mut sums, &values, weight, is_first);
                            is_first = false;
                        }
                        slots &= slots - 1;
                    }
                });
            }
            if shape.by_slot == 0 {
                self.write::<F>(part, &sums);
            }
        }
    }

    /// This lane's part of the tile of a row of `y`.
    #[inline(always)]
    unsafe fn load<F: Wire>(&self, row: u32) -> Quads {
        let hidden = self.args.batch.shape.hidden;
        let from = self.args.y.offset(row as u64 * 2 * hidden as u64);
        let mut quads = ZEROS;
        unroll!(PLANE in 3 {
            let cell = self.tile * TILE_CELLS + 32 * PLANE as u32 + thread::lane();
            unroll!(QUAD in 2 {
                let at = cell * F::QUADS as u32 + QUAD as u32;
                if QUAD < F::QUADS && at < hidden / 8 {
                    // SAFETY: the contract: within the row.
                    quads[PLANE][QUAD] = unsafe { mem::load_quad(from.offset(16 * at as u64)) };
                }
            });
        });
        quads
    }

    /// Sends the tile as part `part` of what the token gets. Partner: `receive`, on the source.
    #[inline(always)]
    unsafe fn write<F: Wire>(&self, part: u32, values: &Values) {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let fill = shape.combined();
        let cells = fill.cells(shape.hidden) - self.tile * TILE_CELLS;
        // SAFETY: the contract.
        unsafe {
            let to =
                at(shape, batch.peer(self.source).offset(batch.arena.parts), self.token, part, self.tile);
            packet::write_tile::<F>(to, cells, &F::encode(values), self.tag);
        }
    }
}

/// `bits` without the lowest `count` ones.
#[inline(always)]
fn without_lowest(mut bits: u32, count: usize) -> u32 {
    for _ in 0..count {
        bits &= bits.wrapping_sub(1);
    }
    bits
}

/// Where a tile of a part of what `token` gets lies, from the beginning of the parts on.
#[inline(always)]
pub fn at(shape: &Shape, parts: Address, token: u32, part: u32, tile: u32) -> Address {
    let row = (token * shape.parts() + part) as u64 * shape.part_packets() as u64;
    packet::nth(parts, row + (tile * shape.combined().tile_packets()) as u64)
}

/// Adds a row, times a weight, to sums; the first is not added to zero, so that −0 stays what it is.
#[inline(always)]
pub fn add<F: Wire>(sums: &mut Values, values: &Values, weight: f32, is_first: bool) {
    unroll!(PLANE in 3 {
        unroll!(AT in 16 {
            if AT < 8 * F::QUADS {
                let product = values[PLANE][AT] * weight;
                sums[PLANE][AT] = if is_first { product } else { sums[PLANE][AT] + product };
            }
        });
    });
}
