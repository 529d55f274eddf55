//! Dispatch, phase 4: the sending of a block's rows, warp by warp: the row itself, and what travels beside it.

use super::dispatch::Block;
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address};
use crate::gpu::{shared, thread, warp};
use crate::wire::{CHUNK, MAX_SIDES, NO_ROUTE};

/// The tokens of a sending warp: every `senders`th of the block's, or every `senders`th chunk of them.
#[derive(Clone, Copy)]
struct Walk {
    token: u32,
    chunk_end: u32,
    end: u32,
    chunk: u32,
    skip: u32,
}

impl Walk {
    #[inline(always)]
    fn new<const BY_EXPERT: bool>(block: &Block) -> Self {
        let chunk = if BY_EXPERT { CHUNK } else { 1 };
        let token = block.tokens.first + thread::warp_index() * chunk;
        let skip = (block.args.senders - 1) * chunk;
        Self { token, chunk_end: token + chunk, end: block.tokens.end, chunk, skip }
    }
}

impl Iterator for Walk {
    type Item = u32;

    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        if self.token >= self.end {
            return None;
        }
        let token = self.token;
        self.token += 1;
        if self.token == self.chunk_end {
            self.token += self.skip;
            self.chunk_end = self.token + self.chunk;
        }
        Some(token)
    }
}

/// Makes this lane's route, whose row counts from the block's first for that rank, the row on the destination, and
/// keeps it for combine to follow. [`NO_ROUTE`] on lanes that have none, or for whose row there is no room. Once per
/// token.
#[inline(always)]
unsafe fn resolve(block: &Block, token: u32) -> u64 {
    let exchange = &block.args.exchange;
    let inside = thread::lane() < exchange.shape.route_width();
    let at = block.routes(token).long(thread::lane());
    // SAFETY: routes were written by this block before a barrier, or by the dispatch that made the handle, and `base`
    // by `plan` before another.
    unsafe {
        let mut route = if inside { mem::load_u64(at) } else { NO_ROUTE };
        if block.args.cached != 0 {
            return route;
        }
        if route != NO_ROUTE {
            route += shared::load_u32(block.shared.base + 4 * rank_of(route)) as u64;
        }
        if exchange.shape.cap != 0 {
            route = close_up(route, route != NO_ROUTE && row_of(route) < exchange.shape.rows);
        }
        if inside {
            mem::store_u64(at, route);
        }
        route
    }
}

/// The lanes' kept routes without gaps, in the same order: on lane n the nth of them.
#[inline(always)]
fn close_up(route: u64, keep: bool) -> u64 {
    let mut kept = warp::ballot(warp::ALL, keep);
    let mut own = NO_ROUTE;
    let mut place = 0;
    while kept != 0 {
        let moved = warp::shuffle_u64(warp::ALL, route, kept.trailing_zeros());
        if thread::lane() == place {
            own = moved;
        }
        place += 1;
        kept &= kept - 1;
    }
    own
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

/// Where the row of `route` is written: its place on the destination, or on the way there in the outbox.
#[inline(always)]
unsafe fn destination(block: &Block, route: u64) -> Address {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let (rank, row) = (rank_of(route), row_of(route));
    // SAFETY: the contract of DispatchArgs; `plan` has checked that the row lies within the arena, and `first` is the
    // first of this rank's rows there.
    unsafe {
        let (arena, row) = if block.args.pack != 0 && rank != exchange.rank {
            let place = row - shared::load_u32(block.shared.first + 4 * rank);
            (exchange.own().offset(exchange.arena.outbox), rank as u64 * shape.tokens as u64 + place as u64)
        } else {
            (exchange.peer(rank).offset(exchange.arena.rows), row as u64)
        };
        arena.offset(row * shape.row_bytes as u64)
    }
}

/// Writes what travels beside a row: scales, expert ids as numbers of the destination, weights, the source, and side
/// tensors. The lanes of a warp share the words.
#[inline(always)]
unsafe fn send_companions<const BY_EXPERT: bool>(block: &Block, token: u32, route: u64) {
    let args = block.args;
    let exchange = &args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let (rank, row) = (rank_of(route), row_of(route));
    // SAFETY: the contract of DispatchArgs; the row is this token's alone.
    unsafe {
        let peer = exchange.peer(rank);
        let ids = if args.cached != 0 { exchange.handle(exchange.handle.topk_idx) } else { args.topk_idx };
        for slot in thread::lane_strided(shape.topk) {
            let pair = token * shape.topk + slot;
            let expert = mem::load_u32(ids.word(pair));
            let weight =
                if args.topk_weights.is_null() { 0 } else { mem::load_u32(args.topk_weights.word(pair)) };
            let local = expert.wrapping_sub(rank * shape.experts_per_rank());
            let here = expert < shape.experts && local < shape.experts_per_rank();
            let at = row * shape.topk + slot;
            mem::store_u32(peer.offset(arena.topk_idx).word(at), if here { local } else { u32::MAX });
            mem::store_u32(peer.offset(arena.topk_weights).word(at), if here { weight } else { 0 });
            if BY_EXPERT && here {
                mem::store_u32(peer.offset(arena.places).word(at), place(block, pair, expert));
            }
        }
        let strides = shape.scale_strides(shape.rows);
        let from = args.x_scales.offset(4 * args.x_scale_strides.place(token, 0));
        let to = peer.offset(arena.scales + 4 * strides.place(row, 0));
        for scale in thread::lane_strided(shape.scales) {
            let value = mem::load_u32(from.offset(4 * args.x_scale_strides.place(0, scale)));
            mem::store_u32(to.offset(4 * strides.place(0, scale)), value);
        }
        if thread::lane() == 0 {
            let source = (token as u64) << 32 | exchange.rank as u64;
            mem::store_u64(peer.offset(arena.sources).long(row), source);
        }
        // Written out, as an index at run time would put the arguments into local memory.
        const { assert!(MAX_SIDES == 8) };
        let side = |words: u32, from: Address, to: u64| {
            for word in thread::lane_strided(words) {
                let value = mem::load_u32(from.offset(4 * (token as u64 * words as u64 + word as u64)));
                mem::store_u32(peer.offset(to).offset(4 * (row as u64 * words as u64 + word as u64)), value);
            }
        };
        let words = &shape.side_words;
        if words[0] != 0 {
            side(words[0], args.sides[0], arena.sides[0]);
            side(words[1], args.sides[1], arena.sides[1]);
            side(words[2], args.sides[2], arena.sides[2]);
            side(words[3], args.sides[3], arena.sides[3]);
            side(words[4], args.sides[4], arena.sides[4]);
            side(words[5], args.sides[5], arena.sides[5]);
            side(words[6], args.sides[6], arena.sides[6]);
            side(words[7], args.sides[7], arena.sides[7]);
        }
    }
}

/// The place of a pair among this rank's pairs of its expert; kept for dispatches that follow the handle. Once per pair.
#[inline(always)]
unsafe fn place(block: &Block, pair: u32, expert: u32) -> u32 {
    let exchange = &block.args.exchange;
    let at = exchange.handle(exchange.handle.places).word(pair);
    let bases =
        exchange.work(exchange.work.block_experts).word(thread::block_index() * exchange.shape.experts);
    // SAFETY: places were written by this block before a barrier, or by the dispatch that made the handle; the bases by
    // `announce`, acquired with the own rank's flag.
    unsafe {
        let mut place = mem::load_u32(at);
        if block.args.cached == 0 {
            place += mem::load_u32(bases.word(expert));
            mem::store_u32(at, place);
        }
        place
    }
}

/// Whether `token` is the last of a chunk.
#[inline(always)]
fn ends_chunk(block: &Block, token: u32) -> bool {
    (token + 1) % CHUNK == 0 || token + 1 == block.tokens.end
}

/// Tells every peer that the rows of the chunk that ends with `token` are written, and which they are.
#[inline(always)]
unsafe fn signal_chunk(block: &Block, token: u32) {
    let exchange = &block.args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let chunk = token / CHUNK;
    for rank in thread::lane_strided(shape.ranks) {
        let (mut first, mut rows) = (0, 0);
        // SAFETY: the contract of DispatchArgs; this warp has resolved the routes of the chunk's tokens, before a
        // barrier of the warp.
        unsafe {
            for token in chunk * CHUNK..token + 1 {
                for at in 0..shape.route_width() {
                    let route = mem::load_u64(block.routes(token).long(at));
                    if rank_of(route) == rank {
                        first = if rows == 0 { row_of(route) } else { first };
                        rows += 1;
                    }
                }
            }
            let peer = exchange.peer(rank);
            let at = exchange.rank * shape.chunks() + chunk;
            mem::store_u64(peer.offset(arena.chunk_rows).long(at), (first as u64) << 32 | rows as u64);
            // Partner: `expand`'s wait for chunk_flags on `rank` (acquire, sys). What it releases: the line above;
            // the chunk's rows and companions, by way of `wait_written` and the warp's barrier.
            mem::store_release_sys_u64(peer.offset(arena.chunk_flags).long(at), block.epoch);
        }
    }
}

/// Sends the block's rows by 16-byte loads and stores.
///
/// # Safety
/// The phases before have run on the whole block.
#[inline(always)]
pub unsafe fn plain<const BY_EXPERT: bool>(block: &Block) {
    let row_bytes = block.args.exchange.shape.row_bytes;
    for token in Walk::new::<BY_EXPERT>(block) {
        let from = block.args.x.offset(token as u64 * row_bytes as u64);
        // SAFETY: the contract of DispatchArgs.
        let route = unsafe { resolve(block, token) };
        for_each_route(route, |route| {
            // SAFETY: as above.
            unsafe {
                let to = destination(block, route);
                for quad in thread::lane_strided(row_bytes / 16) {
                    let at = 16 * quad as u64;
                    mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
                }
                send_companions::<BY_EXPERT>(block, token, route);
            }
        });
        if BY_EXPERT && ends_chunk(block, token) {
            warp::barrier(warp::ALL);
            // SAFETY: as above.
            unsafe { signal_chunk(block, token) };
        }
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
pub unsafe fn bulk<const BY_EXPERT: bool>(block: &Block) {
    let args = block.args;
    let row_bytes = args.exchange.shape.row_bytes;
    let (stages, stage_bytes) = (args.stages, args.stage_bytes);
    let pieces = row_bytes.div_ceil(stage_bytes.max(1));
    let piece_bytes = |piece: u32| (row_bytes - piece * stage_bytes).min(stage_bytes);
    let buffer = |stage: u32| block.shared.stages + (thread::warp_index() * stages + stage) * stage_bytes;
    let barrier = |stage: u32| block.shared.barriers + 8 * (thread::warp_index() * stages + stage);

    let driver = thread::lane() == 0;
    // The next piece to load, and its buffer.
    let mut ahead = Walk::new::<BY_EXPERT>(block);
    let (mut ahead_token, mut ahead_piece, mut ahead_stage) = (ahead.next(), 0, 0);
    let mut load_next = || {
        let Some(token) = ahead_token else { return };
        let offset = token as u64 * row_bytes as u64 + (ahead_piece * stage_bytes) as u64;
        // SAFETY: the contract of DispatchArgs; the buffer is free, as the caller has waited for its last reader.
        unsafe {
            let bytes = piece_bytes(ahead_piece);
            bulk::mbarrier_arrive_expect(barrier(ahead_stage), bytes);
            bulk::load(buffer(ahead_stage), args.x.offset(offset), bytes, barrier(ahead_stage));
        }
        ahead_stage = if ahead_stage + 1 == stages { 0 } else { ahead_stage + 1 };
        ahead_piece += 1;
        if ahead_piece == pieces {
            ahead_piece = 0;
            ahead_token = ahead.next();
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
    for token in Walk::new::<BY_EXPERT>(block) {
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
                        let to = destination(block, route).offset((piece * stage_bytes) as u64);
                        bulk::store(to, buffer(stage), piece_bytes(piece));
                    }
                    if piece == 0 {
                        send_companions::<BY_EXPERT>(block, token, route);
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
        if BY_EXPERT && ends_chunk(block, token) {
            if driver {
                written();
            }
            warp::barrier(warp::ALL);
            // SAFETY: the contract of DispatchArgs.
            unsafe { signal_chunk(block, token) };
        }
    }
    if driver {
        // `arrive` is about to tell the receivers.
        written();
    }
}

/// This thread's bulk copies are complete, not merely read, and handed to the ordinary writes that signal them.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub(super) fn written() {
    bulk::wait_written();
    bulk::fence_proxy_async();
}
