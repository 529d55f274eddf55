//! The pulling and summing of a rank's tokens, warp by warp.

use super::combine::CombineArgs;
use super::sums::{Bf16, F16, Half, Sums};
use crate::gpu::mem::{self, Address};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::{bulk, shared};
use crate::gpu::{thread, warp};
use crate::trace::{About, Activity};
use crate::wire::NO_ROUTE;

/// This lane's route of `token`; [`NO_ROUTE`] on lanes without. Lanes with one come first, in ascending order of the
/// ranks.
#[inline(always)]
pub(super) unsafe fn route(args: &CombineArgs, token: u32) -> u64 {
    let exchange = &args.exchange;
    let width = exchange.shape.route_width();
    if thread::lane() >= width {
        return NO_ROUTE;
    }
    // SAFETY: the contract of CombineArgs; the token is one of the handle's.
    unsafe { mem::load_u64(exchange.handle(exchange.handle.routes).long(token * width).long(thread::lane())) }
}

/// Where this lane's partial row of `token` begins, on the rank that holds it or in the inbox; null on lanes without a
/// route.
#[inline(always)]
unsafe fn partial_row(args: &CombineArgs, token: u32) -> Address {
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    // SAFETY: the contract of CombineArgs: routes name rows that exist on ranks that exist.
    unsafe {
        let route = route(args, token);
        if route == NO_ROUTE {
            return Address::NULL;
        }
        let (rank, row) = ((route >> 32) as u32, route as u32);
        let (region, row) = if args.from_inbox != 0 && rank != exchange.rank {
            let first = mem::load_u64(exchange.handle(exchange.handle.sent).long(rank)) >> 32;
            let place = rank as u64 * shape.tokens as u64 + (row as u64 - first);
            (exchange.own().offset(exchange.arena.inbox), place)
        } else {
            (exchange.peer(rank).offset(exchange.arena.outputs), row as u64)
        };
        region.offset(row * shape.output_bytes() as u64)
    }
}

/// This warp's tokens: every `warps in the grid`th, so that all warps have their share of any range.
#[inline(always)]
fn tokens(tokens: u32) -> thread::Strided {
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    thread::Strided::new(first, tokens, thread::grid_size() * thread::warps())
}

/// Pulls what each slot's owner has for it.
///
/// # Safety
/// All ranks' outputs are ready.
#[inline(always)]
pub unsafe fn slots(args: &CombineArgs, all: u32) {
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    for token in tokens(all) {
        // SAFETY: the contract of CombineArgs; all lanes of the warp take the same way through the routes.
        unsafe {
            let route = route(args, token);
            let slot = thread::lane();
            let inside = slot < shape.topk;
            let at = token * shape.topk + slot;
            let expert = if inside {
                mem::load_u32(exchange.handle(exchange.handle.topk_idx).word(at))
            } else {
                u32::MAX
            };
            let mut value = 0;
            let mut lanes = warp::ballot(warp::ALL, route != NO_ROUTE);
            while lanes != 0 {
                let route = warp::shuffle_u64(warp::ALL, route, lanes.trailing_zeros());
                let (rank, row) = ((route >> 32) as u32, route as u32);
                if expert < shape.experts && expert / shape.experts_per_rank() == rank {
                    let from = exchange.peer(rank).offset(exchange.arena.slot_outputs);
                    value = mem::load_u32(from.word(row * shape.topk + slot));
                }
                lanes &= lanes - 1;
            }
            if inside {
                mem::store_u32(args.slots_out.word(at), value);
            }
        }
    }
}

/// Rounds a quad at `offset` of the output and writes it, the biases added first if there are any.
#[inline(always)]
pub(super) unsafe fn finish<H: Half, const BIASED: bool>(args: &CombineArgs, mut sums: Sums, offset: u64) {
    // SAFETY: the contract of CombineArgs.
    unsafe {
        if BIASED {
            if !args.bias[0].is_null() {
                sums.add(Sums::first::<H>(mem::load_quad(args.bias[0].offset(offset))));
            }
            if !args.bias[1].is_null() {
                sums.add(Sums::first::<H>(mem::load_quad(args.bias[1].offset(offset))));
            }
        }
        mem::store_quad(args.out.offset(offset), sums.round::<H>());
    }
}

/// What a warp sums: for each of some items, rows that become one.
pub(super) trait Job {
    /// What summing is for it.
    const SUM: Activity;

    /// What the sum of an item is about.
    fn about(&self, item: u32) -> About;

    /// This warp's.
    fn items(&self) -> impl Iterator<Item = u32>;

    /// Where this lane's row of `item` begins; null on lanes without. Lanes with one come first, in the order in which they
    /// are added. All lanes of a warp.
    ///
    /// # Safety
    /// The contract of [`CombineArgs`], and what else the job needs; `item` is one of its items. So for all here.
    unsafe fn row(&self, item: u32) -> Address;

    /// How many rows `item` has. All lanes of a warp.
    unsafe fn parts(&self, item: u32) -> u32;

    /// Writes 16 bytes of what the rows have become, from byte `at` on.
    unsafe fn write<H: Half, const BIASED: bool>(&self, item: u32, at: u64, sums: Sums);

    /// All of the item is written, by all lanes of the warp, which call this together.
    unsafe fn done(&self, item: u32);
}

/// The rank's tokens, whose rows the ranks have that they went to.
struct Tokens<'a> {
    args: &'a CombineArgs,
    all: u32,
}

impl Job for Tokens<'_> {
    const SUM: Activity = Activity::Sum;

    #[inline(always)]
    fn about(&self, item: u32) -> About {
        About::token(item)
    }

    #[inline(always)]
    fn items(&self) -> impl Iterator<Item = u32> {
        tokens(self.all)
    }

    #[inline(always)]
    unsafe fn row(&self, item: u32) -> Address {
        // SAFETY: the caller's promise.
        unsafe { partial_row(self.args, item) }
    }

    #[inline(always)]
    unsafe fn parts(&self, item: u32) -> u32 {
        // SAFETY: the caller's promise.
        warp::ballot(warp::ALL, unsafe { route(self.args, item) } != NO_ROUTE).count_ones()
    }

    #[inline(always)]
    unsafe fn write<H: Half, const BIASED: bool>(&self, item: u32, at: u64, sums: Sums) {
        let row = item as u64 * self.args.exchange.shape.output_bytes() as u64;
        // SAFETY: the caller's promise.
        unsafe { finish::<H, BIASED>(self.args, sums, row + at) }
    }

    #[inline(always)]
    unsafe fn done(&self, _: u32) {}
}

/// How rows are pulled.
pub(super) trait Pull {
    /// To be called once before the first job, when all outputs of the own node are ready.
    ///
    /// # Safety
    /// The contract of [`CombineArgs`].
    unsafe fn begin(&mut self);

    /// Does a job.
    ///
    /// # Safety
    /// The contract of [`CombineArgs`], and what the job needs.
    unsafe fn pull<H: Half, const BIASED: bool, J: Job>(&mut self, args: &CombineArgs, job: &J);
}

/// Calls one of four forms of a job, so that the innermost loop has no branch that is decided by the arguments.
///
/// # Safety
/// As [`Pull::pull`], which has begun.
#[inline(always)]
pub(super) unsafe fn by_format_and_bias<J: Job>(args: &CombineArgs, job: &J, pull: &mut impl Pull) {
    // SAFETY: the caller's promise.
    unsafe {
        match (args.exchange.shape.f16 != 0, !(args.bias[0].is_null() && args.bias[1].is_null())) {
            (false, false) => pull.pull::<Bf16, false, J>(args, job),
            (false, true) => pull.pull::<Bf16, true, J>(args, job),
            (true, false) => pull.pull::<F16, false, J>(args, job),
            (true, true) => pull.pull::<F16, true, J>(args, job),
        }
    }
}

/// Pulls and sums the rank's tokens.
///
/// # Safety
/// All ranks' outputs are ready.
#[inline(always)]
pub(super) unsafe fn tokens_of_all_ranks(args: &CombineArgs, all: u32, pull: &mut impl Pull) {
    // SAFETY: the caller's promise.
    unsafe {
        pull.begin();
        by_format_and_bias(args, &Tokens { args, all }, pull);
    }
}

/// By 16-byte loads.
pub(super) struct Plain;

impl Pull for Plain {
    #[inline(always)]
    unsafe fn begin(&mut self) {}

    #[inline(always)]
    unsafe fn pull<H: Half, const BIASED: bool, J: Job>(&mut self, args: &CombineArgs, job: &J) {
        let quads = args.exchange.shape.output_bytes() / 16;
        for item in job.items() {
            // SAFETY: the contract of CombineArgs; all lanes of the warp take the same way.
            unsafe {
                let from = job.row(item);
                let count = warp::ballot(warp::ALL, !from.is_null()).count_ones();
                let mut quad = thread::lane();
                // Whole warps, so that lanes past the end still take part in the shuffles.
                while quad - thread::lane() < quads {
                    let mut sums = Sums::ZERO;
                    for part in 0..count {
                        let row = Address(warp::shuffle_u64(warp::ALL, from.0, part));
                        if quad < quads {
                            let value = Sums::first::<H>(mem::load_quad(row.offset(16 * quad as u64)));
                            if part == 0 { sums = value } else { sums.add(value) }
                        }
                    }
                    if quad < quads {
                        job.write::<H, BIASED>(item, 16 * quad as u64, sums);
                    }
                    quad += thread::WARP;
                }
                job.done(item);
                args.exchange.trace.end_warp(J::SUM, job.about(item));
            }
        }
    }
}

/// By bulk copies, summed from shared memory. A stage holds one piece of every partial row of an item, each
/// pulled by the lane that has it; `stages − 1` pieces are on their way while one is summed.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
pub(super) struct Bulk {
    stages: u32,
    piece_bytes: u32,
    stage_bytes: u32,
    /// In shared memory: this warp's mbarriers and stages.
    barriers: u32,
    buffers: u32,
    /// The stage of the next piece, and the parity of its mbarrier.
    stage: u32,
    parity: u32,
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
impl Bulk {
    /// With the stages that the launch has room for.
    #[inline(always)]
    pub fn new(args: &CombineArgs) -> Self {
        let (stages, piece_bytes) = (args.stages, args.piece_bytes);
        let stage_bytes = piece_bytes * args.exchange.shape.route_width();
        let layout = super::combine::Shared::new(thread::warps(), stages, stage_bytes);
        let first = thread::warp_index() * stages;
        let barriers = shared::base() + layout.barriers + 8 * first;
        let buffers = shared::base() + layout.stages + first * stage_bytes;
        Self { stages, piece_bytes, stage_bytes, barriers, buffers, stage: 0, parity: 0 }
    }
}

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
impl Pull for Bulk {
    #[inline(always)]
    unsafe fn begin(&mut self) {
        if thread::lane() == 0 {
            for stage in 0..self.stages {
                // SAFETY: this warp's own mbarriers.
                unsafe { bulk::mbarrier_init(self.barriers + 8 * stage, 1) };
            }
        }
        // Hands the mbarriers, and the outputs that the ready flags released, to the copy engine.
        bulk::fence_proxy_async();
        warp::barrier(warp::ALL);
    }

    #[inline(always)]
    unsafe fn pull<H: Half, const BIASED: bool, J: Job>(&mut self, args: &CombineArgs, job: &J) {
        let shape = &args.exchange.shape;
        let (stages, piece_bytes) = (self.stages, self.piece_bytes);
        let (barriers, buffers, stage_bytes) = (self.barriers, self.buffers, self.stage_bytes);
        let buffer = |stage: u32| buffers + stage * stage_bytes;
        let barrier = |stage: u32| barriers + 8 * stage;
        let pieces = shape.output_bytes().div_ceil(piece_bytes.max(1));
        let bytes_of = |piece: u32| (shape.output_bytes() - piece * piece_bytes).min(piece_bytes);

        // The next piece to pull: its item's partial rows, and its stage.
        let mut ahead = job.items();
        let (mut ahead_item, mut ahead_piece, mut ahead_stage) = (ahead.next(), 0, self.stage);
        let mut ahead_row = Address::NULL;
        let mut pull_next = || {
            let Some(item) = ahead_item else { return };
            // SAFETY: the contract of CombineArgs; the stage is free, as the caller has summed what was in it.
            unsafe {
                if ahead_piece == 0 {
                    ahead_row = job.row(item);
                }
                let bytes = bytes_of(ahead_piece);
                let count = warp::ballot(warp::ALL, !ahead_row.is_null()).count_ones();
                if thread::lane() == 0 {
                    bulk::mbarrier_arrive_expect(barrier(ahead_stage), count * bytes);
                }
                warp::barrier(warp::ALL);
                if !ahead_row.is_null() {
                    let to = buffer(ahead_stage) + thread::lane() * piece_bytes;
                    let from = ahead_row.offset((ahead_piece * piece_bytes) as u64);
                    bulk::load(to, from, bytes, barrier(ahead_stage));
                }
            }
            ahead_stage = if ahead_stage + 1 == stages { 0 } else { ahead_stage + 1 };
            ahead_piece += 1;
            if ahead_piece == pieces {
                ahead_piece = 0;
                ahead_item = ahead.next();
            }
        };
        for _ in 1..stages {
            pull_next();
        }
        let (mut stage, mut parity) = (self.stage, self.parity);
        for item in job.items() {
            // SAFETY: the contract of CombineArgs.
            let count = unsafe { job.parts(item) };
            for piece in 0..pieces {
                pull_next();
                let out = (piece * piece_bytes) as u64;
                // SAFETY: this warp's own mbarrier and stage. Partner of the wait: the pulls of this piece.
                unsafe {
                    bulk::mbarrier_wait(barrier(stage), parity);
                    args.exchange.trace.end_warp(Activity::Pull, job.about(item));
                    for quad in thread::lane_strided(bytes_of(piece) / 16) {
                        let at = buffer(stage) + 16 * quad;
                        let mut sums =
                            if count == 0 { Sums::ZERO } else { Sums::first::<H>(shared::load_quad(at)) };
                        for part in 1..count {
                            sums.add(Sums::first::<H>(shared::load_quad(at + part * piece_bytes)));
                        }
                        job.write::<H, BIASED>(item, out + 16 * quad as u64, sums);
                    }
                }
                // Everybody has read the stage before it is pulled into again.
                warp::barrier(warp::ALL);
                // SAFETY: the contract of CombineArgs.
                unsafe { args.exchange.trace.end_warp(J::SUM, job.about(item)) };
                stage += 1;
                if stage == stages {
                    stage = 0;
                    parity ^= 1;
                }
            }
            // SAFETY: the caller's promise.
            unsafe { job.done(item) };
        }
        (self.stage, self.parity) = (stage, parity);
    }
}
