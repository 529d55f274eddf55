//! Dispatch, phase 4: the sending of a block's rows, warp by warp: the row itself, and what travels beside it.

use super::dispatch::{Block, SIDE_BYTES};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address};
use crate::gpu::{shared, thread, warp};
use crate::trace::{About, Activity};
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
unsafe fn resolve<const ACROSS: bool>(block: &Block, token: u32) -> u64 {
    // Rows for other nodes are sent by `pack`.
    let near = |route: u64| if ACROSS && !block.is_near(rank_of(route)) { NO_ROUTE } else { route };
    let exchange = &block.args.exchange;
    let inside = thread::lane() < exchange.shape.route_width();
    let at = block.routes(token).long(thread::lane());
    // SAFETY: routes were written by this block before a barrier, or by the dispatch that made the handle, and `base`
    // by `plan` before another.
    unsafe {
        let mut route = if inside { mem::load_u64(at) } else { NO_ROUTE };
        if block.args.cached != 0 {
            return near(route);
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
        near(route)
    }
}

/// Whether a token goes to a rank of this node. Whether there is room for it does not matter.
#[inline(always)]
unsafe fn goes_near(block: &Block, token: u32) -> bool {
    let args = block.args;
    let exchange = &args.exchange;
    let shape = &exchange.shape;
    let ids = if args.cached != 0 { exchange.handle(exchange.handle.topk_idx) } else { args.topk_idx };
    let mut goes = false;
    for slot in 0..shape.topk {
        // SAFETY: the contract of DispatchArgs; the token is one of the block's.
        let expert = unsafe { mem::load_u32(ids.word(token * shape.topk + slot)) };
        goes |= expert < shape.experts && block.is_near(expert / shape.experts_per_rank());
    }
    goes
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

pub(super) const fn rank_of(route: u64) -> u32 {
    (route >> 32) as u32
}

pub(super) const fn row_of(route: u64) -> u32 {
    route as u32
}

/// Calls `each` with every lane's route, on all lanes together.
#[inline(always)]
pub(super) fn for_each_route(route: u64, mut each: impl FnMut(u64)) {
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

/// Words of scales that a lane holds; a row may have more.
const HELD: u32 = 2;

/// What travels beside a row, in so far as this lane has it: loaded once for all destinations, while the row is on its
/// way.
pub(super) struct Companions {
    /// Whose it is, and its index there.
    pub source: u32,
    pub token: u32,
    /// This lane's slot: its expert, weight and, with the expert-major form, place.
    pub expert: u32,
    pub weight: u32,
    pub place: u32,
    /// This lane's first words of scales.
    pub scales: [u32; HELD as usize],
}

/// Where that is from which no lane holds.
pub(super) trait Beside {
    /// Where a word of the row's scales is.
    fn scale_at(&self, block: &Block, word: u32) -> Address;

    /// Writes the row's part of every side tensor.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); the row in `peer`'s arena is this token's alone.
    unsafe fn send_sides(&self, block: &Block, peer: Address, row: u32);
}

/// The call's arrays, at a token.
struct Given(u32);

impl Beside for Given {
    #[inline(always)]
    fn scale_at(&self, block: &Block, word: u32) -> Address {
        scale_at(block, self.0, word)
    }

    #[inline(always)]
    unsafe fn send_sides(&self, block: &Block, peer: Address, row: u32) {
        for side in 0..MAX_SIDES as u32 {
            let at = block.shared.sides + SIDE_BYTES * side;
            // SAFETY: `list_sides` has written the list, before a barrier; the row is this token's alone.
            unsafe {
                let words = shared::load_u64(at);
                let from = Address(shared::load_u64(at + 8)).offset(4 * self.0 as u64 * words);
                let to = peer.offset(shared::load_u64(at + 16) + 4 * row as u64 * words);
                for word in thread::lane_strided(words as u32) {
                    mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
                }
            }
        }
    }
}

impl Companions {
    #[inline(always)]
    unsafe fn load<const BY_EXPERT: bool>(block: &Block, token: u32) -> Self {
        let args = block.args;
        let exchange = &args.exchange;
        let shape = &exchange.shape;
        let mut companions =
            Self { source: exchange.rank, token, expert: u32::MAX, weight: 0, place: 0, scales: [0; 2] };
        // SAFETY: the contract of DispatchArgs.
        unsafe {
            if thread::lane() < shape.topk {
                let pair = token * shape.topk + thread::lane();
                let ids =
                    if args.cached != 0 { exchange.handle(exchange.handle.topk_idx) } else { args.topk_idx };
                companions.expert = mem::load_u32(ids.word(pair));
                if !args.topk_weights.is_null() {
                    companions.weight = mem::load_u32(args.topk_weights.word(pair));
                }
                if BY_EXPERT && companions.expert < shape.experts {
                    companions.place = place(block, pair, companions.expert);
                }
            }
            companions.load_scales(block, &Given(token));
        }
        companions
    }

    /// Begins to load the scales that lanes hold.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); what lies beside the row is there.
    #[inline(always)]
    pub unsafe fn load_scales(&mut self, block: &Block, from: &impl Beside) {
        let (lane, scales) = (thread::lane(), block.args.exchange.shape.scales);
        // SAFETY: the caller's promise.
        unsafe {
            if lane < scales {
                self.scales[0] = mem::load_u32(from.scale_at(block, lane));
            }
            if lane + thread::WARP < scales {
                self.scales[1] = mem::load_u32(from.scale_at(block, lane + thread::WARP));
            }
        }
    }

    /// Writes them beside the row of `route`: scales, expert ids as numbers of the destination, weights, the source, and
    /// side tensors.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`](super::dispatch::DispatchArgs); the row of the route is this token's alone.
    #[inline(always)]
    pub unsafe fn send<const BY_EXPERT: bool, B: Beside>(&self, block: &Block, route: u64, from: &B) {
        let args = block.args;
        let exchange = &args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        let (rank, row) = (rank_of(route), row_of(route));
        let lane = thread::lane();
        // SAFETY: the contract of DispatchArgs; the row is this token's alone.
        unsafe {
            let peer = exchange.peer(rank);
            if lane < shape.topk {
                let local = self.expert.wrapping_sub(rank * shape.experts_per_rank());
                let here = self.expert < shape.experts && local < shape.experts_per_rank();
                let at = row * shape.topk + lane;
                mem::store_u32(peer.offset(arena.topk_idx).word(at), if here { local } else { u32::MAX });
                mem::store_u32(peer.offset(arena.topk_weights).word(at), if here { self.weight } else { 0 });
                if BY_EXPERT && here {
                    mem::store_u32(peer.offset(arena.places).word(at), self.place);
                }
            }
            let strides = shape.scale_strides(shape.rows);
            let to = peer.offset(arena.scales + 4 * strides.place(row, 0));
            let [first, second] = self.scales;
            if lane < shape.scales {
                mem::store_u32(to.offset(4 * strides.place(0, lane)), first);
            }
            if lane + thread::WARP < shape.scales {
                mem::store_u32(to.offset(4 * strides.place(0, lane + thread::WARP)), second);
            }
            let mut scale = lane + HELD * thread::WARP;
            while scale < shape.scales {
                let value = mem::load_u32(from.scale_at(block, scale));
                mem::store_u32(to.offset(4 * strides.place(0, scale)), value);
                scale += thread::WARP;
            }
            if lane == 0 {
                let source = (self.token as u64) << 32 | self.source as u64;
                mem::store_u64(peer.offset(arena.sources).long(row), source);
            }
            if shape.side_words[0] != 0 {
                from.send_sides(block, peer, row);
            }
        }
    }
}

/// Puts the side tensors into shared memory, where they can be gone through by a loop: an index at run time would put
/// the arguments into local memory. One thread, before a barrier of the block.
#[inline(always)]
pub unsafe fn list_sides(block: &Block) {
    const { assert!(MAX_SIDES == 8) };
    let args = block.args;
    let (words, from, to) = (&args.exchange.shape.side_words, &args.sides, &args.exchange.arena.sides);
    let list = |side: u32, words: u32, from: Address, to: u64| {
        let at = block.shared.sides + SIDE_BYTES * side;
        // SAFETY: the list has room for every side.
        unsafe {
            shared::store_u64(at, words as u64);
            shared::store_u64(at + 8, from.0);
            shared::store_u64(at + 16, to);
        }
    };
    list(0, words[0], from[0], to[0]);
    list(1, words[1], from[1], to[1]);
    list(2, words[2], from[2], to[2]);
    list(3, words[3], from[3], to[3]);
    list(4, words[4], from[4], to[4]);
    list(5, words[5], from[5], to[5]);
    list(6, words[6], from[6], to[6]);
    list(7, words[7], from[7], to[7]);
}

/// Where a word of a token's scales is.
#[inline(always)]
pub(super) fn scale_at(block: &Block, token: u32, word: u32) -> Address {
    block.args.x_scales.offset(4 * block.args.x_scale_strides.place(token, word))
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
    (token + 1).is_multiple_of(CHUNK) || token + 1 == block.tokens.end
}

/// The rows of a chunk so far: on lane r those for rank r. More ranks than lanes are counted again at the end.
#[derive(Clone, Copy)]
struct Tally {
    first: u32,
    rows: u32,
}

impl Tally {
    const NONE: Self = Self { first: 0, rows: 0 };

    /// Counts a token's row to the rank of its route.
    #[inline(always)]
    fn count(&mut self, route: u64) {
        if rank_of(route) == thread::lane() {
            self.first = if self.rows == 0 { row_of(route) } else { self.first };
            self.rows += 1;
        }
    }

    /// The rows for `rank` of the tokens `first..end`, by their routes.
    #[inline(always)]
    unsafe fn of(block: &Block, rank: u32, first: u32, end: u32) -> Self {
        let mut tally = Self::NONE;
        for token in first..end {
            for at in 0..block.args.exchange.shape.route_width() {
                // SAFETY: the contract of DispatchArgs; this warp has resolved the tokens' routes.
                let route = unsafe { mem::load_u64(block.routes(token).long(at)) };
                if rank_of(route) == rank {
                    tally.first = if tally.rows == 0 { row_of(route) } else { tally.first };
                    tally.rows += 1;
                }
            }
        }
        tally
    }
}

/// Tells every peer that the rows of the chunk that ends with `token` are written, and which they are.
#[inline(always)]
unsafe fn signal_chunk<const ACROSS: bool>(block: &Block, token: u32, tally: Tally) {
    let exchange = &block.args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let chunk = token / CHUNK;
    for rank in thread::lane_strided(shape.ranks) {
        if ACROSS && !block.is_near(rank) {
            continue;
        }
        // SAFETY: the contract of DispatchArgs; this warp has resolved the routes of the chunk's tokens, before a
        // barrier of the warp.
        unsafe {
            let Tally { first, rows } =
                if rank < thread::WARP { tally } else { Tally::of(block, rank, chunk * CHUNK, token + 1) };
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
pub unsafe fn plain<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) {
    let row_bytes = block.args.exchange.shape.row_bytes;
    let mut tally = Tally::NONE;
    for token in Walk::new::<BY_EXPERT>(block) {
        let from = block.args.x.offset(token as u64 * row_bytes as u64);
        // SAFETY: the contract of DispatchArgs.
        let (route, companions) =
            unsafe { (resolve::<ACROSS>(block, token), Companions::load::<BY_EXPERT>(block, token)) };
        for_each_route(route, |route| {
            // SAFETY: as above.
            unsafe {
                let to = destination(block, route);
                for quad in thread::lane_strided(row_bytes / 16) {
                    let at = 16 * quad as u64;
                    mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
                }
                companions.send::<BY_EXPERT, _>(block, route, &Given(token));
            }
            if BY_EXPERT {
                tally.count(route);
            }
        });
        // SAFETY: as above.
        unsafe { block.args.exchange.trace.end_warp(Activity::Send, About::token(token)) };
        if BY_EXPERT && ends_chunk(block, token) {
            warp::barrier(warp::ALL);
            // SAFETY: as above.
            unsafe {
                signal_chunk::<ACROSS>(block, token, tally);
                block.args.exchange.trace.end_warp(Activity::Signal, About::token(token));
            }
            tally = Tally::NONE;
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
pub unsafe fn bulk<const BY_EXPERT: bool, const ACROSS: bool>(block: &Block) {
    let args = block.args;
    let trace = args.exchange.trace;
    let row_bytes = args.exchange.shape.row_bytes;
    let (stages, stage_bytes) = (args.stages, args.stage_bytes);
    let pieces = row_bytes.div_ceil(stage_bytes.max(1));
    let piece_bytes = |piece: u32| (row_bytes - piece * stage_bytes).min(stage_bytes);
    let buffer = |stage: u32| block.shared.stages + (thread::warp_index() * stages + stage) * stage_bytes;
    let barrier = |stage: u32| block.shared.barriers + 8 * (thread::warp_index() * stages + stage);

    let driver = thread::lane() == 0;
    // The next piece to load, and its buffer.
    let mut ahead = Walk::new::<BY_EXPERT>(block);
    // A row that goes to other nodes alone is not loaded.
    // SAFETY: the contract of DispatchArgs.
    let is_loaded = |token: u32| !ACROSS || unsafe { goes_near(block, token) };
    let (mut ahead_token, mut ahead_piece, mut ahead_stage) = (ahead.find(|&token| is_loaded(token)), 0, 0);
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
            ahead_token = ahead.find(|&token| is_loaded(token));
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
    let mut tally = Tally::NONE;
    for token in Walk::new::<BY_EXPERT>(block) {
        // While the last row is read; ahead of this row's load rather than behind it (docs/performance.md).
        // SAFETY: the contract of DispatchArgs.
        let (route, companions) =
            unsafe { (resolve::<ACROSS>(block, token), Companions::load::<BY_EXPERT>(block, token)) };
        for piece in 0..if is_loaded(token) { pieces } else { 0 } {
            if driver {
                // The buffer to load next is the one that the last piece's stores read.
                bulk::wait_read();
                // SAFETY: the contract of DispatchArgs.
                unsafe { trace.end(Activity::WaitBuffer, About::token(token)) };
                load_next();
                // SAFETY: this warp's own mbarrier. Partner: the load of this piece, which completes on it.
                unsafe {
                    bulk::mbarrier_wait(barrier(stage), parity);
                    trace.end(Activity::Load, About::token(token));
                }
            }
            for_each_route(route, |route| {
                if driver {
                    // SAFETY: the contract of DispatchArgs; the piece lies within the row.
                    unsafe {
                        let to = destination(block, route).offset((piece * stage_bytes) as u64);
                        bulk::store(to, buffer(stage), piece_bytes(piece));
                    }
                }
            });
            if driver {
                bulk::commit();
            }
            if piece == 0 {
                // SAFETY: the contract of DispatchArgs.
                for_each_route(route, |route| unsafe {
                    companions.send::<BY_EXPERT, _>(block, route, &Given(token));
                });
                if BY_EXPERT {
                    for_each_route(route, |route| tally.count(route));
                }
            }
            // SAFETY: the contract of DispatchArgs.
            unsafe { trace.end_warp(Activity::Send, About::token(token)) };
            stage += 1;
            if stage == stages {
                stage = 0;
                parity ^= 1;
            }
        }
        if BY_EXPERT && ends_chunk(block, token) {
            if driver {
                written();
                // SAFETY: the contract of DispatchArgs.
                unsafe { trace.end(Activity::WaitWritten, About::token(token)) };
            }
            warp::barrier(warp::ALL);
            // SAFETY: the contract of DispatchArgs.
            unsafe {
                signal_chunk::<ACROSS>(block, token, tally);
                trace.end_warp(Activity::Signal, About::token(token));
            }
            tally = Tally::NONE;
        }
    }
    if driver {
        // `arrive` is about to tell the receivers.
        written();
        // SAFETY: the contract of DispatchArgs.
        unsafe { trace.end(Activity::WaitWritten, About::NOTHING) };
    }
}

/// This thread's bulk copies are complete, not merely read, and handed to the ordinary writes that signal them.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub(super) fn written() {
    bulk::wait_written();
    bulk::fence_proxy_async();
}
