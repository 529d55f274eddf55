//! The pulling and summing of a rank's tokens, warp by warp.

use super::combine::CombineArgs;
use crate::gpu::convert::{bf16x2_to_f32, f32_to_bf16x2};
use crate::gpu::mem::{self, Address, Quad};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::{bulk, shared};
use crate::gpu::{thread, warp};
use crate::wire::NO_ROUTE;

/// Eight f32 sums: what a lane makes of one quad of bf16 from each rank.
struct Sums([f32; 8]);

impl Sums {
    const ZERO: Self = Self([0.0; 8]);

    /// The first partial result. Not added to zero, so that −0 stays what it is.
    #[inline(always)]
    fn first(quad: Quad) -> Self {
        let [a, b] = bf16x2_to_f32(quad.0[0]);
        let [c, d] = bf16x2_to_f32(quad.0[1]);
        let [e, f] = bf16x2_to_f32(quad.0[2]);
        let [g, h] = bf16x2_to_f32(quad.0[3]);
        Self([a, b, c, d, e, f, g, h])
    }

    #[inline(always)]
    fn add(&mut self, quad: Quad) {
        let Self(next) = Self::first(quad);
        let Self([a, b, c, d, e, f, g, h]) = self;
        *a += next[0];
        *b += next[1];
        *c += next[2];
        *d += next[3];
        *e += next[4];
        *f += next[5];
        *g += next[6];
        *h += next[7];
    }

    #[inline(always)]
    fn round(&self) -> Quad {
        let [a, b, c, d, e, f, g, h] = self.0;
        Quad([f32_to_bf16x2(a, b), f32_to_bf16x2(c, d), f32_to_bf16x2(e, f), f32_to_bf16x2(g, h)])
    }
}

/// Where this lane's partial row of `token` begins on the rank that holds it; null on lanes without a route. Lanes
/// with one come first, in ascending order of the ranks.
#[inline(always)]
unsafe fn partial_row(args: &CombineArgs, token: u32) -> Address {
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    if thread::lane() >= shape.route_width() {
        return Address::NULL;
    }
    // SAFETY: the contract of CombineArgs: routes name rows that exist on ranks that exist.
    unsafe {
        let routes = exchange.workspace.offset(exchange.work.routes).long(token * shape.route_width());
        let route = mem::load_u64(routes.long(thread::lane()));
        if route == NO_ROUTE {
            return Address::NULL;
        }
        let row = route as u32 as u64 * shape.output_bytes() as u64;
        exchange.peer((route >> 32) as u32).offset(exchange.arena.outputs + row)
    }
}

/// This warp's tokens: every `warps in the grid`th, so that all warps have their share of any range.
#[inline(always)]
fn tokens(args: &CombineArgs) -> thread::Strided {
    let first = thread::block_index() * thread::warps() + thread::warp_index();
    thread::Strided::new(first, args.tokens, thread::grid_size() * thread::warps())
}

/// Pulls and sums by 16-byte loads.
///
/// # Safety
/// All ranks' outputs are ready.
#[inline(always)]
pub unsafe fn plain(args: &CombineArgs) {
    let quads = args.exchange.shape.output_bytes() / 16;
    for token in tokens(args) {
        // SAFETY: the contract of CombineArgs; all lanes of the warp take the same way.
        unsafe {
            let from = partial_row(args, token);
            let count = warp::ballot(warp::ALL, !from.is_null()).count_ones();
            let out = args.out.offset(token as u64 * quads as u64 * 16);
            let mut quad = thread::lane();
            // Whole warps, so that lanes past the end still take part in the shuffles.
            while quad - thread::lane() < quads {
                let mut sums = Sums::ZERO;
                for part in 0..count {
                    let row = Address(warp::shuffle_u64(warp::ALL, from.0, part));
                    if quad < quads {
                        let value = mem::load_quad(row.offset(16 * quad as u64));
                        if part == 0 { sums = Sums::first(value) } else { sums.add(value) }
                    }
                }
                if quad < quads {
                    mem::store_quad(out.offset(16 * quad as u64), sums.round());
                }
                quad += thread::WARP;
            }
        }
    }
}

/// Pulls by bulk copies and sums from shared memory. A stage holds one piece of every partial row of a token, each
/// pulled by the lane that has its route; `stages − 1` pieces are on their way while one is summed.
///
/// # Safety
/// All ranks' outputs are ready.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub unsafe fn bulk(args: &CombineArgs) {
    let shape = &args.exchange.shape;
    let (stages, piece_bytes) = (args.stages, args.piece_bytes);
    let stage_bytes = piece_bytes * shape.route_width();
    let layout = super::combine::Shared::new(thread::warps(), stages, stage_bytes);
    let base = shared::base();
    let buffer = |stage: u32| base + layout.stages + (thread::warp_index() * stages + stage) * stage_bytes;
    let barrier = |stage: u32| base + layout.barriers + 8 * (thread::warp_index() * stages + stage);
    let pieces = shape.output_bytes().div_ceil(piece_bytes.max(1));
    let bytes_of = |piece: u32| (shape.output_bytes() - piece * piece_bytes).min(piece_bytes);

    if thread::lane() == 0 {
        for stage in 0..stages {
            // SAFETY: this warp's own mbarriers.
            unsafe { bulk::mbarrier_init(barrier(stage), 1) };
        }
    }
    // Hands the mbarriers, and the outputs that the ready flags released, to the copy engine.
    bulk::fence_proxy_async();
    warp::barrier(warp::ALL);

    // The next piece to pull: its token's partial rows, and its stage.
    let mut ahead = tokens(args);
    let (mut ahead_token, mut ahead_piece, mut ahead_stage) = (ahead.next(), 0, 0);
    let mut ahead_row = Address::NULL;
    let mut pull_next = || {
        let Some(token) = ahead_token else { return };
        // SAFETY: the contract of CombineArgs; the stage is free, as the caller has summed what was in it.
        unsafe {
            if ahead_piece == 0 {
                ahead_row = partial_row(args, token);
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
            ahead_token = ahead.next();
        }
    };
    for _ in 1..stages {
        pull_next();
    }
    let (mut stage, mut parity) = (0, 0);
    for token in tokens(args) {
        // SAFETY: the contract of CombineArgs.
        let count = warp::ballot(warp::ALL, !unsafe { partial_row(args, token) }.is_null()).count_ones();
        for piece in 0..pieces {
            pull_next();
            let out =
                args.out.offset(token as u64 * shape.output_bytes() as u64 + (piece * piece_bytes) as u64);
            // SAFETY: this warp's own mbarrier and stage. Partner of the wait: the pulls of this piece.
            unsafe {
                bulk::mbarrier_wait(barrier(stage), parity);
                for quad in thread::lane_strided(bytes_of(piece) / 16) {
                    let at = buffer(stage) + 16 * quad;
                    let mut sums = if count == 0 { Sums::ZERO } else { Sums::first(shared::load_quad(at)) };
                    for part in 1..count {
                        sums.add(shared::load_quad(at + part * piece_bytes));
                    }
                    mem::store_quad(out.offset(16 * quad as u64), sums.round());
                }
            }
            // Everybody has read the stage before it is pulled into again.
            warp::barrier(warp::ALL);
            stage += 1;
            if stage == stages {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}
