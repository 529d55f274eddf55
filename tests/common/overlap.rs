//! Exchanges that are captured, that overlap each other and that stand beside each other. Experts give back what they get.

use super::batch;
use super::input::{routing, same};
use std::time::Duration;
use tokenrail::gpu::Plain;
use tokenrail::oracle::{self, Placement, TokenBatch};
use tokenrail::{
    Backend, Buffer, Config, Exchange, ExpertMajor, Group, Input, Internode, Member, Output, Outputs,
    Received, Routing, Stream, Tokens, Weights,
};

/// All of them.
pub fn check(backend: &Backend) {
    let on = On { backend, internode: None };
    captured(&on);
    in_flight(&on);
    on_the_communication_stream(&on);
    beside_each_other(backend);
}

const RANKS: usize = 2;

/// What ranks are on.
pub struct On<'a> {
    /// Their GPUs.
    pub backend: &'a Backend,
    /// What joins them, if each is on a node of its own.
    pub internode: Option<Internode>,
}

impl On<'_> {
    fn config(&self, config: Config) -> Config {
        let ranks_per_node = self.internode.is_some().then_some(1);
        Config { ranks_per_node, internode: self.internode.clone(), ..config }
    }

    fn ranks(&self, rank: impl Fn(Member) + Sync) {
        let per_node = if self.internode.is_some() { 1 } else { RANKS as u32 };
        let members = Group::on_nodes(RANKS as u32, per_node, self.backend).unwrap();
        std::thread::scope(|scope| members.into_iter().for_each(|member| _ = scope.spawn(|| rank(member))));
    }
}

fn meet(exchange: &Exchange) {
    exchange.all_gather((), "a step of the test", Duration::from_secs(60)).unwrap();
}

/// One exchange of all ranks, and what each is to get.
struct Expected {
    batches: Vec<TokenBatch>,
    received: Vec<oracle::Received>,
    combined: Vec<Vec<u16>>,
}

fn halves(rows: &[u8]) -> Vec<u16> {
    rows.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect()
}

impl Expected {
    /// `by_expert`: a token is summed over its pairs, weighted, and not over its ranks.
    fn new(config: &Config, seed: u64, tokens: [usize; RANKS]) -> Self {
        let placement = Placement::new(RANKS, config.experts as usize).unwrap();
        let batches: Vec<_> = (0..)
            .zip(tokens)
            .map(|(rank, tokens)| {
                let seed = 100 * seed + rank;
                batch(config, seed, tokens, routing(config, 5, seed, tokens)).check(&placement).unwrap()
            })
            .collect();
        let received = oracle::dispatch(&batches, &placement, None);
        let (hidden, topk, half) = (config.hidden as usize, config.topk as usize, config.combined);
        let outputs: Vec<_> = received
            .iter()
            .map(|received| {
                let Some(form) = config.expert_major else { return halves(&received.rows) };
                let experts = placement.experts_of(received.rank).len();
                let rows = oracle::expert_major(received, experts, form.alignment as usize, None);
                let weights = Some(&received.topk_weights[..]);
                oracle::reduce(&halves(&rows.rows), &rows.positions, weights, topk, hidden, half)
            })
            .collect();
        let combined = oracle::combine(&outputs, &batches, &placement, half, &[], None);
        Self { batches, received, combined }
    }
}

/// A rank's tokens on its GPU, with room for as many as the config allows.
struct OnGpu {
    x: Buffer,
    topk_idx: Buffer,
    topk_weights: Buffer,
    tokens: Buffer,
    combined: Buffer,
}

impl OnGpu {
    fn new(exchange: &Exchange) -> Self {
        let (config, gpu) = (exchange.config(), exchange.gpu());
        let (rows, slots) =
            ((config.tokens * config.hidden * 2) as usize, (config.tokens * config.topk * 4) as usize);
        let room = |bytes| gpu.alloc_zeroed(bytes).unwrap();
        Self {
            x: room(rows),
            topk_idx: room(slots),
            topk_weights: room(slots),
            tokens: room(4),
            combined: room(rows),
        }
    }

    fn write(&self, exchange: &Exchange, batch: &TokenBatch) {
        fn put<T: Plain>(exchange: &Exchange, to: &Buffer, values: &[T]) {
            exchange.gpu().write(to.view(), values).unwrap();
        }
        put(exchange, &self.x, &batch.rows);
        put(exchange, &self.topk_idx, &batch.topk_idx);
        put(exchange, &self.topk_weights, &batch.topk_weights);
        put(exchange, &self.tokens, &[batch.tokens as u32]);
    }

    fn input(&self) -> Input<'_> {
        Input {
            routing: Routing::New {
                topk_idx: self.topk_idx.view(),
                topk_weights: self.topk_weights.view(),
                tokens: Tokens::Device(self.tokens.view()),
            },
            ..Input::new(&self.x, &self.topk_idx, &self.topk_weights, 0)
        }
    }
}

/// What came is given back as it is.
fn give_back(exchange: &Exchange, stream: &Stream, received: &Received) {
    let bytes = received.outputs().bytes();
    exchange.gpu().copy(stream, received.x(), received.outputs(), bytes).unwrap();
}

fn check_combined(what: &str, exchange: &Exchange, stream: &Stream, tokens: &OnGpu, expected: &Expected) {
    let rank = exchange.rank() as usize;
    let want = &expected.combined[rank];
    let got: Vec<u16> = exchange.gpu().download(stream, tokens.combined.view(), want.len()).unwrap();
    same(what, rank, &got, want);
}

/// One graph, with worst-case capacity, for any routing and any number of tokens.
pub fn captured(on: &On) {
    let rounds = [[20, 7], [0, 20], [3, 0], [20, 20], [0, 0], [11, 19]];
    for expert_major in [None, Some(ExpertMajor { alignment: 8, rows: None })] {
        let config = on.config(Config { expert_major, ..Config::new(8, 3, 64, 20) });
        on.ranks(|member| {
            let mut exchange = Exchange::new(member, &config).unwrap();
            let stream = exchange.gpu().stream().unwrap();
            let tokens = OnGpu::new(&exchange);
            let (received, graph) = stream
                .capture(|| {
                    let received = exchange.dispatch(&stream, &tokens.input())?;
                    let mut output = Output::new(&tokens.combined);
                    match received.by_expert() {
                        Some(form) => output.outputs = Outputs::ByExpert(form.x, Weights::Received),
                        None => give_back(&exchange, &stream, &received),
                    }
                    exchange.combine_with(&stream, &received, &output)?;
                    Ok(received)
                })
                .unwrap();
            // Ranks may share a GPU: none launches before all have their graphs.
            meet(&exchange);
            for (round, counts) in (0..).zip(rounds) {
                let expected = Expected::new(&config, 40 + round, counts);
                let rank = exchange.rank() as usize;
                tokens.write(&exchange, &expected.batches[rank]);
                graph.launch(&stream).unwrap();
                exchange.finish(&stream).unwrap();
                let rows: Vec<u32> = exchange.gpu().download(&stream, received.rows(), 1).unwrap();
                assert_eq!(rows[0] as usize, expected.received[rank].tokens(), "launch {round}");
                check_combined("combined by a graph", &exchange, &stream, &tokens, &expected);
            }
            meet(&exchange);
        });
    }
}

/// Two micro-batches, each on a stream of its own, combined in the other order.
pub fn in_flight(on: &On) {
    let config = on.config(Config { in_flight: 2, sms: Some(2), ..Config::new(8, 3, 64, 30) });
    let expected = [Expected::new(&config, 50, [30, 11]), Expected::new(&config, 51, [0, 30])];
    on.ranks(|member| {
        let mut exchange = Exchange::new(member, &config).unwrap();
        let streams = [(); 2].map(|()| exchange.gpu().stream().unwrap());
        let tokens = [(); 2].map(|()| OnGpu::new(&exchange));
        for (tokens, expected) in tokens.iter().zip(&expected) {
            tokens.write(&exchange, &expected.batches[exchange.rank() as usize]);
        }
        meet(&exchange);
        for _ in 0..3 {
            let received =
                [0, 1].map(|at: usize| exchange.dispatch(&streams[at], &tokens[at].input()).unwrap());
            for at in [1, 0] {
                give_back(&exchange, &streams[at], &received[at]);
                exchange.combine(&streams[at], &received[at], &tokens[at].combined).unwrap();
            }
            for at in [0, 1] {
                exchange.finish(&streams[at]).unwrap();
                check_combined("combined in flight", &exchange, &streams[at], &tokens[at], &expected[at]);
            }
        }
        meet(&exchange);
    });
}

/// Beside a stream that computes, ordered by events alone.
pub fn on_the_communication_stream(on: &On) {
    let config = on.config(Config::new(6, 2, 32, 12));
    let expected = Expected::new(&config, 60, [12, 5]);
    on.ranks(|member| {
        let mut exchange = Exchange::new(member, &config).unwrap();
        let compute = exchange.gpu().stream().unwrap();
        let tokens = OnGpu::new(&exchange);
        tokens.write(&exchange, &expected.batches[exchange.rank() as usize]);
        // The rows that count are put in place by the stream that computes.
        let rows = exchange.gpu().upload(&expected.batches[exchange.rank() as usize].rows).unwrap();
        exchange.gpu().fill(&compute, tokens.x.view(), 0xa5).unwrap();
        meet(&exchange);
        exchange.gpu().copy(&compute, rows.view(), tokens.x.view(), rows.view().bytes()).unwrap();
        let (received, arrived) = exchange
            .overlap(&compute, |exchange, stream| exchange.dispatch(stream, &tokens.input()))
            .unwrap();
        compute.wait(&arrived).unwrap();
        give_back(&exchange, &compute, &received);
        let ((), combined) = exchange
            .overlap(&compute, |exchange, stream| exchange.combine(stream, &received, &tokens.combined))
            .unwrap();
        compute.wait(&combined).unwrap();
        exchange.finish(&compute).unwrap();
        check_combined("combined beside", &exchange, &compute, &tokens, &expected);
        meet(&exchange);
    });
}

/// Two groups of one process, with settings of their own, in turn.
pub fn beside_each_other(backend: &Backend) {
    let configs = [Config::new(6, 2, 32, 12), Config { in_flight: 2, ..Config::new(9, 4, 128, 7) }];
    let expected = [Expected::new(&configs[0], 70, [12, 5]), Expected::new(&configs[1], 71, [2, 7])];
    let others = Group::in_process(RANKS as u32, backend).unwrap();
    let others = std::sync::Mutex::new(others.into_iter().map(Some).collect::<Vec<_>>());
    On { backend, internode: None }.ranks(|member| {
        let rank = member.rank() as usize;
        let other = others.lock().unwrap()[rank].take().unwrap();
        let mut exchanges: Vec<_> = [member, other]
            .into_iter()
            .zip(&configs)
            .map(|(member, config)| Exchange::new(member, config).unwrap())
            .collect();
        let tokens: Vec<_> = exchanges.iter().map(OnGpu::new).collect();
        let streams: Vec<_> = exchanges.iter().map(|exchange| exchange.gpu().stream().unwrap()).collect();
        for at in [0, 1] {
            tokens[at].write(&exchanges[at], &expected[at].batches[rank]);
            meet(&exchanges[at]);
        }
        for _ in 0..2 {
            for at in [1, 0] {
                let exchange = &mut exchanges[at];
                let received = exchange.dispatch(&streams[at], &tokens[at].input()).unwrap();
                give_back(exchange, &streams[at], &received);
                exchange.combine(&streams[at], &received, &tokens[at].combined).unwrap();
            }
            for at in [0, 1] {
                exchanges[at].finish(&streams[at]).unwrap();
                let what = "combined beside another group";
                check_combined(what, &exchanges[at], &streams[at], &tokens[at], &expected[at]);
            }
        }
        exchanges.iter().for_each(meet);
    });
}
