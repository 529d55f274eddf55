//! What has changed since an earlier benchmark.

use super::collect::Key;
use super::print::{devices, micros, number};
use super::results::{Results, Row};
use crate::report::table;

/// Less than this is no change, however little noise there is.
const LEAST: f64 = 0.02;

/// Whether figures of both say anything of each other.
///
/// # Errors
/// The first thing that is not the same, with both values.
pub fn comparable(before: &Results, now: &Results) -> Result<(), String> {
    for (field, before, now) in [
        ("backend", before.backend.clone(), now.backend.clone()),
        ("devices", devices(&before.devices), devices(&now.devices)),
        ("hidden", before.hidden.to_string(), now.hidden.to_string()),
        ("experts", before.experts.to_string(), now.experts.to_string()),
        ("topk", before.topk.to_string(), now.topk.to_string()),
    ] {
        if before != now {
            return Err(format!("--baseline: {field} = {before}: must be {now}, as of this run"));
        }
    }
    Ok(())
}

/// One row in both.
#[derive(Debug, PartialEq)]
struct Change {
    key: Key,
    before: f64,
    now: f64,
    /// Of both runs together.
    noise: f64,
}

impl Change {
    /// By how much longer it takes, over what it took.
    fn part(&self) -> f64 {
        self.now / self.before - 1.0
    }
}

/// What both have, and do not have.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Beyond noise.
    changed: Vec<Change>,
    /// Not so.
    same: usize,
    only_before: usize,
    only_now: usize,
}

/// Compares row by row.
pub fn compare(before: &Results, now: &Results) -> Changes {
    let find = |rows: &[Row], key: &Key| rows.iter().find(|row| Key::of(row) == *key).cloned();
    let mut changes = Changes::default();
    for row in &now.rows {
        let key = Key::of(row);
        let Some(old) = find(&before.rows, &key) else {
            changes.only_now += 1;
            continue;
        };
        let noise = old.noise + row.noise;
        let change = Change { key, before: old.time.median, now: row.time.median, noise };
        // Of 0 and 0 there is no part.
        if change.part().abs() >= LEAST && change.part().abs() > noise {
            changes.changed.push(change);
        } else {
            changes.same += 1;
        }
    }
    changes.only_before = before.rows.iter().filter(|row| find(&now.rows, &Key::of(row)).is_none()).count();
    changes
}

/// For people.
pub fn print(changes: &Changes) -> String {
    let Changes { changed, same, only_before, only_now } = changes;
    let heads = ["", "", "ranks", "tokens", "SMs", "before", "now", "", "noise of both"];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    cells.extend(changed.iter().map(|change| {
        let Key { section, operation, variant, ranks, tokens, sms } = &change.key;
        let word = if change.part() < 0.0 { "quicker" } else { "slower" };
        vec![
            format!("{} {variant}", section.name()),
            operation.clone(),
            ranks.to_string(),
            number(*tokens),
            number(*sms),
            micros(*section, change.before),
            micros(*section, change.now),
            format!("{:.1} % {word}", 100.0 * change.part().abs()),
            format!("{:.1} %", 100.0 * change.noise),
        ]
    }));
    let compared = changed.len() + same;
    let table = if changed.is_empty() { String::new() } else { table(&cells) };
    format!(
        "\n{} of {compared} rows changed beyond noise; {only_before} in the baseline only, {only_now} in this run only\n\
         {table}",
        changed.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::Section;
    use super::*;
    use crate::sweep::Spread;

    fn row(operation: &str, median: f64, noise: f64) -> Row {
        Row {
            section: Section::Throughput,
            operation: operation.into(),
            variant: "bf16 rank-major uniform".into(),
            ranks: 2,
            tokens: Some(128),
            sms: Some(16),
            time: Spread { p10: median, median, p90: median },
            noise,
            bytes: None,
            gb_per_s: None,
            limit: None,
            ceiling: None,
            ratio: None,
        }
    }

    fn results(rows: Vec<Row>) -> Results {
        Results {
            version: crate::bench::results::VERSION,
            tokenrail: "0.1.0".into(),
            date: "2026-11-24T16:00:00Z".into(),
            backend: "cuda".into(),
            driver: None,
            devices: vec!["a GPU".into()],
            command: "tokenrail bench".into(),
            hidden: 64,
            experts: 8,
            topk: 2,
            seconds: 1.0,
            ceilings: Vec::new(),
            rows,
            traffic: Vec::new(),
            budgets: Vec::new(),
        }
    }

    #[test]
    fn what_is_beyond_both_noises_and_the_least_has_changed() {
        for (before, now, changed) in [
            ((100.0, 0.0), (100.0, 0.0), false),
            ((100.0, 0.0), (101.9, 0.0), false),
            ((100.0, 0.0), (102.1, 0.0), true),
            ((100.0, 0.0), (97.9, 0.0), true),
            ((100.0, 0.03), (109.0, 0.07), false),
            ((100.0, 0.03), (111.0, 0.07), true),
            ((0.0, 0.0), (0.0, 0.0), false),
        ] {
            let changes = compare(
                &results(vec![row("dispatch", before.0, before.1)]),
                &results(vec![row("dispatch", now.0, now.1)]),
            );
            assert_eq!(changes.changed.len(), usize::from(changed), "{before:?} {now:?}");
            assert_eq!(changes.same, usize::from(!changed), "{before:?} {now:?}");
        }
    }

    #[test]
    fn rows_are_matched_by_what_was_measured() {
        let dispatch = row("dispatch", 10.0, 0.0);
        let other_sms = Row { sms: Some(8), ..dispatch.clone() };
        let before = results(vec![dispatch.clone(), other_sms, row("cached", 5.0, 0.0)]);
        let now = results(vec![row("combine", 10.0, 0.0), row("dispatch", 8.0, 0.0)]);
        let changes = compare(&before, &now);
        assert_eq!((changes.changed.len(), changes.same), (1, 0));
        assert_eq!((changes.only_before, changes.only_now), (2, 1));
        let text = print(&changes);
        for words in ["1 of 1 rows changed", "2 in the baseline only, 1 in this run only", "20.0 % quicker"] {
            assert!(text.contains(words), "{words:?} is not in: {text}");
        }
    }

    #[test]
    fn other_machines_and_shapes_are_refused() {
        let now = results(Vec::new());
        for (before, words) in [
            (Results { backend: "emulator".into(), ..now.clone() }, "backend = emulator: must be cuda"),
            (Results { devices: vec!["another".into()], ..now.clone() }, "devices = another: must be a GPU"),
            (Results { hidden: 128, ..now.clone() }, "hidden = 128: must be 64"),
        ] {
            let error = comparable(&before, &now).unwrap_err();
            assert!(error.contains(words), "{words:?} is not in: {error}");
        }
        assert_eq!(comparable(&now, &now), Ok(()));
    }
}
