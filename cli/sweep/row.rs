//! A sweep's results, as they are written and printed.

use super::args::Form;
use super::rank::Cell;
use crate::measure::{Times, copy_bytes};
use crate::report::table;
use crate::workload::Workload;
use serde::{Deserialize, Serialize};
use tokenrail::Config;
use tokenrail::gpu::Description;
use tokenrail::oracle::TokenBatch;

/// Everything.
#[derive(Serialize)]
pub struct Results {
    /// Of this format.
    pub version: u32,
    /// Of the library.
    pub tokenrail: &'static str,
    /// What was run on; `emulator` times are virtual.
    pub backend: &'static str,
    /// The compiler lane, if one was asked for.
    pub lane: Option<String>,
    /// The GPU of each rank: name and number.
    pub devices: Vec<String>,
    /// GPUs in use.
    pub gpus: usize,
    /// Ranks.
    pub ranks: u32,
    /// Elements of a token.
    pub hidden: u32,
    /// Experts.
    pub experts: u32,
    /// Experts of a token.
    pub topk: u32,
    /// What is combined.
    pub combined: String,
    /// What everything is drawn from.
    pub seed: u64,
    /// Timed repetitions.
    pub iterations: u32,
    /// Those before.
    pub warmup: u32,
    /// Copies between ranks.
    pub copies: Vec<CopyRow>,
    /// Measurements.
    pub rows: Vec<Row>,
}

/// A copy between ranks, all at once.
#[derive(Clone, Serialize)]
pub struct CopyRow {
    /// Multiprocessors.
    pub sms: u32,
    /// Bytes of it.
    pub bytes: u64,
    /// How long.
    pub time: Spread,
    /// By the median, each way.
    pub gb_per_s: f64,
}

/// One measurement.
#[derive(Clone, Serialize)]
pub struct Row {
    /// What was dispatched.
    pub element: String,
    /// How.
    pub form: Form,
    /// Where to.
    pub gate: String,
    /// Tokens of each rank.
    pub tokens: u32,
    /// From tokens to received rows.
    pub dispatch: Timed,
    /// From experts' outputs to sums.
    pub combine: Timed,
    /// Rows that were compared with the reference, over all ranks.
    pub compared: usize,
}

/// One operation's part of it.
#[derive(Clone, Serialize)]
pub struct Timed {
    /// Multiprocessors.
    pub sms: u32,
    /// The slowest rank's, over the repetitions.
    pub time: Spread,
    /// Bytes of rows and scales that the busiest rank sends or receives, whichever are more, one way, between GPUs; between
    /// ranks if all share one GPU.
    pub bytes: u64,
    /// The same over all ranks' mean.
    pub mean_bytes: f64,
    /// Those of the busiest rank, by the median.
    pub gb_per_s: f64,
    /// Of a copy with as many multiprocessors, in the same run.
    pub ceiling_gb_per_s: Option<f64>,
    /// Of both.
    pub ratio: Option<f64>,
    /// What `time` is of.
    #[serde(skip)]
    pub slowest: Vec<f64>,
}

/// Median, and what a tenth is below and above. µs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// A tenth is below.
    pub p10: f64,
    /// Half is.
    pub median: f64,
    /// A tenth is above.
    pub p90: f64,
}

impl Spread {
    /// Of times; `None` without any.
    pub fn of(times: &[f64]) -> Option<Self> {
        let mut all = times.to_vec();
        all.sort_by(f64::total_cmp);
        let at = |tenths: usize| all.get((all.len().checked_sub(1)? * tenths + 5) / 10).copied();
        Some(Self { p10: at(1)?, median: at(5)?, p90: at(9)? })
    }
}

/// The slowest rank's times, one for each repetition.
pub fn slowest(ranks: &[&Vec<f64>]) -> Vec<f64> {
    let repetitions = ranks.iter().map(|times| times.len()).min().unwrap_or(0);
    (0..repetitions).map(|at| ranks.iter().map(|times| times[at]).fold(0.0, f64::max)).collect()
}

/// The ceiling with so many multiprocessors.
pub fn copy_row(sms: u32, pieces: u32, ranks: &[&Vec<f64>]) -> Option<CopyRow> {
    let (time, bytes) = (Spread::of(&slowest(ranks))?, copy_bytes(pieces));
    Some(CopyRow { sms, bytes, time, gb_per_s: bytes as f64 / time.median / 1e3 })
}

/// Rows of the first `tokens` tokens of each rank, `[from][to]`.
pub fn rows_between(workload: &Workload, tokens: u32) -> Vec<Vec<u64>> {
    let ranks = workload.placement.ranks();
    let of = |batch: &TokenBatch| {
        let mut to = vec![0; ranks];
        for token in 0..batch.tokens.min(tokens as usize) {
            let experts = batch.experts_of(token);
            for (rank, rows) in to.iter_mut().enumerate() {
                *rows += u64::from(workload.placement.goes_to(experts, rank));
            }
        }
        to
    };
    workload.batches.iter().map(of).collect()
}

/// Bytes of one dispatched row: elements and scales.
pub fn dispatched_row_bytes(config: &Config) -> u64 {
    u64::from(config.element.row_bytes(config.hidden))
        + 4 * u64::from(config.element.scale_words(config.hidden))
}

/// Rows that cross: of the busiest rank, sent or received, and the mean that ranks send.
pub struct Crossing {
    busiest: u64,
    mean: f64,
}

impl Crossing {
    /// For the first `tokens` tokens of each rank.
    pub fn new(workload: &Workload, devices: &[Description], tokens: u32) -> Self {
        let ranks = devices.len();
        let ordinal = |rank: usize| devices[rank].ordinal;
        let several = (0..ranks).any(|rank| ordinal(rank) != ordinal(0));
        let crosses = |from: usize, to: usize| match (several, ranks) {
            (true, _) => ordinal(from) != ordinal(to),
            // Nothing else is sent anywhere.
            (false, 1) => true,
            (false, _) => from != to,
        };
        let (mut sent, mut received) = (vec![0u64; ranks], vec![0u64; ranks]);
        for (from, rows) in rows_between(workload, tokens).iter().enumerate() {
            for (to, rows) in rows.iter().enumerate().filter(|&(to, _)| crosses(from, to)) {
                sent[from] += rows;
                received[to] += rows;
            }
        }
        let busiest = sent.iter().chain(&received).copied().max().unwrap_or(0);
        Self { busiest, mean: sent.iter().sum::<u64>() as f64 / ranks.max(1) as f64 }
    }

    fn timed(&self, sms: u32, row_bytes: u64, ranks: &[&Vec<f64>], copies: &[CopyRow]) -> Option<Timed> {
        let slowest = slowest(ranks);
        let time = Spread::of(&slowest)?;
        let bytes = self.busiest * row_bytes;
        let gb_per_s = bytes as f64 / time.median / 1e3;
        let ceiling_gb_per_s = copies.iter().find(|copy| copy.sms == sms).map(|copy| copy.gb_per_s);
        let ratio = ceiling_gb_per_s.map(|ceiling| gb_per_s / ceiling);
        let mean_bytes = self.mean * row_bytes as f64;
        Some(Timed { sms, time, bytes, mean_bytes, gb_per_s, ceiling_gb_per_s, ratio, slowest })
    }

    /// Both operations of a cell, from all ranks' times.
    pub fn both(
        &self,
        config: &Config,
        cell: &Cell,
        ranks: &[&Times],
        copies: &[CopyRow],
    ) -> Option<(Timed, Timed)> {
        let of = |which: fn(&Times) -> &Vec<f64>| -> Vec<&Vec<f64>> {
            ranks.iter().map(|times| which(times)).collect()
        };
        let out = dispatched_row_bytes(config);
        let back = 2 * u64::from(config.hidden);
        Some((
            self.timed(cell.dispatch_sms, out, &of(|times| &times.dispatch), copies)?,
            self.timed(cell.combine_sms, back, &of(|times| &times.combine), copies)?,
        ))
    }
}

/// For people.
pub fn print(results: &Results) -> String {
    let heads = ["element, form, gate", "tokens", "", "SMs", "p10", "median", "p90", "GB/s", "copy", "ratio"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for row in &results.rows {
        let name = format!("{} {} {}", row.element, row.form.name(), row.gate);
        for (operation, timed) in [("dispatch", &row.dispatch), ("combine", &row.combine)] {
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.1}"));
            rows.push(vec![
                name.clone(),
                row.tokens.to_string(),
                operation.into(),
                timed.sms.to_string(),
                format!("{:.1}", timed.time.p10),
                format!("{:.1}", timed.time.median),
                format!("{:.1}", timed.time.p90),
                format!("{:.1}", timed.gb_per_s),
                number(timed.ceiling_gb_per_s),
                timed.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            ]);
        }
    }
    let unit = if results.backend == "emulator" {
        "virtual µs: the emulator counts a nanosecond a step, which says nothing about a GPU"
    } else {
        "µs of the slowest rank, one operation at a time with ranks in step and caches overwritten"
    };
    format!(
        "{} ranks on {} devices ({}), hidden {}, {} experts, top-{}; {} repetitions\n{unit}\n{}",
        results.ranks,
        results.gpus,
        results.devices.first().map_or("", String::as_str),
        results.hidden,
        results.experts,
        results.topk,
        results.iterations,
        table(&rows),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_of_the_slowest_rank() {
        let (a, b) = ((1..=11).map(f64::from).collect::<Vec<_>>(), vec![0.5; 11]);
        assert_eq!(Spread::of(&slowest(&[&a, &b])), Some(Spread { p10: 2.0, median: 6.0, p90: 10.0 }));
        assert_eq!(slowest(&[&a[..2].to_vec(), &vec![1.5; 3]]), [1.5, 2.0]);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { p10: 3.0, median: 3.0, p90: 3.0 }));
        assert_eq!(Spread::of(&slowest(&[&a, &vec![]])), None);
        assert_eq!(Spread::of(&slowest(&[])), None);
    }
}
