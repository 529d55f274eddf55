//! What low-latency calls refuse, and what is left usable after it, on the emulator.

use std::time::Duration;
use tokenrail::low_latency::{Input, Rows, Sums};
use tokenrail::{
    Backend, Buffer, Config, Error, Exchange, Gpu, Group, Half, LowLatency, Member, Stream, Summation, Tokens,
};

const HIDDEN: usize = 32;
const TOKENS: usize = 4;
const EXPERTS: usize = 4;

fn config() -> Config {
    let low_latency = LowLatency { depth: 1, ..LowLatency::new(TOKENS as u32) };
    Config {
        low_latency: Some(low_latency),
        timeout: Duration::from_millis(500),
        ..Config::new(EXPERTS as u32, 2, HIDDEN as u32, 0)
    }
}

/// Memory for the calls of one rank of two or less.
struct Memory {
    gpu: Gpu,
    stream: Stream,
    x: Buffer,
    ids: Buffer,
    weights: Buffer,
    rows: Buffer,
    scales: Buffer,
    y: Buffer,
    combined: Buffer,
}

impl Memory {
    fn new(exchange: &Exchange, ids: &[i32]) -> Self {
        let gpu = exchange.gpu().clone();
        let rows = EXPERTS * 2 * TOKENS;
        Self {
            stream: gpu.stream().unwrap(),
            x: gpu.upload(&vec![half::bf16::ONE; TOKENS * HIDDEN]).unwrap(),
            ids: gpu.upload(ids).unwrap(),
            weights: gpu.upload(&[0.5f32; 2 * TOKENS]).unwrap(),
            rows: gpu.alloc(rows * HIDDEN).unwrap(),
            scales: gpu.alloc(rows * 4).unwrap(),
            y: gpu.upload(&vec![half::bf16::ONE; rows * HIDDEN]).unwrap(),
            combined: gpu.alloc(TOKENS * HIDDEN * 2).unwrap(),
            gpu,
        }
    }

    fn input(&self, tokens: u32) -> Input {
        Input::new(&self.x, &self.ids, &self.weights, tokens)
    }

    fn rows(&self) -> Rows {
        Rows::fp8(&self.rows, &self.scales)
    }

    fn sums(&self) -> Sums {
        Sums::new(&self.combined)
    }

    fn combined(&self) -> Vec<half::bf16> {
        self.gpu.download(&self.stream, self.combined.view(), HIDDEN).unwrap()
    }
}

fn alone(config: &Config) -> Exchange {
    let member = Group::in_process(1, &Backend::emulator(0)).unwrap().remove(0);
    Exchange::new(member, config).unwrap()
}

const IDS: [i32; 2 * TOKENS] = [0, 3, 1, 2, 2, -1, 3, 0];

fn says<T>(result: Result<T, Error>) -> String {
    result.err().map_or(String::new(), |error| error.to_string())
}

#[test]
fn hooks_are_called_once_and_before_their_buffers_are_wanted() {
    let mut exchange = alone(&config());
    let memory = Memory::new(&exchange, &IDS);
    let (stream, input, rows, sums) = (&memory.stream, memory.input(4), memory.rows(), memory.sums());
    let mut calls = exchange.low_latency().unwrap();

    let hook = calls.dispatch_send(stream, &input).unwrap();
    let pending =
        "low-latency batch 1 has to be received first: low_latency.depth = 1 batches may be under way";
    assert_eq!(says(calls.dispatch_send(stream, &input)), pending);
    // What is refused can be asked for again.
    let short = Rows::fp8(memory.gpu.alloc(8).unwrap().view(), &memory.scales);
    assert_eq!(
        says(calls.dispatch_receive(stream, &hook, &short)),
        format!("rows.x: 8 bytes, but {} bytes are needed", EXPERTS * TOKENS * HIDDEN)
    );
    let bare = Rows::bf16(&memory.rows);
    assert_eq!(
        says(calls.dispatch_receive(stream, &hook, &bare)),
        "rows.x_scales: None, but FP8 rows have scales"
    );
    let batch = calls.dispatch_receive(stream, &hook, &rows).unwrap();
    let used = "low-latency batch 1: what its hook stands for has been received already";
    assert_eq!(says(calls.dispatch_receive(stream, &hook, &rows)), used);

    let back = calls.combine_send(stream, &batch, &memory.y).unwrap();
    assert_eq!(says(calls.dispatch(stream, &input, &rows)), pending);
    let again = "dispatch 1 has been combined already: its outputs may be read only once";
    assert_eq!(says(calls.combine(stream, &batch, &memory.y, &sums)), again);
    calls.combine_receive(stream, &back, &sums).unwrap();
    assert_eq!(says(calls.combine_receive(stream, &back, &sums)), used);
    exchange.finish(stream).unwrap();
    assert_eq!(memory.combined(), [half::bf16::ONE; HIDDEN]);
}

#[test]
fn batches_and_hooks_of_other_calls_are_refused() {
    let (mut exchange, mut other) = (alone(&config()), alone(&config()));
    let memory = Memory::new(&exchange, &IDS);
    let (stream, input, rows, sums) = (&memory.stream, memory.input(4), memory.rows(), memory.sums());
    let mut calls = exchange.low_latency().unwrap();
    let first = calls.dispatch(stream, &input, &rows).unwrap();
    // A batch that nobody combines.
    let second = calls.dispatch(stream, &input, &rows).unwrap();
    let stale = "received view of dispatch 1: its buffers have been used again, the latest dispatch is 2";
    assert_eq!(says(calls.combine(stream, &first, &memory.y, &sums)), stale);
    let elsewhere = "received view of dispatch 2: its buffers have been used again, the latest dispatch is 0";
    let mut others = other.low_latency().unwrap();
    assert_eq!(says(others.combine(stream, &second, &memory.y, &sums)), elsewhere);
    calls.combine(stream, &second, &memory.y, &sums).unwrap();
    let hook = calls.dispatch_send(stream, &input).unwrap();
    assert!(matches!(others.dispatch_receive(stream, &hook, &rows), Err(Error::Stale { .. })));
    calls.dispatch_receive(stream, &hook, &rows).unwrap();
    exchange.finish(stream).unwrap();
    assert_eq!(memory.combined(), [half::bf16::ONE; HIDDEN]);
}

#[test]
fn arguments_name_what_is_wrong() {
    let mut exchange = alone(&config());
    let memory = Memory::new(&exchange, &IDS);
    let (stream, rows) = (&memory.stream, memory.rows());
    assert_eq!(
        says(alone(&Config::new(4, 2, 32, 0)).low_latency()),
        "low_latency: None, but the config has no low-latency calls: set low_latency"
    );
    let mut calls = exchange.low_latency().unwrap();
    assert_eq!(says(calls.dispatch(stream, &memory.input(5), &rows)), "tokens: 5, but the config allows 4");
    let input = Input { x: memory.scales.view(), ..memory.input(4) };
    assert_eq!(says(calls.dispatch(stream, &input, &rows)), "x: 128 bytes, but 256 bytes are needed");
    let batch = calls.dispatch(stream, &memory.input(4), &rows).unwrap();
    assert_eq!(
        says(calls.combine(stream, &batch, &memory.scales, &memory.sums())),
        "y: 128 bytes, but 1024 bytes are needed"
    );
    assert_eq!(says(calls.with_sms(65)), "sms: 65, but it must be 1 to 64");

    let low_latency = LowLatency { summation: Summation::BySlot, ..LowLatency::new(4) };
    let mut exchange = alone(&Config { low_latency: Some(low_latency), ..config() });
    let memory = Memory::new(&exchange, &IDS);
    let mut calls = exchange.low_latency().unwrap();
    let batch = calls.dispatch(&memory.stream, &memory.input(4), &memory.rows()).unwrap();
    assert_eq!(
        says(calls.combine(&memory.stream, &batch, &memory.y, &memory.sums())),
        "sums.topk_weights: None, but slots are weighted here with Summation::BySlot"
    );
}

#[test]
fn settings_name_what_is_wrong() {
    let with = |low_latency: LowLatency| Config { low_latency: Some(low_latency), ..config() };
    let refused = |config: Config| says(config.shape(2).and_then(|_| tokenrail::bytes_for(&config, 2)));
    assert_eq!(refused(with(LowLatency::new(0))), "low_latency.tokens = 0: must be 1 to 4096");
    assert_eq!(refused(with(LowLatency::new(4097))), "low_latency.tokens = 4097: must be 1 to 4096");
    let deep = LowLatency { depth: 17, ..LowLatency::new(4) };
    assert_eq!(refused(with(deep)), "low_latency.depth = 17: must be 1 to 16");
    let wide = LowLatency { sms: Some(65), ..LowLatency::new(4) };
    assert_eq!(refused(with(wide)), "low_latency.sms = 65: must be 1 to 64");
    let f16 = Config { combined: Half::F16, ..config() };
    assert_eq!(refused(f16), "combined = F16: low-latency rows are Bf16");
    let odd = Config { hidden: 24, ..config() };
    assert_eq!(refused(odd), "hidden = 24: a row of Fp8 is 24 bytes, and must be a multiple of 16");
    // Memory grows with ranks and tokens, and not with experts.
    let bytes = |experts, ranks, tokens| {
        let low_latency = Some(LowLatency::new(tokens));
        tokenrail::bytes_for(&Config { low_latency, ..Config::new(experts, 8, 7168, 0) }, ranks).unwrap()
    };
    assert!(bytes(256, 8, 128) * 100 < bytes(32, 8, 128) * 101);
    assert!(bytes(256, 16, 128) < 2 * bytes(256, 8, 128) && bytes(256, 8, 256) < 2 * bytes(256, 8, 128));
}

/// What each of two ranks says, and what it has combined.
fn two_ranks(rank: impl Fn(&mut Exchange, usize) -> Vec<String> + Sync) -> Vec<Vec<String>> {
    let members = Group::in_process(2, &Backend::emulator(3)).unwrap();
    let run = |(number, member): (usize, Member)| {
        let mut exchange = Exchange::new(member, &config()).unwrap();
        let said = rank(&mut exchange, number);
        exchange.all_gather((), "end of the test", Duration::from_secs(60)).unwrap();
        said
    };
    std::thread::scope(|scope| {
        let run = &run;
        let ranks: Vec<_> =
            members.into_iter().enumerate().map(|member| scope.spawn(move || run(member))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A batch of each of the inputs; what was wrong, then what the first token got.
fn batches(exchange: &mut Exchange, memory: &Memory, inputs: &[Input]) -> Vec<String> {
    let mut said = Vec::new();
    for input in inputs {
        let mut calls = exchange.low_latency().unwrap();
        let batch = calls.dispatch(&memory.stream, input, &memory.rows()).unwrap();
        memory.gpu.fill(&memory.stream, memory.combined.view(), 0).unwrap();
        calls.combine(&memory.stream, &batch, &memory.y, &memory.sums()).unwrap();
        let error = says(exchange.finish(&memory.stream));
        said.push(format!("{error}|{}", memory.combined()[0]));
    }
    said
}

#[test]
fn invalid_input_sends_nothing_and_peers_go_on() {
    let said = two_ranks(|exchange, rank| {
        let memory = Memory::new(exchange, &IDS);
        let bad = exchange.gpu().upload(&[0, 1, 2, 4, 0, 1, 2, 3]).unwrap();
        let many = exchange.gpu().upload(&[5u32]).unwrap();
        let good = memory.input(4);
        let wrong = [
            Input { topk_idx: bad.view(), ..good },
            good,
            Input { tokens: Tokens::Device(many.view()), ..good },
            good,
        ];
        let inputs = if rank == 0 { wrong } else { [good; 4] };
        let said = batches(exchange, &memory, &inputs);
        // Buffers of this function are used until all are done.
        exchange.all_gather((), "end of the batches", Duration::from_secs(60)).unwrap();
        said
    });
    assert_eq!(
        said[0],
        [
            "topk_idx[1, 1] = 4: an expert id is −1 or below 4; nothing was sent|0",
            "|1",
            "5 tokens, counted on the device, but the config allows 4; nothing was sent|0",
            "|1",
        ]
    );
    let peer = "rank 0 announced an invalid input; nothing was sent|1";
    assert_eq!(said[1], [peer, "|1", peer, "|1"]);
}

#[test]
fn a_peer_that_does_not_come_is_named() {
    let said = two_ranks(|exchange, rank| {
        let memory = Memory::new(exchange, &IDS);
        let mut calls = exchange.low_latency().unwrap();
        let hook = calls.dispatch_send(&memory.stream, &memory.input(4)).unwrap();
        let batch = calls.dispatch_receive(&memory.stream, &hook, &memory.rows()).unwrap();
        let mut said = Vec::new();
        if rank == 0 {
            calls.combine(&memory.stream, &batch, &memory.y, &memory.sums()).unwrap();
            said.push(says(exchange.finish(&memory.stream)));
            said.push(says(exchange.low_latency().map(|_| ())));
        } else {
            said.push(says(exchange.finish(&memory.stream)));
        }
        said
    });
    let late = "rank 1 is late: outputs for a low-latency combine of epoch 1, flag expected at 2, seen at 0";
    assert_eq!(said[0], [late, "this exchange failed earlier and cannot go on: make a new group"]);
    assert_eq!(said[1], [""]);
}
