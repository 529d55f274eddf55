//! What one rank does: every step on its GPU, then the comparison of all that came of it.

use crate::compare::{Comparison, Difference};
use crate::measure::{self, PeerCopy, Repetitions, Times};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::workload::Workload;
use std::time::Duration;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::gpu::thread::WARP;
use tokenrail::device::quantize::{Quantize, QuantizeArgs};
use tokenrail::gpu::{Grid, View};
use tokenrail::oracle::{self, TokenBatch};
use tokenrail::{Buffer, Element, Error, Exchange, Gpu, Input, Member, Received, Stream, workload};

/// What memory is filled with before it is written, so that what was not written shows.
const POISON: u8 = 0xa5;

/// How much longer than for a kernel's deadline ranks wait for each other on the host, where they compare.
const HOST_PATIENCE: Duration = Duration::from_secs(60);

/// What all ranks are given.
pub struct Job<'a> {
    /// The routing problem.
    pub workload: &'a Workload,
    /// What has to come out.
    pub reference: &'a Reference,
    /// Whether and how often to measure.
    pub repetitions: Repetitions,
    /// Told of every step.
    pub progress: &'a Progress,
}

/// What came out on one rank.
pub struct Outcome {
    /// The tokens as they were dispatched.
    pub x: Quantized,
    /// What dispatch brought.
    pub received: oracle::Received,
    /// What the experts made of it, as bits.
    pub outputs: Vec<u16>,
    /// What combine brought back, as bits.
    pub combined: Vec<u16>,
    /// Where any of it is not what it must be.
    pub differences: Vec<Difference>,
    /// How long it took, if that was asked for and every rank came so far.
    pub times: Option<Times>,
}

/// Rows as they are dispatched, on the host.
pub struct Quantized {
    /// `[tokens, hidden]`.
    pub rows: Vec<u8>,
    /// Words: `[tokens, scale_words]`.
    pub scales: Vec<u32>,
}

/// The tokens of a rank on its GPU, and where their sums go.
struct Tokens {
    x: Buffer,
    x_scales: Option<Buffer>,
    topk_idx: Buffer,
    topk_weights: Buffer,
    combined: Buffer,
    count: u32,
}

impl Tokens {
    fn input(&self) -> Input<'_> {
        self.first(self.count)
    }

    /// The first so many of them.
    fn first(&self, count: u32) -> Input<'_> {
        let x_scales = self.x_scales.as_ref().map(Buffer::view);
        Input { x_scales, ..Input::new(&self.x, &self.topk_idx, &self.topk_weights, count) }
    }
}

/// Why a rank has come to no end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its own error.
    #[error(transparent)]
    Own(#[from] Error),
    /// It stopped because that rank had failed.
    #[error("stopped because rank {0} had failed")]
    Peer(usize),
}

/// Steps that a rank reports.
pub fn steps(repetitions: Repetitions) -> u32 {
    5 + u32::from(repetitions.timed > 0) * (1 + u32::from(repetitions.copy_pieces > 0))
}

/// One rank at work.
struct Rank<'a> {
    job: &'a Job<'a>,
    exchange: Exchange,
    stream: Stream,
    comparison: Comparison,
}

/// Runs one rank from beginning to end.
///
/// # Errors
/// What the library says. A rank that fails lets the others know, so that none waits for it.
pub fn work(member: Member, job: &Job) -> Result<Outcome, Failure> {
    let config = &job.workload.config;
    let exchange = Exchange::new(member, config)?;
    // A rank that fails to set up tells nobody: find that out before the long waits.
    exchange.all_gather(true, "the start", config.timeout)?;
    let stream = exchange.gpu().stream()?;
    let comparison = Comparison::new(exchange.rank() as usize);
    let mut rank = Rank { job, exchange, stream, comparison };

    let prepared = rank.prepare();
    let (tokens, x) = rank.together(prepared)?;
    // Nobody may send until every arena is poisoned.
    let poisoned = rank.poison(&tokens);
    rank.together(poisoned)?;
    let exchanged = rank.exchange(&tokens);
    let (received, outputs, combined) = rank.together(exchanged)?;
    let times = if job.repetitions.timed > 0 { Some(rank.measure(&tokens)?) } else { None };
    Ok(Outcome { x, received, outputs, combined, differences: rank.comparison.differences, times })
}

impl<'a> Rank<'a> {
    fn gpu(&self) -> &Gpu {
        self.exchange.gpu()
    }

    fn number(&self) -> usize {
        self.exchange.rank() as usize
    }

    fn batch(&self) -> &'a TokenBatch {
        &self.job.workload.batches[self.number()]
    }

    /// A launch on as many multiprocessors as the exchange takes.
    fn grid(&self) -> Grid {
        let threads = self.gpu().description().warps * WARP;
        Grid { blocks: self.exchange.sms(), threads, shared_bytes: 0 }
    }

    /// Meets the other ranks at the end of a part, failed or not: goes on only if all do. Since nobody leaves a part
    /// before, nobody frees memory, for which a GPU waits for all its kernels, while another's kernels need peers.
    fn together<T>(&self, result: Result<T, Error>) -> Result<T, Failure> {
        let patience = self.job.workload.config.timeout + HOST_PATIENCE;
        let well = self.exchange.all_gather(result.is_ok(), "the end of a step", patience);
        let value = result?;
        self.job.progress.step();
        match well?.iter().position(|well| !well) {
            None => Ok(value),
            Some(peer) => Err(Failure::Peer(peer)),
        }
    }

    /// Uploads the tokens, quantises them if they are to be, and counts where they go.
    fn prepare(&mut self) -> Result<(Tokens, Quantized), Error> {
        let (batch, gpu) = (self.batch(), self.gpu());
        let quantized = matches!(batch.element, Element::Fp8E4m3 | Element::Fp8E4m3Ue8m0);
        // What is to be quantised on the device comes as bf16.
        let x = if quantized {
            gpu.upload(&self.job.workload.x[self.number()])
        } else {
            gpu.upload(&batch.rows)
        }?;
        let combined = gpu.alloc(2 * batch.tokens * batch.hidden)?;
        let mut tokens = Tokens {
            x,
            x_scales: None,
            topk_idx: gpu.upload(&batch.topk_idx)?,
            topk_weights: gpu.upload(&batch.topk_weights)?,
            combined,
            count: batch.tokens as u32,
        };
        if quantized {
            let (rows, scales) = self.quantize(&tokens.x)?;
            (tokens.x, tokens.x_scales) = (rows, Some(scales));
        }
        let x = Quantized {
            rows: gpu.download(&self.stream, tokens.x.view(), batch.rows.len())?,
            scales: match &tokens.x_scales {
                Some(scales) => gpu.download(&self.stream, scales.view(), batch.scales.len())?,
                None => Vec::new(),
            },
        };

        let layout = self.exchange.layout(&self.stream, &tokens.topk_idx, tokens.count)?;
        let expected = &self.job.reference.layouts[self.number()];
        let counts =
            |buffer: &Buffer, expected: &[u32]| gpu.download(&self.stream, buffer.view(), expected.len());
        let tokens_per_rank: Vec<u32> = counts(&layout.tokens_per_rank, &expected.tokens_per_rank)?;
        let tokens_per_expert: Vec<u32> = counts(&layout.tokens_per_expert, &expected.tokens_per_expert)?;
        let in_rank: Vec<u8> =
            gpu.download(&self.stream, layout.is_token_in_rank.view(), expected.is_token_in_rank.len())?;

        let compare = &mut self.comparison;
        compare.rows("x", batch.element, batch.hidden, &x.rows, &batch.rows);
        compare.scales("x_scales", batch.element, batch.scale_words(), &x.scales, &batch.scales);
        compare.tensor("tokens_per_rank", 1, &tokens_per_rank, &expected.tokens_per_rank);
        compare.tensor("tokens_per_expert", 1, &tokens_per_expert, &expected.tokens_per_expert);
        let expected_in_rank: Vec<u8> =
            expected.is_token_in_rank.iter().map(|&inside| inside.into()).collect();
        compare.tensor("is_token_in_rank", self.job.workload.ranks as usize, &in_rank, &expected_in_rank);
        Ok((tokens, x))
    }

    /// The e4m3 rows and scales of bf16 rows, made on the device.
    fn quantize(&self, x: &Buffer) -> Result<(Buffer, Buffer), Error> {
        let (batch, gpu) = (self.batch(), self.gpu());
        let rows = gpu.alloc(batch.rows.len())?;
        let scales = gpu.alloc(4 * batch.scales.len())?;
        self.fill(rows.view())?;
        self.fill(scales.view())?;
        let args = QuantizeArgs {
            x: Address(x.view().address()),
            quantized: Address(rows.view().address()),
            scales: Address(scales.view().address()),
            rows: batch.tokens as u32,
            hidden: batch.hidden as u32,
            ue8m0: (batch.element == Element::Fp8E4m3Ue8m0).into(),
        };
        // SAFETY: the buffers are of the sizes described, and outlive the wait below; a row of e4m3 that the config
        // allows has a multiple of 16 elements.
        unsafe { gpu.launch::<Quantize>(&self.stream, self.grid(), &args)? };
        self.stream.synchronize()?;
        Ok((rows, scales))
    }

    fn fill(&self, view: View) -> Result<(), Error> {
        if view.bytes() == 0 {
            return Ok(());
        }
        self.gpu().fill(&self.stream, view, POISON)
    }

    /// Fills everything that peers and experts will write. A dispatch of no tokens gives the views of it; it writes
    /// nothing but flags and counts there.
    fn poison(&mut self, tokens: &Tokens) -> Result<(), Error> {
        let received = self.exchange.dispatch(&self.stream, &tokens.first(0))?;
        for view in [
            received.x(),
            received.x_scales(),
            received.topk_idx(),
            received.topk_weights(),
            received.sources(),
            received.outputs(),
            tokens.combined.view(),
        ] {
            self.fill(view)?;
        }
        self.exchange.finish(&self.stream)
    }

    /// Dispatch, experts, combine; then what each has left, compared.
    fn exchange(&mut self, tokens: &Tokens) -> Result<(oracle::Received, Vec<u16>, Vec<u16>), Error> {
        let received = self.exchange.dispatch(&self.stream, &tokens.input())?;
        // For its errors: experts would work on what an earlier dispatch has left.
        let counts = self.exchange.counts(&self.stream, &received)?;
        self.job.progress.step();
        workload::experts(&self.exchange, &self.stream, &received)?;
        self.exchange.combine(&self.stream, &received, &tokens.combined)?;
        self.exchange.finish(&self.stream)?;
        self.job.progress.step();

        // Downloaded at the end only: peers' kernels, which have deadlines, would wait.
        let batch = self.batch();
        let outputs: Vec<u16> = self.download(received.outputs(), counts.rows as usize * batch.hidden)?;
        let combined: Vec<u16> = self.download(tokens.combined.view(), batch.tokens * batch.hidden)?;
        let received = self.received(&received, counts)?;

        let reference = self.job.reference;
        let expected = &reference.received[self.number()];
        let (hidden, topk, scales) = (batch.hidden, batch.topk, batch.scale_words());
        let half = self.job.workload.config.combined;
        let (rank, compare) = (self.exchange.rank() as usize, &mut self.comparison);
        compare.tensor("recv_tokens_per_source", 1, &received.tokens_per_source, &expected.tokens_per_source);
        compare.tensor("recv_tokens_per_expert", 1, &received.tokens_per_expert, &expected.tokens_per_expert);
        compare.tensor("recv_source_rank", 1, &received.source_rank, &expected.source_rank);
        compare.tensor("recv_source_token", 1, &received.source_token, &expected.source_token);
        compare.rows("recv_x", received.element, hidden, &received.rows, &expected.rows);
        compare.scales("recv_scales", received.element, scales, &received.scales, &expected.scales);
        compare.tensor("recv_topk_idx", topk, &received.topk_idx, &expected.topk_idx);
        compare.tensor("recv_topk_weights", topk, &received.topk_weights, &expected.topk_weights);
        compare.halves("expert_out", half, hidden, &outputs, &reference.outputs[rank]);
        compare.halves("combined", half, hidden, &combined, &reference.combined[rank]);
        Ok((received, outputs, combined))
    }

    fn download<T: tokenrail::gpu::Plain>(&self, view: View, count: usize) -> Result<Vec<T>, Error> {
        self.gpu().download(&self.stream, view, count)
    }

    /// Everything a dispatch brought, on the host.
    fn received(&self, received: &Received, counts: tokenrail::Counts) -> Result<oracle::Received, Error> {
        let (batch, rows) = (self.batch(), counts.rows as usize);
        let sources: Vec<i32> = self.download(received.sources(), 2 * rows)?;
        Ok(oracle::Received {
            rank: self.number(),
            hidden: batch.hidden,
            element: batch.element,
            rows: self.download(received.x(), rows * batch.row_bytes())?,
            scales: self.download(received.x_scales(), rows * batch.scale_words())?,
            sides: Vec::new(),
            topk: batch.topk,
            topk_idx: self.download(received.topk_idx(), rows * batch.topk)?,
            topk_weights: self.download(received.topk_weights(), rows * batch.topk)?,
            source_rank: sources.iter().step_by(2).copied().collect(),
            source_token: sources.iter().skip(1).step_by(2).copied().collect(),
            tokens_per_source: counts.tokens_per_source,
            tokens_per_expert: counts.tokens_per_expert,
            dropped: 0,
        })
    }

    /// Times the exchange, which must still combine to the same, and the copy that it is held against.
    fn measure(&mut self, tokens: &Tokens) -> Result<Times, Failure> {
        let measured = self.fill(tokens.combined.view()).and_then(|()| {
            let repetitions = self.job.repetitions;
            measure::exchange(
                &mut self.exchange,
                &self.stream,
                &tokens.input(),
                &tokens.combined,
                repetitions,
            )
        });
        let mut times = self.together(measured)?;
        let batch = self.batch();
        let combined: Vec<u16> = self.download(tokens.combined.view(), batch.tokens * batch.hidden)?;
        let (hidden, expected) = (batch.hidden, &self.job.reference.combined[self.number()]);
        let half = self.job.workload.config.combined;
        self.comparison.halves("combined, when timed,", half, hidden, &combined, expected);

        let pieces = self.job.repetitions.copy_pieces;
        if pieces > 0 {
            let copy = PeerCopy::new(&self.exchange, pieces);
            let target = copy.as_ref().ok().map(PeerCopy::target);
            let targets = self.exchange.all_gather(target, "the peer copy", HOST_PATIENCE)?;
            let copied =
                copy.and_then(|copy| copy.run(&self.exchange, &self.stream, &targets, self.job.repetitions));
            times.peer_copy = self.together(copied)?;
        }
        Ok(times)
    }
}
