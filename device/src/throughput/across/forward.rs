//! Dispatch, phase 4 on the way: rows of other nodes' ranks are written to their final places on this node.

use super::channel;
use super::lane_of;
use super::lanes::Lanes;
use super::message::{Message, Slot};
use super::walk::Walk;
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address};
use crate::gpu::{shared, thread, warp};
use crate::throughput::dispatch::{Block, SIDE_BYTES};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::throughput::send::written;
use crate::throughput::send::{Beside, Companions, for_each_route, rank_of, row_of};
use crate::trace::{About, Activity};
use crate::wire::{CHUNK, MAX_LANES, MAX_SIDES, NO_ROUTE, Phase};

/// Copies rows by 16-byte loads and stores.
///
/// # Safety
/// The contract of [`DispatchArgs`](crate::throughput::dispatch::DispatchArgs); the phases before have run on the whole
/// block; by its senders.
#[inline(always)]
pub unsafe fn plain<const BY_EXPERT: bool>(block: &Block) {
    let row_bytes = block.args.exchange.shape.row_bytes;
    let copy = |from: Address, route: u64| {
        for_each_route(route, |route| {
            // SAFETY: the caller's promise.
            unsafe {
                let to = row(block, route);
                for quad in thread::lane_strided(row_bytes / 16) {
                    let at = 16 * quad as u64;
                    mem::store_quad(to.offset(at), mem::load_quad(from.offset(at)));
                }
            }
        });
    };
    // SAFETY: the caller's promise.
    unsafe { forward::<BY_EXPERT>(block, copy, || ()) }
}

/// Copies rows by bulk copies: a row is pulled from the inbox into shared memory once, and pushed from there to each of
/// its ranks.
///
/// # Safety
/// As [`plain`].
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub unsafe fn bulk<const BY_EXPERT: bool>(block: &Block) {
    let args = block.args;
    let (row_bytes, stage_bytes) = (args.exchange.shape.row_bytes, args.stage_bytes);
    let pieces = row_bytes.div_ceil(stage_bytes.max(1));
    let buffer = block.shared.stages + thread::warp_index() * args.stages * stage_bytes;
    let barrier = block.shared.forward_barriers + 8 * thread::warp_index();
    let driver = thread::lane() == 0;
    if driver {
        // SAFETY: this warp's own mbarrier, used by this lane and the copy engine alone.
        unsafe { bulk::mbarrier_init(barrier, 1) };
        bulk::fence_proxy_async();
    }
    let mut parity = 0;
    let copy = |from: Address, route: u64| {
        for piece in 0..pieces {
            let at = piece * stage_bytes;
            let bytes = (row_bytes - at).min(stage_bytes);
            if driver {
                // The last piece's stores read the buffer.
                bulk::wait_read();
                // SAFETY: the contract of DispatchArgs; the piece lies within the row, and the buffer is this warp's.
                // Partner of the wait: the load, which completes on the mbarrier.
                unsafe {
                    bulk::mbarrier_arrive_expect(barrier, bytes);
                    bulk::load(buffer, from.offset(at.into()), bytes, barrier);
                    bulk::mbarrier_wait(barrier, parity);
                }
            }
            parity ^= 1;
            for_each_route(route, |route| {
                if driver {
                    // SAFETY: as above.
                    unsafe { bulk::store(row(block, route).offset(at.into()), buffer, bytes) };
                }
            });
            if driver {
                bulk::commit();
            }
        }
    };
    let complete = || {
        if driver {
            written();
        }
    };
    // SAFETY: the caller's promise.
    unsafe { forward::<BY_EXPERT>(block, copy, complete) };
    // `arrive` is about to tell the receivers.
    complete();
}

/// Where the row of `route` is written.
#[inline(always)]
unsafe fn row(block: &Block, route: u64) -> Address {
    let exchange = &block.args.exchange;
    // SAFETY: the contract; rows are within the arena, as `plan` and `place` have checked.
    let rows = unsafe { exchange.peer(rank_of(route)) }.offset(exchange.arena.rows);
    rows.offset(row_of(route) as u64 * exchange.shape.row_bytes as u64)
}

/// Forwards this warp's share of the messages. `copy` copies a row to the ranks of the lanes' routes, `complete` waits until
/// such copies are written.
#[inline(always)]
unsafe fn forward<const BY_EXPERT: bool>(
    block: &Block,
    mut copy: impl FnMut(Address, u64),
    complete: impl Fn(),
) {
    let (exchange, link) = (&block.args.exchange, block.link);
    let shape = &exchange.shape;
    let (channel, epoch, deadline_ns) = (channel::MESSAGES, block.epoch, block.deadline_ns);
    let lanes = Lanes { exchange, link, channel, epoch, deadline_ns };
    // SAFETY: the contract; `plan` has written the counts of tokens before a barrier; all lanes of the warp take the
    // same way.
    unsafe {
        let tokens = |far: u32| shared::load_u32(block.shared.far_tokens + 4 * far);
        let workers = thread::grid_size() * block.args.senders;
        // Warps of different blocks first.
        let worker = thread::warp_index() * thread::grid_size() + thread::block_index();
        let walk: Walk<_, BY_EXPERT> = Walk::new(tokens, shape.far_nodes(), link.lanes, worker, workers);
        let inbox = exchange.own().offset(exchange.arena.far_inbox);
        let mut came_by = u32::MAX;
        for (far, first, end) in walk {
            let lane = lane_of(link, first);
            // What comes one after the other mostly comes by the same lane.
            if came_by != far * MAX_LANES + lane {
                came_by = far * MAX_LANES + lane;
                exchange.trace.begin_warp();
                let came = lanes.wait(far, lane, Phase::Messages);
                exchange.trace.end_warp(Activity::WaitMessages, About::peer(lanes.rail().rank(far)));
                if warp::ballot(warp::ALL, came) != warp::ALL {
                    block.give_up();
                    return;
                }
                // Hands the messages, which the flag released, to the copy engine.
                #[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
                bulk::fence_proxy_async();
            }
            for token in first..end {
                let number = far * shape.tokens + token;
                let message = Message::nth(shape, inbox, number);
                let (slot, route) = place(block, far, number, message);
                if warp::ballot(warp::ALL, route != NO_ROUTE) == 0 {
                    continue;
                }
                let Slot { expert, weight, place, .. } = slot;
                let source = lanes.rail().rank(far);
                let mut companions = Companions { source, token, expert, weight, place, scales: [0; 2] };
                let from = Arrived { message };
                companions.load_scales(block, &from);
                copy(message.row(shape), route);
                for_each_route(route, |route| companions.send::<BY_EXPERT, _>(block, route, &from));
                exchange.trace.end_warp(Activity::Forward, About::both(source, token));
            }
            if BY_EXPERT {
                complete();
                warp::barrier(warp::ALL);
                signal_chunk(block, far, lanes.rail().rank(far), first, end);
            }
        }
    }
}

/// What travels beside a row that has come in a message.
struct Arrived {
    message: Message,
}

impl Beside for Arrived {
    #[inline(always)]
    fn scale_at(&self, block: &Block, word: u32) -> Address {
        self.message.scales(&block.args.exchange.shape).word(word)
    }

    #[inline(always)]
    unsafe fn send_sides(&self, block: &Block, peer: Address, row: u32) {
        let mut from = self.message.sides(&block.args.exchange.shape);
        for side in 0..MAX_SIDES as u32 {
            let at = block.shared.sides + SIDE_BYTES * side;
            // SAFETY: the contract; `list_sides` has written the list, before a barrier.
            unsafe {
                let words = shared::load_u64(at);
                let to = peer.offset(shared::load_u64(at + 16) + 4 * row as u64 * words);
                for word in thread::lane_strided(words as u32) {
                    mem::store_u32(to.word(word), mem::load_u32(from.word(word)));
                }
                from = from.offset(4 * words);
            }
        }
    }
}

/// This lane's slot of a message, and this lane's route: ranks of this node in ascending order, then [`NO_ROUTE`]. Keeps the
/// routes in the handle, or follows those that are there. None if there is no such message. `number` is the message's in
/// the inbox. A warp.
#[inline(always)]
unsafe fn place(block: &Block, far: u32, number: u32, message: Message) -> (Slot, u64) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    let inside = thread::lane() < shape.near_width();
    let kept = exchange.handle(exchange.handle.far_routes).long(number * shape.near_width());
    // SAFETY: the contract; the message, if there is one, has arrived; the routes are this warp's.
    unsafe {
        let there = message.epoch() == block.epoch;
        let slot =
            if there && thread::lane() < shape.topk { message.slot(thread::lane()) } else { Slot::NONE };
        if block.args.cached != 0 {
            let follows = there && inside;
            return (slot, if follows { mem::load_u64(kept.long(thread::lane())) } else { NO_ROUTE });
        }
        let (mut route, mut rank) = (NO_ROUTE, u32::MAX);
        if slot.expert < shape.experts {
            rank = slot.expert / shape.experts_per_rank();
            if block.is_near(rank) {
                let first = (rank - block.first_near) * shape.far_nodes() + far;
                let row = shared::load_u32(block.shared.far_first + 4 * first) + slot.index;
                // What has no room is left out, by its source too.
                if row < shape.rows {
                    route = (rank as u64) << 32 | row as u64;
                }
            }
        }
        let same = warp::match_any(warp::ALL, rank);
        let leads = route != NO_ROUTE && same & warp::lanes_below() == 0;
        let route = ascending(if leads { route } else { NO_ROUTE });
        if inside {
            mem::store_u64(kept.long(thread::lane()), route);
        }
        (slot, route)
    }
}

/// The lanes' routes in ascending order, without gaps. They differ.
#[inline(always)]
fn ascending(route: u64) -> u64 {
    let all = warp::ballot(warp::ALL, route != NO_ROUTE);
    let (mut place, mut lanes) = (0, all);
    while lanes != 0 {
        place += (warp::shuffle_u64(warp::ALL, route, lanes.trailing_zeros()) < route) as u32;
        lanes &= lanes - 1;
    }
    let (mut own, mut lanes) = (NO_ROUTE, all);
    while lanes != 0 {
        let from = lanes.trailing_zeros();
        let (moved, to) = (warp::shuffle_u64(warp::ALL, route, from), warp::shuffle(warp::ALL, place, from));
        own = if thread::lane() == to { moved } else { own };
        lanes &= lanes - 1;
    }
    own
}

/// Tells the node's ranks that the rows of a chunk are written, and which they are.
#[inline(always)]
unsafe fn signal_chunk(block: &Block, far: u32, source: u32, first: u32, end: u32) {
    let exchange = &block.args.exchange;
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let width = shape.near_width();
    let routes = exchange.handle(exchange.handle.far_routes);
    for near in thread::lane_strided(shape.near_ranks) {
        let rank = block.first_near + near;
        let (mut first_row, mut rows) = (0, 0);
        // SAFETY: the contract; this warp has placed the chunk's messages, before a barrier of the warp.
        unsafe {
            for token in first..end {
                for at in 0..width {
                    let number = far * shape.tokens + token;
                    let route = mem::load_u64(routes.long(number * width + at));
                    if rank_of(route) == rank {
                        first_row = if rows == 0 { row_of(route) } else { first_row };
                        rows += 1;
                    }
                }
            }
            let peer = exchange.peer(rank);
            let at = source * shape.chunks() + first / CHUNK;
            mem::store_u64(peer.offset(arena.chunk_rows).long(at), (first_row as u64) << 32 | rows as u64);
            // Partner: `expand`'s wait for chunk_flags on `rank` (acquire, sys). What it releases: the line above; the
            // chunk's rows and companions, by way of `complete` and the warp's barrier.
            mem::store_release_sys_u64(peer.offset(arena.chunk_flags).long(at), block.epoch);
        }
    }
}
