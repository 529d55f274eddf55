//! Dispatch, phase 4 on the receiving side: rows that have arrived are copied to the expert-major form, one copy for
//! each pair of a row and one of this rank's experts, while others are still on their way.
//!
//! A block's expanding warps follow the chunks that the blocks of the same number send, in the order of their sending.
//! That is a matter of speed alone: every chunk is awaited by its own flag.

use super::dispatch::{Block, Tokens};
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use super::send::written;
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
use crate::gpu::bulk;
use crate::gpu::mem::{self, Address, Quad};
use crate::gpu::{shared, thread, warp};
use crate::trace::{About, Activity};
use crate::wire::{CHUNK, Failure, Phase, Report, counts};

/// No expert-major row: for a slot of another rank, or one that was left out.
const NONE: u32 = u32::MAX;

/// For dispatches without the expert-major form.
///
/// # Safety
/// None is needed.
pub unsafe fn nothing(_: &Block) {}

/// What an expanding warp works with.
struct Expansion<'a> {
    block: &'a Block<'a>,
    own: Address,
    /// This warp's number among the expanding warps of the block.
    worker: u32,
    /// Expanding warps of a block.
    workers: u32,
}

impl<'a> Expansion<'a> {
    #[inline(always)]
    unsafe fn new(block: &'a Block<'a>) -> Self {
        let senders = block.args.senders;
        Self {
            block,
            // SAFETY: the contract of DispatchArgs.
            own: unsafe { block.args.exchange.own() },
            worker: thread::warp_index() - senders,
            workers: (thread::warps() - senders).max(1),
        }
    }

    /// Where row `row` of the expert-major form begins.
    #[inline(always)]
    fn expert_row(&self, row: u32) -> Address {
        let exchange = &self.block.args.exchange;
        self.own.offset(exchange.arena.expert_x + row as u64 * exchange.shape.row_bytes as u64)
    }

    /// Marks everything that no pair fills: padding is zeros that belong to no expert, as what lies past the end does.
    #[inline(always)]
    unsafe fn pad(&self) {
        let exchange = &self.block.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        let (starts, ends) = (self.block.shared.starts, self.block.shared.ends);
        let experts = shape.experts_per_rank();
        let first = thread::block_index() * self.workers + self.worker;
        let step = thread::grid_size() * self.workers;
        let strides = shape.scale_strides(shape.expert_rows);
        // SAFETY: the contract of DispatchArgs; `plan` has written starts and ends, before a barrier; the rows are
        // this warp's, and within the form.
        unsafe {
            for expert in 0..experts {
                let end = shared::load_u32(starts + 4 * (expert + 1)).min(shape.expert_rows);
                let mut row = shared::load_u32(ends + 4 * expert) + first;
                while row < end {
                    for quad in thread::lane_strided(shape.row_bytes / 16) {
                        mem::store_quad(self.expert_row(row).offset(16 * quad as u64), Quad::default());
                    }
                    for scale in thread::lane_strided(shape.scales) {
                        mem::store_u32(
                            self.own.offset(arena.expert_scales + 4 * strides.place(row, scale)),
                            0,
                        );
                    }
                    if thread::lane() == 0 {
                        mem::store_u32(self.own.offset(arena.expert_weights).word(row), 0);
                        self.mark(row, NONE, NONE);
                    }
                    row += step;
                }
            }
            let mut row = shared::load_u32(starts + 4 * experts) + first * thread::WARP + thread::lane();
            while row < shape.expert_rows {
                self.mark(row, NONE, NONE);
                row += step * thread::WARP;
            }
            exchange.trace.end_warp(Activity::Pad, About::NOTHING);
        }
    }

    /// Says which expert an expert-major row belongs to, and which received row it is a copy of.
    #[inline(always)]
    unsafe fn mark(&self, row: u32, expert: u32, source: u32) {
        let arena = &self.block.args.exchange.arena;
        // SAFETY: the caller's row is within the form.
        unsafe {
            mem::store_u32(self.own.offset(arena.expert_of_row).word(row), expert);
            mem::store_u32(self.own.offset(arena.source_row).word(row), source);
        }
    }

    /// Calls `each` with the source, the first row and the row past the last of every chunk of this warp's, once they have
    /// arrived.
    #[inline(always)]
    unsafe fn for_each_chunk(&self, mut each: impl FnMut(u32, u32, u32)) {
        let block = self.block;
        let exchange = &block.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        let ranks = shape.ranks.max(1);
        // No block's share is larger, whoever's tokens they are.
        let chunks = shape.tokens.div_ceil(thread::grid_size().max(1)).div_ceil(CHUNK);
        for unit in thread::Strided::new(self.worker, chunks * ranks, self.workers) {
            let source = unit % ranks;
            // SAFETY: the contract of DispatchArgs; `plan` has acquired the counts.
            unsafe {
                let word = shape.ranks + counts::TOKENS;
                let tokens = mem::load_u32(block.count_word(self.own, source, word)).min(shape.tokens);
                let share = Tokens::share::<true>(tokens);
                let token = share.first + unit / ranks * CHUNK;
                if token >= share.end {
                    continue;
                }
                let at = source * shape.chunks() + token / CHUNK;
                // Partner: `signal_chunk` on `source` (release, sys).
                let flag = self.own.offset(arena.chunk_flags).long(at);
                let waited = mem::wait_at_least_acquire_sys(flag, block.epoch, block.deadline_ns);
                exchange.trace.end_warp(Activity::WaitRows, About::both(source, token));
                if let Err(seen) = waited {
                    let (epoch, late) = (block.epoch, Failure::Late);
                    exchange.fail(Report::new(late, Phase::Data, source, epoch, epoch, seen));
                }
                // Lanes that saw the flag just in time do not go on alone.
                if warp::ballot(warp::ALL, waited.is_ok()) != warp::ALL {
                    return;
                }
                let range = mem::load_u64(self.own.offset(arena.chunk_rows).long(at));
                let first = (range >> 32) as u32;
                each(source, first, first + range as u32);
                exchange.trace.end_warp(Activity::Expand, About::both(source, token));
            }
        }
    }

    /// Begins to load what has arrived beside a row.
    #[inline(always)]
    unsafe fn load(&self, source: u32, row: u32) -> Arrived {
        let (shape, arena) = (&self.block.args.exchange.shape, &self.block.args.exchange.arena);
        let lane = thread::lane();
        let mut arrived = Arrived { source, row, expert: NONE, place: 0, weight: 0, scales: [0; 2] };
        // SAFETY: the contract of DispatchArgs; the row has arrived.
        unsafe {
            if lane < shape.topk {
                let at = row * shape.topk + lane;
                arrived.expert = mem::load_u32(self.own.offset(arena.topk_idx).word(at));
                arrived.place = mem::load_u32(self.own.offset(arena.places).word(at));
                arrived.weight = mem::load_u32(self.own.offset(arena.topk_weights).word(at));
            }
            if lane < shape.scales {
                arrived.scales[0] = mem::load_u32(self.scale_at(row, lane));
            }
            if lane + thread::WARP < shape.scales {
                arrived.scales[1] = mem::load_u32(self.scale_at(row, lane + thread::WARP));
            }
        }
        arrived
    }

    /// Where a word of a received row's scales is.
    #[inline(always)]
    fn scale_at(&self, row: u32, word: u32) -> Address {
        let exchange = &self.block.args.exchange;
        let strides = exchange.shape.scale_strides(exchange.shape.rows);
        self.own.offset(exchange.arena.scales + 4 * strides.place(row, word))
    }

    /// The expert-major row of this lane's slot of a received row, with everything there but the elements written.
    #[inline(always)]
    unsafe fn place(&self, arrived: &Arrived) -> u32 {
        let block = self.block;
        let exchange = &block.args.exchange;
        let (shape, arena) = (&exchange.shape, &exchange.arena);
        let experts = shape.experts_per_rank();
        let lane = thread::lane();
        let mut position = NONE;
        // SAFETY: the contract of DispatchArgs; `plan` has written the table, before a barrier.
        unsafe {
            if arrived.expert < experts {
                let first = block.shared.experts + 4 * (arrived.source * experts + arrived.expert);
                position = shared::load_u32(first) + arrived.place;
                if position < shape.expert_rows {
                    mem::store_u32(self.own.offset(arena.expert_weights).word(position), arrived.weight);
                    self.mark(position, arrived.expert, arrived.row);
                } else {
                    position = NONE;
                }
            }
            if lane < shape.topk {
                let at = arrived.row * shape.topk + lane;
                mem::store_u32(exchange.handle(exchange.handle.positions).word(at), position);
            }
            if shape.scales != 0 {
                let to = shape.scale_strides(shape.expert_rows);
                for_each_position(position, |position| {
                    let to_row = self.own.offset(arena.expert_scales + 4 * to.place(position, 0));
                    let [first, second] = arrived.scales;
                    if lane < shape.scales {
                        mem::store_u32(to_row.offset(4 * to.place(0, lane)), first);
                    }
                    if lane + thread::WARP < shape.scales {
                        mem::store_u32(to_row.offset(4 * to.place(0, lane + thread::WARP)), second);
                    }
                    let mut scale = lane + 2 * thread::WARP;
                    while scale < shape.scales {
                        let value = mem::load_u32(self.scale_at(arrived.row, scale));
                        mem::store_u32(to_row.offset(4 * to.place(0, scale)), value);
                        scale += thread::WARP;
                    }
                });
            }
        }
        position
    }
}

/// Leaves the form empty, for want of room: nothing of an earlier dispatch is to be taken for this one's.
///
/// # Safety
/// `plan` has run on the whole block, which then has warps after the senders.
#[inline(always)]
pub unsafe fn clear(block: &Block) {
    let exchange = &block.args.exchange;
    let shape = &exchange.shape;
    // SAFETY: the contract of DispatchArgs.
    unsafe {
        let expansion = Expansion::new(block);
        let worker = thread::block_index() * expansion.workers + expansion.worker;
        let first = worker * thread::WARP + thread::lane();
        let step = thread::grid_size() * expansion.workers * thread::WARP;
        for row in thread::Strided::new(first, shape.expert_rows, step) {
            expansion.mark(row, NONE, NONE);
        }
        let positions = exchange.handle(exchange.handle.positions);
        for slot in thread::Strided::new(first, shape.rows * shape.topk, step) {
            mem::store_u32(positions.word(slot), NONE);
        }
    }
}

/// What has arrived beside a row, in so far as this lane has it.
#[derive(Clone, Copy)]
struct Arrived {
    source: u32,
    row: u32,
    /// This lane's slot: expert, place among the source's pairs of it, and weight.
    expert: u32,
    place: u32,
    weight: u32,
    /// This lane's first words of scales.
    scales: [u32; 2],
}

/// Calls `each` with every lane's position, on all lanes together.
#[inline(always)]
fn for_each_position(position: u32, mut each: impl FnMut(u32)) {
    let mut lanes = warp::ballot(warp::ALL, position != NONE);
    while lanes != 0 {
        each(warp::shuffle(warp::ALL, position, lanes.trailing_zeros()));
        lanes &= lanes - 1;
    }
}

/// Expands by 16-byte loads and stores.
///
/// # Safety
/// `plan` has run on the whole block, which then has warps after the senders.
#[inline(always)]
pub unsafe fn plain(block: &Block) {
    let shape = &block.args.exchange.shape;
    // SAFETY: the contract of DispatchArgs; rows are read once they have arrived, and positions lie within the form.
    unsafe {
        let expansion = Expansion::new(block);
        expansion.pad();
        expansion.for_each_chunk(|source, first, end| {
            for row in first..end {
                let position = expansion.place(&expansion.load(source, row));
                let rows = expansion.own.offset(block.args.exchange.arena.rows);
                let from = rows.offset(row as u64 * shape.row_bytes as u64);
                for_each_position(position, |position| {
                    for quad in thread::lane_strided(shape.row_bytes / 16) {
                        let at = 16 * quad as u64;
                        let value = mem::load_quad(from.offset(at));
                        mem::store_quad(expansion.expert_row(position).offset(at), value);
                    }
                });
            }
        });
    }
}

/// Expands by bulk copies: a row is loaded into shared memory once and stored from there once for each of its pairs. One
/// lane drives the copies; loads run `expand_stages − 1` pieces ahead.
///
/// # Safety
/// `plan` has run on the whole block, which then has warps after the senders.
#[cfg(any(bulk_copy, not(target_arch = "nvptx64")))]
#[inline(always)]
pub unsafe fn bulk(block: &Block) {
    let args = block.args;
    let shape = &args.exchange.shape;
    let (row_bytes, stages, stage_bytes) = (shape.row_bytes, args.expand_stages, args.stage_bytes);
    let pieces = row_bytes.div_ceil(stage_bytes.max(1));
    let piece_bytes = |piece: u32| (row_bytes - piece * stage_bytes).min(stage_bytes);
    // SAFETY: the contract of DispatchArgs; buffers and mbarriers behind the senders' are this warp's own.
    unsafe {
        let expansion = Expansion::new(block);
        let own_first = args.senders * args.stages + expansion.worker * stages;
        let buffer = |stage: u32| block.shared.stages + (own_first + stage) * stage_bytes;
        let barrier = |stage: u32| block.shared.barriers + 8 * (own_first + stage);
        let rows_at = expansion.own.offset(args.exchange.arena.rows);
        let driver = thread::lane() == 0;
        if driver {
            for stage in 0..stages {
                bulk::mbarrier_init(barrier(stage), 1);
            }
            bulk::fence_proxy_async();
        }
        expansion.pad();
        let (mut stage, mut parity, mut ahead_stage) = (0, 0, 0);
        expansion.for_each_chunk(|source, first, end| {
            if first == end {
                return;
            }
            // Hands the rows, which the chunk's flag released, to the copy engine.
            bulk::fence_proxy_async();
            let (mut ahead_row, mut ahead_piece) = (first, 0);
            let mut load_next = || {
                if ahead_row == end {
                    return;
                }
                let offset = ahead_row as u64 * row_bytes as u64 + (ahead_piece * stage_bytes) as u64;
                let bytes = piece_bytes(ahead_piece);
                bulk::mbarrier_arrive_expect(barrier(ahead_stage), bytes);
                bulk::load(buffer(ahead_stage), rows_at.offset(offset), bytes, barrier(ahead_stage));
                ahead_stage = if ahead_stage + 1 == stages { 0 } else { ahead_stage + 1 };
                ahead_piece += 1;
                if ahead_piece == pieces {
                    ahead_piece = 0;
                    ahead_row += 1;
                }
            };
            if driver {
                // The buffers may still be read by the last chunk's stores.
                bulk::wait_read();
                for _ in 1..stages {
                    load_next();
                }
            }
            let mut arrived = expansion.load(source, first);
            for row in first..end {
                let position = expansion.place(&arrived);
                if row + 1 < end {
                    // While this row is stored.
                    arrived = expansion.load(source, row + 1);
                }
                for piece in 0..pieces {
                    if driver {
                        // The buffer to load next is the one that the last piece's stores read.
                        bulk::wait_read();
                        load_next();
                        // Partner: the load of this piece, which completes on the mbarrier.
                        bulk::mbarrier_wait(barrier(stage), parity);
                    }
                    for_each_position(position, |position| {
                        if driver {
                            let to = expansion.expert_row(position).offset((piece * stage_bytes) as u64);
                            bulk::store(to, buffer(stage), piece_bytes(piece));
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
        });
        if driver {
            // The kernel's end tells the reader.
            written();
            args.exchange.trace.end(Activity::WaitWritten, About::NOTHING);
        }
    }
}
