//! What one rank does.

use super::args::LatencyArgs;
use crate::compare::{Comparison, Difference};
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::progress::Progress;
use crate::workload::Workload;
use half::bf16;
use std::time::Duration;
use tokenrail::low_latency::{Calls, Input, Rows, Sums};
use tokenrail::oracle::{self, TokenBatch};
use tokenrail::workload::Busy;
use tokenrail::{
    Buffer, Config, DispatchFormat, Error, Event, Exchange, Graph, Half, Member, Stream, Summation,
};

/// What is timed.
pub const PARTS: [&str; 12] = [
    "dispatch",
    "combine",
    "both",
    "graph",
    "send",
    "receive",
    "send back",
    "sum",
    "launch",
    "weights",
    "beside dispatch",
    "beside combine",
];

/// Batches in a row of which a graph is made, or that are launched one by one between two looks at the clock.
const ROW: u32 = 20;
/// Batches after which the host waits: fewer launches than a driver queues, as ranks on one GPU wait for each other.
const QUEUED: u32 = 16;
/// Longer than it takes to launch as many: what is timed is not to wait for launches.
const HEAD_START: Duration = Duration::from_millis(1);
/// Longer than anything is on its way.
const PAUSE: Duration = Duration::from_micros(60);
/// Elements after which what stands for the experts' outputs repeats: not a multiple of rows.
const PATTERN: usize = 1_000_003;
/// What memory is filled with before it is written.
const POISON: u8 = 0xa5;

/// What all ranks are given.
pub struct Job<'a> {
    /// The tokens.
    pub workload: &'a Workload,
    /// Settings.
    pub config: &'a Config,
    /// How to measure.
    pub args: &'a LatencyArgs,
    /// Told of every cell.
    pub progress: &'a Progress,
}

impl Job<'_> {
    /// Tokens and multiprocessors of each measurement.
    pub fn cells(&self) -> Vec<(u32, Option<u32>)> {
        let sms: Vec<_> = if self.args.sms.is_empty() {
            vec![None]
        } else {
            self.args.sms.iter().copied().map(Some).collect()
        };
        self.args.tokens.iter().flat_map(|&tokens| sms.iter().map(move |&sms| (tokens, sms))).collect()
    }
}

/// What came out on one rank.
pub struct Outcome {
    /// For each cell and each of [`PARTS`], in µs.
    pub times: Vec<[Vec<f64>; PARTS.len()]>,
    /// Rows compared, for each cell.
    pub compared: Vec<usize>,
    /// Where what was combined is not what it must be.
    pub differences: Vec<Difference>,
    /// Multiprocessors of a call that is not told.
    pub default_sms: u32,
}

/// Memory of a rank beside the exchange, which stays until all have done.
pub struct Memory {
    x: Buffer,
    topk_idx: Buffer,
    topk_weights: Buffer,
    rows: Buffer,
    scales: Buffer,
    y: Buffer,
    /// Out: what is combined.
    pub combined: Buffer,
    busy: Busy,
    /// What all calls are queued on.
    pub stream: Stream,
}

/// Measures every cell.
///
/// # Errors
/// What the library says. A rank that fails lets the others know, so that none waits for it.
pub fn work(member: Member, job: &Job) -> Result<Outcome, Failure> {
    let mut exchange = Exchange::new(member, job.config)?;
    exchange.all_gather(true, "the start", HOST_PATIENCE)?;
    let most = job.args.tokens.iter().copied().max().unwrap_or(0);
    let memory = Memory::new(&exchange, job.workload, most, job.args.weights());
    let memory = together(&exchange, memory)?;
    let mut outcome = Outcome {
        times: Vec::new(),
        compared: Vec::new(),
        differences: Vec::new(),
        default_sms: exchange.low_latency()?.sms(),
    };
    let mut comparison = Comparison::new(exchange.rank() as usize);
    let mut graphs = Vec::new();
    for (tokens, sms) in job.cells() {
        let (config, iterations) = (job.config, job.args.iterations());
        let mut cell = Cell { exchange: &mut exchange, memory: &memory, config, tokens, sms, iterations };
        let graph = cell.capture();
        let graph = together(cell.exchange, graph)?;
        let times = cell.times(&graph);
        graphs.push(graph);
        outcome.times.push(together(&exchange, times)?);
        let compared = compare(&exchange, &memory, job, tokens, &mut comparison);
        outcome.compared.push(together(&exchange, compared)?);
        job.progress.step();
    }
    outcome.differences = comparison.differences;
    // Nobody frees memory before all have done.
    together(&exchange, Ok(()))?;
    Ok(outcome)
}

/// What stands for the experts' outputs, bf16.
fn pattern(rank: usize) -> Vec<bf16> {
    oracle::hidden_states(7000 + rank as u64, 1, PATTERN)
}

impl Memory {
    /// For up to `most` tokens a call, and so many bytes of weights.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn new(exchange: &Exchange, workload: &Workload, most: u32, weights: usize) -> Result<Self, Error> {
        let gpu = exchange.gpu();
        let rank = exchange.rank() as usize;
        let batch = &workload.batches[rank];
        let hidden = batch.hidden;
        let experts = workload.placement.experts().div_ceil(exchange.ranks() as usize);
        let rows = experts * exchange.ranks() as usize * most as usize;
        let stream = gpu.stream()?;
        let y = gpu.alloc(2 * rows * hidden)?;
        let pattern = gpu.upload(&pattern(rank))?;
        for first in (0..rows * hidden).step_by(PATTERN) {
            let count = PATTERN.min(rows * hidden - first);
            gpu.copy(&stream, pattern.view(), y.view().part(2 * first, 2 * count)?, 2 * count)?;
        }
        let memory = Self {
            x: gpu.upload(&batch.rows)?,
            topk_idx: gpu.upload(&batch.topk_idx)?,
            topk_weights: gpu.upload(&batch.topk_weights)?,
            rows: gpu.alloc(2 * rows * hidden)?,
            scales: gpu.alloc(4 * rows * hidden.div_ceil(128))?,
            y,
            combined: gpu.alloc(2 * batch.tokens * hidden)?,
            busy: Busy::new(gpu, weights)?,
            stream,
        };
        memory.stream.synchronize()?;
        Ok(memory)
    }

    fn input(&self, tokens: u32) -> Input {
        Input::new(&self.x, &self.topk_idx, &self.topk_weights, tokens)
    }

    fn rows(&self, config: &Config) -> Rows {
        let format = config.low_latency.as_ref().map(|settings| settings.dispatch);
        match format {
            Some(DispatchFormat::Bf16) => Rows::bf16(&self.rows),
            _ => Rows::fp8(&self.rows, &self.scales),
        }
    }

    fn sums(&self, config: &Config) -> Sums {
        let summation = config.low_latency.as_ref().map(|settings| settings.summation);
        match summation {
            Some(Summation::BySlot) => Sums::weighted(&self.combined, &self.topk_weights),
            _ => Sums::new(&self.combined),
        }
    }
}

/// One measurement.
pub struct Cell<'a> {
    /// The exchange.
    pub exchange: &'a mut Exchange,
    /// All that is beside it.
    pub memory: &'a Memory,
    /// Its settings.
    pub config: &'a Config,
    /// Tokens of each rank.
    pub tokens: u32,
    /// Multiprocessors of a kernel, if not as many as the library takes.
    pub sms: Option<u32>,
    /// Timed repetitions.
    pub iterations: u32,
}

impl Cell<'_> {
    fn calls(&mut self) -> Result<Calls<'_>, Error> {
        let sms = self.sms;
        let calls = self.exchange.low_latency()?;
        match sms {
            Some(sms) => calls.with_sms(sms),
            None => Ok(calls),
        }
    }

    /// A dispatch and its combine, with what comes in between.
    fn batch<T>(&mut self, between: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let (memory, config) = (self.memory, self.config);
        let (input, rows, sums) = (memory.input(self.tokens), memory.rows(config), memory.sums(config));
        let mut calls = self.calls()?;
        let batch = calls.dispatch(&memory.stream, &input, &rows)?;
        let value = between()?;
        calls.combine(&memory.stream, &batch, &memory.y, &sums)?;
        Ok(value)
    }

    /// The same in halves, with a step between each two of them, and before and after all.
    fn halves<T>(&mut self, mut step: impl FnMut() -> Result<T, Error>) -> Result<[T; 4], Error> {
        let (memory, config) = (self.memory, self.config);
        let (stream, input, rows) = (&memory.stream, memory.input(self.tokens), memory.rows(config));
        let sums = memory.sums(config);
        let mut calls = self.calls()?;
        let hook = calls.dispatch_send(stream, &input)?;
        let sent = step()?;
        let batch = calls.dispatch_receive(stream, &hook, &rows)?;
        let received = step()?;
        let hook = calls.combine_send(stream, &batch, &memory.y)?;
        let sent_back = step()?;
        calls.combine_receive(stream, &hook, &sums)?;
        Ok([sent, received, sent_back, step()?])
    }

    /// Lets the stream stand still while so many repetitions are launched.
    fn head_start(&self, iteration: u32) -> Result<(), Error> {
        if iteration.is_multiple_of(QUEUED) {
            self.memory.busy.pause(&self.memory.stream, HEAD_START)?;
        }
        Ok(())
    }

    fn capture(&mut self) -> Result<Graph, Error> {
        // The first use of a kernel may load it, which is not for a capture.
        for _ in 0..2 {
            self.batch(|| Ok(()))?;
        }
        self.exchange.finish(&self.memory.stream)?;
        let stream = &self.memory.stream;
        let ((), graph) = stream.capture(|| (0..ROW).try_for_each(|_| self.batch(|| Ok(()))))?;
        Ok(graph)
    }

    /// Repetitions before the timed ones.
    fn warmup(&self) -> u32 {
        self.iterations.min(10)
    }

    /// Times of all [`PARTS`].
    fn times(&mut self, graph: &Graph) -> Result<[Vec<f64>; PARTS.len()], Error> {
        self.exchange.gpu().fill(&self.memory.stream, self.memory.combined.view(), POISON)?;
        let [dispatch, combine] = self.whole()?;
        let [both, replayed] = self.row(graph)?;
        let [send, receive, send_back, sum] = self.apart()?;
        let [launch, weights, beside_dispatch, beside_combine] = self.beside()?;
        Ok([
            dispatch,
            combine,
            both,
            replayed,
            send,
            receive,
            send_back,
            sum,
            launch,
            weights,
            beside_dispatch,
            beside_combine,
        ])
    }

    /// Whole calls: dispatch and combine.
    ///
    /// # Errors
    /// What the library says.
    pub fn whole(&mut self) -> Result<[Vec<f64>; 2], Error> {
        let (stream, warmup, iterations) = (&self.memory.stream, self.warmup(), self.iterations);
        let mut times: [Vec<f64>; 2] = Default::default();
        let mut events = Vec::new();
        for iteration in 0..warmup + iterations {
            self.head_start(iteration)?;
            let begin = stream.record()?;
            let between = self.batch(|| stream.record())?;
            events.push([begin, between, stream.record()?]);
            if iteration % QUEUED == QUEUED - 1 {
                stream.synchronize()?;
            }
        }
        self.exchange.finish(stream)?;
        for [begin, between, end] in &events[warmup as usize..] {
            times[0].push(micros(begin, between)?);
            times[1].push(micros(between, end)?);
        }
        Ok(times)
    }

    /// A batch's share of several in a row, launched and replayed.
    fn row(&mut self, graph: &Graph) -> Result<[Vec<f64>; 2], Error> {
        let (memory, iterations) = (self.memory, self.iterations);
        let stream = &memory.stream;
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..iterations.div_ceil(ROW) + 1 {
            memory.busy.pause(stream, HEAD_START)?;
            let begin = stream.record()?;
            (0..ROW).try_for_each(|_| self.batch(|| Ok(())))?;
            let end = stream.record()?;
            stream.synchronize()?;
            times[0].push(micros(&begin, &end)? / f64::from(ROW));
            memory.busy.pause(stream, HEAD_START)?;
            let begin = stream.record()?;
            graph.launch(stream)?;
            let end = stream.record()?;
            stream.synchronize()?;
            times[1].push(micros(&begin, &end)? / f64::from(ROW));
        }
        times[0].remove(0);
        times[1].remove(0);
        self.exchange.finish(stream)?;
        Ok(times)
    }

    /// Halves, each with all that it needs there.
    ///
    /// # Errors
    /// What the library says.
    pub fn apart(&mut self) -> Result<[Vec<f64>; 4], Error> {
        let (memory, warmup, iterations) = (self.memory, self.warmup(), self.iterations);
        let stream = &memory.stream;
        let mut times: [Vec<f64>; 4] = Default::default();
        let mut events = Vec::new();
        for iteration in 0..warmup + iterations {
            self.head_start(iteration)?;
            memory.busy.pause(stream, PAUSE)?;
            let begin = stream.record()?;
            let steps = self.halves(|| {
                let end = stream.record()?;
                memory.busy.pause(stream, PAUSE)?;
                Ok([end, stream.record()?])
            })?;
            events.push((begin, steps));
            if iteration % QUEUED == QUEUED - 1 {
                stream.synchronize()?;
            }
        }
        self.exchange.finish(stream)?;
        for (begin, [sent, received, sent_back, summed]) in &events[warmup as usize..] {
            times[0].push(micros(begin, &sent[0])?);
            times[1].push(micros(&sent[1], &received[0])?);
            times[2].push(micros(&received[1], &sent_back[0])?);
            times[3].push(micros(&sent_back[1], &summed[0])?);
        }
        Ok(times)
    }

    /// Nothing, weights alone, and weights beside what is on its way.
    fn beside(&mut self) -> Result<[Vec<f64>; 4], Error> {
        let (memory, warmup, iterations) = (self.memory, self.warmup(), self.iterations);
        let stream = &memory.stream;
        let mut times: [Vec<f64>; 4] = Default::default();
        let mut events = Vec::new();
        for iteration in 0..warmup + iterations {
            self.head_start(iteration)?;
            let begin = stream.record()?;
            memory.busy.pause(stream, Duration::ZERO)?;
            let launched = stream.record()?;
            memory.busy.read_weights(stream)?;
            let read = stream.record()?;
            let steps = self.halves(|| {
                let begin = stream.record()?;
                memory.busy.read_weights(stream)?;
                Ok([begin, stream.record()?])
            })?;
            events.push(([begin, launched, read], steps));
            if iteration % QUEUED == QUEUED - 1 {
                stream.synchronize()?;
            }
        }
        self.exchange.finish(stream)?;
        for ([begin, launched, read], [sent, _, sent_back, _]) in &events[warmup as usize..] {
            times[0].push(micros(begin, launched)?);
            times[1].push(micros(launched, read)?);
            times[2].push(micros(&sent[0], &sent[1])?);
            times[3].push(micros(&sent_back[0], &sent_back[1])?);
        }
        Ok(times)
    }
}

fn micros(begin: &Event, end: &Event) -> Result<f64, Error> {
    Ok(1e3 * begin.elapsed_ms(end)?)
}

/// Compares what the last combine has left with the reference; gives the number of rows.
fn compare(
    exchange: &Exchange,
    memory: &Memory,
    job: &Job,
    tokens: u32,
    comparison: &mut Comparison,
) -> Result<usize, Error> {
    let Some(settings) = job.config.low_latency.as_ref().filter(|_| !job.args.no_check) else { return Ok(0) };
    let workload = job.workload;
    let (hidden, rank) = (workload.batches[0].hidden, exchange.rank() as usize);
    let first = |batch: &TokenBatch| TokenBatch {
        tokens: tokens as usize,
        rows: batch.rows[..2 * hidden * tokens as usize].to_vec(),
        topk_idx: batch.topk_idx[..batch.topk * tokens as usize].to_vec(),
        topk_weights: batch.topk_weights[..batch.topk * tokens as usize].to_vec(),
        ..batch.clone()
    };
    let batches: Vec<_> = workload.batches.iter().map(first).collect();
    let held = oracle::low_latency_dispatch(&batches, &workload.placement, DispatchFormat::Bf16);
    let room = exchange.ranks() as usize * settings.tokens as usize * hidden;
    let outputs: Vec<Vec<Vec<u16>>> = held
        .iter()
        .enumerate()
        .map(|(rank, experts)| {
            let pattern = pattern(rank);
            let of = |(expert, held): (usize, &oracle::ExpertRows)| {
                let all = expert * room..expert * room + held.source_rank.len() * hidden;
                all.map(|at| pattern[at % PATTERN].to_bits()).collect()
            };
            experts.iter().enumerate().map(of).collect()
        })
        .collect();
    let weights: Vec<_> = batches.iter().map(|batch| batch.topk_weights.clone()).collect();
    let wanted = oracle::low_latency_combine(
        &outputs,
        &batches,
        &weights,
        &workload.placement,
        settings.summation,
        settings.combine,
    );
    let count = tokens as usize * hidden;
    let found: Vec<u16> = exchange.gpu().download(&memory.stream, memory.combined.view(), count)?;
    comparison.halves("combined", Half::Bf16, hidden, &found, &wanted[rank]);
    Ok(tokens as usize)
}
