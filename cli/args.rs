//! What `tokenrail run` can be told.

use crate::choices::{BackendArgs, ElementName, GateName, HalfName};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use tokenrail::{Config, ExpertMajor};

/// Most multiprocessors of a call, unless it is told to take more: what the library has by default.
const MAX_SMS: u32 = 64;

/// Settings of a run.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Ranks; each is a thread of this process
    #[arg(long, default_value_t = 4)]
    pub ranks: u32,
    /// Tokens of each rank
    #[arg(long, default_value_t = 64, conflicts_with = "input")]
    pub tokens: u32,
    /// Elements of a token
    #[arg(long, default_value_t = 7168, conflicts_with = "input")]
    pub hidden: u32,
    /// Experts over all ranks
    #[arg(long, default_value_t = 256)]
    pub experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8, conflicts_with = "input")]
    pub topk: u32,
    /// How experts are chosen
    #[arg(long, value_enum, default_value = "deepseek-v3", conflicts_with = "input")]
    pub gate: GateName,
    /// Take tokens and routing from a safetensors file: x, topk_idx, topk_weights
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// What tokens are dispatched as
    #[arg(long, value_enum, default_value = "bf16")]
    pub element: ElementName,
    /// What experts' outputs and combined rows are
    #[arg(long, value_enum, default_value = "bf16")]
    pub combined: HalfName,
    /// Have dispatch lay rows out by expert too, each expert's from a multiple of ALIGNMENT on, and experts work there
    #[arg(long, value_name = "ALIGNMENT")]
    pub by_expert: Option<u32>,
    /// Dispatch along the first dispatch's handle too, checked, and timed where other things are
    #[arg(long)]
    pub follow: bool,
    /// Give ranks different numbers of tokens, from none on the first to all on the last
    #[arg(long, conflicts_with = "input")]
    pub uneven: bool,
    /// Empty one expert slot in N, at random; 0 for none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub mask_one_in: u64,
    /// What hidden states, gate weights and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub backend: BackendArgs,
    /// Streaming multiprocessors that a kernel occupies [default: 16 on a GPU, 2 on the emulator]
    #[arg(long)]
    pub sms: Option<u32>,
    /// Move rows by plain loads and stores, without bulk copies
    #[arg(long)]
    pub plain: bool,
    /// Multiprocessors of dispatch and combine from a file that `tokenrail tune` has written, where it has some
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sms", "input"])]
    pub tuning: Option<PathBuf>,
    /// Have copy engines move the rows
    #[arg(long, conflicts_with = "by_expert")]
    pub copy_engine: bool,
    /// Most rows that a rank can receive [default: ranks * tokens]
    #[arg(long, value_name = "N")]
    pub receive_rows: Option<u32>,
    /// How long to wait for a peer, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// Timed repetitions [default: 20 on GPUs, 0 on the emulator]
    #[arg(long, value_name = "N")]
    pub iterations: Option<u32>,
    /// Repetitions before the timed ones
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warmup: u32,

    /// Write everything sent, received and combined to DIR, as one safetensors file a rank
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Print the verdict and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

impl RunArgs {
    /// The settings of the exchange for tokens of this size.
    pub fn config(&self, topk: u32, hidden: u32, tokens: u32) -> Config {
        Config {
            element: self.element.element(),
            combined: self.combined.half(),
            expert_major: self.by_expert.map(|alignment| ExpertMajor { alignment, rows: None }),
            copy_engine: self.copy_engine,
            receive_rows: self.receive_rows,
            sms: self.sms,
            timeout: self.timeout,
            bulk_copy: self.plain.then_some(false),
            max_sms: self.sms.unwrap_or(0).max(MAX_SMS),
            ..Config::new(self.experts, topk, hidden, tokens)
        }
    }

    /// Timed repetitions. The emulator's virtual times are of little use.
    pub fn iterations(&self) -> u32 {
        self.iterations.unwrap_or(if self.backend.is_gpu() { 20 } else { 0 })
    }
}

/// A number of seconds, or one with the unit ms, s or m.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("unit {unit:?}: must be ms, s or m")),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| "must be a number and a unit, such as 10s or 500ms")?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "10h", "-1s", "1e300s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
