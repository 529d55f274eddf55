//! The call that brings the experts' results back.

use super::trace::Operation;
use super::{Exchange, Output, Outputs, Received, Transport, Weights};
use crate::Error;
use crate::gpu::{Grid, Stream, View};
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::throughput::combine::{
    Combine, CombineAcross, CombineAcrossArgs, CombineAcrossPlain, CombineArgs, CombinePlain,
};
use tokenrail_device::throughput::reduce::{Reduce, ReduceArgs};

impl Exchange {
    /// Sums, for each token of that dispatch, what the ranks it went to have left in [`Received::outputs`], into
    /// `combined`: bf16 or f16 `[tokens, hidden]`. A token that went nowhere gives zeros.
    ///
    /// Sums are f32, by ascending rank, and rounded once. What another node holds of a token, where it is reached through
    /// [`Config::internode`](crate::Config::internode), is summed and rounded there first:
    /// [`combine_on_nodes`](crate::oracle::combine_on_nodes) has the same arithmetic.
    ///
    /// # Errors
    /// As [`Exchange::combine_with`].
    pub fn combine(
        &mut self,
        stream: &Stream,
        received: &Received,
        combined: impl Into<View>,
    ) -> Result<(), Error> {
        self.combine_with(stream, received, &Output::new(combined))
    }

    /// [`Exchange::combine`] with all that it can be asked for. Once for each dispatch, as outputs may be written again
    /// only when all ranks have read them, and it is the next dispatch with these buffers that tells.
    ///
    /// # Errors
    /// [`Error::Stale`] or [`Error::StaleHandle`] if the buffers have been used for another dispatch since,
    /// [`Error::AlreadyCombined`] the second time, [`Error::Argument`] if an array is too short or something is asked
    /// for that the config has no room for, [`Error::Failed`] after a failure. What goes wrong on the device is told by
    /// [`Exchange::finish`].
    pub fn combine_with(
        &mut self,
        stream: &Stream,
        received: &Received,
        output: &Output,
    ) -> Result<(), Error> {
        self.usable()?;
        self.current(received)?;
        let flight = received.flight as usize;
        if self.flights[flight].combined {
            return Err(Error::AlreadyCombined { dispatch: received.dispatch });
        }
        let blocks = self.blocks(output.sms)?;
        let bias = self.check_output(received, output)?;
        let by_copies = output.transport == Transport::CopyEngine;
        self.has_room_for(output.transport)?;

        let exchange = self.device_side(Operation::Combine, received.flight, received.handle.index);
        let threads = self.gpu().description().warps * WARP;
        if let Some(args) = reduction(exchange, received, output) {
            // SAFETY: the arrays were checked; positions are the handle's, which is valid.
            unsafe {
                self.gpu().launch::<Reduce>(stream, Grid { blocks, threads, shared_bytes: 0 }, &args)?;
            }
        }
        if by_copies {
            self.move_outputs(stream, received)?;
        }
        let staging = self.combine_staging;
        let args = CombineArgs {
            exchange,
            out: output.combined.address,
            bias,
            slots_out: output.slots.map_or(Address::NULL, |slots| slots.combined.address),
            from_inbox: by_copies.into(),
            piece_bytes: staging.stage_bytes / self.plan.shape.route_width(),
            stages: staging.stages,
        };
        let grid = Grid { blocks, threads: staging.warps * WARP, shared_bytes: staging.shared_bytes() };
        // SAFETY: as in `dispatch`; the handle is that of the dispatch which `received` is.
        unsafe {
            match self.way(received.flight) {
                None => self.launch::<CombinePlain, Combine>(stream, grid, &args)?,
                Some(link) => {
                    let args = CombineAcrossArgs { combine: args, link };
                    self.launch::<CombineAcrossPlain, CombineAcross>(stream, grid, &args)?;
                }
            }
        }
        self.flights[flight].combined = true;
        Ok(())
    }

    /// Checks that every array has room; gives the biases.
    fn check_output(&self, received: &Received, output: &Output) -> Result<[Address; 2], Error> {
        let shape = &self.plan.shape;
        let tokens = self.handles[received.handle.index as usize].tokens as usize;
        let row = shape.output_bytes() as usize;
        let slot_bytes = 4 * shape.topk as usize;
        output.combined.holds("combined", tokens * row)?;
        if output.biases.len() > 2 {
            let (value, limit) = (output.biases.len().to_string(), "there can be 2".into());
            return Err(Error::Argument { argument: "biases", value, limit });
        }
        let mut bias = [Address::NULL; 2];
        for (bias, view) in bias.iter_mut().zip(output.biases) {
            view.holds("biases", tokens * row)?;
            *bias = view.address;
        }
        if let Some(slots) = &output.slots {
            slots.combined.holds("slots.combined", tokens * slot_bytes)?;
        }
        // How many rows were received only the device knows: what there is of foreign arrays is taken on trust up to
        // the rows that there is room for, and must be that much.
        let rows = shape.rows as usize;
        match output.outputs {
            Outputs::InPlace => {}
            Outputs::Rows(view) => view.holds("outputs", rows * row)?,
            Outputs::ByExpert(..) if shape.expert_rows == 0 => {
                let limit = "the config has no expert-major form: set expert_major".into();
                return Err(Error::Argument { argument: "outputs", value: "expert-major".into(), limit });
            }
            Outputs::ByExpert(view, weights) => {
                view.holds("outputs", shape.expert_rows as usize * row)?;
                if let Weights::Given(weights) = weights {
                    weights.holds("weights", rows * slot_bytes)?;
                }
            }
        }
        if let Some(values) = output.slots.and_then(|slots| slots.values) {
            values.holds("slots.values", rows * slot_bytes)?;
        }
        Ok(bias)
    }

    /// Has copy engines bring every rank its tokens' outputs, once the host knows how many there are.
    fn move_outputs(&mut self, stream: &Stream, received: &Received) -> Result<(), Error> {
        let plan = self.plan;
        let counts = received.tokens_per_source();
        let tokens: Vec<u32> = self.gpu().download(stream, counts, self.ranks() as usize)?;
        let row_bytes = u64::from(plan.shape.output_bytes());
        let flight = plan.arena_offset(received.flight);
        let inbox = u64::from(self.rank()) * u64::from(plan.shape.tokens) * row_bytes;
        let mut first = 0;
        for (rank, tokens) in (0..).zip(tokens) {
            let bytes = u64::from(tokens) * row_bytes;
            if rank != self.rank() && bytes > 0 {
                let from = self.arena.own().part(flight + plan.arena.outputs + first * row_bytes, bytes);
                let to = self.arena_of(rank)?.part(flight + plan.arena.inbox + inbox, bytes);
                self.gpu().copy(stream, from, to, bytes as usize)?;
            }
            first += u64::from(tokens);
        }
        Ok(())
    }
}

/// What has to be brought to where combine reads it, if anything has.
fn reduction(
    exchange: tokenrail_device::wire::Exchange,
    received: &Received,
    output: &Output,
) -> Option<ReduceArgs> {
    let slots = output.slots.and_then(|slots| slots.values).map_or(Address::NULL, |values| values.address);
    let (outputs, by_expert, weights) = match output.outputs {
        Outputs::InPlace if slots.is_null() => return None,
        Outputs::InPlace => (Address::NULL, 0, Address::NULL),
        Outputs::Rows(view) => (view.address, 0, Address::NULL),
        Outputs::ByExpert(view, Weights::None) => (view.address, 1, Address::NULL),
        Outputs::ByExpert(view, Weights::Given(weights)) => (view.address, 1, weights.address),
        Outputs::ByExpert(view, Weights::Received) => (view.address, 1, received.topk_weights().address),
    };
    Some(ReduceArgs { exchange, outputs, weights, slots, by_expert })
}
