//! The routing problem: which tokens every rank has, and where they go.

use crate::args::RunArgs;
use crate::choices::GateName;
use crate::input;
use half::bf16;
use std::error::Error;
use std::thread;
use tokenrail::Config;
use tokenrail::oracle::{OracleError, Placement, Routing, TokenBatch, hidden_states, mask_some};

/// Most elements of all ranks' tokens: 8 GiB of bf16, of which the reference needs some ten times as much.
const MAX_ELEMENTS: u64 = 1 << 32;

/// What tokens and routing are drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Number of ranks.
    pub ranks: u32,
    /// How experts are chosen.
    pub gate: GateName,
    /// What decides.
    pub seed: u64,
    /// Ranks have different numbers of tokens.
    pub uneven: bool,
    /// One slot in so many is empty; 0: none.
    pub mask_one_in: u64,
}

/// What a run is about.
pub struct Workload {
    /// Number of ranks.
    pub ranks: u32,
    /// Settings of the exchange.
    pub config: Config,
    /// Who owns which experts.
    pub placement: Placement,
    /// How experts were chosen, as a dump records it.
    pub gate: String,
    /// bf16 hidden states of every rank, `[tokens, hidden]`.
    pub x: Vec<Vec<bf16>>,
    /// The same as they are dispatched, with their routing.
    pub batches: Vec<TokenBatch>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Workload {
    /// What the arguments ask for.
    ///
    /// # Errors
    /// Settings that are not possible; an input file that is none.
    pub fn new(args: &RunArgs) -> Result<Self, Box<dyn Error>> {
        match &args.input {
            None => Self::generate(args),
            Some(path) => Self::split(args, input::load(path, args.experts)?),
        }
    }

    fn generate(args: &RunArgs) -> Result<Self, Box<dyn Error>> {
        let config = args.config(args.topk, args.hidden, args.tokens);
        let RunArgs { ranks, gate, seed, uneven, mask_one_in, .. } = *args;
        Self::draw(config, &Source { ranks, gate, seed, uneven, mask_one_in })
    }

    /// Tokens and routing from a seed.
    ///
    /// # Errors
    /// Settings that are not possible.
    pub fn draw(config: Config, source: &Source) -> Result<Self, Box<dyn Error>> {
        check(&config, source.ranks)?;
        let (ranks, tokens, hidden) = (source.ranks as usize, config.tokens as usize, config.hidden as usize);
        let chooser = source.gate.chooser(config.experts, config.topk, config.hidden, source.seed)?;
        let tokens_of = |rank| if source.uneven { tokens * rank / (ranks - 1).max(1) } else { tokens };
        let routed = per_rank(source.ranks, |rank| {
            let (seed, tokens) = (source.seed.wrapping_add(rank as u64), tokens_of(rank));
            let x = hidden_states(seed, tokens, hidden);
            let routing = chooser.route(&x, tokens, seed)?;
            Ok::<_, OracleError>((x, routing))
        })?;
        Self::assemble(source, config, chooser.describe(), routed, Vec::new())
    }

    /// Contiguous blocks of the file's tokens.
    fn split(args: &RunArgs, input: input::Input) -> Result<Self, Box<dyn Error>> {
        let Routing { topk, topk_idx, topk_weights } = input.routing;
        let hidden = input.hidden;
        let tokens = input.x.len().checked_div(hidden).unwrap_or(0);
        let block = tokens.div_ceil(args.ranks.max(1) as usize);
        let size = |field, value: usize| {
            u32::try_from(value).map_err(|_| refuse(field, value as u64, "must be below 4294967296".into()))
        };
        let config = args.config(size("topk", topk)?, size("hidden", hidden)?, size("tokens", block)?);
        check(&config, args.ranks)?;
        let routed = (0..args.ranks as usize).map(|rank| {
            let of = |width: usize| {
                let end = |rank: usize| (rank * block).min(tokens) * width;
                end(rank)..end(rank + 1)
            };
            let (topk_idx, topk_weights) = (topk_idx[of(topk)].to_vec(), topk_weights[of(topk)].to_vec());
            (input.x[of(hidden)].to_vec(), Routing { topk, topk_idx, topk_weights })
        });
        let RunArgs { ranks, gate, seed, mask_one_in, .. } = *args;
        let source = Source { ranks, gate, seed, uneven: false, mask_one_in };
        Self::assemble(&source, config, "input file".into(), routed.collect(), input.notes)
    }

    fn assemble(
        source: &Source,
        config: Config,
        gate: String,
        routed: Vec<(Vec<bf16>, Routing)>,
        notes: Vec<String>,
    ) -> Result<Self, Box<dyn Error>> {
        let placement = Placement::new(source.ranks as usize, config.experts as usize)?;
        let hidden = config.hidden as usize;
        let batches = per_rank(source.ranks, |rank| {
            let (x, mut routing) = routed[rank].clone();
            let seed = source.seed.wrapping_add(rank as u64);
            mask_some(&mut routing.topk_idx, seed, source.mask_one_in);
            TokenBatch::of(config.element, &x, hidden, routing)?.check(&placement)
        })?;
        let x = routed.into_iter().map(|(x, _)| x).collect();
        Ok(Self { ranks: source.ranks, config, placement, gate, x, batches, notes })
    }
}

fn refuse(field: &'static str, value: u64, limit: String) -> tokenrail::Error {
    tokenrail::Error::Config { field, value: value.to_string(), limit }
}

/// What can be checked before anything large is allocated.
fn check(config: &Config, ranks: u32) -> Result<(), tokenrail::Error> {
    config.shape(ranks)?;
    let elements = u64::from(ranks) * u64::from(config.tokens) * u64::from(config.hidden);
    if elements > MAX_ELEMENTS {
        let limit =
            format!("ranks · tokens · hidden = {elements}, and the CPU reference takes {MAX_ELEMENTS}");
        return Err(refuse("tokens", config.tokens.into(), limit));
    }
    Ok(())
}

/// Runs `work` for every rank, each in a thread.
///
/// # Errors
/// The first rank's that has one.
pub fn per_rank<T, E>(ranks: u32, work: impl Fn(usize) -> Result<T, E> + Sync) -> Result<Vec<T>, E>
where
    T: Send,
    E: Send,
{
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..ranks as usize).map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(join).collect()
    })
}

/// A thread's result; its panic, if it had one, goes on here.
pub fn join<T>(thread: thread::ScopedJoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
