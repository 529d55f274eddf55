//! The receiving half.

use super::DispatchArgs;
use crate::gpu::mem::{self, Quad};
use crate::gpu::{block, clock, shared, thread, warp};
use crate::low_latency::batch::{Step, Waited, channel, share};
use crate::low_latency::far;
use crate::low_latency::format::{Bf16, E4m3};
use crate::low_latency::layout::{Element, NO_ROW, Shape, TILE_CELLS, summary};
use crate::low_latency::packet::{self, Filled, Peek, Tile};
use crate::trace::{About, Activity};
use crate::unroll::unroll;
use crate::wire::{Failure, Phase, Report};

/// Bytes of a block's dynamic shared memory: every source's summary, in which counts become first rows.
pub const fn shared_bytes(shape: &Shape) -> u32 {
    4 * 3 * shape.ranks * shape.summary_packets()
}

/// Address in shared memory of word `word` of what `source` has told.
#[inline(always)]
fn told(shape: &Shape, source: u32, word: u32) -> u32 {
    shared::base() + 4 * (source * 3 * shape.summary_packets() + word)
}

/// Whether `token` of `source` comes here.
#[inline(always)]
unsafe fn comes(shape: &Shape, source: u32, token: u32) -> bool {
    // SAFETY: summaries have arrived, and the token is one of the source's.
    let bits = unsafe { shared::load_u32(told(shape, source, summary::TOKENS_THERE + token / 32)) };
    bits >> (token % 32) & 1 != 0
}

/// Receives what is for this rank's experts.
///
/// # Safety
/// The contract of [`DispatchArgs`].
#[inline(always)]
pub unsafe fn receive<const FAR: bool>(args: &DispatchArgs) {
    let batch = &args.batch;
    // SAFETY: the caller's promise; all threads of the block take the same way.
    unsafe {
        let epoch = batch.next(Step::DispatchReceived);
        let started_ns = clock::now_ns();
        let deadline_ns = started_ns + batch.timeout_ns;
        batch.trace.begin_warp();
        let receiver = Receiver { args, epoch, tag: packet::tag(epoch), started_ns, deadline_ns };
        let received =
            if batch.shape.quantized() { receiver.all::<E4m3, FAR>() } else { receiver.all::<Bf16, FAR>() };
        if !received {
            return;
        }
        if FAR {
            let all = batch.all_lanes(channel::DISPATCH, epoch, deadline_ns, Phase::Rows);
            if block::barrier_or(!all) {
                return;
            }
        }
        receiver.void_one();
        batch.count(Step::DispatchReceived, epoch);
    }
}

/// What was there of a row, arrived or not.
#[derive(Clone, Copy)]
struct Look {
    /// This lane's slot.
    slot: Quad,
    /// Its part of the tile.
    row: Peek,
}

impl Look {
    const NOTHING: Self = Self { slot: Quad([0; 4]), row: Peek::NOTHING };
}

struct Receiver<'a> {
    args: &'a DispatchArgs,
    epoch: u64,
    tag: u32,
    started_ns: u64,
    deadline_ns: u64,
}

impl Receiver<'_> {
    /// All of it; false, and a report, if something does not come.
    #[inline(always)]
    unsafe fn all<F: Filled, const FAR: bool>(&self) -> bool {
        let shape = &self.args.batch.shape;
        let tiles = shape.dispatched().tiles(shape.hidden).max(1);
        // SAFETY: the contract; all threads of the block take the same way.
        unsafe {
            let trace = self.args.batch.trace;
            let come = self.summaries::<FAR>();
            trace.end_warp(Activity::Barrier, About::NOTHING);
            if !come {
                return false;
            }
            let most = self.most();
            let mut items = share(shape.ranks * most * tiles);
            let tile = |item: u32| {
                let (message, tile) = (item / tiles, item % tiles);
                (message / most.max(1), message % most.max(1), tile)
            };
            // The first one is looked at while rows are counted.
            let first = items.next();
            let (source, token, at) = tile(first.unwrap_or(0));
            let is_near = !FAR || !self.args.batch.is_far(source);
            let look = self.look::<F>(first.is_some() && is_near, source, token, at);
            self.count();
            block::barrier();
            trace.end_warp(Activity::Count, About::NOTHING);
            let comes_first = first.is_some() && comes(shape, source, token);
            if comes_first && is_near && !self.row::<F>(source, token, at, look) {
                return false;
            }
            if FAR && comes_first && !is_near && !self.far_row::<F>(source, token, at) {
                return false;
            }
            for item in items {
                let (source, token, at) = tile(item);
                if !comes(shape, source, token) {
                    continue;
                }
                if FAR && self.args.batch.is_far(source) {
                    if !self.far_row::<F>(source, token, at) {
                        return false;
                    }
                    continue;
                }
                let look = self.look::<F>(true, source, token, at);
                if !self.row::<F>(source, token, at, look) {
                    return false;
                }
            }
        }
        true
    }

    /// Notes that something of `source` was waited for.
    #[inline(always)]
    unsafe fn has_waited(&self, source: u32) {
        let waited_ns = clock::now_ns() - self.started_ns;
        // SAFETY: the contract.
        unsafe { self.args.batch.has_waited(Waited::Dispatch, self.epoch, source, waited_ns) };
    }

    /// Waits for every source's summary; false, and a report, if one does not come.
    #[inline(always)]
    unsafe fn summaries<const FAR: bool>(&self) -> bool {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let packets = shape.summary_packets().max(1);
        let mut late = false;
        // SAFETY: the contract; a thread writes the words of its packets.
        unsafe {
            let from = batch.own.offset(batch.arena.summaries);
            for index in thread::strided(shape.ranks * packets) {
                let source = index / packets;
                let is_first = index % packets == 0;
                if is_first {
                    batch.trace.begin();
                }
                if FAR && batch.is_far(source) {
                    late |= !self.far_summary(source, index % packets);
                    if is_first {
                        batch.trace.end(Activity::WaitSummary, About::peer(source));
                    }
                    continue;
                }
                // Partner: `Routing::tell_summary`, on the source.
                let read = packet::read(packet::nth(from, index.into()), self.tag, self.deadline_ns);
                if is_first {
                    batch.trace.end(Activity::WaitSummary, About::peer(source));
                }
                match read {
                    Ok(([a, b, c], waited)) => {
                        if waited && is_first {
                            self.has_waited(source);
                        }
                        let at = told(shape, source, 3 * (index % packets));
                        shared::store_u32(at, a);
                        shared::store_u32(at + 4, b);
                        shared::store_u32(at + 8, c);
                    }
                    Err(packet::Late { seen }) => {
                        late = true;
                        batch.late(Phase::Summary, source, self.epoch, self.tag.into(), seen.into());
                    }
                }
            }
        }
        !block::barrier_or(late)
    }

    /// Waits for what a rank of another node has sent on a lane; false, and a report, if it does not come.
    #[inline(always)]
    unsafe fn arrived(&self, source: u32, lane: u32, phase: Phase) -> bool {
        let batch = &self.args.batch;
        // SAFETY: the contract. Partner: `Batch::signal_far`, on the source.
        unsafe {
            if batch.link.has_come(channel::DISPATCH, source, lane, self.epoch) {
                return true;
            }
            match batch.link.wait(channel::DISPATCH, source, lane, self.epoch, self.deadline_ns) {
                Ok(()) => {
                    self.has_waited(source);
                    true
                }
                Err(seen) => {
                    batch.late(phase, source, self.epoch, self.epoch, seen);
                    false
                }
            }
        }
    }

    /// Brings as much of a summary from another node to shared memory as a packet would have held.
    #[inline(always)]
    unsafe fn far_summary(&self, source: u32, packet: u32) -> bool {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let first = (source * shape.summary_packets()).into();
        let from = packet::nth(batch.own.offset(batch.arena.summaries), first);
        // SAFETY: the contract; a thread writes the words of its packet.
        unsafe {
            if !self.arrived(source, 0, Phase::Summary) {
                return false;
            }
            for word in 3 * packet..3 * packet + 3 {
                let value = if word < shape.summary_words() { mem::load_u32(from.word(word)) } else { 0 };
                shared::store_u32(told(shape, source, word), value);
            }
        }
        true
    }

    /// Takes in a tile of a row from another node; false, and a report, if it does not come.
    #[inline(always)]
    unsafe fn far_row<F: Filled>(&self, source: u32, token: u32, tile: u32) -> bool {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let (lane, mine) = (thread::lane(), shape.experts_per_rank());
        // SAFETY: the contract; all lanes of the warp take the same way.
        unsafe {
            let come = self.arrived(source, batch.link.lane_of(token), Phase::Rows);
            batch.trace.end_warp(Activity::WaitRows, About::both(source, token));
            if warp::ballot(warp::ALL, !come) != 0 {
                return false;
            }
            let message = self.message(source, token);
            let slot = if lane < shape.topk { mem::load_u64(message.long(lane)) } else { NO_ROW.into() };
            let (row, weight) = (slot as u32, (slot >> 32) as u32);
            let rank = if row == NO_ROW { u32::MAX } else { (row >> 16) / mine };
            let first = warp::match_any(warp::ALL, rank) & warp::lanes_below() == 0;
            let part = warp::ballot(warp::ALL, first && rank < batch.rank).count_ones();
            let place = if rank == batch.rank { row - ((rank * mine) << 16) } else { NO_ROW };
            let from = message.offset(shape.far_slots_bytes() as u64);
            let read = far::read_tile::<F>(from, shape.dispatched(), shape.hidden, tile);
            self.deliver::<F>(source, token, tile, [place, weight, part], &read);
            batch.trace.end_warp(Activity::Receive, About::both(source, token));
        }
        true
    }

    /// The most tokens that a source has.
    #[inline(always)]
    unsafe fn most(&self) -> u32 {
        let shape = &self.args.batch.shape;
        let mut most = 0;
        for source in 0..shape.ranks {
            // SAFETY: summaries have arrived.
            let tokens = unsafe { shared::load_u32(told(shape, source, summary::TOKENS)) };
            most = most.max(if tokens == summary::INVALID { 0 } else { tokens });
        }
        most
    }

    /// Makes each source's counts the first rows of its tokens. The first block tells the user, and keeps what the combine
    /// needs.
    #[inline(always)]
    unsafe fn count(&self) {
        let batch = &self.args.batch;
        let (shape, work) = (&batch.shape, &batch.work);
        let first = thread::block_index() == 0;
        let counts = summary::TOKENS_THERE + shape.token_bits();
        // SAFETY: the contract; a thread has an expert to itself.
        unsafe {
            for expert in thread::strided(shape.experts_per_rank()) {
                let mut row = 0;
                for source in 0..shape.ranks {
                    let at = told(shape, source, counts + expert);
                    let rows = shared::load_u32(at);
                    shared::store_u32(at, row);
                    if first {
                        let range = batch.work(work.ranges).long(expert * shape.ranks + source);
                        mem::store_u64(range, (row as u64) << 32 | rows as u64);
                    }
                    row += rows;
                }
                if first {
                    mem::store_u32(batch.work(work.counts).word(expert), row);
                    let total = batch.work(work.totals).long(expert);
                    mem::store_u64(total, mem::load_u64(total) + row as u64);
                }
            }
            if first {
                let words = shape.token_bits();
                for index in thread::strided(shape.ranks * words) {
                    let (source, word) = (index / words.max(1), index % words.max(1));
                    let bits = shared::load_u32(told(shape, source, summary::TOKENS_THERE + word));
                    mem::store_u32(batch.work(work.sources).word(source * (1 + words) + 1 + word), bits);
                }
                for source in thread::strided(shape.ranks) {
                    let tokens = shared::load_u32(told(shape, source, summary::TOKENS));
                    let invalid = tokens == summary::INVALID;
                    if invalid && source != batch.rank {
                        batch.fail(Report::new(Failure::PeerInput, Phase::None, source, self.epoch, 0, 0));
                    }
                    let tokens = if invalid { 0 } else { tokens };
                    mem::store_u32(batch.work(work.sources).word(source * (1 + words)), tokens);
                }
            }
        }
    }

    /// Address of what `source` sends for `token`.
    #[inline(always)]
    fn message(&self, source: u32, token: u32) -> mem::Address {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let index = (source * shape.tokens + token) as u64 * shape.message_packets() as u64;
        packet::nth(batch.own.offset(batch.arena.messages), index)
    }

    /// Looks at a tile of a row and at what is said of the row, if there is one.
    #[inline(always)]
    unsafe fn look<F: Filled>(&self, is_there: bool, source: u32, token: u32, tile: u32) -> Look {
        let shape = &self.args.batch.shape;
        let fill = shape.dispatched();
        let cells = fill.cells(shape.hidden) - tile * TILE_CELLS;
        let message = self.message(source, token);
        let mut look = Look::NOTHING;
        if is_there {
            // SAFETY: the contract.
            unsafe {
                if thread::lane() < shape.topk {
                    look.slot = mem::load_relaxed_sys_b128(packet::nth(message, thread::lane().into()));
                }
                let from = packet::nth(message, (shape.topk + tile * fill.tile_packets()).into());
                look.row = Peek::at::<F>(from, cells);
            }
        }
        look
    }

    /// Takes in a tile of a row that was looked at; false, and a report, if it does not come.
    #[inline(always)]
    unsafe fn row<F: Filled>(&self, source: u32, token: u32, tile: u32, look: Look) -> bool {
        let batch = &self.args.batch;
        let shape = &batch.shape;
        let fill = shape.dispatched();
        let cells = fill.cells(shape.hidden) - tile * TILE_CELLS;
        let (lane, tag, deadline_ns) = (thread::lane(), self.tag, self.deadline_ns);
        let Look { slot, row: mut peek } = look;
        let Quad([place, weight, part, seen]) = slot;
        // SAFETY: the contract. Partner of the packets: `Routing::tell_message` and `send`, on the source.
        unsafe {
            let message = self.message(source, token);
            let from = packet::nth(message, (shape.topk + tile * fill.tile_packets()).into());
            let has_slot = lane < shape.topk;
            let come = peek.has_come::<F>(cells, tag) && (!has_slot || seen == tag);
            let mut slot = if has_slot { [place, weight, part] } else { [NO_ROW, 0, 0] };
            if warp::ballot(warp::ALL, !come) != 0 {
                let mut came = Ok((slot, false));
                if has_slot {
                    came = packet::read(packet::nth(message, lane.into()), tag, deadline_ns);
                }
                let came = match came {
                    Ok((words, _)) => {
                        slot = words;
                        peek.wait::<F>(from, cells, tag, deadline_ns)
                    }
                    Err(late) => Err(late),
                };
                if let Err(late) = came {
                    batch.late(Phase::Rows, source, self.epoch, tag.into(), late.seen.into());
                }
                if warp::ballot(warp::ALL, came.is_err()) != 0 {
                    return false;
                }
                if lane == 0 {
                    self.has_waited(source);
                    batch.trace.end(Activity::WaitRows, About::both(source, token));
                }
            }
            self.deliver::<F>(source, token, tile, slot, &peek.tile::<F>());
            batch.trace.end_warp(Activity::Receive, About::both(source, token));
            true
        }
    }

    /// Copies a tile to every expert that the row is for. `slot` is this lane's of the message.
    #[inline(always)]
    unsafe fn deliver<F: Filled>(&self, source: u32, token: u32, tile: u32, slot: [u32; 3], row: &Tile) {
        let batch = &self.args.batch;
        let (shape, work) = (&batch.shape, &batch.work);
        let [place, weight, part] = slot;
        let here = place != NO_ROW;
        let counts = summary::TOKENS_THERE + shape.token_bits();
        let scales = if F::GROUPED { self.scale_words(row) } else { [0; 3] };
        // SAFETY: the contract: a message names experts of this rank, and places below their counts.
        unsafe {
            let expert = place >> 16;
            let mut at = NO_ROW;
            if here {
                let first = shared::load_u32(told(shape, source, counts + expert));
                at = expert * shape.expert_rows() + first + (place & 0xffff);
            }
            if tile == 0 {
                let message = source * shape.tokens + token;
                if thread::lane() < shape.topk {
                    let slot = message * shape.topk + thread::lane();
                    mem::store_u32(batch.work(work.rows).word(slot), at);
                    mem::store_u32(batch.work(work.weights).word(slot), weight);
                }
                if thread::lane() == 0 {
                    mem::store_u32(batch.work(work.part).word(message), part);
                }
            }
            let same = warp::match_any(warp::ALL, at);
            let mut left = warp::ballot(warp::ALL, here && same & warp::lanes_below() == 0);
            while left != 0 {
                let lane = left.trailing_zeros();
                let (at, expert) =
                    (warp::shuffle(warp::ALL, at, lane), warp::shuffle(warp::ALL, expert, lane));
                self.store_row(at, tile, row);
                if F::GROUPED {
                    self.store_scales(expert, at - expert * shape.expert_rows(), tile, scales);
                }
                left &= left - 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn store_row(&self, at: u32, tile: u32, row: &Tile) {
        let shape = &self.args.batch.shape;
        let cells = shape.dispatched().cells(shape.hidden);
        let to = self.args.out.offset(at as u64 * shape.row_bytes() as u64);
        unroll!(PLANE in 3 {
            let cell = tile * TILE_CELLS + 32 * PLANE as u32 + thread::lane();
            if cell < cells {
                let word = |at: usize| row.words[at][PLANE];
                let quad = Quad([word(0), word(1), word(2), word(3)]);
                // SAFETY: the contract; a cell of a received row is 16 bytes.
                unsafe { mem::store_quad(to.offset(16 * cell as u64), quad) };
            }
        });
    }

    #[inline(always)]
    fn is_packed(&self) -> bool {
        self.args.batch.shape.element == Element::E4m3Ue8m0 as u32
    }

    /// The words of scales that a tile brings, by plane: on the first four lanes one of a group each, or, packed, on all
    /// lanes those of four.
    #[inline(always)]
    fn scale_words(&self, row: &Tile) -> [u32; 3] {
        if !self.is_packed() {
            return row.groups;
        }
        row.groups.map(|code| {
            let at = |lane: u32| warp::shuffle(warp::ALL, code, lane) << (8 * lane);
            at(0) | at(1) | at(2) | at(3)
        })
    }

    #[inline(always)]
    unsafe fn store_scales(&self, expert: u32, row: u32, tile: u32, scales: [u32; 3]) {
        let shape = &self.args.batch.shape;
        let strides = shape.scale_strides();
        let of_expert = expert as u64 * shape.expert_scale_words() as u64;
        let (planes, lanes) = (3 * tile, if self.is_packed() { 1 } else { 4 });
        unroll!(PLANE in 3 {
            let word = (planes + PLANE as u32) * lanes + thread::lane();
            if thread::lane() < lanes && word < shape.scale_words() {
                let at = of_expert + strides.place(row, word);
                // SAFETY: the contract: within the expert's scales.
                unsafe { mem::store_u32(self.args.out_scales.offset(4 * at), scales[PLANE]) };
            }
        });
    }

    /// Makes the message void whose turn it is, if its source has not sent it, so that none gets as old as tags are
    /// unique. Its source may write it again once [`Batch::acknowledge`](crate::low_latency::batch::Batch::acknowledge) has told it of
    /// this epoch.
    #[inline(always)]
    unsafe fn void_one(&self) {
        let shape = &self.args.batch.shape;
        if thread::block_index() + 1 != thread::grid_size() || thread::warp_index() + 1 != thread::warps() {
            return;
        }
        let turn = (self.epoch % shape.expert_rows().max(1) as u64) as u32;
        let (source, token) = (turn / shape.tokens.max(1), turn % shape.tokens.max(1));
        // SAFETY: the contract; nobody writes what was not sent.
        unsafe {
            if shape.expert_rows() > 0 && !comes(shape, source, token) {
                packet::void(self.message(source, token), shape.message_packets());
            }
        }
    }
}
