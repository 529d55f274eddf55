//! The sending of a block's rows, warp by warp: the row itself, and what travels beside it.

#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address};
use crate::gpu::{shared, thread, warp};
use crate::wire::NO_ROUTE;

use super::dispatch::{Block, DispatchArgs};

/// Turns this lane's route, whose row counts from the block's first for that rank, into the row on the destination,
/// and writes it back for combine to follow. [`NO_ROUTE`] on lanes that have none. Once per token.
#[inline(always)]
unsafe fn resolve(block: &Block, token: u32) -> u64 {
    if thread::lane() >= block.args.exchange.shape.route_width() {
        return NO_ROUTE;
    }
    // SAFETY: the routes were written by this block before a barrier, and `base` by `plan` before another.
    unsafe {
        let at = block.routes(token).long(thread::lane());
        let mut route = mem::load_u64(at);
        if route != NO_ROUTE {
            route += shared::load_u32(block.shared.base + 4 * rank_of(route)) as u64;
            mem::store_u64(at, route);
        }
        route
    }
}

const fn rank_of(route: u64) -> u32 {
    (route >> 32) as u32
}

const fn row_of(route: u64) -> u32 {
    route as u32
}

/// Calls `each` with every lane's route, on all lanes together.
#[inline(always)]
fn for_each_route(route: u64, mut each: impl FnMut(u64)) {
    let mut lanes = warp::ballot(warp::ALL, route != NO_ROUTE);
    while lanes != 0 {
        each(warp::shuffle_u64(warp::ALL, route, lanes.trailing_zeros()));
        lanes &= lanes - 1;
    }
}

/// Where the row of `route` begins on its destination.
#[inline(always)]
unsafe fn destination(args: &DispatchArgs, route: u64) -> Address {
    let exchange = &args.exchange;
    let row = row_of(route) as u64 * exchange.shape.row_bytes as u64;
    // SAFETY: the contract of DispatchArgs; `plan` has checked that the row lies within the arena.
    unsafe { exchange.peer(rank_of(route)).offset(exchange.arena.rows + row) }
}

/// Writes what travels beside a row: scales, expert ids as numbers of the destination, weights, and the source. The
/// lanes of a warp share the words.
#[inline(always)]
unsafe fn send_companions(args: &DispatchArgs, token: u32, route: u64) {
    let exchange = &args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let (rank, row) = (rank_of(route), row_of(route));
    // SAFETY: the contract of DispatchArgs; the row is this token's alone.
    unsafe {
        let peer = exchange.peer(rank);
        for slot in thread::lane_strided(shape.topk) {
            let expert = mem::load_u32(args.topk_idx.word(token * shape.topk + slot));
            let weight = mem::load_u32(args.topk_weights.word(token * shape.topk + slot));
            let local = expert.wrapping_sub(rank * shape.experts_per_rank());
            let here = expert < shape.experts && local < shape.experts_per_rank();
            let at = row * shape.topk + slot;
            mem::store_u32(peer.offset(arena.topk_idx).word(at), if here { local } else { u32::MAX });
            mem::store_u32(peer.offset(arena.topk_weights).word(at), if here { weight } else { 0 });
        }
        for scale in thread::lane_strided(shape.scales) {
            let value = mem::load_u32(args.x_scales.word(token * shape.scales + scale));
            mem::store_u32(peer.offset(arena.scales).word(row * shape.scales + scale), value);
        }
        if thread::lane() == 0 {
            let source = (token as u64) << 32 | exchange.rank as u64;
            mem::store_u64(peer.offset(arena.sources).long(row), source);
        }
    }
}

/// Sends the block's rows by 16-byte loads and stores.
///
/// # Safety
/// The phases before have run on the whole block.
#[inline(always)]
pub unsafe fn plain(block: &Block) {
    let args = block.args;
    let row_bytes = args.exchange.shape.row_bytes;
    let first = block.tokens.first + thread::warp_index();
    for token in thread::Strided::new(first, block.tokens.end, thread::warps()) {
        let from = args.x.offset(token as u64 * row_bytes as u64);
        // SAFETY: the contract of DispatchArgs.
        let route = unsafe { resolve(block, token) };
        for_each_route(route, |route| {
            // SAFETY: as above.
            unsafe {
                let to = destination(args, route);
                for quad in thread::lane_strided(row_bytes / 16) {
                    mem::store_quad(
                        to.offset(16 * quad as u64),
                        mem::load_quad(from.offset(16 * quad as u64)),
                    );
                }
                send_companions(args, token, route);
            }
        });
    }
}

/// Sends the block's rows by bulk copies: a row is pulled into shared memory once, and pushed from there to each of
/// its destinations. One lane drives the copies while all of them write the companions; loads run `stages − 1`
/// pieces ahead.
///
/// # Safety
/// The phases before have run on the whole block.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub unsafe fn bulk(block: &Block) {
    let args = block.args;
    let row_bytes = args.exchange.shape.row_bytes;
    let (stages, stage_bytes) = (args.stages, args.stage_bytes);
    let pieces = row_bytes.div_ceil(stage_bytes.max(1));
    let piece_bytes = |piece: u32| (row_bytes - piece * stage_bytes).min(stage_bytes);
    let buffer = |stage: u32| block.shared.stages + (thread::warp_index() * stages + stage) * stage_bytes;
    let barrier = |stage: u32| block.shared.barriers + 8 * (thread::warp_index() * stages + stage);

    let first = block.tokens.first + thread::warp_index();
    let driver = thread::lane() == 0;
    // The next piece to load, and its buffer.
    let (mut ahead_token, mut ahead_piece, mut ahead_stage) = (first, 0, 0);
    let mut load_next = || {
        if ahead_token >= block.tokens.end {
            return;
        }
        let offset = ahead_token as u64 * row_bytes as u64 + (ahead_piece * stage_bytes) as u64;
        // SAFETY: the contract of DispatchArgs; the buffer is free, as the caller has waited for its last reader.
        unsafe {
            bulk::mbarrier_arrive_expect(barrier(ahead_stage), piece_bytes(ahead_piece));
            bulk::load(
                buffer(ahead_stage),
                args.x.offset(offset),
                piece_bytes(ahead_piece),
                barrier(ahead_stage),
            );
        }
        ahead_stage = if ahead_stage + 1 == stages { 0 } else { ahead_stage + 1 };
        ahead_piece += 1;
        if ahead_piece == pieces {
            ahead_piece = 0;
            ahead_token += thread::warps();
        }
    };

    if driver {
        for stage in 0..stages {
            // SAFETY: this warp's own mbarriers, used by this lane and the copy engine alone.
            unsafe { bulk::mbarrier_init(barrier(stage), 1) };
        }
        bulk::fence_proxy_async();
        for _ in 1..stages {
            load_next();
        }
    }
    let (mut stage, mut parity) = (0, 0);
    for token in thread::Strided::new(first, block.tokens.end, thread::warps()) {
        // SAFETY: the contract of DispatchArgs.
        let route = unsafe { resolve(block, token) };
        for piece in 0..pieces {
            if driver {
                // The buffer to load next is the one that the last piece's stores read.
                bulk::wait_read();
                load_next();
                // SAFETY: this warp's own mbarrier. Partner: the load of this piece, which completes on it.
                unsafe { bulk::mbarrier_wait(barrier(stage), parity) };
            }
            for_each_route(route, |route| {
                // SAFETY: the contract of DispatchArgs; the piece lies within the row.
                unsafe {
                    if driver {
                        let to = destination(args, route).offset((piece * stage_bytes) as u64);
                        bulk::store(to, buffer(stage), piece_bytes(piece));
                    }
                    if piece == 0 {
                        send_companions(args, token, route);
                    }
                }
            });
            if driver {
                bulk::commit();
            }
            stage += 1;
            if stage == stages {
                stage = 0;
                parity ^= 1;
            }
        }
    }
    if driver {
        // Complete, not merely read: `finish` is about to tell the receivers. The fence hands the copies' writes to
        // the ordinary ones that signal.
        bulk::wait_written();
        bulk::fence_proxy_async();
    }
}
