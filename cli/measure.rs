//! How long dispatch and combine take, and how fast the machine copies between ranks.

use std::sync::Arc;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::gpu::thread::WARP;
use tokenrail::device::workload::copy::{self, Copy, CopyArgs};
use tokenrail::gpu::Grid;
use tokenrail::{Buffer, Error, Event, Exchange, Input, Stream};

/// Bytes of one bulk copy: a row of DeepSeek-V3's.
const PIECE_BYTES: u32 = 14336;
/// Most bytes of a timed copy: enough that its start and end do not count.
const MAX_COPY_BYTES: u64 = 256 << 20;

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
    /// The dispatch kernel.
    pub dispatch: Vec<f64>,
    /// The combine kernel.
    pub combine: Vec<f64>,
    /// From the begin of dispatch to the end of combine.
    pub both: Vec<f64>,
    /// A copy of [`copy_bytes`] to the next rank.
    pub peer_copy: Vec<f64>,
}

/// Queues dispatch and combine back to back, without experts, whose outputs stay where they are. The host does not
/// wait in between: ranks keep step by the flags of the exchange alone.
///
/// # Errors
/// What the exchange says.
pub fn exchange(
    exchange: &mut Exchange,
    stream: &Stream,
    input: &Input,
    combined: &Buffer,
    repetitions: Repetitions,
) -> Result<Times, Error> {
    let mut events = Vec::new();
    for _ in 0..repetitions.warmup + repetitions.timed {
        let begin = stream.record()?;
        let received = exchange.dispatch(stream, input)?;
        let dispatched = stream.record()?;
        exchange.combine(stream, &received, combined)?;
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

fn micros(from: &Event, to: &Event) -> Result<f64, Error> {
    Ok(1e3 * from.elapsed_ms(to)?)
}

/// Memory for a copy to a peer and from another.
pub struct PeerCopy {
    from: Buffer,
    to: Arc<Buffer>,
    pieces: u32,
}

impl PeerCopy {
    /// Allocates it.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn new(exchange: &Exchange, pieces: u32) -> Result<Self, Error> {
        let bytes = pieces as usize * PIECE_BYTES as usize;
        let gpu = exchange.gpu();
        Ok(Self { from: gpu.alloc(bytes)?, to: Arc::new(gpu.alloc(bytes)?), pieces })
    }

    /// Where the rank before is to copy to.
    pub fn target(&self) -> Arc<Buffer> {
        self.to.clone()
    }

    /// Copies to the next of all ranks' targets, with as many multiprocessors as the exchange takes, and gives the
    /// times in µs. No targets, no times: a rank that could not allocate its own will say so.
    ///
    /// # Errors
    /// [`Error::Device`] if the copy fails.
    pub fn run(
        &self,
        exchange: &Exchange,
        stream: &Stream,
        targets: &[Option<Arc<Buffer>>],
        repetitions: Repetitions,
    ) -> Result<Vec<f64>, Error> {
        let next = (exchange.rank() as usize + 1) % targets.len();
        let Some(target) = &targets[next] else { return Ok(Vec::new()) };
        let gpu = exchange.gpu();
        let device = gpu.description();
        let fits = |warps: &u32| copy::shared_bytes(*warps, PIECE_BYTES) <= device.shared_bytes;
        let warps = (1..=device.warps).rev().find(fits).unwrap_or(1);
        let shared_bytes = copy::shared_bytes(warps, PIECE_BYTES);
        let grid = Grid { blocks: exchange.sms(), threads: warps * WARP, shared_bytes };
        let args = CopyArgs {
            from: Address(self.from.view().address()),
            to: Address(target.view().address()),
            pieces: self.pieces,
            piece_bytes: PIECE_BYTES,
        };
        let mut events = Vec::new();
        for _ in 0..repetitions.warmup + repetitions.timed {
            let begin = stream.record()?;
            // SAFETY: every rank's buffers are of the same size, mapped by its peers, and kept by `targets` until all
            // ranks have met again; the shared memory is what `shared_bytes` says.
            unsafe { gpu.launch::<Copy>(stream, grid, &args)? };
            events.push([begin, stream.record()?]);
        }
        stream.synchronize()?;
        events[repetitions.warmup as usize..].iter().map(|[begin, end]| micros(begin, end)).collect()
    }
}

/// Pieces of a copy between ranks whose arenas have this size.
pub fn copy_pieces(arena_bytes: u64) -> u32 {
    arena_bytes.min(MAX_COPY_BYTES).div_ceil(PIECE_BYTES.into()) as u32
}

/// Bytes of so many pieces.
pub fn copy_bytes(pieces: u32) -> u64 {
    u64::from(pieces) * u64::from(PIECE_BYTES)
}
