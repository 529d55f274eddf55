//! What one rank does in a sweep: everything that one exchange is to be timed with.

use super::args::Form;
use super::sample::Sample;
use crate::compare::{Comparison, Difference};
use crate::measure::{InStep, PeerCopy, Repetitions, Times};
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::progress::Progress;
use crate::tokens::Tokens;
use crate::workload::Workload;
use std::collections::BTreeMap;
use tokenrail::{
    Buffer, Config, Error, Exchange, Input, Member, Output, Outputs, Received, Stream, Weights, workload,
};

/// What memory is filled with before it is written.
const POISON: u8 = 0xa5;
/// More than the cache of any GPU holds, shared by the ranks on it.
const SCRATCH_BYTES: usize = 128 << 20;
/// On the emulator, which has no cache.
const EMULATED_SCRATCH_BYTES: usize = 1 << 10;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Tokens of each rank.
    pub tokens: u32,
    /// Multiprocessors of the dispatch.
    pub dispatch_sms: u32,
    /// And of the combine.
    pub combine_sms: u32,
}

/// What all ranks of an exchange are given.
pub struct Job<'a> {
    /// The tokens.
    pub workload: &'a Workload,
    /// What is to come of some of them; empty to compare nothing.
    pub samples: &'a [Sample],
    /// Settings.
    pub config: &'a Config,
    /// The way to exchange.
    pub form: Form,
    /// What to measure.
    pub cells: &'a [Cell],
    /// Multiprocessors with which the copy between ranks is to be measured.
    pub ceilings: &'a [u32],
    /// How often.
    pub repetitions: Repetitions,
    /// Told of every cell.
    pub progress: &'a Progress,
}

/// What came out on one rank.
#[derive(Default)]
pub struct Outcome {
    /// One for each cell.
    pub times: Vec<Times>,
    /// Times of the copy, in µs, by multiprocessors.
    pub copies: BTreeMap<u32, Vec<f64>>,
    /// Rows compared, for each cell.
    pub compared: Vec<usize>,
    /// Where what was combined is not what it must be.
    pub differences: Vec<Difference>,
}

/// Memory of a rank beside the exchange, which stays until all have done.
pub struct Memory {
    /// What is dispatched, and where it is combined to.
    pub tokens: Tokens,
    by_expert: Option<Buffer>,
    scratch: Buffer,
}

/// Measures every cell.
///
/// # Errors
/// What the library says. A rank that fails lets the others know, so that none waits for it.
pub fn work(member: Member, job: &Job) -> Result<Outcome, Failure> {
    let (mut exchange, stream, memory) = set_up(member, job)?;
    let mut outcome = Outcome { copies: copies(&exchange, &stream, job)?, ..Outcome::default() };
    let mut comparison = Comparison::new(exchange.rank() as usize);
    for cell in job.cells {
        let done = measure(&mut exchange, &stream, &memory, job, cell);
        outcome.times.push(together(&exchange, done)?);
        let compared = compare(&exchange, &stream, &memory, job, cell, &mut comparison);
        outcome.compared.push(together(&exchange, compared)?);
        job.progress.step();
    }
    outcome.differences = comparison.differences;
    // Nobody frees memory before all have done.
    together(&exchange, Ok(()))?;
    Ok(outcome)
}

/// Everything that a measurement needs.
///
/// # Errors
/// As [`work`].
pub fn set_up(member: Member, job: &Job) -> Result<(Exchange, Stream, Memory), Failure> {
    let mut exchange = Exchange::new(member, job.config)?;
    // A rank that fails to set up tells nobody: find that out before the long waits.
    exchange.all_gather(true, "the start", job.config.timeout)?;
    // Each step is one that all ranks have done before any goes on: to allocate and to free may wait for all kernels of a
    // GPU, among them those of a rank that shares it and waits for this one.
    let tokens = upload(&exchange, job);
    let (tokens, scratch, stream) = together(&exchange, tokens)?;
    let begun = begin(&mut exchange, &stream, &tokens);
    let received = together(&exchange, begun)?;
    let room = received.by_expert().map(|form| form.experts.bytes() / 4 * 2 * job.config.hidden as usize);
    let by_expert = room.map(|bytes| exchange.gpu().alloc(bytes)).transpose();
    let by_expert = together(&exchange, by_expert)?;
    Ok((exchange, stream, Memory { tokens, by_expert, scratch }))
}

fn upload(exchange: &Exchange, job: &Job) -> Result<(Tokens, Buffer, Stream), Error> {
    let gpu = exchange.gpu();
    let device = gpu.description();
    let scratch = match device.capability {
        0 => EMULATED_SCRATCH_BYTES,
        _ => SCRATCH_BYTES / device.ranks as usize,
    };
    let batch = &job.workload.batches[exchange.rank() as usize];
    Ok((Tokens::upload(gpu, batch, None)?, gpu.alloc(scratch)?, gpu.stream()?))
}

/// Two dispatches of no tokens, for calls come in twos, see [`InStep`]. They tell where things are.
fn begin(exchange: &mut Exchange, stream: &Stream, tokens: &Tokens) -> Result<Received, Error> {
    exchange.dispatch(stream, &tokens.first(0))?;
    let received = exchange.dispatch(stream, &tokens.first(0))?;
    exchange.finish(stream)?;
    Ok(received)
}

/// Times of the copy to the next rank, all ranks at once.
fn copies(exchange: &Exchange, stream: &Stream, job: &Job) -> Result<BTreeMap<u32, Vec<f64>>, Failure> {
    let mut times = BTreeMap::new();
    if job.ceilings.is_empty() || job.repetitions.copy_pieces == 0 {
        return Ok(times);
    }
    let copy = PeerCopy::new(exchange, job.repetitions.copy_pieces);
    let target = copy.as_ref().ok().map(PeerCopy::target);
    let targets = exchange.all_gather(target, "the peer copy", HOST_PATIENCE)?;
    let copy = together(exchange, copy)?;
    for &sms in job.ceilings {
        let copied = copy.run(exchange, stream, &targets, sms, job.repetitions);
        times.insert(sms, together(exchange, copied)?);
    }
    drop((copy, targets));
    // Nobody launches what waits for peers before all have freed.
    together(exchange, Ok(()))?;
    Ok(times)
}

/// Times dispatch and combine.
///
/// # Errors
/// What the library says.
pub fn measure(
    exchange: &mut Exchange,
    stream: &Stream,
    memory: &Memory,
    job: &Job,
    cell: &Cell,
) -> Result<Times, Error> {
    exchange.gpu().fill(stream, memory.tokens.combined.view(), POISON)?;
    let transport = job.form.transport();
    let by_expert = memory.by_expert.as_ref();
    let outputs =
        by_expert.map_or(Outputs::InPlace, |outputs| Outputs::ByExpert(outputs.view(), Weights::Received));
    let mut in_step = InStep {
        exchange,
        stream,
        input: Input { transport, sms: Some(cell.dispatch_sms), ..memory.tokens.first(cell.tokens) },
        nothing: memory.tokens.first(0),
        output: Output {
            transport,
            sms: Some(cell.combine_sms),
            outputs,
            ..Output::new(&memory.tokens.combined)
        },
        scratch: &memory.scratch,
    };
    let handles =
        in_step.once(|exchange: &Exchange, stream: &Stream, received: &Received| match by_expert {
            None => workload::experts(exchange, stream, received),
            Some(out) => workload::experts_by_expert(exchange, stream, received, out.view()),
        })?;
    // Only what is combined under the clock is to be compared.
    in_step.exchange.gpu().fill(stream, memory.tokens.combined.view(), POISON)?;
    let followed = (job.form == Form::Cached).then_some(&handles);
    in_step.times(followed, job.repetitions)
}

/// Compares what the last timed combine has left with the sample; gives the number of rows.
fn compare(
    exchange: &Exchange,
    stream: &Stream,
    memory: &Memory,
    job: &Job,
    cell: &Cell,
    comparison: &mut Comparison,
) -> Result<usize, Error> {
    let Some(sample) = job.samples.get(exchange.rank() as usize) else { return Ok(0) };
    let hidden = job.config.hidden as usize;
    let all: Vec<u16> =
        exchange.gpu().download(stream, memory.tokens.combined.view(), cell.tokens as usize * hidden)?;
    let rows = sample.tokens.partition_point(|&token| token < cell.tokens as usize);
    let found: Vec<u16> =
        sample.tokens[..rows].iter().flat_map(|&token| &all[token * hidden..][..hidden]).copied().collect();
    comparison.halves(
        "combined, of the tokens compared,",
        job.config.combined,
        hidden,
        &found,
        &sample.combined[..rows * hidden],
    );
    Ok(rows)
}
