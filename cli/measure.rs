//! How long dispatch and combine take, and how fast the machine copies between ranks.

use std::sync::Arc;
use tokenrail::tuning::CopyKernel;
use tokenrail::{Buffer, Error, Event, Exchange, Handle, Input, Output, Received, Stream};

/// Most bytes of a timed copy: enough that its start and end do not count.
const MAX_COPY_BYTES: u64 = 256 << 20;

/// Repetitions in step after which the host waits: fewer launches than a driver queues. A launch for which there is no
/// room waits, and where ranks share a GPU it may be for one that stands behind it.
const QUEUED: u32 = 16;

/// How often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Repetitions {
    /// Not counted.
    pub warmup: u32,
    /// Counted.
    pub timed: u32,
    /// Pieces of a copy between ranks that is measured too; 0 for none.
    pub copy_pieces: u32,
}

/// One rank's times, in µs, one for each timed repetition.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// The dispatch.
    pub dispatch: Vec<f64>,
    /// The combine.
    pub combine: Vec<f64>,
    /// From the begin of dispatch to the end of combine, if one follows the other at once.
    pub both: Vec<f64>,
    /// A dispatch along a handle, if it was asked for.
    pub cached: Vec<f64>,
    /// A copy of [`copy_bytes`] to the next rank.
    pub peer_copy: Vec<f64>,
}

/// Queues dispatch and combine back to back, without experts, whose outputs stay where they are. The host does not
/// wait in between, unless the transport does: ranks keep step by the flags of the exchange alone.
///
/// # Errors
/// What the exchange says.
pub fn back_to_back(
    exchange: &mut Exchange,
    stream: &Stream,
    input: &Input,
    output: &Output,
    repetitions: Repetitions,
) -> Result<Times, Error> {
    let mut events = Vec::new();
    for _ in 0..repetitions.warmup + repetitions.timed {
        let begin = stream.record()?;
        let received = exchange.dispatch(stream, input)?;
        let dispatched = stream.record()?;
        exchange.combine_with(stream, &received, output)?;
        events.push([begin, dispatched, stream.record()?]);
    }
    exchange.finish(stream)?;
    let mut times = Times::default();
    for [begin, dispatched, end] in &events[repetitions.warmup as usize..] {
        times.dispatch.push(micros(begin, dispatched)?);
        times.combine.push(micros(dispatched, end)?);
        times.both.push(micros(begin, end)?);
    }
    Ok(times)
}

/// The same input along the handle of a dispatch of it.
pub fn along<'a>(input: &Input<'a>, handle: &'a Handle) -> Input<'a> {
    let Input { x, x_scales, x_scales_stride, sides, transport, sms, .. } = *input;
    Input { x_scales, x_scales_stride, sides, transport, sms, ..Input::follow(x, handle) }
}

/// Times of dispatches along the handle of one, queued back to back.
///
/// # Errors
/// What the exchange says.
pub fn cached(
    exchange: &mut Exchange,
    stream: &Stream,
    input: &Input,
    repetitions: Repetitions,
) -> Result<Vec<f64>, Error> {
    let first = exchange.dispatch(stream, input)?;
    let input = along(input, first.handle());
    let mut events = vec![stream.record()?];
    for _ in 0..repetitions.warmup + repetitions.timed {
        exchange.dispatch(stream, &input)?;
        events.push(stream.record()?);
    }
    exchange.finish(stream)?;
    events.windows(2).skip(repetitions.warmup as usize).map(|pair| micros(&pair[0], &pair[1])).collect()
}

/// An exchange with two dispatches in flight, of which one set of buffers is for what is timed and the other for
/// barriers: dispatches of no tokens, after which ranks are in step. They come in fours, so that the sets stay the same.
pub struct InStep<'a> {
    /// The exchange.
    pub exchange: &'a mut Exchange,
    /// Its stream.
    pub stream: &'a Stream,
    /// What is dispatched.
    pub input: Input<'a>,
    /// No tokens.
    pub nothing: Input<'a>,
    /// What is combined.
    pub output: Output<'a>,
    /// More memory than a GPU's cache holds.
    pub scratch: &'a Buffer,
}

/// Handles of what is timed, and of no tokens.
pub struct Handles {
    timed: Handle,
    nothing: Handle,
}

impl InStep<'_> {
    fn barrier(&mut self, handles: Option<&Handles>) -> Result<Received, Error> {
        match handles {
            None => self.exchange.dispatch(self.stream, &self.nothing),
            Some(handles) => self.exchange.dispatch(self.stream, &along(&self.nothing, &handles.nothing)),
        }
    }

    /// Dispatch, `experts` and combine once, waited for. Gives the handles of both routings.
    ///
    /// # Errors
    /// What the exchange says.
    pub fn once(
        &mut self,
        experts: impl FnOnce(&Exchange, &Stream, &Received) -> Result<(), Error>,
    ) -> Result<Handles, Error> {
        self.barrier(None)?;
        self.barrier(None)?;
        let received = self.exchange.dispatch(self.stream, &self.input)?;
        // For its errors: experts would work on what an earlier dispatch has left.
        self.exchange.counts(self.stream, &received)?;
        experts(self.exchange, self.stream, &received)?;
        let nothing = self.barrier(None)?;
        self.exchange.combine_with(self.stream, &received, &self.output)?;
        self.exchange.finish(self.stream)?;
        Ok(Handles { timed: received.handle().clone(), nothing: nothing.handle().clone() })
    }

    /// Times dispatch and combine, each with a cache full of other things and ranks in step. Experts' outputs stay where
    /// [`InStep::once`] has left them. With handles, dispatches follow them.
    ///
    /// # Errors
    /// What the exchange says.
    pub fn times(&mut self, handles: Option<&Handles>, repetitions: Repetitions) -> Result<Times, Error> {
        let input = handles.map_or(self.input, |handles| along(&self.input, &handles.timed));
        let mut events = Vec::new();
        for repetition in 0..repetitions.warmup + repetitions.timed {
            if repetition % QUEUED == 0 {
                self.stream.synchronize()?;
            }
            self.flush()?;
            self.barrier(handles)?;
            self.barrier(handles)?;
            let begin = self.stream.record()?;
            let received = self.exchange.dispatch(self.stream, &input)?;
            let dispatched = self.stream.record()?;
            self.flush()?;
            self.barrier(handles)?;
            let combining = self.stream.record()?;
            self.exchange.combine_with(self.stream, &received, &self.output)?;
            events.push([begin, dispatched, combining, self.stream.record()?]);
        }
        self.exchange.finish(self.stream)?;
        let mut times = Times::default();
        for [begin, dispatched, combining, combined] in &events[repetitions.warmup as usize..] {
            times.dispatch.push(micros(begin, dispatched)?);
            times.combine.push(micros(combining, combined)?);
        }
        Ok(times)
    }

    fn flush(&self) -> Result<(), Error> {
        self.exchange.gpu().fill(self.stream, self.scratch.view(), 0)
    }
}

fn micros(from: &Event, to: &Event) -> Result<f64, Error> {
    Ok(1e3 * from.elapsed_ms(to)?)
}

/// Memory for a copy to a peer and from another.
pub struct PeerCopy {
    kernel: CopyKernel,
    from: Buffer,
    to: Arc<Buffer>,
    pieces: u32,
}

impl PeerCopy {
    /// Allocates it.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory, [`Error::Unavailable`] without bulk copies.
    pub fn new(exchange: &Exchange, pieces: u32) -> Result<Self, Error> {
        let (bytes, gpu) = (copy_bytes(pieces) as usize, exchange.gpu());
        let kernel = CopyKernel::new(gpu)?;
        let (from, to) = (kernel.source(pieces)?, Arc::new(gpu.alloc(bytes)?));
        Ok(Self { kernel, from, to, pieces })
    }

    /// Where the rank before is to copy to.
    pub fn target(&self) -> Arc<Buffer> {
        self.to.clone()
    }

    /// Copies to the next of all ranks' targets, on so many multiprocessors, and gives the times in µs. No targets, no
    /// times: a rank that could not allocate its own will say so.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy fails.
    pub fn run(
        &self,
        exchange: &Exchange,
        stream: &Stream,
        targets: &[Option<Arc<Buffer>>],
        sms: u32,
        repetitions: Repetitions,
    ) -> Result<Vec<f64>, Error> {
        let next = (exchange.rank() as usize + 1) % targets.len();
        let Some(target) = &targets[next] else { return Ok(Vec::new()) };
        let places = (self.from.view(), target.view(), self.pieces);
        self.kernel.times(stream, places, sms, (repetitions.warmup, repetitions.timed))
    }
}

/// Pieces of a copy between ranks whose arenas have this size.
pub fn copy_pieces(arena_bytes: u64) -> u32 {
    arena_bytes.min(MAX_COPY_BYTES).div_ceil(CopyKernel::PIECE_BYTES.into()) as u32
}

/// Bytes of so many pieces.
pub fn copy_bytes(pieces: u32) -> u64 {
    u64::from(pieces) * u64::from(CopyKernel::PIECE_BYTES)
}
