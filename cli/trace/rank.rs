//! What one rank does.

use super::args::TraceArgs;
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::tokens::Tokens;
use crate::workload::Workload;
use std::time::Duration;
use tokenrail::low_latency::{Input, Rows, Sums};
use tokenrail::trace::Trace;
use tokenrail::workload::Busy;
use tokenrail::{Buffer, Config, Error, Exchange, Member, Stream};

/// Longer than it takes to launch what is traced, which is not to wait for launches.
const HEAD_START: Duration = Duration::from_millis(1);

/// What all ranks are given.
pub struct Job<'a> {
    /// The tokens: as many as either kind of call has.
    pub workload: &'a Workload,
    /// Settings of the exchange.
    pub config: &'a Config,
    /// How to trace.
    pub args: &'a TraceArgs,
}

/// A rank at work.
struct Rank<'a> {
    job: &'a Job<'a>,
    exchange: Exchange,
    stream: Stream,
    busy: Busy,
    tokens: Tokens,
    few: Option<Few>,
}

/// What low-latency calls need beside the tokens.
struct Few {
    tokens: u32,
    x: Buffer,
    rows: Buffer,
    scales: Buffer,
    y: Buffer,
}

/// Traces what was asked for: one trace of the calls of many tokens, one of those of few.
///
/// # Errors
/// What the library says. A rank that fails lets the others know, so that none waits for it.
pub fn work(member: Member, job: &Job) -> Result<Vec<Trace>, Failure> {
    let mut exchange = Exchange::new(member, job.config)?;
    exchange.all_gather(true, "the start", HOST_PATIENCE)?;
    // What is allocated is allocated before any kernel runs.
    let prepared = prepare(&mut exchange, job);
    let (stream, busy, tokens, few) = together(&exchange, prepared)?;
    let mut rank = Rank { job, exchange, stream, busy, tokens, few };
    let mut traces = Vec::new();
    if job.args.has_many() {
        let warm = rank.many_warm();
        together(&rank.exchange, warm)?;
        let trace = rank.many_traced();
        traces.push(together(&rank.exchange, trace)?);
    }
    if rank.few.is_some() {
        let warm = rank.few_warm();
        together(&rank.exchange, warm)?;
        let trace = rank.few_traced();
        traces.push(together(&rank.exchange, trace)?);
    }
    Ok(traces)
}

type Prepared = (Stream, Busy, Tokens, Option<Few>);

fn prepare(exchange: &mut Exchange, job: &Job) -> Result<Prepared, Error> {
    let batch = &job.workload.batches[exchange.rank() as usize];
    exchange.start_trace(job.args.marks)?;
    let gpu = exchange.gpu();
    let stream = gpu.stream()?;
    let few = job.args.few().map(|tokens| {
        let experts = job.config.experts.div_ceil(exchange.ranks()) as usize;
        let (rows, hidden) = (experts * (exchange.ranks() * tokens) as usize, batch.hidden);
        Ok::<_, Error>(Few {
            tokens,
            x: gpu.upload(&job.workload.x[exchange.rank() as usize])?,
            rows: gpu.alloc(rows * hidden)?,
            scales: gpu.alloc(4 * rows * hidden.div_ceil(128))?,
            y: gpu.alloc_zeroed(2 * rows * hidden)?,
        })
    });
    let (busy, tokens, few) = (Busy::new(gpu, 0)?, Tokens::upload(gpu, batch, None)?, few.transpose()?);
    exchange.stop_trace(&stream)?;
    Ok((stream, busy, tokens, few))
}

impl Rank<'_> {
    /// A dispatch of many tokens and its combine. Outputs are what lies there.
    fn many(&mut self) -> Result<(), Error> {
        let received = self.exchange.dispatch(&self.stream, &self.tokens.first(self.job.args.tokens))?;
        self.exchange.combine(&self.stream, &received, &self.tokens.combined)
    }

    fn many_warm(&mut self) -> Result<(), Error> {
        (0..self.job.args.warmup()).try_for_each(|_| self.many())?;
        self.exchange.finish(&self.stream)
    }

    /// Ranks begin in step: behind a dispatch of no tokens.
    fn many_traced(&mut self) -> Result<Trace, Error> {
        self.busy.pause(&self.stream, HEAD_START)?;
        self.exchange.dispatch(&self.stream, &self.tokens.first(0))?;
        self.exchange.start_trace(self.job.args.marks)?;
        self.many()?;
        self.exchange.finish(&self.stream)?;
        self.exchange.stop_trace(&self.stream)
    }

    /// A dispatch of few tokens and its combine, of zeros.
    fn few(&mut self) -> Result<(), Error> {
        let Some(few) = &self.few else { return Ok(()) };
        let input = Input::new(&few.x, &self.tokens.topk_idx, &self.tokens.topk_weights, few.tokens);
        let mut calls = self.exchange.low_latency()?;
        let batch = calls.dispatch(&self.stream, &input, &Rows::fp8(&few.rows, &few.scales))?;
        calls.combine(&self.stream, &batch, &few.y, &Sums::new(&self.tokens.combined))
    }

    fn few_warm(&mut self) -> Result<(), Error> {
        (0..self.job.args.warmup()).try_for_each(|_| self.few())?;
        self.exchange.finish(&self.stream)
    }

    /// Ranks begin in step: behind a batch that is not traced.
    fn few_traced(&mut self) -> Result<Trace, Error> {
        self.busy.pause(&self.stream, HEAD_START)?;
        self.few()?;
        self.exchange.start_trace(self.job.args.marks)?;
        self.few()?;
        self.exchange.finish(&self.stream)?;
        self.exchange.stop_trace(&self.stream)
    }
}
