//! The receiving half.

use super::CombineArgs;
use super::send::{add, at};
use crate::gpu::{block, clock, mem, thread, warp};
use crate::low_latency::batch::{Step, Waited, channel, share};
use crate::low_latency::far;
use crate::low_latency::format::{Values, Wire, pack};
use crate::low_latency::layout::TILE_CELLS;
use crate::low_latency::packet::{self, Peek};
use crate::trace::{About, Activity};
use crate::unroll::unroll;
use crate::wire::Phase;

/// Sums what comes back to this rank's tokens.
///
/// # Safety
/// The contract of [`CombineArgs`].
#[inline(always)]
pub unsafe fn receive<F: Wire, const AHEAD: usize, const FAR: bool>(args: &CombineArgs) {
    let batch = &args.batch;
    let shape = &batch.shape;
    let tiles = shape.combined().tiles(shape.hidden).max(1);
    // SAFETY: the contract; all lanes of a warp take the same way.
    unsafe {
        let epoch = batch.next(Step::CombineReceived);
        let started_ns = clock::now_ns();
        let deadline_ns = started_ns + batch.timeout_ns;
        batch.trace.begin_warp();
        let tokens = mem::load_u32(batch.work(batch.work.tokens));
        let receiver = Receiver { args, epoch, tag: packet::tag(epoch), started_ns, deadline_ns };
        for item in share(tokens * tiles) {
            if !receiver.token::<F, AHEAD, FAR>(item / tiles, item % tiles) {
                break;
            }
        }
        if FAR {
            batch.all_lanes(channel::COMBINE, epoch, deadline_ns, Phase::Parts);
        }
        receiver.void_one(tokens);
        // All threads have read the epoch.
        block::barrier();
        batch.count(Step::CombineReceived, epoch);
    }
}

struct Receiver<'a> {
    args: &'a CombineArgs,
    epoch: u64,
    tag: u32,
    started_ns: u64,
    deadline_ns: u64,
}

impl Receiver<'_> {
    /// What comes back to `token`, as each lane sees it.
    #[inline(always)]
    unsafe fn parts(&self, token: u32) -> Parts {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let (mut rank, mut weight) = (u32::MAX, 1f32.to_bits());
        // SAFETY: the contract: the routing of the dispatch before.
        unsafe {
            if thread::lane() < shape.topk {
                let slot = token * shape.topk + thread::lane();
                let expert = mem::load_u32(batch.work(batch.work.topk_idx).word(slot));
                if expert < shape.experts {
                    rank = expert / shape.experts_per_rank();
                }
                if shape.by_slot != 0 {
                    weight = mem::load_u32(self.args.topk_weights.word(slot));
                }
            }
        }
        let same = warp::match_any(warp::ALL, rank);
        let is_part = rank != u32::MAX && (shape.by_slot != 0 || same & warp::lanes_below() == 0);
        let lanes = warp::ballot(warp::ALL, is_part);
        let mut order = (lanes & warp::lanes_below()).count_ones();
        if shape.by_slot == 0 {
            order = 0;
            let mut others = lanes;
            while others != 0 {
                order += (warp::shuffle(warp::ALL, rank, others.trailing_zeros()) < rank) as u32;
                others &= others - 1;
            }
        }
        Parts { rank, weight, order: if is_part { order } else { u32::MAX }, count: lanes.count_ones() }
    }

    /// Sums a tile of what comes back to a token; false, and a report, if something does not come.
    #[inline(always)]
    unsafe fn token<F: Wire, const AHEAD: usize, const FAR: bool>(&self, token: u32, tile: u32) -> bool {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let cells = shape.combined().cells(shape.hidden) - tile * TILE_CELLS;
        // SAFETY: the contract. Partner of the packets: `Row::write`, on the ranks that the token went to.
        unsafe {
            let region = batch.own.offset(batch.arena.parts);
            // Several are looked at before the first is waited for, and the first ones before it is known how many there
            // are: by rank, they lie side by side.
            let mut ahead = [const { Peek::NOTHING }; AHEAD];
            if shape.by_slot == 0 {
                unroll!(INDEX in 4 {
                    if INDEX < AHEAD && (INDEX as u32) < shape.parts() {
                        ahead[INDEX % AHEAD] =
                            Peek::at::<F>(at(shape, region, token, INDEX as u32, tile), cells);
                    }
                });
            }
            let parts = self.parts(token);
            let place = |index: u32| {
                let part = if shape.by_slot != 0 { parts.lane(index) } else { index };
                at(shape, region, token, part, tile)
            };
            let mut sums = [[0.0; 16]; 3];
            let mut next = 0;
            while next < parts.count {
                if next > 0 || shape.by_slot != 0 {
                    unroll!(INDEX in 4 {
                        let index = next + INDEX as u32;
                        if INDEX < AHEAD && index < parts.count {
                            ahead[INDEX % AHEAD] = Peek::at::<F>(place(index), cells);
                        }
                    });
                }
                unroll!(INDEX in 4 {
                    let index = next + INDEX as u32;
                    if INDEX < AHEAD && index < parts.count {
                        let peek = &mut ahead[INDEX % AHEAD];
                        let lane = parts.lane(index);
                        let source = warp::shuffle(warp::ALL, parts.rank, lane);
                        let weight = f32::from_bits(warp::shuffle(warp::ALL, parts.weight, lane));
                        if FAR && batch.is_far(source) {
                            if !self.arrive_far(token, source) {
                                return false;
                            }
                            let part = if shape.by_slot != 0 { lane } else { index };
                            let row = at(shape, region, token, part, 0);
                            let read = far::read_tile::<F>(row, shape.combined(), shape.hidden, tile);
                            add::<F>(&mut sums, &F::decode(&read), weight, index == 0);
                        } else {
                            if !self.arrive::<F>(peek, place(index), cells, source) {
                                return false;
                            }
                            add::<F>(&mut sums, &F::decode(&peek.tile::<F>()), weight, index == 0);
                        }
                    }
                });
                next += AHEAD as u32;
            }
            self.store::<F>(token, tile, &sums);
            batch.trace.end_warp(Activity::Sum, About::token(token));
            true
        }
    }

    /// Waits for what was looked at; false, and a report, if it does not come.
    #[inline(always)]
    unsafe fn arrive<F: Wire>(&self, peek: &mut Peek, from: mem::Address, cells: u32, source: u32) -> bool {
        let batch = &self.args.batch;
        if warp::ballot(warp::ALL, !peek.has_come::<F>(cells, self.tag)) == 0 {
            return true;
        }
        // SAFETY: the contract.
        unsafe {
            let came = peek.wait::<F>(from, cells, self.tag, self.deadline_ns);
            if let Err(late) = came {
                batch.late(Phase::Parts, source, self.epoch, self.tag.into(), late.seen.into());
            }
            if warp::ballot(warp::ALL, came.is_err()) != 0 {
                return false;
            }
            if thread::lane() == 0 {
                let waited_ns = clock::now_ns() - self.started_ns;
                batch.has_waited(Waited::Combine, self.epoch, source, waited_ns);
                batch.trace.end(Activity::WaitParts, About::peer(source));
            }
        }
        true
    }

    /// Waits for what a rank of another node has sent back to a token; false, and a report, if it does not come.
    #[inline(always)]
    unsafe fn arrive_far(&self, token: u32, source: u32) -> bool {
        let batch = &self.args.batch;
        let lane = batch.link.lane_of(token);
        // SAFETY: the contract. Partner: `Batch::signal_far`, on the source.
        unsafe {
            let come = batch.link.has_come(channel::COMBINE, source, lane, self.epoch);
            if warp::ballot(warp::ALL, !come) == 0 {
                return true;
            }
            let came = batch.link.wait(channel::COMBINE, source, lane, self.epoch, self.deadline_ns);
            if let Err(seen) = came {
                batch.late(Phase::Parts, source, self.epoch, self.epoch, seen);
            }
            if warp::ballot(warp::ALL, came.is_err()) != 0 {
                return false;
            }
            if thread::lane() == 0 {
                let waited_ns = clock::now_ns() - self.started_ns;
                batch.has_waited(Waited::Combine, self.epoch, source, waited_ns);
                batch.trace.end(Activity::WaitParts, About::peer(source));
            }
        }
        true
    }

    /// Rounds a tile of sums.
    #[inline(always)]
    unsafe fn store<F: Wire>(&self, token: u32, tile: u32, sums: &Values) {
        let hidden = self.args.batch.shape.hidden;
        let to = self.args.out.offset(token as u64 * 2 * hidden as u64);
        unroll!(PLANE in 3 {
            let cell = tile * TILE_CELLS + 32 * PLANE as u32 + thread::lane();
            unroll!(QUAD in 2 {
                let at = cell * F::QUADS as u32 + QUAD as u32;
                if QUAD < F::QUADS && at < hidden / 8 {
                    // SAFETY: the contract: within the row.
                    unsafe { mem::store_quad(to.offset(16 * at as u64), pack(&sums[PLANE], 8 * QUAD)) };
                }
            });
        });
    }

    /// Makes the part void whose turn it is, if nobody has sent it: see the dispatch's.
    #[inline(always)]
    unsafe fn void_one(&self, tokens: u32) {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        if thread::block_index() + 1 != thread::grid_size() || thread::warp_index() + 1 != thread::warps() {
            return;
        }
        let width = shape.parts().max(1);
        let turn = (self.epoch % (shape.tokens * width).max(1) as u64) as u32;
        let (token, part) = (turn / width, turn % width);
        // SAFETY: the contract; nobody writes what was not sent. All lanes take the same way.
        unsafe {
            let mut sent = false;
            if token < tokens {
                let parts = self.parts(token);
                let number = if shape.by_slot != 0 { thread::lane() } else { parts.order };
                sent = warp::ballot(warp::ALL, parts.order != u32::MAX && number == part) != 0;
            }
            if !sent && token < shape.tokens {
                let region = batch.own.offset(batch.arena.parts);
                packet::void(at(shape, region, token, part, 0), shape.part_packets());
            }
        }
    }
}

/// The parts of a token, as each lane of a warp sees them.
struct Parts {
    /// The rank that this lane's slot went to, `u32::MAX` for none.
    rank: u32,
    /// Bits of what this lane's part is multiplied by.
    weight: u32,
    /// When this lane's part is added; `u32::MAX` if it has none.
    order: u32,
    /// How many there are.
    count: u32,
}

impl Parts {
    /// The lane whose part is added `index`th. All lanes of the warp.
    #[inline(always)]
    fn lane(&self, index: u32) -> u32 {
        warp::ballot(warp::ALL, self.order == index).trailing_zeros()
    }
}
