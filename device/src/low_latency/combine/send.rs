//! The sending half.

use super::CombineArgs;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, shared, thread, warp};
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::low_latency::batch::{Peers, Step, channel, share};
use crate::low_latency::far;
use crate::low_latency::format::{Quads, Values, Wire, ZEROS, values};
use crate::low_latency::layout::{NO_ROW, Shape, TILE_CELLS};
use crate::low_latency::packet;
use crate::meet::last_block;
use crate::trace::{About, Activity};
use crate::unroll::unroll;

/// Bytes of a block's dynamic shared memory: [`Peers`].
pub const fn shared_bytes(shape: &Shape) -> u32 {
    Peers::bytes(shape)
}

/// Sends back what this rank's experts have made.
///
/// # Safety
/// The contract of [`CombineArgs`].
#[inline(always)]
pub unsafe fn send<F: Wire, const AHEAD: usize, const FAR: bool>(args: &CombineArgs) {
    let batch = &args.batch;
    let shape = &batch.shape;
    let tiles = shape.combined().tiles(shape.hidden).max(1);
    // SAFETY: the contract; all lanes of a warp take the same way.
    unsafe {
        let epoch = batch.next(Step::CombineSent);
        let deadline_ns = clock::now_ns() + batch.timeout_ns;
        batch.trace.begin_warp();
        let peers = Peers::load(batch, shared::base());
        batch.acknowledge::<FAR>(deadline_ns);
        let most = most_tokens(args).max(1);
        let mut items = share(shape.ranks * most * tiles);
        let row = |item: u32| {
            let (message, tile) = (item / tiles, item % tiles);
            let (source, token) = (message / most, message % most);
            Row { args, peers, source, token, tile, tag: packet::tag(epoch) }
        };
        // What the first one comes to is known before peers are ready for it.
        let mut sums = [[0.0; 16]; 3];
        let mut first = None;
        if shape.by_slot == 0 {
            first = items.next();
            if let Some(item) = first {
                sums = row(item).sum::<F, AHEAD>();
            }
        }
        batch.trace.end_warp(Activity::Sum, About::NOTHING);
        let ready = batch.may_send(batch.arena.combine_read, epoch, deadline_ns);
        let late = block::barrier_or(!ready);
        batch.trace.end_warp(Activity::Barrier, About::NOTHING);
        if late {
            return;
        }
        batch.add_up_waits();
        if let Some(item) = first
            && row(item).came_here()
        {
            row(item).write::<F, FAR>(row(item).part(), 0, &sums);
            batch.trace.end_warp(Activity::Send, row(item).about());
        }
        for item in items {
            let row = row(item);
            if !row.came_here() {
                continue;
            }
            if shape.by_slot != 0 {
                row.write_slots::<F, AHEAD, FAR>();
            } else {
                let sums = row.sum::<F, AHEAD>();
                row.write::<F, FAR>(row.part(), 0, &sums);
            }
            batch.trace.end_warp(Activity::Send, row.about());
        }
        if FAR {
            post(args, peers, epoch, deadline_ns);
            batch.trace.end_warp(Activity::Signal, About::NOTHING);
        }
        batch.count(Step::CombineSent, epoch);
    }
}

/// Has the proxy send what the outbox holds, once all blocks have written it. By the whole block.
#[inline(always)]
unsafe fn post(args: &CombineArgs, peers: Peers, epoch: u64, deadline_ns: u64) {
    let batch = &args.batch;
    let (shape, arena, link) = (&batch.shape, &batch.arena, &batch.link);
    let channel = link.channel + channel::COMBINE;
    // SAFETY: the contract of CombineArgs. The meeting acquires what all blocks have written, for the whole block.
    unsafe {
        if !last_block(batch.work(batch.work.meetings).word(channel::COMBINE)) {
            return;
        }
        Ring::release();
        let most = most_tokens(args).max(1);
        for message in thread::warp_strided(shape.ranks * most) {
            let (source, token) = (message / most, message % most);
            let row = Row { args, peers, source, token, tile: 0, tag: packet::tag(epoch) };
            if !batch.is_far(source) || !row.came_here() {
                continue;
            }
            let (slot, part, has) = if shape.by_slot != 0 {
                (thread::lane(), thread::lane(), row.slot().0 != NO_ROW)
            } else {
                (0, row.part(), thread::lane() == 0)
            };
            let there = at(shape, mem::Address(link.part + arena.parts), token, part, 0);
            let command = Command::Put {
                // As `receive` expects.
                to: Target { peer: source, lane: link.lane_of(token) },
                channel,
                from: link.part + row.outbox(slot),
                at: there.0,
                bytes: shape.far_part_bytes(),
            };
            batch.push(has, command, epoch, deadline_ns);
        }
        // Places in the ring are in the order of the puts and, behind the barrier, the signals.
        block::barrier();
        if thread::warp_index() == 0 {
            batch.signal_far(channel::COMBINE, epoch, deadline_ns);
        }
    }
}

/// Word `word` of what the dispatch kept of `source`.
#[inline(always)]
unsafe fn kept(args: &CombineArgs, source: u32, word: u32) -> u32 {
    let batch = &args.batch;
    let words = 1 + batch.shape.token_bits();
    // SAFETY: the contract of CombineArgs: the word is one of the source's.
    unsafe { mem::load_u32(batch.work(batch.work.sources).word(source * words + word)) }
}

/// The most tokens that a rank has dispatched, on all lanes.
#[inline(always)]
unsafe fn most_tokens(args: &CombineArgs) -> u32 {
    let mut most = 0;
    for source in thread::lane_strided(args.batch.shape.ranks) {
        // SAFETY: one of the ranks.
        most = most.max(unsafe { kept(args, source, 0) });
    }
    warp::max_within(thread::WARP, most)
}

/// A tile of what goes back to a token.
#[derive(Clone, Copy)]
struct Row<'a> {
    args: &'a CombineArgs,
    peers: Peers,
    source: u32,
    token: u32,
    tile: u32,
    tag: u32,
}

impl Row<'_> {
    #[inline(always)]
    fn about(&self) -> About {
        About::both(self.source, self.token)
    }

    /// Whether the token came to this rank.
    #[inline(always)]
    unsafe fn came_here(&self) -> bool {
        // SAFETY: the contract of CombineArgs.
        let bits = unsafe { kept(self.args, self.source, 1 + self.token / 32) };
        bits >> (self.token % 32) & 1 != 0
    }

    #[inline(always)]
    fn message(&self) -> u32 {
        self.source * self.args.batch.shape.tokens + self.token
    }

    /// Which part of what the token gets comes from this rank.
    #[inline(always)]
    unsafe fn part(&self) -> u32 {
        let batch = &self.args.batch;
        // SAFETY: the contract: that of the dispatch before.
        unsafe { mem::load_u32(batch.work(batch.work.part).word(self.message())) }
    }

    /// This lane's slot: the row that its expert had, [`NO_ROW`] for none, and bits of the weight.
    #[inline(always)]
    unsafe fn slot(&self) -> (u32, u32) {
        let batch = &self.args.batch;
        let (shape, work) = (&batch.shape, &batch.work);
        if thread::lane() >= shape.topk {
            return (NO_ROW, 0);
        }
        let slot = self.message() * shape.topk + thread::lane();
        // SAFETY: the contract: those of the dispatch before.
        unsafe {
            (
                mem::load_u32(batch.work(work.rows).word(slot)),
                mem::load_u32(batch.work(work.weights).word(slot)),
            )
        }
    }

    /// The rows of the slots `slots` that come first, as many as are wanted on their way at once.
    #[inline(always)]
    unsafe fn ahead<F: Wire, const AHEAD: usize>(&self, row: u32, slots: u32) -> [Quads; AHEAD] {
        let mut ahead = [ZEROS; AHEAD];
        unroll!(INDEX in 4 {
            let left = without_lowest(slots, INDEX);
            if INDEX < AHEAD && left != 0 {
                let row = warp::shuffle(warp::ALL, row, left.trailing_zeros());
                // SAFETY: the contract.
                ahead[INDEX % AHEAD] = unsafe { self.load::<F>(row) };
            }
        });
        ahead
    }

    /// The weighted sum of the rows of this rank's experts. Of a token that did not come here it is of no use.
    #[inline(always)]
    unsafe fn sum<F: Wire, const AHEAD: usize>(&self) -> Values {
        let mut sums = [[0.0; 16]; 3];
        // SAFETY: the contract.
        unsafe {
            let came = self.came_here();
            let (row, weight) = self.slot();
            let mut slots = warp::ballot(warp::ALL, came && row != NO_ROW);
            let mut is_first = true;
            while slots != 0 {
                let ahead = self.ahead::<F, AHEAD>(row, slots);
                unroll!(INDEX in 4 {
                    if INDEX < AHEAD && slots != 0 {
                        let weight = warp::shuffle(warp::ALL, weight, slots.trailing_zeros());
                        let values = values::<F>(&ahead[INDEX % AHEAD]);
                        add::<F>(&mut sums, &values, f32::from_bits(weight), is_first);
                        is_first = false;
                        slots &= slots - 1;
                    }
                });
            }
        }
        sums
    }

    /// Sends the rows of this rank's experts as they are.
    #[inline(always)]
    unsafe fn write_slots<F: Wire, const AHEAD: usize, const FAR: bool>(&self) {
        // SAFETY: the contract.
        unsafe {
            let (row, _) = self.slot();
            let mut slots = warp::ballot(warp::ALL, row != NO_ROW);
            while slots != 0 {
                let ahead = self.ahead::<F, AHEAD>(row, slots);
                unroll!(INDEX in 4 {
                    if INDEX < AHEAD && slots != 0 {
                        let values = values::<F>(&ahead[INDEX % AHEAD]);
                        let slot = slots.trailing_zeros();
                        self.write::<F, FAR>(slot, slot, &values);
                        slots &= slots - 1;
                    }
                });
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

    /// Offset of this row, of slot `slot` or 0, in the outbox, from the beginning of the batch's part on.
    #[inline(always)]
    fn outbox(&self, slot: u32) -> u64 {
        let batch = &self.args.batch;
        let row = (self.message() * batch.shape.parts_of_rank() + slot) as u64;
        batch.arena.outbox_parts + row * batch.shape.far_part_bytes() as u64
    }

    /// Sends the tile, of slot `slot` or 0, as part `part` of what the token gets. Partner: `receive`, on the source.
    #[inline(always)]
    unsafe fn write<F: Wire, const FAR: bool>(&self, part: u32, slot: u32, values: &Values) {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let fill = shape.combined();
        if FAR && batch.is_far(self.source) {
            let row = batch.own.offset(self.outbox(slot));
            // SAFETY: the contract.
            unsafe { far::write_tile::<F>(row, fill, shape.hidden, self.tile, &F::encode(values)) };
            return;
        }
        let cells = fill.cells(shape.hidden) - self.tile * TILE_CELLS;
        // SAFETY: the contract.
        unsafe {
            let parts = self.peers.of(self.source).offset(batch.arena.parts);
            let to = at(shape, parts, self.token, part, self.tile);
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
