//! What one rank does: every step on its GPU, then the comparison of all that came of it.

use crate::by_expert;
use crate::compare::{Comparison, Difference};
use crate::measure::{self, PeerCopy, Repetitions, Times};
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::tokens::Tokens;
use crate::workload::Workload;
use tokenrail::device::gpu::mem::Address;
use tokenrail::device::gpu::thread::WARP;
use tokenrail::device::quantize::{Quantize, QuantizeArgs};
use tokenrail::gpu::{Grid, View};
use tokenrail::oracle::{self, TokenBatch};
use tokenrail::{
    Buffer, Counts, Element, Error, Exchange, Gpu, Input, Member, Output, Outputs, Received, Routing, Stream,
    Transport, Weights, workload,
};

/// What memory is filled with before it is written, so that what was not written shows.
const POISON: u8 = 0xa5;

/// What all ranks are given.
pub struct Job<'a> {
    /// The routing problem.
    pub workload: &'a Workload,
    /// What has to come out.
    pub reference: &'a Reference,
    /// How operations are asked for.
    pub calls: Calls,
    /// Whether and how often to measure.
    pub repetitions: Repetitions,
    /// Told of every step.
    pub progress: &'a Progress,
}

/// How operations are asked for.
#[derive(Clone, Copy)]
pub struct Calls {
    /// What moves rows.
    pub transport: Transport,
    /// Multiprocessors of a dispatch, if not the exchange's.
    pub dispatch_sms: Option<u32>,
    /// And of a combine.
    pub combine_sms: Option<u32>,
    /// Whether to dispatch along the handle too.
    pub follow: bool,
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

/// Steps that a rank reports.
pub fn steps(calls: Calls, repetitions: Repetitions) -> u32 {
    5 + u32::from(calls.follow)
        + u32::from(repetitions.timed > 0)
            * (1 + u32::from(calls.follow) + u32::from(repetitions.copy_pieces > 0))
}

/// One rank at work.
struct Rank<'a> {
    job: &'a Job<'a>,
    exchange: Exchange,
    stream: Stream,
    comparison: Comparison,
    /// Where the experts' outputs go if rows lie by expert.
    by_expert: Option<Buffer>,
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
    let mut rank = Rank { job, exchange, stream, comparison, by_expert: None };

    let prepared = rank.prepare();
    let (tokens, x) = rank.together(prepared)?;
    // Nobody may send until every arena is poisoned.
    let poisoned = rank.poison(&tokens);
    rank.together(poisoned)?;
    let exchanged = rank.exchange(&tokens);
    let (received, outputs, combined) = rank.together(exchanged)?;
    if job.calls.follow {
        let followed = rank.follow(&tokens);
        rank.together(followed)?;
    }
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

    /// [`together`], as a step.
    fn together<T>(&self, result: Result<T, Error>) -> Result<T, Failure> {
        let result = together(&self.exchange, result)?;
        self.job.progress.step();
        Ok(result)
    }

    /// Uploads the tokens, quantises them if they are to be, and counts where they go.
    fn prepare(&mut self) -> Result<(Tokens, Quantized), Error> {
        let (batch, gpu) = (self.batch(), self.gpu());
        // What is to be quantised on the device comes as bf16.
        let x = match batch.element {
            Element::Fp8E4m3 | Element::Fp8E4m3Ue8m0 => {
                Some(self.quantize(&gpu.upload(&self.job.workload.x[self.number()])?)?)
            }
            _ => None,
        };
        let tokens = Tokens::upload(gpu, batch, x)?;
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

    /// What is dispatched, in the way that was asked for.
    fn input<'t>(&self, tokens: &'t Tokens) -> Input<'t> {
        let calls = self.job.calls;
        Input { transport: calls.transport, sms: calls.dispatch_sms, ..tokens.input() }
    }

    /// What is combined, in the way that was asked for.
    fn output(&self, tokens: &Tokens) -> Output<'static> {
        let calls = self.job.calls;
        let outputs = self
            .by_expert
            .as_ref()
            .map_or(Outputs::InPlace, |outputs| Outputs::ByExpert(outputs.view(), Weights::Received));
        let output = Output::new(&tokens.combined);
        Output { transport: calls.transport, sms: calls.combine_sms, outputs, ..output }
    }

    /// The experts, on rows as they lie.
    fn experts(&self, received: &Received) -> Result<(), Error> {
        match &self.by_expert {
            None => workload::experts(&self.exchange, &self.stream, received),
            Some(out) => workload::experts_by_expert(&self.exchange, &self.stream, received, out.view()),
        }
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
        if let Some(form) = received.by_expert() {
            for view in [form.x, form.x_scales, form.weights, form.experts, form.rows, form.positions] {
                self.fill(view)?;
            }
        }
        self.exchange.finish(&self.stream)?;
        // Not before: to allocate may wait for kernels, and they for a rank that shares the GPU.
        if let Some(form) = received.by_expert() {
            // Experts leave padding as it is, which the reference has as zeros.
            let outputs = 2 * form.experts.bytes() / 4 * self.batch().hidden;
            self.by_expert = Some(self.gpu().alloc_zeroed(outputs)?);
        }
        Ok(())
    }

    /// Dispatch, experts, combine; then what each has left, compared.
    fn exchange(&mut self, tokens: &Tokens) -> Result<(oracle::Received, Vec<u16>, Vec<u16>), Error> {
        let received = self.exchange.dispatch(&self.stream, &self.input(tokens))?;
        // For its errors: experts would work on what an earlier dispatch has left.
        let counts = self.exchange.counts(&self.stream, &received)?;
        self.job.progress.step();
        self.experts(&received)?;
        self.exchange.combine_with(&self.stream, &received, &self.output(tokens))?;
        self.exchange.finish(&self.stream)?;
        self.job.progress.step();

        // Downloaded at the end only: peers' kernels, which have deadlines, would wait.
        let batch = self.batch();
        let outputs: Vec<u16> = self.download(received.outputs(), counts.rows as usize * batch.hidden)?;
        let combined: Vec<u16> = self.download(tokens.combined.view(), batch.tokens * batch.hidden)?;
        self.compare_by_expert(&received, &counts)?;
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

    /// Compares what lies by expert, if anything does.
    fn compare_by_expert(&mut self, received: &Received, counts: &Counts) -> Result<(), Error> {
        let (reference, number) = (self.job.reference, self.number());
        let (Some(form), Some(expected)) = (received.by_expert(), &reference.by_expert[number]) else {
            return Ok(());
        };
        let (gpu, stream) = (self.exchange.gpu(), &self.stream);
        let outputs = self.by_expert.as_ref().map(Buffer::view);
        by_expert::compare(gpu, stream, &form, outputs, counts, expected, &mut self.comparison)
    }

    /// Dispatch along the handle of one more dispatch, with the same weights: all must come out the same.
    fn follow(&mut self, tokens: &Tokens) -> Result<(), Error> {
        let first = self.exchange.dispatch(&self.stream, &self.input(tokens))?;
        self.exchange.finish(&self.stream)?;
        for view in
            [first.x(), first.x_scales(), first.topk_weights(), first.outputs(), tokens.combined.view()]
        {
            self.fill(view)?;
        }
        self.stream.synchronize()?;
        let topk_weights = Some(tokens.topk_weights.view());
        let routing = Routing::Follow { handle: first.handle(), topk_weights };
        // Nobody sends before all are poisoned.
        self.exchange.all_gather((), "the poisoning", HOST_PATIENCE)?;
        let received = self.exchange.dispatch(&self.stream, &Input { routing, ..self.input(tokens) })?;
        let counts = self.exchange.counts(&self.stream, &received)?;
        self.experts(&received)?;
        self.exchange.combine_with(&self.stream, &received, &self.output(tokens))?;
        self.exchange.finish(&self.stream)?;
        self.compare_by_expert(&received, &counts)?;
        let received = self.received(&received, counts)?;
        self.compare_received("recv_x along the handle", &received);
        self.compare_combined("combined along the handle", tokens)
    }

    fn compare_received(&mut self, tensor: &'static str, received: &oracle::Received) {
        let expected = &self.job.reference.received[self.number()];
        let hidden = self.batch().hidden;
        self.comparison.rows(tensor, received.element, hidden, &received.rows, &expected.rows);
    }

    fn compare_combined(&mut self, tensor: &'static str, tokens: &Tokens) -> Result<(), Error> {
        let batch = self.batch();
        let combined: Vec<u16> = self.download(tokens.combined.view(), batch.tokens * batch.hidden)?;
        let expected = &self.job.reference.combined[self.number()];
        self.comparison.halves(tensor, self.job.workload.config.combined, batch.hidden, &combined, expected);
        Ok(())
    }

    fn download<T: tokenrail::gpu::Plain>(&self, view: View, count: usize) -> Result<Vec<T>, Error> {
        self.gpu().download(&self.stream, view, count)
    }

    /// Everything a dispatch brought, on the host.
    fn received(&self, received: &Received, counts: Counts) -> Result<oracle::Received, Error> {
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
        let (calls, repetitions) = (self.job.calls, self.job.repetitions);
        let (input, output) = (self.input(tokens), self.output(tokens));
        let measured = self.fill(tokens.combined.view()).and_then(|()| {
            measure::back_to_back(&mut self.exchange, &self.stream, &input, &output, repetitions)
        });
        let mut times = self.together(measured)?;
        self.compare_combined("combined, when timed,", tokens)?;
        if calls.follow {
            let cached = measure::cached(&mut self.exchange, &self.stream, &input, repetitions);
            times.cached = self.together(cached)?;
        }

        let pieces = repetitions.copy_pieces;
        if pieces > 0 {
            let copy = PeerCopy::new(&self.exchange, pieces);
            let target = copy.as_ref().ok().map(PeerCopy::target);
            let targets = self.exchange.all_gather(target, "the peer copy", HOST_PATIENCE)?;
            let sms = calls.dispatch_sms.unwrap_or(self.exchange.sms());
            // The buffers stay until all ranks have done.
            let copied = copy.and_then(|copy| {
                let times = copy.run(&self.exchange, &self.stream, &targets, sms, repetitions)?;
                Ok((copy, times))
            });
            times.peer_copy = self.together(copied)?.1;
        }
        Ok(times)
    }
}
