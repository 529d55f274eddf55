//! `tokenrail latency`: how long low-latency calls take, whole and in halves, launched one by one and from a graph.

pub mod args;
pub mod rank;

use crate::meet::{all_ranks, print_failures};
use crate::progress::Progress;
use crate::report::table;
use crate::sweep::{Spread, name_of};
use crate::workload::{Source, Workload};
use args::LatencyArgs;
use rank::{Job, Outcome, PARTS};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use tokenrail::{Config, Group, LowLatency};

/// Everything.
#[derive(Serialize)]
struct Results {
    /// Of this format.
    version: u32,
    /// Of the library.
    tokenrail: &'static str,
    /// The GPU of each rank: name and number.
    devices: Vec<String>,
    /// What was asked for.
    settings: String,
    /// Timed repetitions.
    iterations: u32,
    /// Measurements.
    rows: Vec<Row>,
}

/// One measurement.
#[derive(Serialize)]
struct Row {
    /// Tokens of each rank.
    tokens: u32,
    /// Multiprocessors.
    sms: u32,
    /// What was timed, and how long it took on the slowest rank, in µs.
    times: BTreeMap<&'static str, Spread>,
    /// Rows compared with the reference, over all ranks.
    compared: usize,
}

/// Measures, prints and writes; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn latency(args: &LatencyArgs) -> Result<bool, Box<dyn Error>> {
    let most = args.tokens.iter().copied().max().unwrap_or(1);
    let low_latency = LowLatency {
        dispatch: args.dispatch.format(),
        combine: args.combine.format(),
        summation: args.summation.order(),
        ..LowLatency::new(most)
    };
    let source =
        Source { ranks: args.ranks, gate: args.gate, seed: args.seed, uneven: false, mask_one_in: 0 };
    let sms = args.sms.iter().copied().max();
    let base = Config::new(args.experts, args.topk, args.hidden, most);
    let max_sms = sms.unwrap_or(0).max(base.max_sms);
    let workload = Workload::draw(base, &source)?;
    let config = Config {
        tokens: 0,
        low_latency: Some(low_latency),
        timeout: args.timeout,
        max_sms,
        ..workload.config.clone()
    };
    config.shape(args.ranks)?;
    let members = Group::in_process(args.ranks, &args.backend.open(args.seed)?)?;
    let described = |member: &tokenrail::Member| {
        let device = member.gpu().description();
        format!("{} ({})", device.name, device.ordinal)
    };
    let devices: Vec<String> = members.iter().map(described).collect();
    let progress = Progress::new(args.quiet);
    let job = Job { workload: &workload, config: &config, args, progress: &progress };
    progress.part("measuring", args.ranks * job.cells().len() as u32);
    let results = all_ranks(members, |member| rank::work(member, &job));
    progress.end();
    let outcomes: Option<Vec<&Outcome>> = results.iter().map(|result| result.as_ref().ok()).collect();
    let Some(outcomes) = outcomes else {
        print_failures(&results);
        return Ok(false);
    };
    let rows = job.cells().into_iter().enumerate().map(|(at, (tokens, sms))| {
        let spread = |(part, name): (usize, &'static str)| {
            let ranks: Vec<_> = outcomes.iter().map(|outcome| &outcome.times[at][part]).collect();
            Some((name, Spread::of_slowest(&ranks)?))
        };
        Row {
            tokens,
            sms: sms.unwrap_or(outcomes[0].default_sms),
            times: PARTS.into_iter().enumerate().filter_map(spread).collect(),
            compared: outcomes.iter().map(|outcome| outcome.compared[at]).sum(),
        }
    });
    let results = Results {
        version: 1,
        tokenrail: env!("CARGO_PKG_VERSION"),
        devices,
        settings: format!(
            "{} ranks, hidden {}, {} experts, top-{}, {} gate, dispatch {}, combine {} summed {}",
            args.ranks,
            args.hidden,
            args.experts,
            args.topk,
            name_of(args.gate),
            name_of(args.dispatch),
            name_of(args.combine),
            name_of(args.summation),
        ),
        iterations: args.iterations(),
        rows: rows.collect(),
    };
    if let Some(path) = &args.json {
        crate::sweep::write(path, &results)?;
    }
    println!("{}\n{}", results.settings, results.devices.join(", "));
    print!("{}", print(&results));
    let differences: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.differences).collect();
    differences.iter().for_each(|difference| eprintln!("error: {difference}"));
    let compared: usize = results.rows.iter().map(|row| row.compared).sum();
    match (differences.is_empty(), args.no_check) {
        (false, _) => println!("FAILED: see above"),
        (true, true) => println!("nothing was compared with the CPU reference"),
        (true, false) => println!("ok: {compared} combined rows equal the CPU reference, bit for bit"),
    }
    Ok(differences.is_empty())
}

/// Medians, in µs.
fn print(results: &Results) -> String {
    let mut rows = vec![["tokens", "SMs"].into_iter().chain(PARTS).map(String::from).collect::<Vec<_>>()];
    for row in &results.rows {
        let time = |name| match row.times.get(name) {
            Some(time) => format!("{:.1}", time.median),
            None => "–".into(),
        };
        let numbers = [row.tokens.to_string(), row.sms.to_string()];
        rows.push(numbers.into_iter().chain(PARTS.into_iter().map(time)).collect());
    }
    table(&rows)
}
