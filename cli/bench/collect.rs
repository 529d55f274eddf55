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

    /// All of the sections that are wanted, with what else `head` says.
    pub fn results(&self, head: &Results, wants: impl Fn(Section) -> bool) -> Results {
        let wanted = |measured: &&Measured| wants(measured.key.section);
        let mut measured: Vec<&Measured> = self.measured.iter().filter(wanted).collect();
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
            // A packet is its own flag (device/src/low_latency/packet.rs): who waits for it waits for one flight.
            (Section::LowLatency, "dispatch" | "combine") => Some((Limit::Flag, launch()? + flag()?)),
            // Both of them; a launch among many passes while an earlier kernel runs.
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
            let (tokens, ranks) = (row.tokens.unwrap_or(0), row.ranks);
            let name = format!(
                "{} {}, {}, {}",
                row.operation,
                row.variant,
                counted(tokens, "token"),
                counted(ranks, "rank")
            );
            Some(Budget { name, parts, whole: row.time.median })
        };
        of_first.filter_map(budget).collect()
    }
}

/// So many of something.
pub fn counted(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
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
    fn key(section: Section, operation: &str) -> Key {
        let (operation, variant) = (operation.into(), "fp8".into());
        Key { section, operation, variant, ranks: 2, tokens: Some(8), sms: Some(16) }
    }

    /// Nothing but what was collected.
    fn results(collected: &Collected, wants: impl Fn(Section) -> bool) -> Results {
        let head = r#"{"version": 1, "tokenrail": "", "date": "", "backend": "", "driver": null, "devices": [],
            "command": "", "hidden": 64, "experts": 8, "topk": 2, "seconds": 0.0, "ceilings": [], "rows": [],
            "traffic": [], "budgets": []}"#;
        collected.results(&serde_json::from_str(head).expect("the format"), wants)
    }

    #[test]
    fn runs_become_a_row_beside_its_ceiling() {
        let mut collected = Collected::default();
        let throughput = key(Section::Throughput, "dispatch");
        for (time, copy) in [(4.0, 300.0), (6.0, 330.0), (5.0, 310.0)] {
            collected.times(throughput.clone(), Some(1_000_000), vec![time; 3]);
            collected.limit(Limit::Copy, 2, Some(16), copy);
            collected.limit(Limit::Copy, 2, Some(8), 1.0);
        }
        collected.times(key(Section::Throughput, "combine"), None, Vec::new());
        let results = results(&collected, |_| true);
        let [row] = &results.rows[..] else { panic!("one row: {:?}", results.rows) };
        assert_eq!((Key::of(row), row.time.median, row.noise), (throughput, 5.0, 0.4));
        assert_eq!((row.gb_per_s, row.limit, row.ceiling), (Some(200.0), Some(Limit::Copy), Some(310.0)));
        assert_eq!(row.ratio, Some(200.0 / 310.0));
        assert_eq!(results.ceilings[0].value, 310.0);
    }

    #[test]
    fn a_call_is_made_of_what_its_halves_and_flights_take() {
        let mut collected = Collected::default();
        collected.limit(Limit::Launch, 2, None, 4.0);
        collected.limit(Limit::Flag, 2, None, 1.0);
        for (section, operation, time) in [
            (Section::LowLatency, "dispatch", 20.0),
            (Section::LowLatency, "combine", 15.0),
            (Section::LowLatency, "graph", 30.0),
            (Section::Overlap, "send", 10.0),
            (Section::Overlap, "receive", 9.0),
            (Section::Overlap, "send back", 11.0),
            (Section::Overlap, "sum", 9.0),
            (Section::Overlap, "weights", 80.0),
            (Section::Overlap, "beside combine", 100.0),
        ] {
            collected.times(key(section, operation), None, vec![time]);
        }
        let calls = results(&collected, |section| section == Section::LowLatency);
        let results = results(&collected, |_| true);
        assert_eq!((calls.rows.len(), results.rows.len()), (3, 9));
        assert_eq!(calls.budgets, results.budgets);
        let limits: Vec<_> = results.rows.iter().map(|row| (row.limit, row.ceiling)).collect();
        assert_eq!(limits[0], (Some(Limit::Flag), Some(5.0)));
        assert_eq!(limits[2], (Some(Limit::Flag), Some(2.0)));
        assert_eq!(limits[3], (Some(Limit::Launch), Some(4.0)));
        assert_eq!(limits[7], (None, None));
        assert_eq!((limits[8], results.rows[8].ratio), ((Some(Limit::Alone), Some(80.0)), Some(0.8)));

        let parts = |budget: &Budget| budget.parts.iter().map(|(_, time)| *time).collect::<Vec<_>>();
        assert_eq!(results.budgets.len(), 2);
        assert_eq!(parts(&results.budgets[0]), [4.0, 6.0, 1.0, 5.0, 4.0]);
        // Halves that would take longer by themselves: the sum overlaps what comes before it.
        assert_eq!(parts(&results.budgets[1]), [4.0, 7.0, 1.0, 3.0, 0.0]);
    }
}
