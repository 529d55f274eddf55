//! What a benchmark leaves: everything that its tables, its report and a later comparison need.

use crate::sweep::Spread;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::fs;
use std::path::Path;

/// Of this format.
pub const VERSION: u32 = 1;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// Of the library.
    pub tokenrail: String,
    /// When it began, UTC, as in `2026-11-24T16:00:00Z`.
    pub date: String,
    /// `cuda`, or `emulator`, whose times are virtual and say nothing of a GPU.
    pub backend: String,
    /// Of the driver, if there is one.
    pub driver: Option<String>,
    /// The GPUs in use, each once.
    pub devices: Vec<String>,
    /// The arguments that repeat it.
    pub command: String,
    /// Elements of a token.
    pub hidden: u32,
    /// Experts over all ranks.
    pub experts: u32,
    /// Experts of a token.
    pub topk: u32,
    /// How long all of it took.
    pub seconds: f64,
    /// What the machine gives, measured in the same run.
    pub ceilings: Vec<Ceiling>,
    /// Measurements.
    pub rows: Vec<Row>,
    /// Who sends how much to whom.
    pub traffic: Vec<Traffic>,
    /// What the time of low-latency calls is made of.
    pub budgets: Vec<Budget>,
}

/// Something that no call can be quicker than.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// What it is.
    pub of: Limit,
    /// Ranks that did it at once.
    pub ranks: u32,
    /// Multiprocessors of each, where it depends on them.
    pub sms: Option<u32>,
    /// GB/s each way of a copy, µs of the others.
    pub value: f64,
    /// Of repeated runs: largest less smallest, over the median.
    pub noise: f64,
}

/// Kinds of ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// A plain copy to the next rank by as many multiprocessors.
    Copy,
    /// The same by copy engines.
    CopyEngine,
    /// A flag's way to the next rank, of its way round all of them.
    Flag,
    /// A kernel that does nothing.
    Launch,
    /// The same kernel with nothing beside it. It stands in rows only.
    Alone,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// Dispatch and combine of many tokens.
    Throughput,
    /// Whole low-latency calls.
    LowLatency,
    /// Their halves, and what runs beside them.
    Overlap,
    /// Rows moved by copy engines.
    CopyEngine,
    /// The ring of commands and its proxy.
    Proxy,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Of which part.
    pub section: Section,
    /// What was timed, such as `dispatch`.
    pub operation: String,
    /// Which form of it, such as `fp8 by-expert uniform`.
    pub variant: String,
    /// Ranks.
    pub ranks: u32,
    /// Tokens of each, where it depends on them.
    pub tokens: Option<u32>,
    /// Multiprocessors, where it depends on them.
    pub sms: Option<u32>,
    /// µs of the slowest rank, of all repeated runs together; for the proxy, of a command.
    pub time: Spread,
    /// Of repeated runs' medians: largest less smallest, over the median.
    pub noise: f64,
    /// Bytes that the busiest rank sends or receives, one way.
    pub bytes: Option<u64>,
    /// Of these, by the median.
    pub gb_per_s: Option<f64>,
    /// What it is compared with.
    pub limit: Option<Limit>,
    /// The ceiling's value: GB/s of copies; for the others µs, the sum of all flights and launches that the call cannot do
    /// without.
    pub ceiling: Option<f64>,
    /// How near it comes, 1 at best: GB/s over the ceiling's, or the ceiling's µs over the median.
    pub ratio: Option<f64>,
}

/// Bytes of rows and scales from each rank to each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Of what, such as `dispatch fp8, 4096 tokens, uniform`.
    pub name: String,
    /// `[from][to]`.
    pub bytes: Vec<Vec<u64>>,
}

/// Parts that a low-latency call's time is made of, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Of which call, such as `dispatch fp8, 128 tokens, 2 ranks`.
    pub name: String,
    /// Name and µs of each.
    pub parts: Vec<(String, f64)>,
    /// µs of the whole call.
    pub whole: f64,
}

/// Reads what a benchmark has left.
///
/// # Errors
/// A file that cannot be read, is none of this format, or has traffic that is not from each rank to each; with its name.
pub fn read(path: &Path) -> Result<Results, String> {
    /// What all versions have.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let named = |error: &dyn Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| named(&error))?;
    let no_benchmark = |error| named(&format_args!("not what `tokenrail bench` writes: {error}"));
    let Any { version } = serde_json::from_str(&text).map_err(no_benchmark)?;
    if version != VERSION {
        return Err(named(&format_args!("version = {version}: must be {VERSION}")));
    }
    let results: Results = serde_json::from_str(&text).map_err(no_benchmark)?;
    for Traffic { name, bytes } in &results.traffic {
        let ranks = bytes.len();
        if let Some((from, row)) = bytes.iter().enumerate().find(|(_, row)| row.len() != ranks) {
            let numbers = row.len();
            let error = format!("traffic, {name}: bytes[{from}] has {numbers} numbers, must have {ranks}");
            return Err(named(&error));
        }
    }
    Ok(results)
}
