//! The sending half.

use super::DispatchArgs;
use super::routing::{self, Routing};
use crate::gpu::mem;
use crate::gpu::{clock, thread, warp};
use crate::low_latency::batch::{Step, share};
use crate::low_latency::far;
use crate::low_latency::format::{self, Bf16, E4m3, Quads, Scaling};
use crate::low_latency::layout::{Element, TILE_CELLS};
use crate::low_latency::packet::{self, Filled, Tile};
use crate::trace::{About, Activity};
use crate::unroll::unroll;

/// A format of dispatched rows.
trait Outgoing: Filled {
    /// Quads of bf16 that a cell is made of.
    const QUADS: usize;
    /// What to send for a tile of a row that has `cells` cells from there on. The warp together.
    fn tile(args: &DispatchArgs, quads: &Quads, cells: u32) -> Tile;
}

impl Outgoing for Bf16 {
    const QUADS: usize = 1;

    #[inline(always)]
    fn tile(_: &DispatchArgs, quads: &Quads, _: u32) -> Tile {
        let mut tile = Tile::ZERO;
        unroll!(PLANE in 3 {
            unroll!(WORD in 4 {
                tile.words[WORD][PLANE] = quads[PLANE][0].0[WORD];
            });
        });
        tile
    }
}

impl Outgoing for E4m3 {
    const QUADS: usize = 2;

    #[inline(always)]
    fn tile(args: &DispatchArgs, quads: &Quads, cells: u32) -> Tile {
        let element = args.batch.shape.element;
        let scaling = if element == Element::E4m3 as u32 {
            Scaling::F32
        } else if element == Element::E4m3PowerOfTwo as u32 {
            Scaling::PowerOfTwo
        } else {
            Scaling::Ue8m0
        };
        format::quantize(&format::values::<E4m3>(quads), scaling, cells)
    }
}

/// Sends this rank's tokens.
///
/// # Safety
/// The contract of [`DispatchArgs`].
#[inline(always)]
pub unsafe fn send<const FAR: bool>(args: &DispatchArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        if args.batch.shape.quantized() { send_as::<E4m3, FAR>(args) } else { send_as::<Bf16, FAR>(args) }
    }
}

#[inline(always)]
unsafe fn send_as<F: Outgoing, const FAR: bool>(args: &DispatchArgs) {
    let batch = &args.batch;
    let shape = &batch.shape;
    let fill = shape.dispatched();
    let (cells, tiles) = (fill.cells(shape.hidden), fill.tiles(shape.hidden).max(1));
    // SAFETY: the contract; arrays have room for `args.tokens`, however many there turn out to be.
    unsafe {
        let epoch = batch.next(Step::DispatchSent);
        let deadline_ns = clock::now_ns() + batch.timeout_ns;
        batch.trace.begin_warp();
        let mut items = share(args.tokens * tiles);
        // Ahead of all else, as they take longest.
        let first = items.next();
        let quads = load::<F>(args, first, tiles, cells);
        let told = thread::block_index() + thread::warp_index() * thread::grid_size();
        let first_weight = if told < args.tokens { routing::weight(args, told) } else { 0 };
        let mut made = Tile::ZERO;
        let routing = Routing::new::<FAR>(args, epoch, deadline_ns, || {
            if let Some(item) = first {
                made = F::tile(args, &quads, cells - item % tiles * TILE_CELLS);
            }
        });
        let Some(routing) = routing else { return };
        batch.add_up_waits();
        // Rows go first: they are the most.
        let write = |item: u32, made: &Tile| {
            let (token, tile) = (item / tiles, item % tiles);
            if token < routing.tokens {
                write::<F, FAR>(&routing, token, tile, made);
                batch.trace.end_warp(Activity::Send, About::token(token));
            }
        };
        if let Some(item) = first {
            write(item, &made);
        }
        routing.tell::<FAR>(first_weight);
        batch.trace.end_warp(Activity::Announce, About::NOTHING);
        for item in items {
            let quads = load::<F>(args, Some(item), tiles, cells);
            write(item, &F::tile(args, &quads, cells - item % tiles * TILE_CELLS));
        }
        if FAR {
            routing.post(deadline_ns);
            batch.trace.end_warp(Activity::Signal, About::NOTHING);
        }
        batch.count(Step::DispatchSent, epoch);
    }
}

/// Sends a tile of a row to every rank that the token goes to. Partner: `receive`, there.
#[inline(always)]
unsafe fn write<F: Outgoing, const FAR: bool>(routing: &Routing, token: u32, tile: u32, made: &Tile) {
    let shape = &routing.args.batch.shape;
    let fill = shape.dispatched();
    let left = fill.cells(shape.hidden) - tile * TILE_CELLS;
    // SAFETY: the contract; all lanes of the warp take the same way.
    unsafe {
        let (rank, leaders) = routing.destinations(token);
        let mut peers = leaders;
        if FAR {
            let far = warp::ballot(warp::ALL, routing.args.batch.is_far(rank)) & leaders;
            peers &= !far;
            if far != 0 {
                let row = routing.far_message(token).offset(shape.far_slots_bytes() as u64);
                far::write_tile::<F>(row, fill, shape.hidden, tile, made);
            }
        }
        while peers != 0 {
            let peer = warp::shuffle(warp::ALL, rank, peers.trailing_zeros());
            let at = shape.topk + tile * fill.tile_packets();
            let to = packet::nth(routing.message(peer, token), at.into());
            packet::write_tile::<F>(to, left, made, packet::tag(routing.epoch));
            peers &= peers - 1;
        }
    }
}

/// This lane's part of a tile of a row; zeros if there is none.
#[inline(always)]
unsafe fn load<F: Outgoing>(args: &DispatchArgs, item: Option<u32>, tiles: u32, cells: u32) -> Quads {
    let index = item.unwrap_or(0);
    let (token, tile) = (index / tiles, index % tiles);
    let row = args.x.offset(token as u64 * 2 * args.batch.shape.hidden as u64);
    let mut quads = format::ZEROS;
    unroll!(PLANE in 3 {
        let cell = tile * TILE_CELLS + 32 * PLANE as u32 + thread::lane();
        if item.is_some() && cell < cells {
            unroll!(QUAD in 2 {
                if QUAD < F::QUADS {
                    let at = (cell as usize * F::QUADS + QUAD) as u64;
                    // SAFETY: within the row, whose hidden is a multiple of a cell's channels.
                    quads[PLANE][QUAD] = unsafe { mem::load_quad(row.offset(16 * at)) };
                }
            });
        }
    });
    quads
}
