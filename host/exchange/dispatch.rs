//! The call that sends tokens to their experts.

use super::trace::Operation;
use super::{Exchange, Handle, Input, Received, Routing, Tokens, Transport};
use crate::Error;
use crate::gpu::{Buffer, Grid, Stream, View};
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::throughput::dispatch::{
    Arrive, Dispatch, DispatchAcross, DispatchAcrossArgs, DispatchAcrossPlain, DispatchArgs,
    DispatchByExpert, DispatchByExpertAcross, DispatchByExpertAcrossPlain, DispatchByExpertPlain,
    DispatchPlain,
};
use tokenrail_device::wire::{MAX_SIDES, ScaleStrides, Shape};

const NOWHERE: View = View::null();

/// A routing, checked, as kernels take it.
struct Checked {
    topk_idx: View,
    topk_weights: View,
    tokens: u32,
    tokens_at: View,
    /// Tokens that arrays must have room for.
    room: u32,
}

impl Exchange {
    /// Sends every token's row to the ranks of its experts, and receives this rank's.
    ///
    /// # Errors
    /// [`Error::Argument`] if an array is too short, there are more tokens than the config allows, or something is asked
    /// for that the config has no room for; [`Error::StaleHandle`] if the handle to follow is not valid any more;
    /// [`Error::Failed`] after a failure. What goes wrong on the device is told by [`Exchange::finish`].
    pub fn dispatch(&mut self, stream: &Stream, input: &Input) -> Result<Received, Error> {
        self.usable()?;
        self.has_throughput()?;
        let blocks = self.blocks(input.sms)?;
        let routing = self.check_routing(&input.routing)?;
        let (sides, strides) = check_arrays(&self.plan.shape, input, routing.room)?;
        self.check_transport(input.transport)?;

        // Nothing can go wrong any more but the launch itself.
        let flight = (self.dispatches % self.flights.len() as u64) as u32;
        let handle = self.take_handle(&input.routing, routing.room);
        let staging = self.dispatch_staging;
        let by_expert = self.plan.shape.expert_rows > 0;
        let args = DispatchArgs {
            exchange: self.device_side(Operation::Dispatch, flight, handle.index),
            x: input.x.address,
            x_scales: input.x_scales.unwrap_or(NOWHERE).address,
            topk_idx: routing.topk_idx.address,
            topk_weights: routing.topk_weights.address,
            sides,
            x_scale_strides: strides,
            tokens_at: routing.tokens_at.address,
            tokens: routing.tokens,
            cached: matches!(input.routing, Routing::Follow { .. }).into(),
            pack: (input.transport == Transport::CopyEngine).into(),
            senders: staging.senders,
            groups: staging.groups,
            stage_bytes: staging.stage_bytes,
            stages: staging.stages,
            expand_stages: staging.expand_stages,
        };
        let shared_bytes = staging.shared(&self.plan.shape).bytes;
        let grid = Grid { blocks, threads: staging.warps * WARP, shared_bytes };
        // SAFETY: the arena, the workspace and the report are this exchange's, of the sizes that the layouts say; the
        // inputs were checked above; the blocks fit the device at once beside those of the ranks that share it.
        unsafe {
            match (by_expert, self.way(flight)) {
                (false, None) => self.launch::<DispatchPlain, Dispatch>(stream, grid, &args)?,
                (true, None) => {
                    self.launch::<DispatchByExpertPlain, DispatchByExpert>(stream, grid, &args)?
                }
                (by_expert, Some(link)) => {
                    self.launch_across(
                        stream,
                        grid,
                        by_expert,
                        &DispatchAcrossArgs { dispatch: args, link },
                    )?;
                }
            }
        }
        self.dispatches += 1;
        let state = &mut self.flights[flight as usize];
        (state.dispatch, state.combined) = (self.dispatches, false);
        let dispatch = self.dispatches;
        let received =
            Received { flight, dispatch, handle, plan: self.plan, arena: self.arena.own().clone() };
        if input.transport == Transport::CopyEngine {
            self.move_packed(stream, &received)?;
            // SAFETY: as above; the packing kernel is the last one of the flight.
            unsafe { self.gpu().launch::<Arrive>(stream, Grid { blocks: 1, ..grid }, &args)? };
        }
        Ok(received)
    }

    /// Launches a dispatch across nodes.
    ///
    /// # Safety
    /// `args` meets its contract.
    unsafe fn launch_across(
        &self,
        stream: &Stream,
        grid: Grid,
        by_expert: bool,
        args: &DispatchAcrossArgs,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if by_expert {
                self.launch::<DispatchByExpertAcrossPlain, DispatchByExpertAcross>(stream, grid, args)
            } else {
                self.launch::<DispatchAcrossPlain, DispatchAcross>(stream, grid, args)
            }
        }
    }

    fn check_routing(&self, routing: &Routing) -> Result<Checked, Error> {
        let shape = &self.plan.shape;
        let (topk_idx, topk_weights, tokens, tokens_at, room) = match *routing {
            Routing::New { topk_idx, topk_weights, tokens: Tokens::Host(tokens) } => {
                (topk_idx, Some(topk_weights), tokens, NOWHERE, tokens)
            }
            Routing::New { topk_idx, topk_weights, tokens: Tokens::Device(at) } => {
                at.holds("tokens", 4)?;
                (topk_idx, Some(topk_weights), 0, at, shape.tokens)
            }
            Routing::Follow { handle, topk_weights } => {
                self.valid(handle)?;
                let room = self.handles[handle.index as usize].tokens;
                (NOWHERE, topk_weights, 0, NOWHERE, room)
            }
        };
        if room > shape.tokens {
            let limit = format!("the config allows {}", shape.tokens);
            return Err(Error::Argument { argument: "tokens", value: room.to_string(), limit });
        }
        let slots = 4 * room as usize * shape.topk as usize;
        if let Some(topk_weights) = topk_weights {
            topk_weights.holds("topk_weights", slots)?;
        }
        if matches!(routing, Routing::New { .. }) {
            topk_idx.holds("topk_idx", slots)?;
        }
        Ok(Checked { topk_idx, topk_weights: topk_weights.unwrap_or(NOWHERE), tokens, tokens_at, room })
    }

    fn check_transport(&self, transport: Transport) -> Result<(), Error> {
        self.has_room_for(transport)?;
        if transport == Transport::CopyEngine && self.plan.shape.expert_rows > 0 {
            return Err(no_copy_engine("the expert-major form is filled by kernels alone"));
        }
        Ok(())
    }

    /// Another rank's arena, for copy engines.
    pub(super) fn arena_of(&self, rank: u32) -> Result<&Buffer, Error> {
        self.arena.of(rank).ok_or_else(|| no_copy_engine("they do not reach ranks of other nodes"))
    }

    /// An error for copy engines where the arena has no room for what they move.
    pub(super) fn has_room_for(&self, transport: Transport) -> Result<(), Error> {
        if transport == Transport::CopyEngine && !self.config.copy_engine {
            return Err(no_copy_engine("the config has no room for packed rows: set copy_engine"));
        }
        Ok(())
    }

    /// The handle that is followed, or the memory of the oldest for a new routing.
    fn take_handle(&mut self, routing: &Routing, tokens: u32) -> Handle {
        if let Routing::Follow { handle, .. } = routing {
            return (*handle).clone();
        }
        let index = (self.routings % self.handles.len() as u64) as u32;
        self.routings += 1;
        let kept = &mut self.handles[index as usize];
        (kept.generation, kept.tokens) = (self.routings, tokens);
        Handle {
            index,
            generation: self.routings,
            workspace: self.workspace.clone(),
            offset: self.plan.handle_offset(index),
        }
    }

    /// Has copy engines move what a dispatch has packed, once the host knows how much it is.
    fn move_packed(&mut self, stream: &Stream, received: &Received) -> Result<(), Error> {
        let plan = self.plan;
        stream.synchronize().inspect_err(|_| self.failed = true)?;
        if self.report_of(received.flight).failure != 0 {
            return Ok(());
        }
        let sent = received.handle.region(|handle| handle.sent, &plan.handle, 8 * u64::from(self.ranks()));
        let sent: Vec<u64> = self.gpu().download(stream, sent, self.ranks() as usize)?;
        let row_bytes = u64::from(plan.shape.row_bytes);
        let flight = plan.arena_offset(received.flight);
        for (rank, range) in (0..).zip(sent) {
            let (first, bytes) = (range >> 32, (range & 0xffff_ffff) * row_bytes);
            if rank == self.rank() || bytes == 0 {
                continue;
            }
            let packed = u64::from(rank) * u64::from(plan.shape.tokens) * row_bytes;
            let from = self.arena.own().part(flight + plan.arena.outbox + packed, bytes);
            let to = self.arena_of(rank)?.part(flight + plan.arena.rows + first * row_bytes, bytes);
            self.gpu().copy(stream, from, to, bytes as usize)?;
        }
        Ok(())
    }
}

fn no_copy_engine(limit: &str) -> Error {
    Error::Argument { argument: "transport", value: "copy engine".into(), limit: limit.into() }
}

/// The side tensors and the place of the scales, if all arrays have room for `tokens` tokens.
fn check_arrays(
    shape: &Shape,
    input: &Input,
    tokens: u32,
) -> Result<([Address; MAX_SIDES], ScaleStrides), Error> {
    let rows_of = |bytes: u64| (u64::from(tokens) * bytes) as usize;
    input.x.holds("x", rows_of(shape.row_bytes.into()))?;
    let scales = input.x_scales.unwrap_or(NOWHERE);
    let strides = match input.x_scales_stride {
        None => {
            scales.holds("x_scales", rows_of(4 * u64::from(shape.scales)))?;
            ScaleStrides { by_row: shape.scales, by_word: 1 }
        }
        Some(stride) if stride < tokens => {
            let limit = format!("it must be at least the tokens, {tokens}");
            return Err(Error::Argument { argument: "x_scales_stride", value: stride.to_string(), limit });
        }
        Some(stride) => {
            scales.holds("x_scales", 4 * shape.scales as usize * stride as usize)?;
            ScaleStrides { by_row: 1, by_word: stride }
        }
    };
    let wanted = shape.side_words.iter().filter(|&&words| words != 0).count();
    if input.sides.len() != wanted {
        let (value, limit) = (input.sides.len().to_string(), format!("the config has {wanted}"));
        return Err(Error::Argument { argument: "sides", value, limit });
    }
    let mut sides = [Address::NULL; MAX_SIDES];
    for ((side, view), words) in sides.iter_mut().zip(input.sides).zip(shape.side_words) {
        view.holds("sides", rows_of(4 * u64::from(words)))?;
        *side = view.address;
    }
    Ok((sides, strides))
}
