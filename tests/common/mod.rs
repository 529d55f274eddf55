//! One exchange, checked in every part against the CPU reference.

pub mod formats;
pub mod input;
pub mod overlap;
pub mod probe;
pub mod random;

use input::{POISON, numbers, routing, same};
use tokenrail::gpu::{Plain, View};
use tokenrail::oracle::{self, ExpertMajor, Placement, Routing as Route, Side, TokenBatch};
use tokenrail::{
    Backend, Buffer, Config, Exchange, Group, Half, Input, Member, Output, Outputs, Overflow, Received,
    Routing, ScaleLayout, Slots, Stream, Tokens, Transport, Weights,
};

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
    /// How it is asked for.
    pub calls: Calls,
}

/// How an exchange is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// The number of tokens is read on the device.
    pub tokens_on_device: bool,
    /// Input scales lie word by word.
    pub scales_by_word: bool,
    /// What moves rows.
    pub transport: Transport,
    /// Multiprocessors.
    pub sms: Option<u32>,
    /// Where the outputs are.
    pub outputs: Where,
    /// Bias tensors.
    pub biases: usize,
    /// What goes back to slots.
    pub slots: Back,
    /// How often the handle is followed.
    pub follow: usize,
}

/// Where experts leave their outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Where {
    /// In the arena.
    #[default]
    InPlace,
    /// In foreign memory, a row for each received row.
    Rows,
    /// Expert-major, weighted by what came with the tokens.
    ByExpert,
    /// Expert-major, weighted by other weights.
    ByExpertGiven,
    /// Expert-major, summed alone.
    ByExpertUnweighted,
}

/// What goes back to the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Back {
    /// Nothing.
    #[default]
    Nothing,
    /// Values in the arena.
    InPlace,
    /// Values in foreign memory.
    Foreign,
}

impl Case {
    /// With plain calls.
    pub fn new(config: Config, tokens: &[&[usize]], mask_one_in: u64) -> Self {
        let tokens = tokens.iter().map(|tokens| tokens.to_vec()).collect();
        Self { config, tokens, mask_one_in, seed: 1, calls: Calls::default() }
    }
}

/// Runs the case's rounds, one after the other on the same exchange, and panics where anything differs from the
/// reference.
pub fn check(case: &Case, backend: &Backend) {
    let ranks = case.tokens[0].len();
    let near = near_ranks(&case.config, ranks) as u32;
    check_among(case, Group::on_nodes(ranks as u32, near, backend).unwrap());
}

/// The same among these ranks, which may be some of a group.
pub fn check_among(case: &Case, members: Vec<Member>) {
    let ranks = case.tokens[0].len();
    let placement = Placement::new(ranks, case.config.experts as usize).unwrap();
    let rounds: Vec<_> = (0..case.tokens.len()).map(|round| Round::new(case, round, &placement)).collect();
    std::thread::scope(|scope| {
        for member in members {
            scope.spawn(|| {
                let before = member.gpu().allocated_bytes();
                let gpu = member.gpu().clone();
                let exchange = Exchange::new(member, &case.config).unwrap();
                let promised = tokenrail::bytes_for(&case.config, ranks as u32).unwrap();
                assert_eq!(gpu.allocated_bytes() - before, promised, "bytes of an exchange");
                let stream = exchange.gpu().stream().unwrap();
                let mut rank = Rank { case, exchange, stream, kept: Vec::new() };
                rank.poison();
                rounds.iter().for_each(|round| rank.round(round));
                // Memory is given back when all ranks are done: on a shared GPU that waits for every rank's kernels.
                rank.meet();
            });
        }
    });
}

/// Ranks that reach each other's memory.
fn near_ranks(config: &Config, ranks: usize) -> usize {
    config.internode.as_ref().and(config.ranks_per_node).map_or(ranks, |ranks| ranks as usize)
}

/// What one round's ranks send, and what has to come of it.
struct Round {
    /// The first dispatch, and those that follow its handle.
    passes: Vec<Pass>,
    layouts: Vec<oracle::Layout>,
}

struct Pass {
    batches: Vec<TokenBatch>,
    received: Vec<oracle::Received>,
    by_expert: Vec<Option<ExpertMajor>>,
    /// By rank: what the experts leave, in rows of 16-bit floats where the calls want it.
    outputs: Vec<Vec<u16>>,
    /// f32 `[received, topk]`.
    weights: Vec<Vec<f32>>,
    /// f32 `[received, topk]`.
    slots: Vec<Vec<f32>>,
    /// By bias, by rank.
    biases: Vec<Vec<Vec<u16>>>,
    combined: Vec<Vec<u16>>,
    combined_slots: Vec<Vec<f32>>,
}

fn halves(half: Half, seed: u64, count: usize) -> Vec<u16> {
    numbers(seed, count).into_iter().map(|value| half.round(value)).collect()
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    oracle::hidden_states(seed, 1, count).into_iter().map(|value| (value.to_bits() >> 3) as u8).collect()
}

/// A rank's tokens: of the config's element, with its sides.
pub fn batch(config: &Config, seed: u64, tokens: usize, routing: Route) -> TokenBatch {
    let hidden = config.hidden as usize;
    let batch = TokenBatch::of(config.element, &oracle::hidden_states(seed, tokens, hidden), hidden, routing);
    let sides = (0..).zip(&config.sides).map(|(side, &wide)| Side {
        bytes: wide as usize,
        data: bytes(seed + 7 + side, tokens * wide as usize),
    });
    batch.and_then(|batch| batch.with_sides(sides.collect())).unwrap()
}

impl Round {
    fn new(case: &Case, round: usize, placement: &Placement) -> Self {
        let config = &case.config;
        let seed = |rank: usize, pass: usize| case.seed * 100_000 + (round * 1000 + rank * 10 + pass) as u64;
        let routes: Vec<_> = (0..)
            .zip(&case.tokens[round])
            .map(|(rank, &tokens)| routing(config, case.mask_one_in, seed(rank, 0), tokens))
            .collect();
        let passes: Vec<_> = (0..=case.calls.follow)
            .map(|pass| {
                let batches = routes.iter().enumerate().map(|(rank, route)| {
                    let mut route = route.clone();
                    if pass > 0 {
                        // Every other follower has weights of its own; the rest send zeros.
                        let weights = numbers(seed(rank, pass) + 3, route.topk_weights.len());
                        let own = pass % 2 == 0;
                        route.topk_weights =
                            weights.into_iter().map(|weight| if own { weight } else { 0.0 }).collect();
                    }
                    let batch = batch(config, seed(rank, pass), case.tokens[round][rank], route);
                    batch.check(placement).unwrap()
                });
                Pass::new(case, batches.collect(), placement, seed(0, pass) ^ 0xface)
            })
            .collect();
        let per_node = config.ranks_per_node.map_or(placement.ranks(), |ranks| ranks as usize);
        let layouts =
            passes[0].batches.iter().map(|batch| oracle::layout(batch, placement, per_node)).collect();
        Self { passes, layouts }
    }
}

impl Pass {
    fn new(case: &Case, batches: Vec<TokenBatch>, placement: &Placement, seed: u64) -> Self {
        let config = &case.config;
        let (half, hidden, topk) = (config.combined, config.hidden as usize, config.topk as usize);
        let capped = config.overflow == Overflow::Cap;
        let room = config.receive_rows.filter(|_| capped).map(|rows| rows as usize);
        let received = oracle::dispatch(&batches, placement, room);
        let by_expert: Vec<_> = received
            .iter()
            .map(|received| {
                let form = config.expert_major?;
                let own = placement.experts_of(received.rank).len();
                let room = form.rows.filter(|_| capped).map(|rows| rows as usize);
                Some(oracle::expert_major(received, own, form.alignment as usize, room))
            })
            .collect();
        let ranks = || (0..).zip(received.iter().zip(&by_expert));
        let outputs: Vec<_> = ranks()
            .map(|(rank, (received, by_expert))| {
                let rows = match (case.calls.outputs, by_expert) {
                    (Where::InPlace | Where::Rows, _) | (_, None) => received.tokens(),
                    (_, Some(by_expert)) => by_expert.len(),
                };
                halves(half, seed + rank, rows * hidden)
            })
            .collect();
        let slot_numbers = |salt: u64| -> Vec<Vec<f32>> {
            ranks()
                .map(|(rank, (received, _))| numbers(seed + salt + rank, received.tokens() * topk))
                .collect()
        };
        let (weights, slots) = (slot_numbers(100), slot_numbers(200));
        let partial: Vec<_> = ranks()
            .zip(&outputs)
            .map(|((rank, (received, by_expert)), outputs)| {
                let weights = match case.calls.outputs {
                    Where::InPlace | Where::Rows => return outputs.clone(),
                    Where::ByExpert => Some(&received.topk_weights[..]),
                    Where::ByExpertGiven => Some(&weights[rank as usize][..]),
                    Where::ByExpertUnweighted => None,
                };
                let positions = &by_expert.as_ref().expect("the config has the form").positions;
                oracle::reduce(outputs, positions, weights, topk, hidden, half)
            })
            .collect();
        let biases: Vec<Vec<_>> = (0..case.calls.biases as u64)
            .map(|bias| {
                let of = |(rank, batch): (u64, &TokenBatch)| {
                    halves(half, seed + 300 + 50 * bias + rank, batch.tokens * hidden)
                };
                (0..).zip(&batches).map(of).collect()
            })
            .collect();
        let near = near_ranks(config, batches.len());
        let combined = oracle::combine_on_nodes(&partial, &batches, placement, near, half, &biases, room);
        let combined_slots = oracle::combine_weights(&slots, &batches, placement, room);
        Self { batches, received, by_expert, outputs, weights, slots, biases, combined, combined_slots }
    }
}

/// One rank at work.
struct Rank<'a> {
    case: &'a Case,
    exchange: Exchange,
    stream: Stream,
    /// What must outlive the other ranks' kernels.
    kept: Vec<Buffer>,
}

impl Rank<'_> {
    fn number(&self) -> usize {
        self.exchange.rank() as usize
    }

    fn meet(&self) {
        self.exchange.all_gather_bytes(Vec::new(), "a step of the case", self.case.config.timeout).unwrap();
    }

    fn upload<T: Plain>(&mut self, values: &[T]) -> View {
        let buffer = self.exchange.gpu().upload(values).unwrap();
        let view = buffer.view();
        self.kept.push(buffer);
        view
    }

    /// Memory full of poison.
    fn room(&mut self, bytes: usize) -> View {
        let buffer = self.exchange.gpu().alloc(bytes).unwrap();
        let view = buffer.view();
        self.kept.push(buffer);
        self.fill(view);
        view
    }

    fn fill(&self, view: View) {
        if view.bytes() > 0 {
            self.exchange.gpu().fill(&self.stream, view, POISON).unwrap();
        }
    }

    /// Memory that begins with these values and goes on, to `bytes`, with poison.
    fn padded<T: Plain>(&mut self, values: &[T], bytes: usize) -> View {
        let view = self.room(bytes);
        self.put(view, values);
        view
    }

    /// Writes there in the stream's order, as the kernels of experts would.
    fn put<T: Plain>(&mut self, view: View, values: &[T]) {
        if !values.is_empty() {
            let from = self.upload(values);
            self.exchange.gpu().copy(&self.stream, from, view, from.bytes()).unwrap();
        }
    }

    /// Fills everything that peers and this rank will write. Dispatches of no tokens give the views of it.
    fn poison(&mut self) {
        let none = self.upload(&[0u32; 0]);
        let sides = vec![none; self.case.config.sides.len()];
        for _ in 0..self.case.config.in_flight {
            let input = Input { sides: &sides, ..Input::new(none, none, none, 0) };
            let received = self.exchange.dispatch(&self.stream, &input).unwrap();
            self.exchange.finish(&self.stream).unwrap();
            let mut views = vec![
                received.x(),
                received.x_scales(),
                received.topk_idx(),
                received.topk_weights(),
                received.sources(),
                received.outputs(),
                received.slot_outputs(),
            ];
            views.extend((0..sides.len()).map(|side| received.side(side)));
            if let Some(form) = received.by_expert() {
                views.extend([form.x, form.x_scales, form.weights, form.experts, form.rows, form.positions]);
            }
            views.into_iter().for_each(|view| self.fill(view));
        }
        self.stream.synchronize().unwrap();
        // Nobody sends before all are poisoned.
        self.meet();
    }

    fn round(&mut self, round: &Round) {
        let mut first = None;
        for pass in &round.passes {
            let batch = &pass.batches[self.number()];
            if first.is_none() {
                self.check_layout(batch, &round.layouts[self.number()]);
            }
            let received = self.dispatch(batch, first.as_ref());
            self.check_received(&received, pass);
            self.combine(&received, pass);
            first.get_or_insert(received);
        }
    }

    fn check_layout(&mut self, batch: &TokenBatch, want: &oracle::Layout) {
        let rank = self.number();
        let topk_idx = self.upload(&batch.topk_idx);
        let layout = self.exchange.layout(&self.stream, topk_idx, batch.tokens as u32).unwrap();
        for (what, got, want) in [
            ("layout's tokens_per_rank", &layout.tokens_per_rank, &want.tokens_per_rank),
            ("layout's tokens_per_node", &layout.tokens_per_node, &want.tokens_per_node),
            ("layout's tokens_per_expert", &layout.tokens_per_expert, &want.tokens_per_expert),
        ] {
            same(what, rank, &self.download::<u32>(got.view(), want.len()), want);
        }
        let inside: Vec<u8> = self.download(layout.is_token_in_rank.view(), want.is_token_in_rank.len());
        let want_inside: Vec<u8> = want.is_token_in_rank.iter().map(|&inside| inside.into()).collect();
        same("is_token_in_rank", rank, &inside, &want_inside);
        let tokenrail::Layout { tokens_per_rank, tokens_per_node, tokens_per_expert, is_token_in_rank } =
            layout;
        self.kept.extend([tokens_per_rank, tokens_per_node, tokens_per_expert, is_token_in_rank]);
    }

    fn download<T: Plain>(&self, view: View, count: usize) -> Vec<T> {
        self.exchange.gpu().download(&self.stream, view, count).unwrap()
    }

    /// A new routing, or that of an earlier dispatch.
    fn dispatch(&mut self, batch: &TokenBatch, follow: Option<&Received>) -> Received {
        let (config, calls) = (&self.case.config, self.case.calls);
        let room = config.tokens as usize;
        let x = self.upload(&batch.rows);
        let words = batch.scale_words();
        let (x_scales, stride) = if words == 0 {
            (None, None)
        } else if calls.scales_by_word {
            let stride = batch.tokens + 3;
            let mut turned = vec![0x5a5a_5a5a; words * stride];
            for (at, &scale) in batch.scales.iter().enumerate() {
                turned[at % words * stride + at / words] = scale;
            }
            (Some(self.upload(&turned)), Some(stride as u32))
        } else {
            (Some(self.upload(&batch.scales)), None)
        };
        let sides: Vec<_> = batch.sides.iter().map(|side| self.upload(&side.data)).collect();
        let weights = self.upload(&batch.topk_weights);
        let none = batch.topk_weights.iter().all(|&weight| weight == 0.0);
        let routing = match follow {
            Some(first) => {
                Routing::Follow { handle: first.handle(), topk_weights: (!none).then_some(weights) }
            }
            None => Routing::New {
                topk_idx: self.upload(&batch.topk_idx),
                topk_weights: weights,
                tokens: Tokens::Host(batch.tokens as u32),
            },
        };
        let mut input = Input {
            x_scales,
            x_scales_stride: stride,
            sides: &sides,
            routing,
            transport: calls.transport,
            sms: calls.sms,
            ..Input::new(x, x, x, 0)
        };
        let (big_x, big_scales, big_sides);
        if calls.tokens_on_device {
            // Arrays have room for all tokens that there could be.
            big_x = self.padded(&batch.rows, room * batch.row_bytes());
            big_scales = self.padded(&batch.scales, 4 * room * words);
            big_sides =
                batch.sides.iter().map(|side| self.padded(&side.data, room * side.bytes)).collect::<Vec<_>>();
            input.x = big_x;
            input.x_scales = (words > 0).then_some(big_scales);
            input.x_scales_stride = None;
            input.sides = &big_sides;
            let slots = 4 * room * batch.topk;
            let tokens = Tokens::Device(self.upload(&[batch.tokens as u32]));
            input.routing = match input.routing {
                Routing::New { .. } => Routing::New {
                    topk_idx: self.padded(&batch.topk_idx, slots),
                    topk_weights: self.padded(&batch.topk_weights, slots),
                    tokens,
                },
                Routing::Follow { handle, topk_weights } => {
                    let weights = topk_weights.map(|_| self.padded(&batch.topk_weights, slots));
                    Routing::Follow { handle, topk_weights: weights }
                }
            };
        }
        self.exchange.dispatch(&self.stream, &input).unwrap()
    }

    fn check_received(&mut self, received: &Received, pass: &Pass) {
        let rank = self.number();
        let want = &pass.received[rank];
        let counts = self.exchange.counts(&self.stream, received).unwrap();
        assert_eq!(counts.rows as usize, want.tokens(), "rows of rank {rank}");
        same("tokens_per_source", rank, &counts.tokens_per_source, &want.tokens_per_source);
        assert_eq!(counts.dropped_rows, want.dropped, "rows left out on rank {rank}");
        let here =
            |ranks: &[oracle::Received]| -> u32 { ranks.iter().map(|to| to.tokens_per_source[rank]).sum() };
        let config = &self.case.config;
        let placement = Placement::new(pass.batches.len(), config.experts as usize).unwrap();
        let routes: u32 = (0..pass.batches[rank].tokens)
            .flat_map(|token| (0..placement.ranks()).map(move |to| (token, to)))
            .filter(|&(token, to)| placement.goes_to(pass.batches[rank].experts_of(token), to))
            .count() as u32;
        assert_eq!(counts.dropped_routes, routes - here(&pass.received), "routes left out by rank {rank}");

        let rows = want.tokens();
        same("rows", rank, &self.download::<u8>(received.x(), want.rows.len()), &want.rows);
        self.same_scales("scales", received.x_scales(), config_rows(config, &placement), &want.scales, rows);
        same("topk_idx", rank, &self.download(received.topk_idx(), want.topk_idx.len()), &want.topk_idx);
        let weights = self.download(received.topk_weights(), want.topk_weights.len());
        same("topk_weights", rank, &bits(&weights), &bits(&want.topk_weights));
        let sources: Vec<i32> = want
            .source_rank
            .iter()
            .zip(&want.source_token)
            .flat_map(|(&rank, &token)| [rank, token])
            .collect();
        same("sources", rank, &self.download(received.sources(), 2 * rows), &sources);
        for (at, side) in want.sides.iter().enumerate() {
            same("side", rank, &self.download::<u8>(received.side(at), side.data.len()), &side.data);
        }
        let Some(want) = &pass.by_expert[rank] else {
            same("tokens_per_expert", rank, &counts.tokens_per_expert, &want.tokens_per_expert);
            return;
        };
        same("tokens_per_expert", rank, &counts.tokens_per_expert, &want.counts);
        same("expert_starts", rank, &counts.expert_starts, &want.starts);
        assert_eq!(counts.dropped_pairs, want.dropped, "pairs left out on rank {rank}");
        let form = received.by_expert().expect("the config has the form");
        let room = form.experts.bytes() / 4;
        let past = |values: &[i32]| -> Vec<i32> {
            values.iter().copied().chain(std::iter::repeat(-1)).take(room).collect()
        };
        same("expert-major experts", rank, &self.download(form.experts, room), &past(&want.expert_of_row));
        same("expert-major sources", rank, &self.download(form.rows, room), &past(&want.source_row));
        let weights = self.download(form.weights, want.len());
        same("expert-major weights", rank, &bits(&weights), &bits(&want.weights));
        let positions = self.download(form.positions, want.positions.len());
        same("positions", rank, &positions, &want.positions);
        same("expert-major rows", rank, &self.download::<u8>(form.x, want.rows.len()), &want.rows);
        self.same_scales("expert-major scales", form.x_scales, room, &want.scales, want.len());
    }

    /// Compares the scales of `rows` rows, laid out for `room` rows.
    fn same_scales(&self, what: &str, view: View, room: usize, want: &[u32], rows: usize) {
        if want.is_empty() {
            return;
        }
        let words = want.len() / rows;
        let got: Vec<u32> = self.download(view, view.bytes() / 4);
        let stride = room.next_multiple_of(4);
        let at = |row: usize, word: usize| match self.case.config.scale_layout {
            ScaleLayout::RowMajor => row * words + word,
            ScaleLayout::ColumnMajor => word * stride + row,
        };
        let got: Vec<u32> = (0..want.len()).map(|index| got[at(index / words, index % words)]).collect();
        same(what, self.number(), &got, want);
    }

    fn combine(&mut self, received: &Received, pass: &Pass) {
        let (rank, calls) = (self.number(), self.case.calls);
        let config = &self.case.config;
        let row_bytes = 2 * config.hidden as usize;
        let slot_bytes = 4 * config.topk as usize;
        let room = received.outputs().bytes() / row_bytes;
        let tokens = if calls.tokens_on_device { config.tokens as usize } else { pass.batches[rank].tokens };
        let outputs = &pass.outputs[rank];
        let outputs = match calls.outputs {
            Where::InPlace => {
                self.fill(received.outputs());
                self.put(received.outputs(), outputs);
                Outputs::InPlace
            }
            Where::Rows => Outputs::Rows(self.padded(outputs, room * row_bytes)),
            by_expert => {
                let form = received.by_expert().expect("the config has the form");
                // NaN where there is padding: it must not be read.
                let mut outputs = outputs.clone();
                let experts = &pass.by_expert[rank].as_ref().expect("the config has the form").expert_of_row;
                for (row, _) in experts.iter().enumerate().filter(|&(_, &expert)| expert < 0) {
                    outputs[row * row_bytes / 2..][..row_bytes / 2].fill(0x7fff);
                }
                let view = self.padded(&outputs, form.experts.bytes() / 4 * row_bytes);
                let weights = match by_expert {
                    Where::ByExpert => Weights::Received,
                    Where::ByExpertGiven => {
                        Weights::Given(self.padded(&pass.weights[rank], room * slot_bytes))
                    }
                    _ => Weights::None,
                };
                Outputs::ByExpert(view, weights)
            }
        };
        let biases: Vec<_> =
            pass.biases.iter().map(|biases| self.padded(&biases[rank], tokens * row_bytes)).collect();
        let slots_out = self.room(tokens * slot_bytes);
        let slots = match calls.slots {
            Back::Nothing => None,
            Back::InPlace => {
                self.put(received.slot_outputs(), &pass.slots[rank]);
                Some(Slots { values: None, combined: slots_out })
            }
            Back::Foreign => {
                let values = self.padded(&pass.slots[rank], room * slot_bytes);
                Some(Slots { values: Some(values), combined: slots_out })
            }
        };
        let combined = self.room(tokens * row_bytes);
        let output = Output {
            outputs,
            biases: &biases,
            slots,
            transport: calls.transport,
            sms: calls.sms,
            ..Output::new(combined)
        };
        self.exchange.combine_with(&self.stream, received, &output).unwrap();
        self.exchange.finish(&self.stream).unwrap();
        let want = &pass.combined[rank];
        same("combined", rank, &self.download(combined, want.len()), want);
        let past: Vec<u8> = self.download(combined, tokens * row_bytes);
        let past = &past[2 * want.len()..];
        assert!(past.iter().all(|&byte| byte == POISON), "combined on rank {rank}: written past its tokens");
        if slots.is_some() {
            let want = &pass.combined_slots[rank];
            same("slots", rank, &bits(&self.download(slots_out, want.len())), &bits(want));
        }
    }
}

/// Rows that a rank has room for.
fn config_rows(config: &Config, placement: &Placement) -> usize {
    config.receive_rows.unwrap_or(config.tokens * placement.ranks() as u32) as usize
}

/// Bits, so that −0 and NaN compare as what they are.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
