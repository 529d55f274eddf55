//! One exchange, checked in every part against the CPU reference.

pub mod formats;
pub mod probe;

use std::fmt::Debug;
use tokenrail::gpu::View;
use tokenrail::oracle::{self, Placement, Routing, TokenBatch};
use tokenrail::{Backend, Config, Element, Exchange, Group, Input, Stream, workload};

/// What to exchange.
#[derive(Clone, Debug)]
pub struct Case {
    /// The settings, the same for all ranks.
    pub config: Config,
    /// By round, by rank: how many tokens.
    pub tokens: Vec<Vec<usize>>,
    /// One slot in so many is empty; 0: none.
    pub mask_one_in: u64,
    /// What inputs are drawn from.
    pub seed: u64,
}

/// Runs the case's rounds, one after the other on the same exchange, and panics where anything differs from the
/// reference.
pub fn check(case: &Case, backend: &Backend) {
    let ranks = case.tokens[0].len();
    let placement = Placement::new(ranks, case.config.experts as usize).unwrap();
    let rounds: Vec<Round> =
        (0..case.tokens.len()).map(|round| Round::new(case, round, &placement)).collect();
    let members = Group::in_process(ranks as u32, backend).unwrap();
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(|| {
                let mut exchange = Exchange::new(member, &case.config).unwrap();
                let stream = exchange.gpu().stream().unwrap();
                let kept: Vec<_> =
                    rounds.iter().map(|round| round.run(&mut exchange, &stream, &placement)).collect();
                // Memory is given back when all ranks are done: on a shared GPU that waits for every rank's kernels.
                exchange.all_gather((), "end of the case", case.config.timeout).unwrap();
                drop(kept);
            });
        }
    });
}

struct Round {
    batches: Vec<TokenBatch>,
    received: Vec<oracle::Received>,
    outputs: Vec<Vec<u16>>,
    combined: Vec<Vec<u16>>,
}

/// Pseudo-random routing: slots of a token may repeat an expert.
fn routing(case: &Case, seed: u64, tokens: usize) -> Routing {
    let (topk, experts) = (case.config.topk as usize, case.config.experts as usize);
    // Hidden states are as good a source of numbers as any.
    let noise = oracle::hidden_states(seed ^ 0x5eed, tokens, 2 * topk);
    let mut topk_idx: Vec<i32> = noise
        .chunks(2)
        .map(|pair| (u32::from(pair[0].to_bits()) * 31 + u32::from(pair[1].to_bits())) as usize % experts)
        .map(|expert| expert as i32)
        .collect();
    oracle::mask_some(&mut topk_idx, seed, case.mask_one_in);
    let topk_weights = noise.chunks(2).map(|pair| pair[1].to_f32()).collect();
    Routing { topk, topk_idx, topk_weights }
}

impl Round {
    fn new(case: &Case, round: usize, placement: &Placement) -> Self {
        let hidden = case.config.hidden as usize;
        let batch = |(rank, &tokens): (usize, &usize)| {
            let seed = case.seed * 1000 + (round * 100 + rank) as u64;
            let x = oracle::hidden_states(seed, tokens, hidden);
            let routing = routing(case, seed, tokens);
            let batch = TokenBatch::of(case.config.element, &x, hidden, routing);
            batch.and_then(|batch| batch.check(placement)).unwrap()
        };
        let batches: Vec<_> = case.tokens[round].iter().enumerate().map(batch).collect();
        let half = case.config.combined;
        let received = oracle::dispatch(&batches, placement, None);
        let opaque = matches!(case.config.element, Element::Opaque { .. });
        let output = |received: &oracle::Received| {
            // Nobody can compute with opaque rows: any numbers do for outputs.
            let seed = case.seed + received.rank as u64;
            let any = || oracle::hidden_states(seed, received.tokens(), hidden);
            let bits = || any().iter().map(|value| half.round(value.to_f32())).collect();
            if opaque { bits() } else { oracle::experts(received, placement, half) }
        };
        let outputs: Vec<_> = received.iter().map(output).collect();
        let combined = oracle::combine(&outputs, &batches, placement, half, &[], None);
        Self { batches, received, outputs, combined }
    }

    /// This rank's part of the round; gives what must outlive the other ranks' kernels.
    fn run(&self, exchange: &mut Exchange, stream: &Stream, placement: &Placement) -> impl Sized + use<> {
        let gpu = exchange.gpu().clone();
        let rank = exchange.rank() as usize;
        let (batch, expected) = (&self.batches[rank], &self.received[rank]);
        let x = gpu.upload(&batch.rows).unwrap();
        let scales = gpu.upload(&batch.scales).unwrap();
        let topk_idx = gpu.upload(&batch.topk_idx).unwrap();
        let topk_weights = gpu.upload(&batch.topk_weights).unwrap();
        let combined = gpu.alloc(batch.tokens * batch.hidden * 2).unwrap();
        gpu.fill(stream, combined.view(), 0xa5).unwrap();
        let tokens = batch.tokens as u32;

        let layout = exchange.layout(stream, &topk_idx, tokens).unwrap();
        let want = oracle::layout(batch, placement, placement.ranks());
        let words = |view: View| gpu.download::<u32>(stream, view, view.bytes() / 4).unwrap();
        same("tokens_per_rank", rank, &words(layout.tokens_per_rank.view()), &want.tokens_per_rank);
        same(
            "layout's tokens_per_expert",
            rank,
            &words(layout.tokens_per_expert.view()),
            &want.tokens_per_expert,
        );
        let inside: Vec<u8> =
            gpu.download(stream, layout.is_token_in_rank.view(), want.is_token_in_rank.len()).unwrap();
        let want_inside: Vec<u8> = want.is_token_in_rank.iter().map(|&inside| inside.into()).collect();
        same("is_token_in_rank", rank, &inside, &want_inside);

        let x_scales = (batch.scale_words() > 0).then_some(&scales);
        let input = Input { x: &x, x_scales, topk_idx: &topk_idx, topk_weights: &topk_weights, tokens };
        let received = exchange.dispatch(stream, &input).unwrap();
        let counts = exchange.counts(stream, &received).unwrap();
        assert_eq!(counts.rows as usize, expected.tokens(), "rows of rank {rank}");
        same("tokens_per_source", rank, &counts.tokens_per_source, &expected.tokens_per_source);
        same("tokens_per_expert", rank, &counts.tokens_per_expert, &expected.tokens_per_expert);
        let bytes: Vec<u8> = gpu.download(stream, received.x(), expected.rows.len()).unwrap();
        same("rows", rank, &bytes, &expected.rows);
        let scales_got: Vec<u32> = gpu.download(stream, received.x_scales(), expected.scales.len()).unwrap();
        same("scales", rank, &scales_got, &expected.scales);
        let idx: Vec<i32> = gpu.download(stream, received.topk_idx(), expected.topk_idx.len()).unwrap();
        same("topk_idx", rank, &idx, &expected.topk_idx);
        let weights: Vec<f32> =
            gpu.download(stream, received.topk_weights(), expected.topk_weights.len()).unwrap();
        same("topk_weights", rank, &bits(&weights), &bits(&expected.topk_weights));
        let sources: Vec<i32> = gpu.download(stream, received.sources(), 2 * expected.tokens()).unwrap();
        let want_sources: Vec<i32> = expected
            .source_rank
            .iter()
            .zip(&expected.source_token)
            .flat_map(|(&rank, &token)| [rank, token])
            .collect();
        same("sources", rank, &sources, &want_sources);

        gpu.fill(stream, received.outputs(), 0xa5).unwrap();
        if matches!(batch.element, Element::Opaque { .. }) {
            let refused = workload::experts(exchange, stream, &received).unwrap_err();
            assert!(refused.to_string().starts_with("element: Opaque"), "{refused}");
            stream.synchronize().unwrap();
            gpu.write(received.outputs(), &self.outputs[rank]).unwrap();
        } else {
            workload::experts(exchange, stream, &received).unwrap();
        }
        exchange.combine(stream, &received, &combined).unwrap();
        exchange.finish(stream).unwrap();
        let outputs: Vec<u16> = gpu.download(stream, received.outputs(), self.outputs[rank].len()).unwrap();
        same("outputs", rank, &outputs, &self.outputs[rank]);
        let got: Vec<u16> = gpu.download(stream, combined.view(), self.combined[rank].len()).unwrap();
        same("combined", rank, &got, &self.combined[rank]);
        (x, scales, topk_idx, topk_weights, combined, layout)
    }
}

/// Bits, so that −0 and NaN compare as what they are.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Panics at the first place where two arrays differ.
fn same<T: PartialEq + Debug>(what: &str, rank: usize, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "length of {what} on rank {rank}");
    if let Some(at) = (0..got.len()).find(|&at| got[at] != want[at]) {
        panic!("{what} on rank {rank}, element {at}: {:?}, should be {:?}", got[at], want[at]);
    }
}
