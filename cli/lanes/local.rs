//! Kernels of one rank alone: what makes and counts its tokens, what stands for experts, and what reads and copies.

use super::family::{Machine, Part, Sizes};
use super::turns::{Bench, Cell, Suite, Times, digest};
use crate::measure::Repetitions;
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::sweep::with_room;
use crate::tokens::Tokens;
use crate::workload::Workload;
use std::sync::Arc;
use std::time::Duration;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::gpu::thread::WARP;
use tokenrail::device::kernel::Kernel;
use tokenrail::device::quantize::{Quantize, QuantizeArgs};
use tokenrail::device::throughput::layout::{self, LayoutArgs};
use tokenrail::device::workload::{copy, experts, experts_by_expert, stream};
use tokenrail::gpu::Grid;
use tokenrail::tuning::CopyKernel;
use tokenrail::workload::{Busy, experts, experts_by_expert};
use tokenrail::{Buffer, Config, Error, Exchange, ExpertMajor, Layout, Member, Received, Stream};

/// Launches between two looks at the clock, so that these do not count.
const ROW: u32 = 4;
/// Longer than it takes to launch as many.
const HEAD_START: Duration = Duration::from_micros(200);

/// What is timed.
pub fn parts(machine: &Machine) -> Vec<Part> {
    let mut parts = vec![
        ("layout", layout::Layout::NAME),
        ("quantize", Quantize::NAME),
        ("quantize ue8m0", Quantize::NAME),
        ("experts", experts::Experts::NAME),
        ("experts by-expert", experts_by_expert::ExpertsByExpert::NAME),
        ("read as many bytes", stream::Stream::NAME),
    ];
    parts.extend(machine.bulk_copy.then_some(("copy as many bytes", copy::Copy::NAME)));
    let part = |(operation, kernel): (&str, _)| Part { operation: operation.into(), kernels: vec![kernel] };
    parts.into_iter().map(part).collect()
}

/// Settings of the exchange.
pub fn config(base: Config, workload: &Workload, sizes: &Sizes, machine: &Machine) -> Config {
    let expert_major = Some(ExpertMajor { alignment: sizes.alignment, rows: None });
    let sms = Some(machine.default_sms.min(base.max_sms));
    with_room(workload, Config { expert_major, sms, ..base })
}

/// Everything that is timed on one rank.
pub struct Local {
    /// The tokens, bf16.
    pub workload: Arc<Workload>,
    /// Settings.
    pub config: Config,
    /// Sizes.
    pub cells: Vec<Cell>,
    /// How often.
    pub calls: Repetitions,
}

impl Suite for Local {
    fn open(&self, member: Member, _lane: usize) -> Result<Box<dyn Bench + '_>, Failure> {
        let mut exchange = Exchange::new(member, &self.config)?;
        exchange.all_gather(true, "the start", HOST_PATIENCE)?;
        let memory = Memory::new(&mut exchange, self);
        let memory = together(&exchange, memory)?;
        Ok(Box::new(Rank { exchange, memory, suite: self }))
    }
}

struct Memory {
    stream: Stream,
    tokens: Tokens,
    layout: Layout,
    quantized: Buffer,
    scales: Buffer,
    outputs: Buffer,
    /// What reads as many bytes as the tokens of each cell have.
    readers: Vec<Busy>,
    copy: Option<(CopyKernel, Buffer, Buffer)>,
}

struct Rank<'a> {
    exchange: Exchange,
    memory: Memory,
    suite: &'a Local,
}

/// Pieces of a copy of so many bytes.
fn pieces(bytes: usize) -> u32 {
    bytes.div_ceil(CopyKernel::PIECE_BYTES as usize) as u32
}

impl Memory {
    fn new(exchange: &mut Exchange, suite: &Local) -> Result<Self, Error> {
        let gpu = exchange.gpu().clone();
        let batch = &suite.workload.batches[0];
        let (stream, tokens) = (gpu.stream()?, Tokens::upload(&gpu, batch, None)?);
        let received = exchange.dispatch(&stream, &tokens.first(0))?;
        exchange.finish(&stream)?;
        let rows = received.by_expert().map_or(0, |form| form.experts.bytes() / 4);
        let elements = batch.tokens * batch.hidden;
        let readers = suite.cells.iter().map(|cell| Busy::new(&gpu, suite.bytes(*cell)));
        let copy = gpu.description().bulk_copy.then(|| {
            let (kernel, pieces) = (CopyKernel::new(&gpu)?, pieces(2 * elements));
            let from = kernel.source(pieces)?;
            Ok::<_, Error>((kernel, from, gpu.alloc((pieces * CopyKernel::PIECE_BYTES) as usize)?))
        });
        Ok(Self {
            layout: exchange.new_layout(tokens.count)?,
            quantized: gpu.alloc(elements)?,
            scales: gpu.alloc(4 * batch.tokens * batch.hidden.div_ceil(128))?,
            outputs: gpu.alloc(2 * rows * batch.hidden)?,
            readers: readers.collect::<Result<_, _>>()?,
            copy: copy.transpose()?,
            stream,
            tokens,
        })
    }
}

impl Local {
    /// Of a cell's rows.
    fn bytes(&self, cell: Cell) -> usize {
        2 * cell.tokens as usize * self.config.hidden as usize
    }
}

impl Rank<'_> {
    /// A launch's share of several in a row, again and again.
    fn times(&self, reader: &Busy, launch: impl Fn() -> Result<(), Error>) -> Result<Vec<f64>, Error> {
        let (stream, calls) = (&self.memory.stream, self.suite.calls);
        let mut times = Vec::new();
        for _ in 0..calls.warmup + calls.timed {
            reader.pause(stream, HEAD_START)?;
            let begin = stream.record()?;
            (0..ROW).try_for_each(|_| launch())?;
            let end = stream.record()?;
            stream.synchronize()?;
            times.push(1e3 * begin.elapsed_ms(&end)? / f64::from(ROW));
        }
        Ok(times.split_off(calls.warmup as usize))
    }

    fn grid(&self, shared_bytes: u32) -> Grid {
        let threads = self.exchange.gpu().description().warps * WARP;
        Grid { blocks: self.exchange.sms(), threads, shared_bytes }
    }

    fn layout(&self, tokens: u32) -> Result<(), Error> {
        let memory = &self.memory;
        let address = |buffer: &Buffer| Address(buffer.view().address());
        let shape = self.suite.config.shape(self.exchange.ranks())?;
        let args = LayoutArgs {
            shape,
            topk_idx: address(&memory.tokens.topk_idx),
            tokens_per_rank: address(&memory.layout.tokens_per_rank),
            tokens_per_node: address(&memory.layout.tokens_per_node),
            tokens_per_expert: address(&memory.layout.tokens_per_expert),
            is_token_in_rank: address(&memory.layout.is_token_in_rank),
            tokens,
        };
        let grid = self.grid(layout::shared_bytes(&shape));
        // SAFETY: the layout was made for as many tokens as the config allows. Its counts are not zeroed, as the exchange
        // does: nobody reads what they come to.
        unsafe { self.exchange.gpu().launch::<layout::Layout>(&memory.stream, grid, &args) }
    }

    fn quantize(&self, tokens: u32, ue8m0: bool) -> Result<(), Error> {
        let memory = &self.memory;
        let address = |buffer: &Buffer| Address(buffer.view().address());
        let args = QuantizeArgs {
            x: address(&memory.tokens.x),
            quantized: address(&memory.quantized),
            scales: address(&memory.scales),
            rows: tokens,
            hidden: self.suite.config.hidden,
            ue8m0: ue8m0.into(),
        };
        // SAFETY: the buffers are for as many tokens as the config allows, with scales of 4 bytes for 128 channels, which
        // is the more of both kinds.
        unsafe { self.exchange.gpu().launch::<Quantize>(&memory.stream, self.grid(0), &args) }
    }

    fn received(&mut self, tokens: u32) -> Result<Received, Error> {
        let stream = &self.memory.stream;
        let received = self.exchange.dispatch(stream, &self.memory.tokens.first(tokens))?;
        self.exchange.finish(stream)?;
        Ok(received)
    }
}

impl Bench for Rank<'_> {
    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn measure(&mut self, cell: Cell) -> Result<Times, Error> {
        let received = self.received(cell.tokens)?;
        let (memory, exchange) = (&self.memory, &self.exchange);
        let stream = &memory.stream;
        let at = self.suite.cells.iter().position(|other| *other == cell).unwrap_or(0);
        let reader = &memory.readers[at];
        let mut times = vec![
            self.times(reader, || self.layout(cell.tokens))?,
            self.times(reader, || self.quantize(cell.tokens, false))?,
            self.times(reader, || self.quantize(cell.tokens, true))?,
            self.times(reader, || experts(exchange, stream, &received))?,
            self.times(reader, || experts_by_expert(exchange, stream, &received, memory.outputs.view()))?,
            self.times(reader, || reader.read_weights(stream))?,
        ];
        if let Some((kernel, from, to)) = &memory.copy {
            let (pieces, sms) = (pieces(self.suite.bytes(cell)), exchange.sms());
            times.push(self.times(reader, || kernel.queue(stream, from.view(), to.view(), pieces, sms))?);
        }
        Ok(times)
    }

    /// Of the last that was quantised.
    fn digest(&self, cell: Cell) -> Result<u64, Error> {
        let words = cell.tokens as usize * self.suite.config.hidden as usize / 2;
        digest(self.exchange.gpu(), &self.memory.stream, self.memory.quantized.view(), words)
    }
}
