//! The parts of a report.

use super::bars::Bar;
use super::chart::{Look, Symbol};
use super::html::{Section, figure, left_out, paragraph, table};
use super::lines::Across;
use super::numbers::{self, limit_name, measured};
use super::select::{Field, Shown, grouped, like_for_like, names};
use super::{bars, head, heat, lines};
use crate::bench::results::{Budget, Ceiling, Results, Row, Section as Part, Traffic};
use std::error::Error;

type Drawn = Result<String, Box<dyn Error>>;

const SMS: Across = Across { name: "SMs of a rank", is_log: false };
const TOKENS: Across = Across { name: "tokens of a rank", is_log: true };
const RANKS: Across = Across { name: "ranks", is_log: true };
/// Of one plot.
const MOST_BARS: usize = 16;

/// All of them.
///
/// # Errors
/// What drawing gives.
pub fn all(results: &Results) -> Result<Vec<Section>, Box<dyn Error>> {
    let of = |part: Part| -> Vec<&Row> { results.rows.iter().filter(|row| row.section == part).collect() };
    let section = |id, title, body| Section { id, title, body };
    Ok(vec![
        section("ceilings", "Ceilings", ceilings(&results.ceilings)),
        section("throughput", "Bandwidth over SMs", throughput(&of(Part::Throughput))?),
        section("low-latency", "Latency over tokens", low_latency(&of(Part::LowLatency))?),
        section("scaling", "Scaling over ranks", scaling(&of(Part::Throughput), &of(Part::LowLatency))?),
        section("overlap", "Halves and overlap", overlap(&of(Part::Overlap))?),
        section("copy-engine", "Copy engines", copy_engine(&of(Part::CopyEngine))?),
        section("proxy", "Ring and proxy", proxy(&of(Part::Proxy))),
        section("traffic", "Traffic", traffic(&results.traffic)?),
        section("budget", "Budget of a low-latency call", budget(&results.budgets)?),
    ])
}

fn no_spread(_: &Row) -> Option<(f64, f64)> {
    None
}

fn spread(row: &Row) -> Option<(f64, f64)> {
    let (low, high) = (row.time.p10, row.time.p90);
    (low.is_finite() && high.is_finite()).then_some((low, high))
}

fn median(row: &Row) -> Option<f64> {
    Some(row.time.median)
}

fn rate(row: &Row) -> Option<f64> {
    row.gb_per_s
}

/// Of a row's GB/s.
fn copy(row: &Row) -> Option<(&'static str, f64)> {
    let limit = row.limit.filter(|limit| numbers::is_rate(*limit))?;
    Some((limit_name(limit), row.ceiling?))
}

/// Of a row's µs.
fn floor(row: &Row) -> Option<(&'static str, f64)> {
    let limit = row.limit.filter(|limit| !numbers::is_rate(*limit))?;
    Some((limit_name(limit), row.ceiling?))
}

/// A plot of lines for each group of rows, or why there is none.
fn plots<K: PartialEq>(
    (what, unit, across): (&str, &str, Across),
    shown: &Shown,
    rows: &[&Row],
    key: impl Fn(&Row) -> K,
    why_not: &str,
) -> Drawn {
    let rows = shown.of(rows);
    if rows.is_empty() {
        return Ok(left_out(what, why_not));
    }
    let mut out = String::new();
    for group in grouped(&rows, key) {
        let (title, lines) = shown.lines(&group);
        let (limits, lines): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.look == Look::Limit);
        let count = lines.len().div_ceil(Look::COUNT);
        let mut lines = lines.into_iter();
        for part in 1..=count {
            let mut some: Vec<_> = lines.by_ref().take(Look::COUNT).collect();
            some.extend(limits.iter().cloned());
            let of = if count > 1 { format!(" ({part} of {count})") } else { String::new() };
            out += &figure(&format!("{what}: {title}{of}"), &lines::draw(across, unit, &some)?);
        }
    }
    Ok(out)
}

fn throughput(rows: &[&Row]) -> Drawn {
    let key = |row: &Row| (row.operation.clone(), row.ranks, row.tokens);
    let bandwidth = Shown { axis: Field::Sms, value: rate, spread: no_spread, limit: copy };
    let ratio = Shown {
        axis: Field::Sms,
        value: |row| row.ratio,
        spread: no_spread,
        limit: |_| Some(("the ceiling", 1.0)),
    };
    let none = "no dispatch or combine was timed with a number of SMs";
    let mut body = paragraph(
        "GB/s of rows and scales that the busiest rank sends or receives, one way, with a plain copy by as many SMs \
         in the same run.",
    );
    body += &plots(("Bandwidth over SMs", "GB/s", SMS), &bandwidth, rows, key, none)?;
    body += &plots(("Ratio to the ceiling", "of the ceiling", SMS), &ratio, rows, key, none)?;
    Ok(body + &every_number(rows))
}

fn low_latency(rows: &[&Row]) -> Drawn {
    let key = |row: &Row| (row.operation.clone(), row.ranks);
    let shown = Shown { axis: Field::Tokens, value: median, spread, limit: floor };
    let mut body = paragraph(
        "µs of the slowest rank: the median, with bars from a tenth to nine tenths of all calls. Dashed: what \
         launches and flights alone take.",
    );
    body +=
        &plots(("Latency over tokens", "µs", TOKENS), &shown, rows, key, "no low-latency call was timed")?;
    Ok(body + &every_number(rows))
}

fn scaling(many: &[&Row], few: &[&Row]) -> Drawn {
    let key = |row: &Row| row.operation.clone();
    let none = "nothing was timed with several numbers of ranks and the same settings";
    let bandwidth = Shown { axis: Field::Ranks, value: rate, spread: no_spread, limit: |_| None };
    let latency = Shown { axis: Field::Ranks, value: median, spread, limit: |_| None };
    let mut body = paragraph(
        "The same settings over numbers of ranks: most tokens, then most SMs, of those with most numbers of ranks. \
         The numbers are in the tables above.",
    );
    body += &plots(
        ("Bandwidth over ranks", "GB/s", RANKS),
        &bandwidth,
        &like_for_like(&bandwidth.of(many)),
        key,
        none,
    )?;
    body +=
        &plots(("Latency over ranks", "µs", RANKS), &latency, &like_for_like(&latency.of(few)), key, none)?;
    Ok(body)
}

/// A plot of bars for each number of ranks and tokens.
fn bar_plots(
    (what, unit): (&str, &str),
    value: fn(&Row) -> Option<f64>,
    spread: fn(&Row) -> Option<(f64, f64)>,
    limit: fn(&Row) -> Option<(&'static str, f64)>,
    rows: &[&Row],
) -> Drawn {
    let mut out = String::new();
    let has = |row: &&&Row| value(row).is_some_and(f64::is_finite);
    let rows: Vec<&Row> = rows.iter().filter(has).copied().collect();
    if rows.is_empty() {
        return Ok(left_out(what, "nothing of it was timed"));
    }
    for group in grouped(&rows, |row| (row.ranks, row.tokens)) {
        let (title, names) = names(&group, None);
        let operations = grouped(&group, |row| row.operation.clone());
        let look = |row: &Row| operations.iter().position(|of| of[0].operation == row.operation);
        let bars: Vec<Bar> = group
            .iter()
            .zip(names)
            .map(|(row, name)| {
                let whole = value(row).unwrap_or(0.0);
                let limit = limit(row).map(|limit| limit.1).filter(|limit| limit.is_finite());
                let look = Look::filled(look(row).unwrap_or(0));
                Bar { name, parts: vec![(whole, look)], whole, spread: spread(row), limit }
            })
            .collect();
        let mut looks = Vec::new();
        if group.iter().any(|row| spread(row).is_some()) {
            looks.push(("a tenth to nine tenths".to_owned(), Symbol::Whisker));
        }
        if let Some((name, _)) = group.iter().find_map(|row| limit(row)) {
            looks.push((name.to_owned(), Symbol::Tick));
        }
        for bars in bars.chunks(MOST_BARS) {
            out += &figure(&format!("{what}: {title}"), &bars::draw(unit, bars, &looks)?);
        }
    }
    Ok(out)
}

fn overlap(rows: &[&Row]) -> Drawn {
    if rows.is_empty() {
        return Ok(left_out("Halves and overlap", "neither was timed"));
    }
    let is_reading = |row: &&Row| row.operation.contains("weights") || row.operation.contains("beside");
    let (reading, halves): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| is_reading(row));
    let mut body = paragraph(
        "Halves have all that they need there when they begin: nothing of the flight is in them. A kernel that reads \
         weights is timed alone, and beside what is on its way.",
    );
    body += &bar_plots(("Halves", "µs"), median, spread, floor, &halves)?;
    body += &bar_plots(("Reading weights, alone and beside calls", "µs"), median, spread, floor, &reading)?;
    Ok(body + &every_number(rows))
}

fn copy_engine(rows: &[&Row]) -> Drawn {
    if rows.is_empty() {
        return Ok(left_out("Copy engines", "nothing was moved by them"));
    }
    let plots = bar_plots(("Rows moved by copy engines", "GB/s"), rate, |_| None, copy, rows)?;
    Ok(plots + &every_number(rows))
}

fn proxy(rows: &[&Row]) -> String {
    if rows.is_empty() {
        return left_out("Ring and proxy", "they were not timed");
    }
    paragraph("µs of a command.") + &every_number(rows)
}

/// A table of rows, if there are any.
fn every_number(rows: &[&Row]) -> String {
    if rows.is_empty() { String::new() } else { numbers::table(rows) }
}

fn ceilings(ceilings: &[Ceiling]) -> String {
    if ceilings.is_empty() {
        return left_out("Ceilings", "none was measured");
    }
    let text = "What no call can be quicker than, measured in the same run. Noise, here and below: the largest less the \
                smallest of repeated runs' medians, over the median.";
    paragraph(text) + &head::ceilings(ceilings)
}

fn traffic(all: &[Traffic]) -> Drawn {
    let mut body = String::new();
    for traffic in all.iter().filter(|traffic| !traffic.bytes.is_empty()) {
        let Traffic { name, bytes } = traffic;
        let ranks = bytes.len();
        body += &figure(&format!("Traffic from rank to rank: {name}"), &heat::draw(traffic)?);
        let to: Vec<String> = (0..ranks).map(|rank| format!("to {rank}")).collect();
        let heads: Vec<&str> = ["bytes"].into_iter().chain(to.iter().map(String::as_str)).collect();
        let rows = bytes.iter().enumerate().map(|(from, row)| {
            [format!("from {from}")].into_iter().chain(row.iter().map(u64::to_string)).collect()
        });
        body += &table(&format!("bytes, {name}"), &heads, &rows.collect::<Vec<_>>());
    }
    Ok(if body.is_empty() { left_out("Traffic", "none was counted") } else { body })
}

fn budget(budgets: &[Budget]) -> Drawn {
    if budgets.is_empty() {
        return Ok(left_out("Budget of a low-latency call", "none was taken"));
    }
    const REST: &str = "rest";
    let rest = |budget: &Budget| budget.whole - budget.parts.iter().map(|part| part.1).sum::<f64>();
    let bar = |budget: &Budget| {
        let parts = budget.parts.iter().enumerate().map(|(at, part)| (part.1, Look::filled(at)));
        let parts =
            parts.chain([(rest(budget), Look::Rest)]).filter(|part| part.0.is_finite() && part.0 > 0.0);
        Bar {
            name: budget.name.clone(),
            parts: parts.collect(),
            whole: budget.whole,
            spread: None,
            limit: None,
        }
    };
    let mut body = String::new();
    // Of the same parts.
    let kind = |budget: &Budget| budget.parts.iter().map(|part| part.0.clone()).collect::<Vec<_>>();
    for alike in grouped(&budgets.iter().collect::<Vec<_>>(), kind) {
        let names = alike[0].parts.iter().enumerate();
        let mut looks: Vec<_> =
            names.map(|(at, part)| (part.0.clone(), Symbol::Bar(Look::filled(at)))).collect();
        if alike.iter().any(|budget| rest(budget) > 0.0) {
            looks.push((REST.to_owned(), Symbol::Bar(Look::Rest)));
        }
        let bars: Vec<Bar> = alike.iter().map(|budget| bar(budget)).collect();
        for bars in bars.chunks(MOST_BARS) {
            body += &figure("Budget: what the time of a call is made of", &bars::draw("µs", bars, &looks)?);
        }
    }
    let rows = budgets.iter().flat_map(|budget| {
        let row = |part: &str, time: f64| {
            let share = numbers::percent(time / budget.whole);
            vec![budget.name.clone(), part.to_owned(), measured(time), share]
        };
        let parts = budget.parts.iter().map(move |(part, time)| row(part, *time));
        parts.chain([row(REST, rest(budget)), row("whole", budget.whole)])
    });
    let rows: Vec<_> = rows.collect();
    Ok(body + &table("parts", &["call", "part", "µs", "% of the whole"], &rows))
}
