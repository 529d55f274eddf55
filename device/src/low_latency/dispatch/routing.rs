//! What a dispatch tells beside the rows: to each rank which tokens come and how many each expert gets, with each row
//! which experts it is for and where it lies among theirs.

use super::DispatchArgs;
use crate::gpu::{block, mem, shared, thread, warp};
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::low_latency::batch::{Peers, channel};
use crate::low_latency::layout::{NO_ROW, Shape, summary};
use crate::low_latency::packet;
use crate::meet::last_block;
use crate::trace::{About, Activity};
use crate::unroll::unroll;
use crate::wire::{Failure, Phase, Report};

/// Offsets in a block's dynamic shared memory, from its base.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// i32 `[token, topk]`: the routing.
    pub experts: u32,
    /// u32 `[token, topk]`: the expert where a slot is the first of its token to name it, else [`NO_ROW`].
    pub firsts: u32,
    /// u32 `[token of the block, topk]`: how many earlier tokens name the same expert.
    pub places: u32,
    /// u64 `[rank]`: [`Peers`].
    pub peers: u32,
    /// u32 words of a summary.
    pub summary: u32,
    /// The whole.
    pub bytes: u32,
}

impl Shared {
    /// Of the sending half with `blocks` blocks.
    pub const fn new(shape: &Shape, blocks: u32) -> Self {
        let slots = (shape.tokens * shape.topk).next_multiple_of(4);
        let experts = 0;
        let firsts = experts + 4 * slots;
        let places = firsts + 4 * slots;
        let own = shape.tokens.div_ceil(crate::wire::at_least_one(blocks));
        let peers = (places + 4 * own * shape.topk).next_multiple_of(8);
        let summary = peers + Peers::bytes(shape);
        let bytes = summary + 4 * 3 * shape.summary_packets();
        Self { experts, firsts, places, peers, summary, bytes }
    }
}

/// A block's view of a dispatch's routing.
pub struct Routing<'a> {
    /// What it is of.
    pub args: &'a DispatchArgs,
    /// Of this dispatch.
    pub epoch: u64,
    tag: u32,
    /// Addresses in shared memory.
    shared: Shared,
    peers: Peers,
    /// Tokens of this rank; 0 if its input is not valid.
    pub tokens: u32,
    valid: bool,
}

impl<'a> Routing<'a> {
    /// Loads and checks the routing, and makes sure that peers are ready for it; `None`, and a report, if one is late. Ends
    /// with a barrier, ahead of which `meanwhile` is called.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`].
    #[inline(always)]
    pub unsafe fn new<const FAR: bool>(
        args: &'a DispatchArgs,
        epoch: u64,
        deadline_ns: u64,
        meanwhile: impl FnOnce(),
    ) -> Option<Self> {
        let batch = &args.batch;
        let shape = &batch.shape;
        let offsets = Shared::new(shape, thread::grid_size());
        let base = shared::base();
        let shared = Shared {
            experts: base + offsets.experts,
            firsts: base + offsets.firsts,
            places: base + offsets.places,
            peers: base + offsets.peers,
            summary: base + offsets.summary,
            bytes: offsets.bytes,
        };
        // SAFETY: the caller's promise; a thread writes its own words of shared memory.
        unsafe {
            let counted = if args.tokens_at.is_null() { args.tokens } else { mem::load_u32(args.tokens_at) };
            let fits = counted <= shape.tokens;
            if !fits && thread::block_index() == 0 && block::is_first_thread() {
                let limit = shape.tokens.into();
                batch.fail(Report::new(
                    Failure::Tokens,
                    Phase::None,
                    batch.rank,
                    epoch,
                    limit,
                    counted.into(),
                ));
            }
            let routing = Self {
                args,
                epoch,
                tag: packet::tag(epoch),
                shared,
                peers: Peers::load(batch, shared.peers),
                tokens: if fits { counted } else { 0 },
                valid: fits,
            };
            let valid = routing.stage() && fits;
            batch.acknowledge::<FAR>(deadline_ns);
            routing.clear();
            meanwhile();
            batch.trace.end_warp(Activity::Route, About::NOTHING);
            let ready = batch.may_send(batch.arena.dispatch_read, epoch, deadline_ns);
            let bad = block::barrier_or(!(ready && valid));
            batch.trace.end_warp(Activity::Barrier, About::NOTHING);
            if !bad {
                return Some(routing);
            }
            if block::barrier_or(!ready) {
                return None;
            }
            Some(Self { tokens: 0, valid: false, ..routing })
        }
    }

    /// Brings the routing to shared memory; false, and a report, if this thread has come upon an id out of range. A lane has
    /// a slot, and a warp as many whole tokens as it has lanes for.
    #[inline(always)]
    unsafe fn stage(&self) -> bool {
        let args = self.args;
        let shape = &args.batch.shape;
        let (topk, lane) = (shape.topk.max(1), thread::lane());
        let at_once = thread::WARP / topk;
        let token_here = lane / topk;
        let slots = self.tokens * topk;
        let mut valid = true;
        for group in thread::warp_strided(self.tokens.div_ceil(at_once.max(1))) {
            let slot = group * at_once * topk + lane;
            // SAFETY: the slots are the arrays'; a lane writes its own words of shared memory.
            unsafe {
                let mut expert = u32::MAX;
                let has_slot = token_here < at_once && slot < slots;
                if has_slot {
                    expert = mem::load_u32(args.topk_idx.word(slot));
                }
                let known = expert < shape.experts;
                if !known && expert != u32::MAX {
                    valid = false;
                    self.out_of_range(slot, expert);
                }
                // Experts have 14 bits.
                let of_token = if known { token_here << 16 | expert } else { u32::MAX };
                let same = warp::match_any(warp::ALL, of_token);
                if has_slot {
                    let first = known && same & warp::lanes_below() == 0;
                    shared::store_u32(self.shared.experts + 4 * slot, expert);
                    shared::store_u32(self.shared.firsts + 4 * slot, if first { expert } else { NO_ROW });
                }
            }
        }
        for slot in thread::Strided::new(slots + thread::index(), slots.next_multiple_of(4), 4) {
            // SAFETY: there is room for whole quads.
            unsafe { shared::store_u32(self.shared.firsts + 4 * slot, NO_ROW) };
        }
        valid
    }

    #[inline(always)]
    unsafe fn out_of_range(&self, slot: u32, expert: u32) {
        let batch = &self.args.batch;
        let (experts, topk) = (batch.shape.experts.into(), batch.shape.topk.max(1));
        let failure = Failure::ExpertOutOfRange;
        let report = Report::new(failure, Phase::None, batch.rank, self.epoch, experts, expert.into());
        // SAFETY: the contract.
        unsafe { batch.fail(Report { token: (slot / topk).into(), slot: (slot % topk).into(), ..report }) };
    }

    /// Tokens that this block tells of.
    #[inline(always)]
    fn own_tokens(&self) -> u32 {
        self.tokens.saturating_sub(thread::block_index()).div_ceil(thread::grid_size().max(1))
    }

    /// Makes places and summary zero.
    #[inline(always)]
    unsafe fn clear(&self) {
        for place in thread::strided(self.own_tokens() * self.args.batch.shape.topk) {
            // SAFETY: a word of the places.
            unsafe { shared::store_u32(self.shared.places + 4 * place, 0) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.clear_summary() };
    }

    /// The rank that this lane's slot of `token` goes to, `u32::MAX` for none, and the lanes that are the first of their
    /// token to go to theirs. All lanes of a warp.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`], and `token` is below `tokens`.
    #[inline(always)]
    pub unsafe fn destinations(&self, token: u32) -> (u32, u32) {
        let shape = &self.args.batch.shape;
        let mut rank = u32::MAX;
        if thread::lane() < shape.topk {
            let slot = token * shape.topk + thread::lane();
            // SAFETY: the slot is one of the routing's.
            let expert = unsafe { shared::load_u32(self.shared.experts + 4 * slot) };
            if expert < shape.experts {
                rank = expert / shape.experts_per_rank();
            }
        }
        let same = warp::match_any(warp::ALL, rank);
        let first = rank != u32::MAX && same & warp::lanes_below() == 0;
        (rank, warp::ballot(warp::ALL, first))
    }

    /// Tells everybody. `first_weight` is this lane's weight in the first token that this warp tells of, loaded before.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`]; by the whole block.
    #[inline(always)]
    pub unsafe fn tell<const FAR: bool>(&self, first_weight: u32) {
        let shape = &self.args.batch.shape;
        let (slots, blocks) = (self.tokens * shape.topk, thread::grid_size());
        let own = self.own_tokens();
        // SAFETY: the caller's promise; barriers part who writes shared memory from who reads it.
        unsafe {
            self.count_places(own);
            let mut peer = thread::block_index();
            if peer < shape.ranks {
                self.count_summary(peer);
            }
            block::barrier();
            for index in thread::warp_strided(own) {
                self.tell_message::<FAR>(index, first_weight);
            }
            while peer < shape.ranks {
                self.tell_summary::<FAR>(peer);
                peer += blocks;
                if peer < shape.ranks {
                    block::barrier();
                    self.clear_summary();
                    block::barrier();
                    self.count_summary(peer);
                    block::barrier();
                }
            }
            // For the receiving half of the combine.
            if thread::block_index() == 0 {
                let work = &self.args.batch.work;
                for slot in thread::strided(slots) {
                    let expert = shared::load_u32(self.shared.experts + 4 * slot);
                    mem::store_u32(self.args.batch.work(work.topk_idx).word(slot), expert);
                }
                if block::is_first_thread() {
                    mem::store_u32(self.args.batch.work(work.tokens), self.tokens);
                }
            }
        }
    }

    /// For each slot of the block's tokens, how many earlier tokens name its expert. Warps share the earlier tokens.
    #[inline(always)]
    unsafe fn count_places(&self, own: u32) {
        let topk = self.args.batch.shape.topk;
        for index in 0..own {
            let token = thread::block_index() + index * thread::grid_size();
            let earlier = token * topk;
            // SAFETY: the slots are the routing's, whose words were rounded up to whole quads.
            unsafe {
                let expert = if thread::lane() < topk {
                    shared::load_u32(self.shared.experts + 4 * (earlier + thread::lane()))
                } else {
                    NO_ROW
                };
                let mut named = 0;
                for quad in thread::warp_strided(earlier.div_ceil(4)) {
                    let mem::Quad(firsts) = shared::load_quad(self.shared.firsts + 16 * quad);
                    unroll!(AT in 4 {
                        named += (firsts[AT] == expert && 4 * quad + (AT as u32) < earlier) as u32;
                    });
                }
                if named > 0 && expert != NO_ROW {
                    shared::add_u32(self.shared.places + 4 * (index * topk + thread::lane()), named);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn clear_summary(&self) {
        for word in thread::strided(3 * self.args.batch.shape.summary_packets()) {
            // SAFETY: a word of the summary.
            unsafe { shared::store_u32(self.shared.summary + 4 * word, 0) };
        }
    }

    /// Adds up what `peer` is told.
    #[inline(always)]
    unsafe fn count_summary(&self, peer: u32) {
        let shape = &self.args.batch.shape;
        let (mine, bits) = (shape.experts_per_rank(), summary::TOKENS_THERE);
        let topk = shape.topk.max(1);
        let there = |expert: u32| expert.wrapping_sub(peer * mine) < mine;
        // SAFETY: words of the summary and slots of the routing; additions are atomic.
        unsafe {
            for slot in thread::strided(self.tokens * topk) {
                let expert = shared::load_u32(self.shared.firsts + 4 * slot);
                if !there(expert) {
                    continue;
                }
                let word = bits + shape.token_bits() + (expert - peer * mine);
                shared::add_u32(self.shared.summary + 4 * word, 1);
                let (token, mut first) = (slot / topk, true);
                for back in 1..slot % topk + 1 {
                    first &= !there(shared::load_u32(self.shared.firsts + 4 * (slot - back)));
                }
                if first {
                    shared::add_u32(self.shared.summary + 4 * (bits + token / 32), 1 << (token % 32));
                }
            }
            if block::is_first_thread() {
                let tokens = if self.valid { self.tokens } else { summary::INVALID };
                shared::add_u32(self.shared.summary + 4 * summary::TOKENS, tokens);
            }
        }
    }

    /// Sends `peer` its summary.
    #[inline(always)]
    unsafe fn tell_summary<const FAR: bool>(&self, peer: u32) {
        let batch = &self.args.batch;
        let packets = batch.shape.summary_packets();
        if FAR && batch.is_far(peer) {
            let to = self.far_summary(peer);
            for word in thread::strided(batch.shape.summary_words()) {
                // SAFETY: words of the summary, here and in the outbox.
                unsafe { mem::store_u32(to.word(word), shared::load_u32(self.shared.summary + 4 * word)) };
            }
            return;
        }
        // SAFETY: the contract. Partner of the packets: `receive`'s wait for summaries, on `peer`.
        unsafe {
            let to = self.peers.of(peer).offset(batch.arena.summaries);
            for index in thread::strided(packets) {
                let word = |at: u32| shared::load_u32(self.shared.summary + 4 * (3 * index + at));
                let to = packet::nth(to, (batch.rank * packets + index).into());
                packet::write(to, [word(0), word(1), word(2)], self.tag);
            }
        }
    }

    /// Begins the messages of one of the block's tokens, a packet for each slot: expert there and place among the rank's
    /// rows for it, or [`NO_ROW`]; weight; how many ranks below the token goes to. A warp.
    #[inline(always)]
    unsafe fn tell_message<const FAR: bool>(&self, index: u32, first_weight: u32) {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let token = thread::block_index() + index * thread::grid_size();
        let (lane, mine) = (thread::lane(), shape.experts_per_rank());
        // SAFETY: the contract; lanes with a slot alone touch it. Partner of the packets: `receive`, on the peer.
        unsafe {
            let (rank, leaders) = self.destinations(token);
            let (mut expert, mut place, mut bits) = (0, 0, 0);
            if lane < shape.topk {
                expert = shared::load_u32(self.shared.experts + 4 * (token * shape.topk + lane));
                place = shared::load_u32(self.shared.places + 4 * (index * shape.topk + lane));
                bits = if index == thread::warp_index() { first_weight } else { weight(self.args, token) };
            }
            let mut left = leaders;
            if FAR {
                let far = warp::ballot(warp::ALL, batch.is_far(rank)) & leaders;
                left &= !far;
                if far != 0 && lane < shape.topk {
                    let row = if rank != u32::MAX { expert << 16 | place } else { NO_ROW };
                    let to = self.far_message(token).long(lane);
                    mem::store_u64(to, (bits as u64) << 32 | row as u64);
                }
            }
            while left != 0 {
                let peer = warp::shuffle(warp::ALL, rank, left.trailing_zeros());
                let below = leaders >> lane & 1 != 0 && rank < peer;
                let part = warp::ballot(warp::ALL, below).count_ones();
                if lane < shape.topk {
                    let there = rank == peer;
                    let row = if there { (expert - peer * mine) << 16 | place } else { NO_ROW };
                    let to = self.message(peer, token);
                    packet::write(packet::nth(to, lane.into()), [row, bits, part], self.tag);
                }
                left &= left - 1;
            }
        }
    }

    /// Where in the outbox `token`'s message for ranks of other nodes is.
    #[inline(always)]
    pub fn far_message(&self, token: u32) -> mem::Address {
        let batch = &self.args.batch;
        let bytes = token as u64 * batch.shape.far_message_bytes() as u64;
        batch.own.offset(batch.arena.outbox_messages + bytes)
    }

    /// Where in the outbox the summary for `peer` is.
    #[inline(always)]
    fn far_summary(&self, peer: u32) -> mem::Address {
        let batch = &self.args.batch;
        let bytes = peer as u64 * batch.shape.far_summary_bytes() as u64;
        batch.own.offset(batch.arena.outbox_summaries + bytes)
    }

    /// Has the proxy send what the outbox holds, once all blocks have written it. By the whole block.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`].
    #[inline(always)]
    pub unsafe fn post(&self, deadline_ns: u64) {
        let batch = &self.args.batch;
        let (shape, arena, link) = (&batch.shape, &batch.arena, &batch.link);
        let channel = link.channel + channel::DISPATCH;
        // SAFETY: the caller's promise. The meeting acquires what all blocks have written, for the whole block.
        unsafe {
            if !last_block(batch.work(batch.work.meetings).word(channel::DISPATCH)) {
                return;
            }
            Ring::release();
            for token in thread::warp_strided(self.tokens) {
                let (rank, leaders) = self.destinations(token);
                let there = (batch.rank * shape.tokens + token) as u64 * shape.message_packets() as u64;
                let message = token as u64 * shape.far_message_bytes() as u64;
                let command = Command::Put {
                    to: Target { peer: rank, lane: link.lane_of(token) },
                    channel,
                    from: link.part + arena.outbox_messages + message,
                    at: link.part + arena.messages + packet::PACKET_BYTES * there,
                    bytes: shape.far_message_bytes(),
                };
                let has = leaders >> thread::lane() & 1 != 0 && batch.is_far(rank);
                batch.push(has, command, self.epoch, deadline_ns);
            }
            for group in thread::warp_strided(shape.ranks.div_ceil(thread::WARP)) {
                let peer = group * thread::WARP + thread::lane();
                let there = batch.rank as u64 * shape.summary_packets() as u64;
                let command = Command::Put {
                    // As `receive` expects.
                    to: Target { peer, lane: 0 },
                    channel,
                    from: link.part + arena.outbox_summaries + peer as u64 * shape.far_summary_bytes() as u64,
                    at: link.part + arena.summaries + packet::PACKET_BYTES * there,
                    bytes: shape.far_summary_bytes(),
                };
                let has = peer < shape.ranks && batch.is_far(peer);
                batch.push(has, command, self.epoch, deadline_ns);
            }
            // Places in the ring are in the order of the puts and, behind the barrier, the signals.
            block::barrier();
            if thread::warp_index() == 0 {
                batch.signal_far(channel::DISPATCH, self.epoch, deadline_ns);
            }
        }
    }

    /// Where `token`'s message for `peer` goes.
    ///
    /// # Safety
    /// The contract of [`DispatchArgs`].
    #[inline(always)]
    pub unsafe fn message(&self, peer: u32, token: u32) -> mem::Address {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let index = (batch.rank * shape.tokens + token) as u64 * shape.message_packets() as u64;
        // SAFETY: the caller's promise; barriers have come after the loading of the addresses.
        packet::nth(unsafe { self.peers.of(peer) }.offset(batch.arena.messages), index)
    }
}

/// This lane's weight of `token`, as bits; 0 without weights, and on lanes without a slot.
///
/// # Safety
/// The contract of [`DispatchArgs`], and the array has room for `token`.
#[inline(always)]
pub unsafe fn weight(args: &DispatchArgs, token: u32) -> u32 {
    let topk = args.batch.shape.topk;
    if args.topk_weights.is_null() || thread::lane() >= topk {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { mem::load_u32(args.topk_weights.word(token * topk + thread::lane())) }
}
