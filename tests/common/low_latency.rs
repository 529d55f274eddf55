//! Low-latency batches, checked in every part against the CPU reference, in any order in which they may overlap.

use super::input::{POISON, numbers, routing, same};
use half::bf16;
use proptest::prelude::*;
use std::time::Duration;
use tokenrail::gpu::{Plain, View};
use tokenrail::low_latency::{Batch, CombineHook, DispatchHook, Input, Rows, Sums};
use tokenrail::oracle::{self, ExpertRows, Placement, TokenBatch};
use tokenrail::workload::Busy;
use tokenrail::{
    ArenaMemory, Backend, Buffer, CombineFormat, Config, DispatchFormat, Exchange, Group, LowLatency, Member,
    ScaleLayout, Stream, Summation, Tokens,
};

/// What to exchange.
#[derive(Clone, Debug)]
pub struct Case {
    /// The settings, with low-latency ones.
    pub config: Config,
    /// By batch, by rank: how many tokens.
    pub tokens: Vec<Vec<usize>>,
    /// The batch whose turn it is, step by step: of a batch the first step sends a dispatch, and so on. Steps that cannot
    /// be taken yet are passed over, and what is missing is done at the end.
    pub order: Vec<usize>,
    /// Whether halves are called by themselves.
    pub halves: bool,
    /// Whether each batch has a stream of its own.
    pub streams: bool,
    /// Whether the number of tokens is read on the device.
    pub tokens_on_device: bool,
    /// Multiprocessors of a call.
    pub sms: Option<u32>,
    /// One slot in so many is empty; 0: none.
    pub mask_one_in: u64,
    /// What inputs are drawn from.
    pub seed: u64,
    /// A rank that begins each step late.
    pub late: Option<u32>,
    /// One batch in so many is only dispatched; 0: none.
    pub dropped_one_in: usize,
}

/// Settings of low-latency calls alone.
pub fn config(experts: u32, topk: u32, hidden: u32, low_latency: LowLatency) -> Config {
    Config { low_latency: Some(low_latency), ..Config::new(experts, topk, hidden, 0) }
}

impl Case {
    /// Whole calls, one after the other.
    pub fn new(config: Config, tokens: &[&[usize]]) -> Self {
        Self {
            config,
            tokens: tokens.iter().map(|tokens| tokens.to_vec()).collect(),
            order: Vec::new(),
            halves: false,
            streams: false,
            tokens_on_device: false,
            sms: None,
            mask_one_in: 5,
            seed: 1,
            late: None,
            dropped_one_in: 0,
        }
    }

    fn is_dropped(&self, number: usize) -> bool {
        self.dropped_one_in != 0 && number.is_multiple_of(self.dropped_one_in)
    }

    fn settings(&self) -> &LowLatency {
        self.config.low_latency.as_ref().expect("low-latency settings")
    }
}

/// What one batch's ranks send, and what has to come of it.
struct Expected {
    batches: Vec<TokenBatch>,
    held: Vec<Vec<ExpertRows>>,
    /// What the experts leave, `[rank][expert]`, bf16 `[received, hidden]`.
    outputs: Vec<Vec<Vec<u16>>>,
    /// Weights that the combine is given.
    weights: Vec<Vec<f32>>,
    combined: Vec<Vec<u16>>,
}

impl Expected {
    fn new(case: &Case, number: usize, placement: &Placement) -> Self {
        let (config, settings) = (&case.config, case.settings());
        let seed = |rank: u64| case.seed * 1000 + 40 * number as u64 + rank;
        let batches: Vec<_> = (0..)
            .zip(&case.tokens[number])
            .map(|(rank, &tokens)| {
                let hidden = config.hidden as usize;
                let x = oracle::hidden_states(seed(rank), tokens, hidden);
                let routing = routing(config, case.mask_one_in, seed(rank), tokens);
                TokenBatch::bf16(&x, hidden, routing).unwrap().check(placement).unwrap()
            })
            .collect();
        let held = oracle::low_latency_dispatch(&batches, placement, settings.dispatch);
        let outputs: Vec<Vec<Vec<u16>>> = (0..)
            .zip(&held)
            .map(|(rank, experts)| {
                let of = |(expert, held): (u64, &ExpertRows)| {
                    let seed = seed(rank) ^ (expert + 77) << 20;
                    let count = held.source_rank.len() * config.hidden as usize;
                    numbers(seed, count).into_iter().map(|value| bf16::from_f32(value).to_bits()).collect()
                };
                (0..).zip(experts).map(of).collect()
            })
            .collect();
        let weights: Vec<Vec<f32>> = match settings.summation {
            Summation::ByRank => batches.iter().map(|batch| batch.topk_weights.clone()).collect(),
            Summation::BySlot => {
                let of =
                    |(rank, batch): (u64, &TokenBatch)| numbers(seed(rank) ^ 0xbee, batch.topk_idx.len());
                (0..).zip(&batches).map(of).collect()
            }
        };
        let combined = oracle::low_latency_combine(
            &outputs,
            &batches,
            &weights,
            placement,
            settings.summation,
            settings.combine,
        );
        Self { batches, held, outputs, weights, combined }
    }
}

/// Exchanges all batches and panics where anything differs from the reference.
pub fn check(case: &Case, backend: &Backend) {
    let ranks = case.tokens[0].len() as u32;
    let near = case.config.internode.as_ref().and(case.config.ranks_per_node);
    check_among(case, Group::on_nodes(ranks, near.unwrap_or(ranks), backend).unwrap());
}

/// The same among these ranks, which may be some of a group.
pub fn check_among(case: &Case, members: Vec<Member>) {
    let ranks = case.tokens[0].len();
    let placement = Placement::new(ranks, case.config.experts as usize).unwrap();
    let expected: Vec<_> =
        (0..case.tokens.len()).map(|number| Expected::new(case, number, &placement)).collect();
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(|| {
                let before = member.gpu().allocated_bytes();
                let gpu = member.gpu().clone();
                let exchange = Exchange::new(member, &case.config).unwrap();
                let promised = tokenrail::bytes_for(&case.config, ranks as u32).unwrap();
                // An arena in the host's memory is none of the device's.
                if exchange.arena_memory() == ArenaMemory::Device {
                    assert_eq!(gpu.allocated_bytes() - before, promised, "bytes of an exchange");
                }
                Rank { case, exchange, kept: Vec::new() }.work(&expected);
            });
        }
    });
}

/// A batch under way on one rank.
struct Work<'a> {
    expected: &'a Expected,
    stream: Stream,
    input: Input,
    rows: Rows,
    y: View,
    sums: Sums,
    next: Next,
}

/// What comes next of a batch.
enum Next {
    Dispatch,
    Receive(DispatchHook),
    Combine(Box<Batch>),
    Sum(CombineHook),
    Done,
}

struct Rank<'a> {
    case: &'a Case,
    exchange: Exchange,
    /// What must outlive the other ranks' kernels.
    kept: Vec<Buffer>,
}

impl Rank<'_> {
    fn meet(&self) {
        self.exchange.all_gather_bytes(Vec::new(), "a step of the case", Duration::from_secs(60)).unwrap();
    }

    fn work(mut self, expected: &[Expected]) {
        let stream = self.exchange.gpu().stream().unwrap();
        let mut work: Vec<_> = expected.iter().map(|expected| self.prepare(expected, &stream)).collect();
        stream.synchronize().unwrap();
        // To allocate may wait for other ranks' kernels on the same GPU.
        self.meet();
        let depth = self.case.settings().depth as usize;
        let (mut begun, mut steps) = (0, 0);
        let busy = Busy::new(self.exchange.gpu(), 0).unwrap();
        self.meet();
        let finish = (0..work.len()).flat_map(|number| [number; 4]);
        for number in self.case.order.iter().copied().chain(finish) {
            // Batches begin in their order, and when there are buffers.
            let begins = matches!(work[number].next, Next::Dispatch);
            let free = number < depth || matches!(work[number - depth].next, Next::Done);
            if !begins || number == begun && free {
                begun += usize::from(begins);
                if begins && number >= depth {
                    // The buffers are those of the batch before.
                    let done = work[number - depth].stream.record().unwrap();
                    work[number].stream.wait(&done).unwrap();
                }
                steps += 1;
                if self.case.late == Some(self.exchange.rank()) {
                    let time = Duration::from_micros([300, 0, 20, 1000][steps % 4]);
                    busy.pause(&work[number].stream, time).unwrap();
                }
                self.step(&mut work[number]);
                if self.case.is_dropped(number) && matches!(work[number].next, Next::Combine(_)) {
                    work[number].next = Next::Done;
                }
            }
        }
        for work in &work {
            work.stream.synchronize().unwrap();
        }
        self.exchange.finish(&stream).unwrap();
        for (number, work) in work.iter().enumerate() {
            assert!(matches!(work.next, Next::Done), "batch {number} came to its end");
            self.compare(number, work);
        }
        let statistics = self.exchange.low_latency().unwrap().statistics(&stream).unwrap();
        let rank = self.exchange.rank() as usize;
        let experts = expected[0].held[rank].len();
        let received = |expert: usize| {
            expected.iter().map(|expected| expected.held[rank][expert].source_rank.len() as u64).sum::<u64>()
        };
        same("statistics", rank, &statistics.expert_rows, &(0..experts).map(received).collect::<Vec<_>>());
        // Whole calls look for what the late rank sends before it is there.
        if let Some(late) = self.case.late.filter(|&late| !self.case.halves && late != self.exchange.rank()) {
            assert!(statistics.dispatch_wait_ns[late as usize] > 0, "{statistics:?}");
            assert!(
                statistics.combine_wait_ns[late as usize] > 0 || self.case.dropped_one_in == 1,
                "{statistics:?}"
            );
        }
        // Memory is given back when all ranks are done.
        self.meet();
    }

    fn upload<T: Plain>(&mut self, values: &[T]) -> View {
        let buffer = self.exchange.gpu().upload(values).unwrap();
        let view = buffer.view();
        self.kept.push(buffer);
        view
    }

    /// Memory full of poison.
    fn room(&mut self, stream: &Stream, bytes: usize) -> View {
        let buffer = self.exchange.gpu().alloc(bytes).unwrap();
        self.exchange.gpu().fill(stream, buffer.view(), POISON).unwrap();
        let view = buffer.view();
        self.kept.push(buffer);
        view
    }

    /// Rows that there is room for at an expert.
    fn expert_rows(&self) -> usize {
        self.exchange.ranks() as usize * self.case.settings().tokens as usize
    }

    /// Experts that every rank has room for.
    fn experts(&self) -> usize {
        self.case.config.experts.div_ceil(self.exchange.ranks()) as usize
    }

    fn scale_words(&self) -> usize {
        let groups = self.case.config.hidden.div_ceil(128);
        match self.case.settings().dispatch {
            DispatchFormat::Bf16 => 0,
            DispatchFormat::Fp8 | DispatchFormat::Fp8PowerOfTwo => groups as usize,
            DispatchFormat::Fp8Ue8m0 => groups.div_ceil(4) as usize,
        }
    }

    fn column_major(&self) -> bool {
        self.case.settings().scale_layout == ScaleLayout::ColumnMajor
    }

    /// Words of an expert's scales.
    fn expert_scales(&self) -> usize {
        let rows = self.expert_rows();
        self.scale_words() * if self.column_major() { rows.next_multiple_of(4) } else { rows }
    }

    fn row_bytes(&self) -> usize {
        let hidden = self.case.config.hidden as usize;
        if self.case.settings().dispatch == DispatchFormat::Bf16 { 2 * hidden } else { hidden }
    }

    fn prepare<'a>(&mut self, expected: &'a Expected, shared: &Stream) -> Work<'a> {
        let rank = self.exchange.rank() as usize;
        let stream = if self.case.streams { self.exchange.gpu().stream().unwrap() } else { shared.clone() };
        let batch = &expected.batches[rank];
        let (topk, hidden) = (batch.topk, batch.hidden);
        let room =
            if self.case.tokens_on_device { self.case.settings().tokens as usize } else { batch.tokens };
        // What lies past the end must not matter.
        let padded = |bytes: &[u8], each: usize| {
            let mut bytes = bytes.to_vec();
            bytes.resize(room * each, POISON);
            bytes
        };
        let x = self.upload(&padded(&batch.rows, 2 * hidden));
        let ids: Vec<u8> = batch.topk_idx.iter().flat_map(|id| id.to_le_bytes()).collect();
        let topk_idx = self.upload(&padded(&ids, 4 * topk));
        let bytes =
            |weights: &[f32]| weights.iter().flat_map(|weight| weight.to_le_bytes()).collect::<Vec<_>>();
        let topk_weights = self.upload(&padded(&bytes(&batch.topk_weights), 4 * topk));
        let given = self.upload(&padded(&bytes(&expected.weights[rank]), 4 * topk));
        let tokens = if self.case.tokens_on_device {
            Tokens::Device(self.upload(&[batch.tokens as u32]))
        } else {
            Tokens::Host(batch.tokens as u32)
        };
        let input = Input { tokens, ..Input::new(x, topk_idx, topk_weights, 0) };
        let x = self.room(shared, self.experts() * self.expert_rows() * self.row_bytes());
        let x_scales = self.room(shared, 4 * self.experts() * self.expert_scales());
        let rows = if self.scale_words() == 0 { Rows::bf16(x) } else { Rows::fp8(x, x_scales) };
        // Where there is no row there is NaN.
        let mut y = vec![0xffffu16; self.experts() * self.expert_rows() * hidden];
        for (expert, outputs) in expected.outputs[rank].iter().enumerate() {
            y[expert * self.expert_rows() * hidden..][..outputs.len()].copy_from_slice(outputs);
        }
        let y = self.upload(&y);
        let combined = self.room(shared, 2 * room * hidden);
        let sums = match self.case.settings().summation {
            Summation::ByRank => Sums::new(combined),
            Summation::BySlot => Sums::weighted(combined, given),
        };
        Work { expected, stream, input, rows, y, sums, next: Next::Dispatch }
    }

    /// Takes a batch's next step.
    fn step(&mut self, work: &mut Work) {
        let mut calls = self.exchange.low_latency().unwrap();
        if let Some(sms) = self.case.sms {
            calls = calls.with_sms(sms).unwrap();
        }
        let stream = &work.stream;
        work.next = match &work.next {
            Next::Dispatch if self.case.halves => {
                Next::Receive(calls.dispatch_send(stream, &work.input).unwrap())
            }
            Next::Dispatch => {
                Next::Combine(Box::new(calls.dispatch(stream, &work.input, &work.rows).unwrap()))
            }
            Next::Receive(hook) => {
                let batch = calls.dispatch_receive(stream, hook, &work.rows).unwrap();
                // Not a second time.
                assert!(calls.dispatch_receive(stream, hook, &work.rows).is_err());
                Next::Combine(Box::new(batch))
            }
            Next::Combine(batch) => {
                let next = if self.case.halves {
                    Next::Sum(calls.combine_send(stream, batch, work.y).unwrap())
                } else {
                    calls.combine(stream, batch, work.y, &work.sums).unwrap();
                    Next::Done
                };
                let (counts, ranges) = (batch.counts(), batch.ranges());
                self.compare_counts(work, counts, ranges);
                next
            }
            Next::Sum(hook) => {
                calls.combine_receive(stream, hook, &work.sums).unwrap();
                Next::Done
            }
            Next::Done => Next::Done,
        };
    }

    fn compare_counts(&self, work: &Work, counts: View, ranges: View) {
        // A download waits for the stream, and other ranks may wait for the next step of this one.
        if self.case.halves || self.case.streams {
            return;
        }
        let rank = self.exchange.rank() as usize;
        let (gpu, ranks) = (self.exchange.gpu(), self.exchange.ranks() as usize);
        let held = &work.expected.held[rank];
        let found: Vec<u32> = gpu.download(&work.stream, counts, held.len()).unwrap();
        let wanted: Vec<u32> = held.iter().map(|held| held.source_rank.len() as u32).collect();
        same("counts", rank, &found, &wanted);
        let found: Vec<u64> = gpu.download(&work.stream, ranges, held.len() * ranks).unwrap();
        let ranges = held.iter().flat_map(|held| {
            held.tokens_per_source.iter().scan(0u64, |first, &rows| {
                let range = *first << 32 | u64::from(rows);
                *first += u64::from(rows);
                Some(range)
            })
        });
        same("ranges", rank, &found, &ranges.collect::<Vec<_>>());
    }

    fn compare(&self, number: usize, work: &Work) {
        let rank = self.exchange.rank() as usize;
        let (gpu, stream) = (self.exchange.gpu(), &work.stream);
        let (rows, bytes, words) = (self.expert_rows(), self.row_bytes(), self.scale_words());
        let x: Vec<u8> = gpu.download(stream, work.rows.x, self.experts() * rows * bytes).unwrap();
        let scales: Vec<u32> = match work.rows.x_scales {
            Some(view) => gpu.download(stream, view, self.experts() * self.expert_scales()).unwrap(),
            None => Vec::new(),
        };
        for (expert, held) in work.expected.held[rank].iter().enumerate() {
            let what = |what: &str| format!("{what} of expert {expert} in batch {number}");
            let mut wanted = held.rows.clone();
            wanted.resize(rows * bytes, POISON);
            same(&what("rows"), rank, &x[expert * rows * bytes..][..rows * bytes], &wanted);
            let of_expert = scales.get(expert * self.expert_scales()..).unwrap_or_default();
            for (row, wanted) in held.scales.chunks(words.max(1)).enumerate() {
                let at = |word: usize| {
                    if self.column_major() {
                        word * rows.next_multiple_of(4) + row
                    } else {
                        row * words + word
                    }
                };
                let found: Vec<u32> = (0..words).map(|word| of_expert[at(word)]).collect();
                same(&what(&format!("scales of row {row}")), rank, &found, wanted);
            }
        }
        if self.case.is_dropped(number) {
            return;
        }
        let batch = &work.expected.batches[rank];
        let sums: Vec<u16> = gpu.download(stream, work.sums.combined, batch.tokens * batch.hidden).unwrap();
        same(&format!("combined of batch {number}"), rank, &sums, &work.expected.combined[rank]);
    }
}

/// How large random cases get.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Ranks.
    pub ranks: usize,
    /// Tokens of a rank.
    pub tokens: u32,
    /// Elements of a row, in sixteens.
    pub sixteens: u32,
    /// Batches.
    pub batches: usize,
    /// Multiprocessors.
    pub sms: u32,
}

/// Random cases.
pub fn cases(limits: Limits) -> impl Strategy<Value = Case> {
    let formats = (
        prop::sample::select(vec![
            DispatchFormat::Bf16,
            DispatchFormat::Fp8,
            DispatchFormat::Fp8PowerOfTwo,
            DispatchFormat::Fp8Ue8m0,
        ]),
        prop::sample::select(vec![CombineFormat::Bf16, CombineFormat::Fp8, CombineFormat::Log10]),
        any::<bool>(),
        any::<bool>(),
    );
    let tokens = prop_oneof![1 => Just(0), 6 => 0..=limits.tokens as usize];
    let shape = (
        1..=limits.ranks,
        1u32..30,
        1u32..9,
        1..=limits.sixteens,
        any::<bool>(),
        proptest::collection::vec(tokens, limits.ranks * limits.batches),
        1u32..4,
    );
    let order = proptest::collection::vec(0..limits.batches, 4 * limits.batches);
    let calls = (
        order,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        1..=limits.sms,
        0u64..6,
        0usize..4,
        any::<u16>(),
    );
    (formats, shape, calls).prop_map(move |(formats, shape, calls)| {
        let (dispatch, combine, column_major, by_slot) = formats;
        let (ranks, experts, topk, sixteens, odd, counts, depth) = shape;
        let (order, halves, streams, tokens_on_device, sms, mask_one_in, dropped_one_in, seed) = calls;
        // Rows of bf16 need not be whole sixteens.
        let half = if odd && dispatch == DispatchFormat::Bf16 { 8 } else { 0 };
        let low_latency = LowLatency {
            depth,
            dispatch,
            combine,
            scale_layout: if column_major { ScaleLayout::ColumnMajor } else { ScaleLayout::RowMajor },
            summation: if by_slot { Summation::BySlot } else { Summation::ByRank },
            ..LowLatency::new(limits.tokens)
        };
        Case {
            config: config(experts, topk.min(experts), 16 * sixteens - half, low_latency),
            tokens: counts.chunks(limits.ranks).map(|batch| batch[..ranks].to_vec()).collect(),
            order,
            halves,
            streams,
            tokens_on_device,
            sms: Some(sms),
            mask_one_in,
            seed: seed.into(),
            late: None,
            dropped_one_in,
        }
    })
}

/// Batches of a captured graph, replayed with other tokens, routings and numbers of tokens each time.
pub fn replays(backend: &Backend, count: usize) {
    const RANKS: usize = 2;
    /// Sets of inputs, which come round and round.
    const SETS: usize = 7;
    let low_latency = LowLatency { depth: 2, ..LowLatency::new(8) };
    let mut case = Case::new(config(16, 4, 1040, low_latency), &[]);
    case.tokens = (0..SETS).map(|set| vec![set + 1, (3 * set) % 9]).collect();
    case.tokens_on_device = true;
    let placement = Placement::new(RANKS, 16).unwrap();
    let expected: Vec<_> = (0..SETS).map(|number| Expected::new(&case, number, &placement)).collect();
    let members = Group::in_process(RANKS as u32, backend).unwrap();
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(|| {
                let exchange = Exchange::new(member, &case.config).unwrap();
                Rank { case: &case, exchange, kept: Vec::new() }.replay(&expected, count);
            });
        }
    });
}

impl Rank<'_> {
    fn replay(mut self, expected: &[Expected], count: usize) {
        let gpu = self.exchange.gpu().clone();
        let stream = gpu.stream().unwrap();
        // What the graph works on, and what is copied there before each replay.
        let works: Vec<_> = expected.iter().map(|expected| self.prepare(expected, &stream)).collect();
        let fixed = [self.prepare(&expected[0], &stream), self.prepare(&expected[0], &stream)];
        let device = |tokens: Tokens| match tokens {
            Tokens::Device(view) => view,
            Tokens::Host(_) => panic!("the count is on the device"),
        };
        let parts = |work: &Work| {
            let input = &work.input;
            [input.x, input.topk_idx, input.topk_weights.unwrap(), device(input.tokens), work.y]
        };
        stream.synchronize().unwrap();
        self.meet();
        // Two batches whose halves interlock; the second one's dispatch is whole.
        let ((), graph) = stream
            .capture(|| {
                let mut calls = self.exchange.low_latency()?;
                let [a, b] = &fixed;
                let hook = calls.dispatch_send(&stream, &a.input)?;
                let second = calls.dispatch(&stream, &b.input, &b.rows)?;
                let first = calls.dispatch_receive(&stream, &hook, &a.rows)?;
                let hook = calls.combine_send(&stream, &first, a.y)?;
                calls.combine(&stream, &second, b.y, &b.sums)?;
                calls.combine_receive(&stream, &hook, &a.sums)
            })
            .unwrap();
        let rank = self.exchange.rank() as usize;
        for replay in 0..count {
            let sets = [2 * replay % expected.len(), (2 * replay + 1) % expected.len()];
            for (set, fixed) in sets.into_iter().zip(&fixed) {
                for (from, to) in parts(&works[set]).into_iter().zip(parts(fixed)) {
                    gpu.copy(&stream, from, to, from.bytes()).unwrap();
                }
                gpu.fill(&stream, fixed.sums.combined, POISON).unwrap();
            }
            graph.launch(&stream).unwrap();
            for (set, fixed) in sets.into_iter().zip(&fixed) {
                let wanted = &expected[set].combined[rank];
                let found: Vec<u16> = gpu.download(&stream, fixed.sums.combined, wanted.len()).unwrap();
                same(&format!("combined of set {set} in replay {replay}"), rank, &found, wanted);
            }
        }
        self.exchange.finish(&stream).unwrap();
        self.meet();
    }
}

/// One rank begins every step late, by more and less: nothing but time is lost.
pub fn late_rank(backend: &Backend) {
    let low_latency = LowLatency { depth: 2, ..LowLatency::new(8) };
    let tokens: &[&[usize]] = &[&[8, 3, 5], &[0, 8, 8], &[4, 0, 1], &[8, 8, 8], &[2, 7, 0]];
    let mut case = Case::new(config(12, 3, 528, low_latency), tokens);
    case.order = vec![0, 1, 1, 0, 0, 1, 0, 1, 2, 3, 2, 3, 3, 3, 4, 2, 2, 4];
    for (late, halves) in [(0, true), (1, false), (2, true)] {
        check(&Case { halves, late: Some(late), ..case.clone() }, backend);
    }
    // Without combines nothing but the acknowledgements keeps the others from sending the next batch to where the late rank
    // has yet to read the last.
    let low_latency = LowLatency { depth: 1, ..LowLatency::new(8) };
    let config = config(12, 3, 528, low_latency);
    for late in 0..3 {
        check(
            &Case {
                config: config.clone(),
                halves: true,
                late: Some(late),
                dropped_one_in: 1,
                ..case.clone()
            },
            backend,
        );
    }
}
