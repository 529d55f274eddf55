//! The results for people.

use super::results::{Limit, Results, Row, Section};
use crate::report::table;
use std::fmt::Write;

const SECTIONS: [(Section, &str); 5] = [
    (Section::Throughput, "throughput, beside a copy of as many ranks and multiprocessors"),
    (Section::LowLatency, "low latency, beside flights of a flag, and the launch of a call by itself"),
    (
        Section::Overlap,
        "halves, beside a launch; a kernel that reads weights, alone and beside what is on its way",
    ),
    (Section::CopyEngine, "rows moved by copy engines, beside their copy"),
    (Section::Proxy, "ring and proxy, µs of a command"),
];

/// All of it.
pub fn print(results: &Results) -> String {
    let unit = if results.backend == "emulator" {
        "virtual µs: the emulator counts a nanosecond a step, which says nothing about a GPU"
    } else {
        "µs of the slowest rank"
    };
    let mut out = format!(
        "{}{}, hidden {}, {} experts, top-{}; {unit}\n",
        devices(&results.devices),
        results.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}")),
        results.hidden,
        results.experts,
        results.topk,
    );
    for (section, title) in SECTIONS {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.section == section).collect();
        if !rows.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(out, "\n{title}\n{}", rows_of(&rows));
        }
    }
    if !results.ceilings.is_empty() {
        let _ = write!(out, "\nceilings\n{}", ceilings(results));
    }
    if !results.budgets.is_empty() {
        let _ = write!(out, "\nwhat the time of a low-latency call is made of, µs\n{}", budgets(results));
    }
    out
}

/// Names of GPUs, such as `2 × NVIDIA H100`.
pub fn devices(names: &[String]) -> String {
    match names {
        [first, _, ..] if names.iter().all(|name| name == first) => format!("{} × {first}", names.len()),
        names => names.join(", "),
    }
}

fn rows_of(rows: &[&Row]) -> String {
    let heads =
        ["", "", "ranks", "tokens", "SMs", "p10", "median", "p90", "noise", "GB/s", "ceiling", "ratio"];
    let mut cells = vec![heads.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        let times = [row.time.p10, row.time.median, row.time.p90];
        let [p10, median, p90] = times.map(|time| micros(row.section, time));
        vec![
            row.variant.clone(),
            row.operation.clone(),
            row.ranks.to_string(),
            number(row.tokens),
            number(row.sms),
            p10,
            median,
            p90,
            percent(row.noise),
            row.gb_per_s.map_or("–".into(), |rate| format!("{rate:.1}")),
            row.ceiling.map_or("–".into(), |ceiling| format!("{ceiling:.1}")),
            row.ratio.map_or("–".into(), |ratio| format!("{ratio:.2}")),
        ]
    }));
    table(&cells)
}

fn ceilings(results: &Results) -> String {
    let mut cells = vec![["", "ranks", "SMs", "", "", "noise"].map(str::to_owned).to_vec()];
    cells.extend(results.ceilings.iter().map(|ceiling| {
        let (name, unit) = match ceiling.of {
            Limit::Copy => ("copy to the next rank", "GB/s"),
            Limit::CopyEngine => ("copy by copy engines", "GB/s"),
            Limit::Flag => ("flag to the next rank", "µs"),
            Limit::Launch => ("launch of nothing", "µs"),
            Limit::Alone => ("alone", "µs"),
        };
        vec![
            name.into(),
            ceiling.ranks.to_string(),
            number(ceiling.sms),
            format!("{:.2}", ceiling.value),
            unit.into(),
            percent(ceiling.noise),
        ]
    }));
    table(&cells)
}

fn budgets(results: &Results) -> String {
    let cells: Vec<Vec<String>> = results
        .budgets
        .iter()
        .map(|budget| {
            let mut line = vec![budget.name.clone(), format!("{:.1}:", budget.whole)];
            line.extend(budget.parts.iter().map(|(name, time)| format!("{name} {time:.1}")));
            line
        })
        .collect();
    table(&cells)
}

/// A call's time to a tenth; a command's, which is less, to a thousandth.
pub fn micros(section: Section, time: f64) -> String {
    if section == Section::Proxy { format!("{time:.3}") } else { format!("{time:.1}") }
}

/// What a number may not have.
pub fn number(number: Option<u32>) -> String {
    number.map_or("–".into(), |number| number.to_string())
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}
