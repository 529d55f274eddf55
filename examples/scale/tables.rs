//! The model's figures as Markdown.

use super::published::Source;
use super::routing::Gating;
use super::settings::{MODES, Settings};
use super::time::{Estimate, Mode, Payload, Resource};
use super::validation::{Check, checks, fitted, summary};
use std::fmt::Write;

/// All tables.
pub fn tables(settings: &Settings) -> String {
    let mut text =
        String::from("Written by `cargo run --release --example scale`. What it means: docs/scale.md.\n");
    for mode in MODES {
        times(&mut text, settings, mode);
        resources(&mut text, settings, mode);
    }
    ways(&mut text, settings);
    rows(&mut text, settings);
    let checks = checks();
    errors(&mut text, &checks);
    summaries(&mut text, &checks);
    text
}

/// A heading, and a table's head.
fn head(text: &mut String, heading: &str, columns: &[&str]) {
    let rule = vec!["---"; columns.len()].join("|");
    writeln!(text, "\n## {heading}\n\n| {} |\n|{rule}|", columns.join(" | ")).expect("a string");
}

fn row(text: &mut String, cells: &[String]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("a string");
}

/// Name of a mode.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Throughput => "throughput",
        Mode::LowLatency(_) => "low latency",
    }
}

/// GB/s as DeepEP counts it: a row for each node (low latency: for each expert) over the operation's time.
pub fn logical_gbs(settings: &Settings, payload: Payload, mode: Mode, estimate: &Estimate) -> f64 {
    let work = settings.work(1, Gating::Uniform, payload, mode);
    let copies = match mode {
        Mode::Throughput => estimate.token_nodes,
        Mode::LowLatency(_) => f64::from(settings.topk),
    };
    f64::from(work.tokens) * work.logical_row() * copies / 1e3 / estimate.total()
}

fn times(text: &mut String, settings: &Settings, mode: Mode) {
    let heading = format!("{}: µs (GB/s as DeepEP counts), by how experts are chosen", mode_name(mode));
    let mut columns = vec!["EP", "experts from", "nodes", "ranks"];
    columns.extend(Payload::ALL.map(Payload::name));
    head(text, &heading, &columns);
    for &ranks in &settings.ranks {
        for (gating, name) in settings.gatings() {
            let estimates =
                Payload::ALL.map(|payload| (payload, settings.estimate(ranks, gating, payload, mode)));
            let mut cells = vec![
                ranks.to_string(),
                name,
                format!("{:.2}", estimates[0].1.token_nodes),
                format!("{:.2}", estimates[0].1.token_ranks),
            ];
            cells.extend(estimates.map(|(payload, estimate)| {
                let gbs = logical_gbs(settings, payload, mode, &estimate);
                format!("{:.0} ({gbs:.0})", estimate.total())
            }));
            row(text, &cells);
        }
    }
}

fn resources(text: &mut String, settings: &Settings, mode: Mode) {
    let mode_name = mode_name(mode);
    let heading =
        format!("{mode_name}, dispatch fp8, experts from any: µs of each resource, and the proxy's part");
    let mut columns = vec!["EP"];
    columns.extend(Resource::ALL.map(Resource::name));
    columns.extend(["fixed", "longest", "writes", "M writes/s needed"]);
    head(text, &heading, &columns);
    for &ranks in &settings.ranks {
        let estimate = settings.estimate(ranks, Gating::Uniform, Payload::Fp8Dispatch, mode);
        let mut cells = vec![ranks.to_string()];
        cells.extend(estimate.times.map(|time| format!("{time:.1}")));
        cells.push(format!("{:.1}", estimate.fixed));
        cells.push(estimate.bottleneck().name().to_string());
        cells.push(format!("{:.0}", estimate.commands));
        cells.push(format!("{:.1}", estimate.posts_needed()));
        row(text, &cells);
    }
}

/// Whether few tokens had better go straight to each rank, or once to each node.
fn ways(text: &mut String, settings: &Settings) {
    let few = Settings { tokens: settings.low_latency_tokens, ..settings.clone() };
    let heading = format!("{} tokens, dispatch fp8 / combine: µs straight and by two levels", few.tokens);
    let names = few.gatings().map(|(_, name)| name);
    let columns: Vec<String> = ["straight", "two levels"]
        .iter()
        .flat_map(|way| names.iter().map(move |name| format!("{way}, {name}")))
        .collect();
    let columns: Vec<&str> = std::iter::once("EP").chain(columns.iter().map(String::as_str)).collect();
    head(text, &heading, &columns);
    for &ranks in &few.ranks {
        let mut cells = vec![ranks.to_string()];
        for mode in [MODES[1], MODES[0]] {
            for (gating, _) in few.gatings() {
                let total = |payload| few.estimate(ranks, gating, payload, mode).total();
                cells.push(format!("{:.0} / {:.0}", total(Payload::Fp8Dispatch), total(Payload::Combine)));
            }
        }
        row(text, &cells);
    }
}

/// What is left for an expert's GEMM, and for a message between two ranks.
fn rows(text: &mut String, settings: &Settings) {
    let columns = [
        "EP",
        "experts",
        "experts a rank",
        "rows an expert, throughput",
        "low latency",
        "messages of a pair of ranks, low latency",
    ];
    head(text, "What is left of a batch, uniform routing", &columns);
    for &ranks in &settings.ranks {
        let experts = settings.experts_of(ranks);
        let rows = |tokens: u32| {
            f64::from(tokens) * f64::from(settings.topk) * f64::from(ranks) / f64::from(experts)
        };
        let estimate = settings.estimate(ranks, Gating::Uniform, Payload::Combine, MODES[1]);
        let messages = f64::from(settings.low_latency_tokens) * estimate.token_ranks / f64::from(ranks);
        row(
            text,
            &[
                ranks.to_string(),
                experts.to_string(),
                (experts / ranks).to_string(),
                format!("{:.0}", rows(settings.tokens)),
                format!("{:.0}", rows(settings.low_latency_tokens)),
                format!("{messages:.1}"),
            ],
        );
    }
}

/// Predicted over measured, less one, in percent.
pub fn percent(error: f64) -> String {
    format!("{:+.1} %", 100.0 * error)
}

fn errors(text: &mut String, checks: &[Check]) {
    let columns =
        ["what", "EP", "tokens", "SMs", "operation", "measured µs", "model µs", "longest", "error", ""];
    head(text, "The model beside what was measured", &columns);
    for check in checks {
        let row_ = &check.row;
        let sms = if row_.machine.sms.is_finite() { row_.machine.sms.to_string() } else { String::new() };
        row(
            text,
            &[
                row_.source.name().to_string(),
                row_.work.ranks.to_string(),
                row_.work.tokens.to_string(),
                sms,
                row_.work.payload.name().to_string(),
                format!("{:.0}", check.measured),
                format!("{:.0}", check.estimate.total()),
                check.estimate.bottleneck().name().to_string(),
                percent(check.error()),
                if row_.fitted { "fitted" } else { "" }.to_string(),
            ],
        );
    }
}

fn summaries(text: &mut String, checks: &[Check]) {
    head(text, "Errors", &["what", "figures", "mean size", "largest"]);
    let mut line = |name: &str, summary: super::validation::Summary| {
        let mean = format!("{:.1} %", 100.0 * summary.mean);
        row(text, &[name.to_string(), summary.count.to_string(), mean, percent(summary.worst)]);
    };
    line("fitted", summary(checks, |row| row.fitted));
    for source in Source::ALL {
        line(source.name(), summary(checks, |row| row.source == source && !row.fitted));
    }
    line("**all that are not fitted**", summary(checks, |row| !row.fitted));
    let (nvlink, nic) = fitted(checks);
    writeln!(text, "\nFitted: NVLink of H800s {nvlink:.1} GB/s, NIC of 400 Gb/s {nic:.1} GB/s.")
        .expect("a string");
}
