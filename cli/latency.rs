//! `tokenrail latency`: how long low-latency calls take, whole and in halves, launched one by one and from a graph.

pub mod args;
pub mod rank;

pub use rank::PARTS;

use crate::compare::Difference;
use crate::files;
use crate::meet::{all_ranks, print_failures};
use crate::progress::Progress;
use crate::report::table;
use crate::sweep::{Spread, name_of, slowest};
use crate::workload::{Source, Workload};
use args::LatencyArgs;
use rank::{Job, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use tokenrail::{Config, Group};

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

/// What was measured, before it is summed up.
pub struct Measured {
    /// The GPU of each rank: name and number.
    pub devices: Vec<String>,
    /// For each number of tokens and multiprocessors.
    pub cells: Vec<Cell>,
    /// Where what was combined is not what it must be.
    pub differences: Vec<Difference>,
}

/// What was measured with one number of tokens and multiprocessors.
pub struct Cell {
    /// Tokens of each rank.
    pub tokens: u32,
    /// Multiprocessors.
    pub sms: u32,
    /// The slowest rank's times of each of [`PARTS`], in µs.
    pub slowest: [Vec<f64>; PARTS.len()],
    /// Rows compared with the reference, over all ranks.
    pub compared: usize,
}

/// Measures, prints and writes; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn latency(args: &LatencyArgs) -> Result<bool, Box<dyn Error>> {
    let Some(measured) = measure(args, &Progress::new(args.quiet))? else { return Ok(false) };
    let rows = measured.cells.iter().map(|cell| {
        let times = PARTS.into_iter().zip(&cell.slowest);
        Row {
            tokens: cell.tokens,
            sms: cell.sms,
            times: times.filter_map(|(name, times)| Some((name, Spread::of(times)?))).collect(),
            compared: cell.compared,
        }
    });
    let results = Results {
        version: 1,
        tokenrail: env!("CARGO_PKG_VERSION"),
        devices: measured.devices,
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
        files::write_json("--json", path, &results)?;
    }
    println!("{}\n{}", results.settings, results.devices.join(", "));
    print!("{}", print(&results));
    let differences = &measured.differences;
    differences.iter().for_each(|difference| eprintln!("error: {difference}"));
    let compared: usize = results.rows.iter().map(|row| row.compared).sum();
    match (differences.is_empty(), args.no_check) {
        (false, _) => println!("FAILED: see above"),
        (true, true) => println!("nothing was compared with the CPU reference"),
        (true, false) => println!("ok: {compared} combined rows equal the CPU reference, bit for bit"),
    }
    Ok(differences.is_empty())
}

/// Measures everything that was asked for; `None` if a rank has failed, which is printed.
///
/// # Errors
/// Settings or devices that are not usable.
pub fn measure(args: &LatencyArgs, progress: &Progress) -> Result<Option<Measured>, Box<dyn Error>> {
    let config = args.config();
    config.shape(args.ranks)?;
    let source =
        Source { ranks: args.ranks, gate: args.gate, seed: args.seed, uneven: false, mask_one_in: 0 };
    let drawn = Config::new(args.experts, args.topk, args.hidden, args.most_tokens());
    let workload = Workload::draw(drawn, &source)?;
    let members = Group::in_process(args.ranks, &args.backend.open(args.seed)?)?;
    let described = |member: &tokenrail::Member| {
        let device = member.gpu().description();
        format!("{} ({})", device.name, device.ordinal)
    };
    let devices: Vec<String> = members.iter().map(described).collect();
    let job = Job { workload: &workload, config: &config, args, progress };
    progress.part("measuring", args.ranks * job.cells().len() as u32);
    let results = all_ranks(members, |member| rank::work(member, &job));
    progress.end();
    if results.iter().any(|result| result.is_err()) {
        print_failures(&results);
        return Ok(None);
    }
    let outcomes: Vec<Outcome> = results.into_iter().flatten().collect();
    let cells = job.cells().into_iter().enumerate().map(|(at, (tokens, sms))| {
        let slowest_of = |part: usize| {
            let ranks: Vec<_> = outcomes.iter().map(|outcome| &outcome.times[at][part]).collect();
            slowest(&ranks)
        };
        Cell {
            tokens,
            sms: sms.unwrap_or(outcomes[0].default_sms),
            slowest: std::array::from_fn(slowest_of),
            compared: outcomes.iter().map(|outcome| outcome.compared[at]).sum(),
        }
    });
    let cells = cells.collect();
    let differences = outcomes.into_iter().flat_map(|outcome| outcome.differences).collect();
    Ok(Some(Measured { devices, cells, differences }))
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
