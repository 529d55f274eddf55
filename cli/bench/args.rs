//! What `tokenrail bench` can be told.

use super::results::Section;
use crate::args::duration;
use crate::choices::BackendArgs;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// What to measure, how often and how long.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Numbers of ranks, of which the first is measured most closely [default: 2,4,8; 2 with --quick]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub ranks: Vec<u32>,
    /// Elements of a token
    #[arg(long, default_value_t = 7168)]
    pub hidden: u32,
    /// Experts over all ranks
    #[arg(long, default_value_t = 256)]
    pub experts: u32,
    /// Experts of a token
    #[arg(long, default_value_t = 8)]
    pub topk: u32,
    /// Tokens of each rank, for throughput [default: 128,4096 on GPUs, 4,16 on the emulator]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub tokens: Vec<u32>,
    /// Tokens of each rank, for low latency [default: 1,8,32,64,128,256 on GPUs, 1,4 on the emulator]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub few_tokens: Vec<u32>,
    /// Streaming multiprocessors of an operation, for throughput; those that a rank does not have are left out
    /// [default: 4,8,16,24,32,64 on GPUs, 1,2 on the emulator]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub sms: Vec<u32>,
    /// What hidden states, routings and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    #[command(flatten)]
    pub backend: BackendArgs,
    /// The core that the proxy stays on [default: where the system puts it]
    #[arg(long)]
    pub core: Option<usize>,
    /// How long to wait for a peer, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub timeout: Duration,

    /// What to measure [default: all of it]
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub sections: Vec<Section>,
    /// Runs of each measurement, whose spread is the noise
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// A first look, in a minute
    #[arg(long)]
    pub quick: bool,
    /// What has not begun by then is left out and named, such as 8m or 90s
    #[arg(long, default_value = "8m", value_parser = duration)]
    pub limit: Duration,
    /// Do not compare what is combined with the CPU reference
    #[arg(long)]
    pub no_check: bool,

    /// Write bench.json, bench.csv and report.html to DIR, anew after each part
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Tell what has changed since the results in FILE, a bench.json, beyond the noise of both
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

impl BenchArgs {
    /// Numbers of ranks, each once.
    pub fn ranks(&self) -> Vec<u32> {
        let default: &[u32] = if self.quick { &[2] } else { &[2, 4, 8] };
        let mut unique = Vec::new();
        for ranks in self.or(&self.ranks, default, default) {
            if !unique.contains(&ranks) {
                unique.push(ranks);
            }
        }
        unique
    }

    /// A list, or what stands for it on GPUs and on the emulator.
    pub fn or(&self, list: &[u32], gpu: &[u32], emulator: &[u32]) -> Vec<u32> {
        match list {
            [] if self.backend.is_gpu() => gpu.to_vec(),
            [] => emulator.to_vec(),
            list => list.to_vec(),
        }
    }

    /// Whether any of these sections was asked for.
    pub fn wants(&self, sections: &[Section]) -> bool {
        self.sections.is_empty() || sections.iter().any(|section| self.sections.contains(section))
    }
}

impl Section {
    /// As it is written.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
