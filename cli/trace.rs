//! `tokenrail trace`: a timeline of one dispatch and one combine of either kind.

pub mod args;
mod chrome;
mod rank;

use crate::meet::{all_ranks, print_failures};
use crate::progress::Progress;
use crate::report::table;
use crate::sweep::name_of;
use crate::workload::{Source, Workload};
use args::TraceArgs;
use rank::Job;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use tokenrail::gpu::Description;
use tokenrail::trace::{Activity, Operation, Span, Trace};
use tokenrail::{Config, Group};

/// What all ranks have recorded, by rank.
pub struct Ranks {
    /// Of the operations that were asked for.
    spans: Vec<Vec<Span>>,
    /// Marks for which there was no room.
    lost: Vec<u32>,
}

/// Traces, writes and prints; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn trace(args: &TraceArgs) -> Result<bool, Box<dyn Error>> {
    let config = args.config();
    config.shape(args.ranks)?;
    let source =
        Source { ranks: args.ranks, gate: args.gate, seed: args.seed, uneven: false, mask_one_in: 0 };
    let most = config.tokens.max(args.few().unwrap_or(0));
    let drawn = Config { tokens: most, low_latency: None, ..config.clone() };
    let progress = Progress::new(args.quiet);
    progress.part("drawing and routing tokens", 0);
    let workload = Workload::draw(drawn, &source)?;
    let members = Group::in_process(args.ranks, &args.backend.open(args.seed)?)?;
    let devices: Vec<Description> = members.iter().map(|member| member.gpu().description().clone()).collect();
    progress.part("tracing", 0);
    let job = Job { workload: &workload, config: &config, args };
    let results = all_ranks(members, |member| rank::work(member, &job));
    progress.end();
    let traces: Option<Vec<&Vec<Trace>>> = results.iter().map(|result| result.as_ref().ok()).collect();
    let Some(traces) = traces else {
        print_failures(&results);
        return Ok(false);
    };
    let asked = |traces: &&Vec<Trace>| {
        traces
            .iter()
            .flat_map(|trace| &trace.spans)
            .filter(|span| args.has(span.operation))
            .copied()
            .collect()
    };
    let lost = |traces: &&Vec<Trace>| traces.iter().map(|trace| trace.lost).sum();
    let ranks = Ranks { spans: traces.iter().map(asked).collect(), lost: traces.iter().map(lost).collect() };
    let settings = settings(args);
    write(&args.out, &chrome::file(&ranks, &devices, &settings))?;
    println!("{settings}");
    print!("{}", summary(&ranks));
    for (rank, lost) in ranks.lost.iter().enumerate().filter(|&(_, &lost)| lost > 0) {
        eprintln!("note: rank {rank} had no room for the last {lost} marks: give more --marks");
    }
    let spans: usize = ranks.spans.iter().map(Vec::len).sum();
    println!("wrote {spans} spans of {} ranks to {}", args.ranks, args.out.display());
    Ok(true)
}

fn settings(args: &TraceArgs) -> String {
    format!(
        "{} ranks, {} tokens each, {} in low-latency calls, hidden {}, {} experts, top-{}, {} gate, {}",
        args.ranks,
        if args.has_many() { args.tokens } else { 0 },
        args.few().unwrap_or(0),
        args.hidden,
        args.experts,
        args.topk,
        name_of(args.gate),
        name_of(args.element),
    )
}

/// Writes the file in one piece or not at all.
fn write(path: &Path, file: &chrome::File) -> Result<(), Box<dyn Error>> {
    let named = |error: &dyn std::fmt::Display| format!("--out: {}: {error}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut out = BufWriter::new(fs::File::create(&temporary).map_err(|error| named(&error))?);
    serde_json::to_writer(&mut out, file).map_err(|error| named(&error))?;
    out.flush().map_err(|error| named(&error))?;
    Ok(fs::rename(&temporary, path).map_err(|error| named(&error))?)
}

/// How often something was done, and how long it took.
#[derive(Default)]
struct Sum {
    count: u64,
    all_ns: u64,
    most_ns: u64,
    /// By what stands for whole warps.
    warps_ns: u64,
}

/// What warps spend their time with, by operation. The whole is the time of all warps from an operation's first mark on a
/// rank to its last.
fn summary(ranks: &Ranks) -> String {
    let mut sums: BTreeMap<(Operation, Activity), Sum> = BTreeMap::new();
    let mut wholes: HashMap<Operation, u64> = HashMap::new();
    for spans in &ranks.spans {
        for operation in Operation::ALL {
            let own: Vec<&Span> = spans.iter().filter(|span| span.operation == operation).collect();
            let Some(begin) = own.iter().map(|span| span.begin_ns).min() else { continue };
            let end = own.iter().map(|span| span.end_ns).max().unwrap_or(begin);
            let mut warps: Vec<_> = own.iter().map(|span| (span.block, span.warp)).collect();
            warps.sort_unstable();
            warps.dedup();
            *wholes.entry(operation).or_default() += (end - begin) * warps.len() as u64;
            for span in own {
                let sum = sums.entry((operation, span.activity)).or_default();
                sum.count += 1;
                sum.all_ns += span.ns();
                sum.most_ns = sum.most_ns.max(span.ns());
                sum.warps_ns += if span.lane == 0 { span.ns() } else { 0 };
            }
        }
    }
    let header = ["operation, what warps do", "spans", "mean µs", "longest µs", "share"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for ((operation, activity), sum) in &sums {
        let whole = wholes.get(operation).copied().unwrap_or(0).max(1);
        rows.push(vec![
            format!("{}, {}", operation.name(), activity.name()),
            sum.count.to_string(),
            format!("{:.2}", sum.all_ns as f64 / 1e3 / sum.count as f64),
            format!("{:.2}", sum.most_ns as f64 / 1e3),
            format!("{:.1} %", 100.0 * sum.warps_ns as f64 / whole as f64),
        ]);
    }
    table(&rows)
}
