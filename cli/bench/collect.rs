//! What has been measured so far, run by run, and what follows from it.

use super::results::{Budget, Ceiling, Limit, Results, Row, Section, Traffic};
use crate::sweep::Spread;

/// What was measured of what: no two rows of a benchmark have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// See [`Row`], as the others.
    pub section: Section,
    /// What.
    pub operation: String,
    /// How.
    pub variant: String,
    /// Among whom.
    pub ranks: u32,
    /// How much.
    pub tokens: Option<u32>,
    /// With what.
    pub sms: Option<u32>,
}

impl Key {
    /// A row's.
    pub fn of(row: &Row) -> Self {
        Self {
            section: row.section,
            operation: row.operation.clone(),
            variant: row.variant.clone(),
            ranks: row.ranks,
            tokens: row.tokens,
            sms: row.sms,
        }
    }
}

/// Times of one measurement.
struct Measured {
    key: Key,
    bytes: Option<u64>,
    /// µs, for each run.
    runs: Vec<Vec<f64>>,
}

/// A ceiling's value in each run.
struct Limits {
    of: Limit,
    ranks: u32,
    sms: Option<u32>,
    runs: Vec<f64>,
}

/// Everything so far.
#[derive(Default)]
pub struct Collected {
    measured: Vec<Measured>,
    limits: Vec<Limits>,
    traffic: Vec<Traffic>,
    /// Rows that were compared with the reference.
    pub compared: usize,
}

impl Collected {
    /// Adds a run's times, in µs; what has no times was not measured.
    pub fn times(&mut self, key: Key, bytes: Option<u64>, times: Vec<f64>) {
        if times.is_empty() {
            return;
        }
        match self.measured.iter_mut().find(|known| known.key == key) {
            Some(known) => known.runs.push(times),
            None => self.measured.push(Measured { key, bytes, runs: vec![times] }),
        }
    }

    /// Adds what a run gave of a ceiling, unless the emulator's clock has stood still meanwhile.
    pub fn limit(&mut self, of: Limit, ranks: u32, sms: Option<u32>, value: f64) {
        if !value.is_finite() {
            return;
        }
        let is = |known: &&mut Limits| (known.of, known.ranks, known.sms) == (of, ranks, sms);
        match self.limits.iter_mut().find(is) {
            Some(known) => known.runs.push(value),
            None => self.limits.push(Limits { of, ranks, sms, runs: vec![value] }),
        }
    }

    /// Adds who sends to whom, if that is not known.
    pub fn traffic(&mut self, name: String, bytes: Vec<Vec<u64>>) {
        if self.traffic.iter().all(|known| known.name != name) {
            self.traffic.push(Traffic { name, bytes });
        }
    }

    /// All of it, with what else `head` says.
    pub fn results(&self, head: &Results) -> Results {
        let mut measured: Vec<&Measured> = self.measured.iter().collect();
        measured.sort_by_key(|measured| measured.key.section);
        let rows: Vec<Row> = measured.iter().filter_map(|measured| self.row(measured)).collect();
        let ceilings = self.limits.iter().filter_map(|limits| {
            let Limits { of, ranks, sms, ref runs } = *limits;
            Some(Ceiling { of, ranks, sms, value: median(runs)?, noise: noise(runs) })
        });
        let budgets = self.budgets(&rows);
        Results { ceilings: ceilings.collect(), rows, traffic: self.traffic.clone(), budgets, ..head.clone() }
    }

    fn row(&self, measured: &Measured) -> Option<Row> {
        let Key { section, operation, variant, ranks, tokens, sms } = measured.key.clone();
        let time = Spread::of(&measured.runs.concat())?;
        let medians: Vec<f64> = measured.runs.iter().filter_map(|run| median(run)).collect();
        // The emulator's clock may stand still for as long as something takes.
        let is_timed = time.median > 0.0;
        let gb_per_s = measured.bytes.filter(|_| is_timed).map(|bytes| bytes as f64 / time.median / 1e3);
        let limit = self.limit_of(&measured.key).filter(|_| is_timed);
        let ratio = limit.map(|(of, ceiling)| match of {
            Limit::Copy | Limit::CopyEngine => gb_per_s.unwrap_or(0.0) / ceiling,
            Limit::Flag | Limit::Launch | Limit::Alone => ceiling / time.median,
        });
        Some(Row {
            section,
            operation,
            variant,
            ranks,
            tokens,
            sms,
            time,
            noise: noise(&medians),
            bytes: measured.bytes,
            gb_per_s,
            limit: limit.map(|(of, _)| of),
            ceiling: limit.map(|(_, ceiling)| ceiling),
            ratio,
        })
    }

    fn value(&self, of: Limit, ranks: u32, sms: Option<u32>) -> Option<f64> {
        let is = |known: &&Limits| (known.of, known.ranks, known.sms) == (of, ranks, sms);
        median(&self.limits.iter().find(is)?.runs)
    }

    /// What a row is compared with.
    fn limit_of(&self, key: &Key) -> Option<(Limit, f64)> {
        let flag = || self.value(Limit::Flag, key.ranks, None);
        let launch = || self.value(Limit::Launch, key.ranks, None);
        match (key.section, key.operation.as_str()) {
            (Section::Throughput, _) => Some((Limit::Copy, self.value(Limit::Copy, key.ranks, key.sms)?)),
            (Section::CopyEngine, _) => {
                Some((Limit::CopyEngine, self.value(Limit::CopyEngine, key.ranks, None)?))
            }
            // A row's packets are its flags: whoever waits for them waits for one flight, and answers nothing.
            (Section::LowLatency, "dispatch" | "combine") => Some((Limit::Flag, launch()? + flag()?)),
            // A launch among many passes while an earlier kernel runs.
            (Section::LowLatency, _) => Some((Limit::Flag, 2.0 * flag()?)),
            (Section::Overlap, "weights") => None,
            (Section::Overlap, operation) if operation.starts_with("beside") => {
                let alone =
                    |known: &&Measured| known.key == Key { operation: "weights".into(), ..key.clone() };
                let alone = self.measured.iter().find(alone)?;
                Some((Limit::Alone, median(&alone.runs.concat())?))
            }
            (Section::Overlap, _) => Some((Limit::Launch, launch()?)),
            (Section::Proxy, _) => None,
        }
    }

    /// Of the whole calls that were measured first, for each number of tokens. The halves of a call overlap where it does
    /// both: what a part has, it takes of what those before it have left.
    fn budgets(&self, rows: &[Row]) -> Vec<Budget> {
        let whole = |row: &&Row| row.section == Section::LowLatency;
        let Some(first) = rows.iter().find(whole).map(Key::of) else { return Vec::new() };
        let of_first = rows.iter().filter(whole).filter(|row| {
            Key { operation: first.operation.clone(), tokens: first.tokens, ..Key::of(row) } == first
        });
        let budget = |row: &Row| {
            let halves = match row.operation.as_str() {
                "dispatch" => ["send", "receive"],
                "combine" => ["send back", "sum"],
                _ => return None,
            };
            let launch = self.value(Limit::Launch, row.ranks, None)?;
            let flag = self.value(Limit::Flag, row.ranks, None)?;
            let [begin, end] = halves.map(|half| {
                let key = Key { section: Section::Overlap, operation: half.into(), ..Key::of(row) };
                let measured = self.measured.iter().find(|measured| measured.key == key)?;
                Some(median(&measured.runs.concat())? - launch)
            });
            let (begin, end) = (begin?, end?);
            let mut left = row.time.median;
            let mut take = |part: f64| {
                let part = part.clamp(0.0, left.max(0.0));
                left -= part;
                part
            };
            let parts = [("launch", launch), (halves[0], begin), ("flight", flag), (halves[1], end)];
            let mut parts: Vec<_> = parts.map(|(name, part)| (name.to_owned(), take(part))).into();
            parts.push(("waiting".into(), left));
            let tokens = row.tokens.unwrap_or(0);
            let name = format!("{} {}, {tokens} tokens, {} ranks", row.operation, row.variant, row.ranks);
            Some(Budget { name, parts, whole: row.time.median })
        };
        of_first.filter_map(budget).collect()
    }
}

/// Half are below; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

/// Of repeated runs: largest less smallest, over the median.
pub fn noise(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    median(values).filter(|&median| median > 0.0).map_or(0.0, |median| (largest - smallest) / median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_range_over_the_median() {
        assert_eq!(noise(&[10.0, 9.0, 12.0]), 0.3);
        assert_eq!(noise(&[7.0]), 0.0);
        assert_eq!(noise(&[0.0, 0.0]), 0.0);
        assert_eq!(noise(&[]), 0.0);
    }
}
