//! What `tokenrail sweep` and `tokenrail tune` can be told.

use crate::args::duration;
use crate::choices::{BackendArgs, ElementName, GateName, HalfName};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use tokenrail::tuning::Operation;
use tokenrail::{Config, Error, ExpertMajor, Transport};

/// The shapes to try, and how.
#[derive(Args, Debug)]
pub struct ShapeArgs {
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
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4096")]
    pub tokens: Vec<u32>,
    /// Streaming multiprocessors of an operation; those that a rank does not have are left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4,8,12,16,24,32")]
    pub sms: Vec<u32>,
    /// What tokens are dispatched as
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "bf16,fp8")]
    pub element: Vec<ElementName>,
    /// What experts' outputs and combined rows are
    #[arg(long, value_enum, default_value = "bf16")]
    pub combined: HalfName,
    /// How experts are chosen
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "uniform")]
    pub gate: Vec<GateName>,
    /// Ways to exchange
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', default_value = "rank-major")]
    pub forms: Vec<Form>,
    /// Each expert's rows begin at a multiple of this, where they lie by expert
    #[arg(long, default_value_t = 128)]
    pub alignment: u32,
    /// What hidden states, routings and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub backend: BackendArgs,
    /// How long to wait for a peer, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Timed repetitions [default: 50 on GPUs, 3 on the emulator]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iterations: Option<u32>,
    /// Repetitions before the timed ones [default: 5 on GPUs, 1 on the emulator]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub warmup: Option<u32>,
    /// A first look: 10 timed repetitions after 2
    #[arg(long, conflicts_with_all = ["iterations", "warmup"])]
    pub quick: bool,
    /// Do not compare what is combined with the CPU reference
    #[arg(long)]
    pub no_check: bool,
    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

/// Settings of a sweep.
#[derive(Args, Debug)]
pub struct SweepArgs {
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Multiprocessors from a file that `tokenrail tune` has written, where it has some, instead of --sms
    #[arg(long, value_name = "FILE", conflicts_with = "sms")]
    pub tuning: Option<PathBuf>,
    /// Write all of it to FILE
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Settings of the tuner.
#[derive(Args, Debug)]
pub struct TuneArgs {
    #[command(flatten)]
    pub shape: ShapeArgs,
    /// Where to write what was found
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Ways to exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Rows by source rank
    RankMajor,
    /// Rows by expert too, filled by the dispatch, and summed before the combine
    ByExpert,
    /// Dispatch along the handle of an earlier one
    Cached,
    /// Copy engines move the rows
    CopyEngine,
    /// No bulk copies
    Plain,
}

impl Form {
    /// What moves rows.
    pub fn transport(self) -> Transport {
        if self == Self::CopyEngine { Transport::CopyEngine } else { Transport::Kernel }
    }

    /// What a tuning has numbers for, of its dispatch.
    pub fn dispatch(self) -> Operation {
        if self == Self::ByExpert { Operation::DispatchByExpert } else { Operation::Dispatch }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::RankMajor => "rank-major",
            Self::ByExpert => "by-expert",
            Self::Cached => "cached",
            Self::CopyEngine => "copy-engine",
            Self::Plain => "plain",
        }
    }
}

impl ShapeArgs {
    /// Timed repetitions, and those before.
    pub fn repetitions(&self) -> (u32, u32) {
        let (timed, warmup) = match (self.quick, self.backend.is_gpu()) {
            (true, _) => (10, 2),
            (false, true) => (50, 5),
            (false, false) => (3, 1),
        };
        (self.iterations.unwrap_or(timed), self.warmup.unwrap_or(warmup))
    }

    /// Most tokens of the list.
    ///
    /// # Errors
    /// [`Error::Config`] if a list is empty.
    pub fn most_tokens(&self) -> Result<u32, Error> {
        self.tokens.iter().copied().max().ok_or_else(|| Error::Config {
            field: "tokens",
            value: "nothing".into(),
            limit: "there must be at least one number".into(),
        })
    }

    /// Whether there can be exchanges of these shapes.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting that is not possible.
    pub fn check(&self) -> Result<(), Error> {
        for &form in &self.forms {
            for &element in &self.element {
                self.config(element, form)?.shape(self.ranks)?;
            }
        }
        Ok(())
    }

    /// Settings of the exchange for one element and form. Two dispatches are in flight: one is for barriers.
    ///
    /// # Errors
    /// As [`ShapeArgs::most_tokens`].
    pub fn config(&self, element: ElementName, form: Form) -> Result<Config, Error> {
        let expert_major = ExpertMajor { alignment: self.alignment, rows: None };
        Ok(Config {
            element: element.element(),
            combined: self.combined.half(),
            expert_major: (form == Form::ByExpert).then_some(expert_major),
            copy_engine: form == Form::CopyEngine,
            in_flight: 2,
            timeout: self.timeout,
            bulk_copy: (form == Form::Plain).then_some(false),
            ..Config::new(self.experts, self.topk, self.hidden, self.most_tokens()?)
        })
    }
}
