//! Combine across nodes: what each node holds of a token is summed there, and crosses once.

use super::lanes::Lanes;
use super::message::Message;
use super::walk::Walk;
use super::{Rail, channel, lane_of, push};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock, thread, warp};
use crate::internode::Link;
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::meet;
use crate::throughput::combine::{CombineAcrossArgs, CombineArgs};
use crate::throughput::pull::{self, Job, Pull};
use crate::throughput::send::{rank_of, row_of};
use crate::throughput::sums::{Bf16, F16, Half, Sums};
use crate::trace::{About, Activity};
use crate::wire::{Exchange, NO_ROUTE, Phase};
use core::cell::Cell;

/// Sends the rail what this node holds of its tokens, then sums this rank's own.
///
/// # Safety
/// The contract of [`CombineAcrossArgs`].
#[inline(always)]
pub(in crate::throughput) unsafe fn combine(args: &CombineAcrossArgs, mut pull: impl Pull) {
    let CombineAcrossArgs { combine: args, link } = args;
    let exchange = &args.exchange;
    let near_ranks = exchange.shape.near_ranks.max(1);
    let first_near = exchange.rank - exchange.rank % near_ranks;
    // SAFETY: the caller's promise. The epoch is written by the last block, after every block has read it.
    unsafe {
        let at = exchange.work(exchange.work.combine_epoch);
        let epoch = mem::load_u64(at) + 1;
        let deadline_ns = clock::now_ns() + exchange.timeout_ns;
        let lanes = Lanes { exchange, link, channel: channel::PARTIALS, epoch, deadline_ns };
        let trace = exchange.trace;
        trace.begin_warp();
        if thread::block_index() == 0 {
            for near in thread::strided(near_ranks) {
                // Partner: the wait for ready_flags below, on the near rank (acquire, sys). What it releases: the
                // outputs, which stream order puts before this kernel.
                let flags = exchange.peer(first_near + near).offset(exchange.arena.ready_flags);
                mem::store_release_sys_u64(flags.long(exchange.rank), epoch);
            }
            trace.end_warp(Activity::Signal, About::NOTHING);
        }
        let mut late = false;
        for near in thread::strided(near_ranks) {
            let (flags, peer) = (exchange.arena.ready_flags, first_near + near);
            // Partner: the release above, on `peer`.
            late |= !exchange.wait_flag(flags, peer, epoch, deadline_ns, Phase::Ready);
        }
        let late = block::barrier_or(late);
        trace.end_warp(Activity::Barrier, About::NOTHING);
        if !late {
            pull.begin();
            let forward = Forward { args, link, lanes, lane: Cell::new(0) };
            if exchange.shape.f16 == 0 {
                pull.pull::<Bf16, false, _>(args, &forward);
            } else {
                pull.pull::<F16, false, _>(args, &forward);
            }
            forward.done_before(link.lanes);
            let tokens = mem::load_u32(exchange.handle(exchange.handle.tokens));
            let own = Own { args, link, lanes, first_near, tokens, came: Cell::new(0) };
            if !args.slots_out.is_null() {
                own.slots();
                trace.end_warp(Activity::Slots, About::NOTHING);
            }
            pull::by_format_and_bias(args, &own, &mut pull);
        }
        let last = meet::last_block(exchange.work(exchange.work.arrived));
        trace.end_warp(Activity::Meet, About::NOTHING);
        if last {
            lanes.wait_all(Phase::Partials);
            if block::is_first_thread() {
                mem::store_u64(at, epoch);
            }
        }
    }
}

/// Where partials of `far`'s tokens are, in the outbox or the inbox that begins at `region`.
#[inline(always)]
fn partial(exchange: &Exchange, region: u64, far: u32, token: u32) -> u64 {
    let shape = &exchange.shape;
    region + (far as u64 * shape.tokens as u64 + token as u64) * shape.partial_bytes() as u64
}

/// This warp's share of the tokens of this rank.
#[inline(always)]
fn walk<T: Fn(u32) -> u32>(link: &Link, tokens: T, sources: u32) -> Walk<T, false> {
    let worker = thread::block_index() * thread::warps() + thread::warp_index();
    Walk::new(tokens, sources, link.lanes, worker, thread::grid_size() * thread::warps())
}

/// The rail's tokens, of which this node's ranks have rows. An item is a token's number in the inbox.
struct Forward<'a> {
    args: &'a CombineArgs,
    link: &'a Link,
    lanes: Lanes<'a>,
    /// The first lane that this warp has something left to put on.
    lane: Cell<u32>,
}

impl Forward<'_> {
    /// This lane's route of an item: ranks in ascending order, then [`NO_ROUTE`].
    #[inline(always)]
    unsafe fn route(&self, item: u32) -> u64 {
        let exchange = &self.args.exchange;
        let width = exchange.shape.near_width();
        if thread::lane() >= width {
            return NO_ROUTE;
        }
        let at = item * width + thread::lane();
        // SAFETY: the contract; the item is one of the handle's.
        unsafe { mem::load_u64(exchange.handle(exchange.handle.far_routes).long(at)) }
    }

    /// This warp has put all that goes by lanes before this one.
    #[inline(always)]
    unsafe fn done_before(&self, lane: u32) {
        while self.lane.get() < lane {
            // SAFETY: the contract; once for each lane.
            unsafe { self.lanes.done(self.lane.get()) };
            self.lane.set(self.lane.get() + 1);
        }
    }

    /// Writes what goes back to the token's slots.
    #[inline(always)]
    unsafe fn slots(&self, item: u32, to: Address) {
        let exchange = &self.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        // SAFETY: the contract; the token's message is still in the inbox; all lanes of the warp take the same way.
        unsafe {
            let message = Message::nth(shape, exchange.own().offset(arena.far_inbox), item);
            let slot = thread::lane();
            let inside = slot < shape.topk;
            let expert = if inside { message.slot(slot).expert } else { u32::MAX };
            let value = slot_value(exchange, expert, self.route(item), |rank, row| {
                exchange.peer(rank).offset(arena.slot_outputs).word(row * shape.topk + slot)
            });
            if inside {
                mem::store_u32(to.word(slot), value);
            }
        }
    }
}

/// What the rank of this lane's expert has for its slot: at `place` of that rank and its row, among the lanes' routes. 0 if
/// there is no such route.
#[inline(always)]
unsafe fn slot_value(
    exchange: &Exchange,
    expert: u32,
    route: u64,
    place: impl Fn(u32, u32) -> Address,
) -> u32 {
    let shape = &exchange.shape;
    let mut value = 0;
    let mut lanes = warp::ballot(warp::ALL, route != NO_ROUTE);
    while lanes != 0 {
        let route = warp::shuffle_u64(warp::ALL, route, lanes.trailing_zeros());
        let rank = rank_of(route);
        if expert < shape.experts && expert / shape.experts_per_rank() == rank {
            // SAFETY: the caller's promise: the place is mapped, and was written.
            value = unsafe { mem::load_u32(place(rank, row_of(route))) };
        }
        lanes &= lanes - 1;
    }
    value
}

impl Job for Forward<'_> {
    const SUM: Activity = Activity::SumForward;

    #[inline(always)]
    fn about(&self, item: u32) -> About {
        let tokens = self.args.exchange.shape.tokens.max(1);
        About::both(self.lanes.rail().rank(item / tokens), item % tokens)
    }

    #[inline(always)]
    fn items(&self) -> impl Iterator<Item = u32> {
        let exchange = &self.args.exchange;
        let (shape, handle) = (&exchange.shape, &exchange.handle);
        // SAFETY: the contract of CombineAcrossArgs.
        let tokens = |far: u32| unsafe { mem::load_u32(exchange.handle(handle.far_tokens).word(far)) };
        let numbers = walk(self.link, tokens, shape.far_nodes());
        numbers.map(|(far, token, _)| far * shape.tokens + token).filter(|&item| {
            let first = exchange.handle(handle.far_routes).long(item * shape.near_width());
            // SAFETY: as above. All lanes read the same.
            unsafe { mem::load_u64(first) != NO_ROUTE }
        })
    }

    #[inline(always)]
    unsafe fn row(&self, item: u32) -> Address {
        let exchange = &self.args.exchange;
        // SAFETY: the contract: routes name rows that exist on ranks of this node.
        unsafe {
            let route = self.route(item);
            if route == NO_ROUTE {
                return Address::NULL;
            }
            let outputs = exchange.peer(rank_of(route)).offset(exchange.arena.outputs);
            outputs.offset(row_of(route) as u64 * exchange.shape.output_bytes() as u64)
        }
    }

    #[inline(always)]
    unsafe fn parts(&self, item: u32) -> u32 {
        // SAFETY: the caller's promise.
        warp::ballot(warp::ALL, unsafe { self.route(item) } != NO_ROUTE).count_ones()
    }

    #[inline(always)]
    unsafe fn write<H: Half, const BIASED: bool>(&self, item: u32, at: u64, sums: Sums) {
        let exchange = &self.args.exchange;
        // SAFETY: the contract; the partial is this warp's, and the last one there has been added to its token's sum.
        unsafe {
            let row = exchange.own().offset(partial(exchange, exchange.arena.partial_outbox, 0, item));
            mem::store_quad(row.offset(at), sums.round::<H>());
        }
    }

    #[inline(always)]
    unsafe fn done(&self, item: u32) {
        let exchange = &self.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        let tokens = shape.tokens.max(1);
        let (far, token) = (item / tokens, item % tokens);
        let (rail, lane) = (self.lanes.rail(), lane_of(self.link, token));
        let from = partial(exchange, arena.partial_outbox, 0, item);
        // SAFETY: the contract.
        unsafe {
            self.done_before(lane);
            let slots = exchange.own().offset(from + shape.output_bytes() as u64);
            self.slots(item, slots);
            let command = Command::Put {
                to: Target { peer: rail.rank(far), lane },
                channel: self.link.channel + channel::PARTIALS,
                from: self.link.part + from,
                at: self.link.part + partial(exchange, arena.partial_inbox, rail.own_node(far), token),
                bytes: shape.partial_bytes(),
            };
            // Releases what all lanes of the warp have written.
            warp::barrier(warp::ALL);
            Ring::release();
            let Lanes { epoch, deadline_ns, .. } = self.lanes;
            push(exchange, self.link, thread::lane() == 0, command, epoch, deadline_ns);
        }
    }
}

/// This rank's tokens: rows of this node's ranks, and partials of other nodes.
struct Own<'a> {
    args: &'a CombineArgs,
    link: &'a Link,
    lanes: Lanes<'a>,
    first_near: u32,
    tokens: u32,
    /// The lanes, as a bit mask, by which everything has come, or by which it is known not to come in time.
    came: Cell<u32>,
}

impl Own<'_> {
    #[inline(always)]
    fn is_near(&self, rank: u32) -> bool {
        rank.wrapping_sub(self.first_near) < self.args.exchange.shape.near_ranks
    }

    /// Waits until the token's partials are there; a report if they do not come. A warp.
    #[inline(always)]
    unsafe fn wait(&self, token: u32) {
        let lane = lane_of(self.link, token);
        if self.came.get() >> lane & 1 != 0 {
            return;
        }
        for far in thread::lane_strided(self.args.exchange.shape.far_nodes()) {
            // SAFETY: the contract. What is summed without having come is reported.
            unsafe { self.lanes.wait_traced(far, lane, Phase::Partials) };
        }
        self.came.set(self.came.get() | 1 << lane);
        // What some lanes have acquired is there for all, and for the copy engine.
        warp::barrier(warp::ALL);
        #[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
        bulk::fence_proxy_async();
    }

    /// Where the partial of a far rank's node for `token` is.
    #[inline(always)]
    unsafe fn partial(&self, rank: u32, token: u32) -> Address {
        let exchange = &self.args.exchange;
        let far = self.rail().far_node(rank);
        // SAFETY: the contract.
        unsafe { exchange.own().offset(partial(exchange, exchange.arena.partial_inbox, far, token)) }
    }

    #[inline(always)]
    fn rail(&self) -> Rail {
        self.lanes.rail()
    }

    /// Brings what each slot's owner has for it.
    #[inline(always)]
    unsafe fn slots(&self) {
        let exchange = &self.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        for token in self.items() {
            // SAFETY: the contract; all lanes of the warp take the same way.
            unsafe {
                self.wait(token);
                let slot = thread::lane();
                let (inside, at) = (slot < shape.topk, token * shape.topk + slot);
                let ids = exchange.handle(exchange.handle.topk_idx);
                let expert = if inside { mem::load_u32(ids.word(at)) } else { u32::MAX };
                let route = pull::route(self.args, token);
                let value = slot_value(exchange, expert, route, |rank, row| {
                    if self.is_near(rank) {
                        exchange.peer(rank).offset(arena.slot_outputs).word(row * shape.topk + slot)
                    } else {
                        self.partial(rank, token).offset(shape.output_bytes().into()).word(slot)
                    }
                });
                if inside {
                    mem::store_u32(self.args.slots_out.word(at), value);
                }
            }
        }
    }
}

impl Job for Own<'_> {
    const SUM: Activity = Activity::Sum;

    #[inline(always)]
    fn about(&self, item: u32) -> About {
        About::token(item)
    }

    #[inline(always)]
    fn items(&self) -> impl Iterator<Item = u32> {
        let tokens = self.tokens;
        walk(self.link, move |_| tokens, 1).map(|(_, token, _)| token)
    }

    #[inline(always)]
    unsafe fn row(&self, item: u32) -> Address {
        let exchange = &self.args.exchange;
        // SAFETY: the contract: routes name rows that exist on ranks that exist.
        unsafe {
            self.wait(item);
            let route = pull::route(self.args, item);
            let rank = rank_of(route);
            let near = route != NO_ROUTE && self.is_near(rank);
            // A far node has one partial, at the first of the ranks there.
            let far = route != NO_ROUTE && !near;
            let node = if far { self.rail().far_node(rank) } else { u32::MAX };
            let same = warp::match_any(warp::ALL, node);
            let leads = far && same & warp::lanes_below() == 0;
            let row = if near {
                let outputs = exchange.peer(rank).offset(exchange.arena.outputs);
                outputs.offset(row_of(route) as u64 * exchange.shape.output_bytes() as u64)
            } else if leads {
                self.partial(rank, item)
            } else {
                Address::NULL
            };
            close_up(row)
        }
    }

    #[inline(always)]
    unsafe fn parts(&self, item: u32) -> u32 {
        // SAFETY: the caller's promise.
        warp::ballot(warp::ALL, !unsafe { self.row(item) }.is_null()).count_ones()
    }

    #[inline(always)]
    unsafe fn write<H: Half, const BIASED: bool>(&self, item: u32, at: u64, sums: Sums) {
        let row = item as u64 * self.args.exchange.shape.output_bytes() as u64;
        // SAFETY: the caller's promise.
        unsafe { pull::finish::<H, BIASED>(self.args, sums, row + at) }
    }

    #[inline(always)]
    unsafe fn done(&self, _: u32) {}
}

/// The lanes' rows in their order, without gaps.
#[inline(always)]
fn close_up(row: Address) -> Address {
    let mut lanes = warp::ballot(warp::ALL, !row.is_null());
    let (mut own, mut place) = (Address::NULL, 0);
    while lanes != 0 {
        let moved = Address(warp::shuffle_u64(warp::ALL, row.0, lanes.trailing_zeros()));
        if thread::lane() == place {
            own = moved;
        }
        place += 1;
        lanes &= lanes - 1;
    }
    own
}
