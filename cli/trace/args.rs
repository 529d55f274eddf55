//! What `tokenrail trace` can be told.

use crate::args::duration;
use crate::choices::{BackendArgs, ElementName, GateName};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use tokenrail::trace::Operation;
use tokenrail::{Config, ExpertMajor, LowLatency};

/// Tokens of a low-latency call unless told otherwise, at most.
const FEW: u32 = 128;

/// What to trace.
#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Write Chrome's trace JSON to FILE, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Trace these alone [default: all]
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub operation: Vec<OperationName>,
    /// Ranks; each is a thread of this process
    #[arg(long, default_value_t = 2)]
    pub ranks: u32,
    /// Tokens of each rank
    #[arg(long, default_value_t = 64)]
    pub tokens: u32,
    /// Tokens of each rank in low-latency calls [default: those of the others, at most 128]
    #[arg(long, value_name = "N")]
    pub few_tokens: Option<u32>,
    /// Elements of a token
    #[arg(long, default_value_t = 7168)]
    pub hidden: u32,
    /// Experts over all ranks
    #[arg(long, default_value_t = 256)]
    pub experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8)]
    pub topk: u32,
    /// How experts are chosen
    #[arg(long, value_enum, default_value = "uniform")]
    pub gate: GateName,
    /// What tokens are dispatched as; by low-latency calls as FP8
    #[arg(long, value_enum, default_value = "bf16")]
    pub element: ElementName,
    /// Have dispatch lay rows out by expert too, each expert's from a multiple of ALIGNMENT on
    #[arg(long, value_name = "ALIGNMENT")]
    pub by_expert: Option<u32>,
    /// Streaming multiprocessors that a kernel occupies [default: what the library takes]
    #[arg(long)]
    pub sms: Option<u32>,
    /// Move rows by plain loads and stores, without bulk copies
    #[arg(long)]
    pub plain: bool,
    /// What hidden states, routings and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub backend: BackendArgs,
    /// How long to wait for a peer, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Repetitions before the traced one [default: 10 on GPUs, 1 on the emulator]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub warmup: Option<u32>,
    /// Room for so many marks on each rank: one for each thing that a warp does
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub marks: u32,
    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

impl TraceArgs {
    /// Whether an operation is to be traced.
    pub fn has(&self, operation: Operation) -> bool {
        self.operation.is_empty() || self.operation.iter().any(|name| name.operation() == operation)
    }

    /// Whether there are calls of many tokens.
    pub fn has_many(&self) -> bool {
        self.has(Operation::Dispatch) || self.has(Operation::Combine)
    }

    /// Tokens of low-latency calls; `None` if there are none.
    pub fn few(&self) -> Option<u32> {
        let has = self.has(Operation::LowLatencyDispatch) || self.has(Operation::LowLatencyCombine);
        has.then(|| self.few_tokens.unwrap_or(self.tokens.min(FEW)))
    }

    /// Settings for the tokens of both kinds of calls.
    pub fn config(&self) -> Config {
        let tokens = if self.has_many() { self.tokens } else { 0 };
        let base = Config::new(self.experts, self.topk, self.hidden, tokens);
        Config {
            element: self.element.element(),
            expert_major: self.by_expert.map(|alignment| ExpertMajor { alignment, rows: None }),
            sms: self.sms,
            max_sms: self.sms.unwrap_or(0).max(base.max_sms),
            bulk_copy: self.plain.then_some(false),
            timeout: self.timeout,
            low_latency: self.few().map(|tokens| LowLatency { sms: self.sms, ..LowLatency::new(tokens) }),
            ..base
        }
    }

    /// Repetitions before the traced one.
    pub fn warmup(&self) -> u32 {
        self.warmup.unwrap_or(if self.backend.is_gpu() { 10 } else { 1 })
    }
}

/// Operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OperationName {
    /// Of many tokens
    Dispatch,
    /// Of many tokens
    Combine,
    /// Of few
    LowLatencyDispatch,
    /// Of few
    LowLatencyCombine,
}

impl OperationName {
    /// As the library has it.
    pub fn operation(self) -> Operation {
        match self {
            Self::Dispatch => Operation::Dispatch,
            Self::Combine => Operation::Combine,
            Self::LowLatencyDispatch => Operation::LowLatencyDispatch,
            Self::LowLatencyCombine => Operation::LowLatencyCombine,
        }
    }
}
