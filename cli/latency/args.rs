//! What `tokenrail latency` can be told.

use crate::args::duration;
use crate::choices::{BackendArgs, GateName};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use tokenrail::{CombineFormat, Config, DispatchFormat, LowLatency, Summation};

/// The shapes to try, and how.
#[derive(Args, Debug)]
pub struct LatencyArgs {
    /// Ranks; each is a thread of this process
    #[arg(long, default_value_t = 2)]
    pub ranks: u32,
    /// Elements of a token
    #[arg(long, default_value_t = 7168)]
    pub hidden: u32,
    /// Experts over all ranks
    #[arg(long, default_value_t = 256)]
    pub experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8)]
    pub topk: u32,
    /// Tokens of each rank
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8,32,64,128,256")]
    pub tokens: Vec<u32>,
    /// Streaming multiprocessors of a kernel [default: what the library takes]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub sms: Vec<u32>,
    /// What rows are dispatched as
    #[arg(long, value_enum, default_value = "fp8")]
    pub dispatch: DispatchName,
    /// What rows travel back as
    #[arg(long, value_enum, default_value = "bf16")]
    pub combine: CombineName,
    /// Who applies weights, and in what order rows are summed
    #[arg(long, value_enum, default_value = "by-rank")]
    pub summation: SummationName,
    /// How experts are chosen
    #[arg(long, value_enum, default_value = "uniform")]
    pub gate: GateName,
    /// What hidden states, routings and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub backend: BackendArgs,
    /// How long to wait for a peer, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Timed repetitions [default: 200 on GPUs, 3 on the emulator]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iterations: Option<u32>,
    /// Megabytes of weights that a kernel between the halves reads [default: 256 on GPUs, 0 on the emulator]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(0..=32_768))]
    pub weights: Option<u32>,
    /// Do not compare what is combined with the CPU reference
    #[arg(long)]
    pub no_check: bool,
    /// Write the results to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

impl LatencyArgs {
    /// Timed repetitions. The emulator's virtual times are of little use.
    pub fn iterations(&self) -> u32 {
        self.iterations.unwrap_or(if self.backend.is_gpu() { 200 } else { 3 })
    }

    /// Most tokens of the list.
    pub fn most_tokens(&self) -> u32 {
        self.tokens.iter().copied().max().unwrap_or(1)
    }

    /// Settings of the exchange.
    pub fn config(&self) -> Config {
        let low_latency = LowLatency {
            dispatch: self.dispatch.format(),
            combine: self.combine.format(),
            summation: self.summation.order(),
            ..LowLatency::new(self.most_tokens())
        };
        let base = Config::new(self.experts, self.topk, self.hidden, 0);
        let max_sms = self.sms.iter().copied().fold(base.max_sms, u32::max);
        Config { low_latency: Some(low_latency), timeout: self.timeout, max_sms, ..base }
    }

    /// Bytes of weights.
    pub fn weights(&self) -> usize {
        let default = if self.backend.is_gpu() { 256 } else { 0 };
        self.weights.unwrap_or(default) as usize * 1_000_000 / 16 * 16
    }
}

/// Formats of dispatched rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DispatchName {
    /// bf16
    Bf16,
    /// FP8 e4m3 with f32 scales
    Fp8,
    /// FP8 e4m3 with powers of two as scales, in f32
    Fp8PowerOfTwo,
    /// FP8 e4m3 with packed UE8M0 scales
    Fp8Ue8m0,
}

impl DispatchName {
    /// As the library has it.
    pub fn format(self) -> DispatchFormat {
        match self {
            Self::Bf16 => DispatchFormat::Bf16,
            Self::Fp8 => DispatchFormat::Fp8,
            Self::Fp8PowerOfTwo => DispatchFormat::Fp8PowerOfTwo,
            Self::Fp8Ue8m0 => DispatchFormat::Fp8Ue8m0,
        }
    }
}

/// Formats of combined rows on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CombineName {
    /// bf16
    Bf16,
    /// FP8 e4m3 with f32 scales
    Fp8,
    /// A sign and 9 bits of logarithm
    Log10,
}

impl CombineName {
    /// As the library has it.
    pub fn format(self) -> CombineFormat {
        match self {
            Self::Bf16 => CombineFormat::Bf16,
            Self::Fp8 => CombineFormat::Fp8,
            Self::Log10 => CombineFormat::Log10,
        }
    }
}

/// Orders of summation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SummationName {
    /// Each rank's experts first
    ByRank,
    /// All slots in their order
    BySlot,
}

impl SummationName {
    /// As the library has it.
    pub fn order(self) -> Summation {
        match self {
            Self::ByRank => Summation::ByRank,
            Self::BySlot => Summation::BySlot,
        }
    }
}
