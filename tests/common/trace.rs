//! Traced calls: what comes of them, and what was recorded.

use super::input::routing;
use std::collections::{BTreeMap, BTreeSet};
use tokenrail::low_latency::{Input as FewInput, Rows, Sums};
use tokenrail::oracle;
use tokenrail::trace::{Activity, Operation, Span, Trace};
use tokenrail::{Backend, Config, Error, Exchange, Group, Input, Member, Stream};

/// What came of a dispatch and a combine of either kind on a rank, as bytes, and what was recorded of them.
pub struct Outcome {
    /// What they wrote.
    pub written: Vec<Vec<u8>>,
    /// If they were traced.
    pub trace: Trace,
}

/// Has every rank dispatch and combine as many tokens, of many and of few as the config has them; traced with room for so
/// many marks.
pub fn exchange(
    config: &Config,
    ranks: u32,
    tokens: usize,
    backend: &Backend,
    marks: Option<u32>,
) -> Vec<Outcome> {
    let near = config.internode.as_ref().and(config.ranks_per_node).unwrap_or(ranks);
    let members = Group::on_nodes(ranks, near, backend).unwrap();
    std::thread::scope(|scope| {
        let rank = |member: Member| scope.spawn(move || work(member, config, tokens, marks).unwrap());
        let threads: Vec<_> = members.into_iter().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn work(member: Member, config: &Config, tokens: usize, marks: Option<u32>) -> Result<Outcome, Error> {
    let mut exchange = Exchange::new(member, config)?;
    let (rank, gpu) = (exchange.rank(), exchange.gpu().clone());
    let stream = gpu.stream()?;
    let hidden = config.hidden as usize;
    let route = routing(config, 5, rank.into(), tokens);
    let x = gpu.upload(&oracle::hidden_states(rank.into(), tokens, hidden))?;
    let (topk_idx, topk_weights) = (gpu.upload(&route.topk_idx)?, gpu.upload(&route.topk_weights)?);
    let combined = gpu.alloc_zeroed(2 * tokens * hidden)?;
    let experts = config.experts.div_ceil(exchange.ranks()) as usize;
    let rows = experts * exchange.ranks() as usize * tokens;
    let few = (gpu.alloc_zeroed(rows * hidden)?, gpu.alloc_zeroed(4 * rows * hidden.div_ceil(128))?);
    let y = gpu.alloc(2 * rows * hidden)?;
    // Numbers that tell ranks apart.
    gpu.fill(&stream, y.view(), 0x30 + rank as u8)?;
    stream.synchronize()?;
    if let Some(marks) = marks {
        exchange.start_trace(marks)?;
    }
    // What is allocated is allocated before any kernel waits for another rank's.
    exchange.all_gather((), "the start", config.timeout)?;
    let mut written = Vec::new();
    let keep = |written: &mut Vec<Vec<u8>>, stream: &Stream, view: tokenrail::gpu::View, bytes: usize| {
        written.push(gpu.download(stream, view, bytes)?);
        Ok::<_, Error>(())
    };
    if config.tokens > 0 {
        let received =
            exchange.dispatch(&stream, &Input::new(&x, &topk_idx, &topk_weights, tokens as u32))?;
        gpu.fill(&stream, received.outputs(), 0x30 + rank as u8)?;
        exchange.combine(&stream, &received, &combined)?;
        let counts = exchange.counts(&stream, &received)?;
        let (rows, slots) = (counts.rows as usize, 4 * config.topk as usize);
        keep(&mut written, &stream, received.x(), rows * 2 * hidden)?;
        keep(&mut written, &stream, received.topk_idx(), rows * slots)?;
        keep(&mut written, &stream, received.topk_weights(), rows * slots)?;
        if let Some(form) = received.by_expert() {
            let rows = counts.expert_starts.last().map_or(0, |&rows| rows as usize);
            keep(&mut written, &stream, form.x, rows * 2 * hidden)?;
            keep(&mut written, &stream, form.rows, form.rows.bytes())?;
        }
        keep(&mut written, &stream, combined.view(), combined.view().bytes())?;
    }
    if config.low_latency.is_some() {
        let mut calls = exchange.low_latency()?;
        let input = FewInput::new(&x, &topk_idx, &topk_weights, tokens as u32);
        let batch = calls.dispatch(&stream, &input, &Rows::fp8(&few.0, &few.1))?;
        calls.combine(&stream, &batch, &y, &Sums::new(&combined))?;
        for view in [few.0.view(), few.1.view(), batch.counts(), batch.ranges(), combined.view()] {
            keep(&mut written, &stream, view, view.bytes())?;
        }
    }
    exchange.finish(&stream)?;
    let trace = marks.map_or_else(|| Ok(Trace::default()), |_| exchange.stop_trace(&stream))?;
    // Nobody frees memory before all have done.
    exchange.all_gather((), "the end", config.timeout)?;
    Ok(Outcome { written, trace })
}

/// What holds of every trace: spans end after they begin, name ranks that exist, and those of a thread follow each other.
pub fn is_sane(ranks: u32, spans: &[Span]) {
    let mut last = BTreeMap::new();
    for span in spans {
        assert!(span.end_ns >= span.begin_ns, "{span:?}");
        assert!(span.peer.is_none_or(|peer| peer < ranks), "{span:?}");
        let thread = (span.operation, span.block, span.warp, span.lane);
        if let Some(before) = last.insert(thread, *span) {
            assert!(before.end_ns <= span.begin_ns, "{before:?} and {span:?} overlap");
        }
    }
}

/// Spans of an operation, and what of them something is known of.
pub struct Of<'a>(pub Vec<&'a Span>);

impl<'a> Of<'a> {
    /// Those of an operation.
    pub fn operation(trace: &'a Trace, operation: Operation) -> Self {
        Self(trace.spans.iter().filter(|span| span.operation == operation).collect())
    }

    /// The blocks that have done something.
    pub fn blocks(&self, activity: Activity) -> BTreeSet<u32> {
        self.of(activity).map(|span| span.block).collect()
    }

    /// Whom something is about, in a block.
    pub fn peers(&self, activity: Activity, block: u32) -> BTreeSet<u32> {
        self.of(activity).filter(|span| span.block == block).filter_map(|span| span.peer).collect()
    }

    /// The tokens that something is about.
    pub fn tokens(&self, activity: Activity) -> BTreeSet<u32> {
        self.of(activity).filter_map(|span| span.token).collect()
    }

    fn of(&self, activity: Activity) -> impl Iterator<Item = &'a Span> {
        self.0.iter().copied().filter(move |span| span.activity == activity)
    }
}

/// Traced and untraced calls, which must come to the same, with all there must be in the trace.
pub fn check(config: &Config, ranks: u32, tokens: usize, backend: &Backend) {
    let untraced = exchange(config, ranks, tokens, backend, None);
    let traced = exchange(config, ranks, tokens, backend, Some(1 << 20));
    let everybody: BTreeSet<u32> = (0..ranks).collect();
    let all_tokens: BTreeSet<u32> = (0..tokens as u32).collect();
    for (untraced, traced) in untraced.iter().zip(&traced) {
        assert!(untraced.written == traced.written, "what traced calls have written differs");
        let trace = &traced.trace;
        assert_eq!(trace.lost, 0);
        is_sane(ranks, &trace.spans);
        if config.tokens > 0 {
            let dispatch = Of::operation(trace, Operation::Dispatch);
            let blocks = dispatch.blocks(Activity::Count);
            assert!(!blocks.is_empty());
            for activity in [Activity::Meet, Activity::WaitCounts, Activity::Barrier, Activity::Plan] {
                assert_eq!(dispatch.blocks(activity), blocks, "{activity:?}");
            }
            for &block in &blocks {
                assert_eq!(dispatch.peers(Activity::WaitCounts, block), everybody);
            }
            assert_eq!(dispatch.tokens(Activity::Send), all_tokens);
            // The last block to come does it for all.
            for activity in [Activity::Settle, Activity::Signal] {
                assert!(!dispatch.blocks(activity).is_empty(), "{activity:?}");
            }
            let combine = Of::operation(trace, Operation::Combine);
            for &block in &combine.blocks(Activity::Meet) {
                assert_eq!(combine.peers(Activity::WaitReady, block), everybody);
            }
            assert_eq!(combine.tokens(Activity::Sum), all_tokens);
            assert_eq!(combine.blocks(Activity::Signal), BTreeSet::from([0]));
        }
        if config.low_latency.is_some() {
            let dispatch = Of::operation(trace, Operation::LowLatencyDispatch);
            let combine = Of::operation(trace, Operation::LowLatencyCombine);
            for block in dispatch.blocks(Activity::Route) {
                assert_eq!(dispatch.peers(Activity::WaitRead, block), everybody);
                assert_eq!(dispatch.peers(Activity::WaitSummary, block), everybody);
                assert_eq!(combine.peers(Activity::WaitRead, block), everybody);
            }
            assert_eq!(dispatch.tokens(Activity::Send), all_tokens);
            assert_eq!(combine.tokens(Activity::Sum), all_tokens);
            assert!(!dispatch.blocks(Activity::Receive).is_empty());
            assert!(!combine.blocks(Activity::Send).is_empty());
        }
    }
}
