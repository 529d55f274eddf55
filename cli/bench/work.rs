//! How a part is measured, and what it gives.

use super::args::BenchArgs;
use super::collect::{Collected, Key, counted, median};
use super::plan::{Step, Work};
use super::results::{Limit, Section};
use crate::latency::args::LatencyArgs;
use crate::latency::{self, PARTS};
use crate::progress::Progress;
use crate::sweep::args::ShapeArgs;
use crate::sweep::{Sweep, name_of, slowest};
use std::error::Error;
use tokenrail::fabric::ProxySpeed;
use tokenrail::tuning::{copy_engine_times, flag_times};

/// Parts of a low-latency call that are whole calls. Those behind are halves, and what runs beside them.
const WHOLE: [&str; 4] = ["dispatch", "combine", "both", "graph"];
/// Launches that a flag's time is measured with.
const FLAG_LAUNCHES: u32 = 15;
/// Bytes that copy engines move for their ceiling, on a GPU and on the emulator; and how often, after how many.
const COPY_BYTES: (usize, usize) = (256 << 20, 1 << 17);
const COPIES: (u32, u32) = (2, 10);

/// Measures one step as often as was asked for; true if all ranks came to their end and nothing differs.
///
/// # Errors
/// Settings or devices that are not usable.
pub fn measure(
    args: &BenchArgs,
    step: &Step,
    progress: Progress,
    collected: &mut Collected,
) -> Result<bool, Box<dyn Error>> {
    match &step.work {
        Work::Sweep(shape) => throughput(args, shape, step.work.sections()[0], progress, collected),
        Work::Latency(calls) => low_latency(args, calls, &progress, collected),
        Work::Proxy => proxy(args, &progress, collected).map(|()| true),
    }
}

fn throughput(
    args: &BenchArgs,
    shape: &ShapeArgs,
    section: Section,
    progress: Progress,
    collected: &mut Collected,
) -> Result<bool, Box<dyn Error>> {
    let ranks = shape.ranks;
    if section == Section::CopyEngine {
        progress.part("copying", 0);
        let bytes = if args.backend.is_gpu() { COPY_BYTES.0 } else { COPY_BYTES.1 };
        for _ in 0..args.repeat {
            let times = copy_engine_times(&args.backend.open(args.seed)?, ranks, bytes, COPIES)?;
            let times = slowest(&times.iter().collect::<Vec<_>>());
            if let Some(time) = median(&times) {
                collected.limit(Limit::CopyEngine, ranks, None, bytes as f64 / time / 1e3);
            }
        }
    }
    let mut sweep = Sweep::new(shape, args.repeat, progress)?;
    let well = sweep.all(None, &mut |_| Ok(()))?;
    for copy in &sweep.results.copies {
        collected.limit(Limit::Copy, ranks, Some(copy.sms), copy.gb_per_s);
    }
    for row in sweep.results.rows {
        let variant = format!("{} {} {}", row.element, row.form.name(), row.gate);
        for (operation, timed) in [("dispatch", row.dispatch), ("combine", row.combine)] {
            let (tokens, sms) = (Some(row.tokens), Some(timed.sms));
            let (operation, variant) = (operation.into(), variant.clone());
            let key = Key { section, operation, variant, ranks, tokens, sms };
            collected.times(key, Some(timed.bytes), timed.slowest);
        }
        collected.compared += row.compared;
    }
    let tokens = shape.most_tokens()?;
    for (element, gate, bytes) in sweep.traffic {
        let (element, gate) = (name_of(element), name_of(gate));
        let (tokens, ranks) = (counted(tokens, "token"), counted(ranks, "rank"));
        collected.traffic(format!("dispatch {element}, {tokens}, {gate}, {ranks}"), bytes);
    }
    Ok(well)
}

fn low_latency(
    args: &BenchArgs,
    calls: &LatencyArgs,
    progress: &Progress,
    collected: &mut Collected,
) -> Result<bool, Box<dyn Error>> {
    let ranks = calls.ranks;
    let names = [name_of(calls.dispatch), name_of(calls.combine), name_of(calls.summation)];
    let variant = names.join(" ");
    for _ in 0..args.repeat {
        progress.part("passing a flag on", 0);
        let flags = flag_times(&args.backend.open(args.seed)?, ranks, FLAG_LAUNCHES)?;
        if let Some(time) = median(&flags) {
            collected.limit(Limit::Flag, ranks, None, time);
        }
        let Some(measured) = latency::measure(calls, progress)? else { return Ok(false) };
        let mut launches = Vec::new();
        for cell in measured.cells {
            for (part, times) in PARTS.into_iter().zip(cell.slowest) {
                let section = match part {
                    "launch" => {
                        launches.extend(times);
                        continue;
                    }
                    part if WHOLE.contains(&part) => Section::LowLatency,
                    _ => Section::Overlap,
                };
                let (operation, variant) = (part.into(), variant.clone());
                let (tokens, sms) = (Some(cell.tokens), Some(cell.sms));
                let key = Key { section, operation, variant, ranks, tokens, sms };
                collected.times(key, None, times);
            }
            collected.compared += cell.compared;
        }
        if let Some(time) = median(&launches) {
            collected.limit(Limit::Launch, ranks, None, time);
        }
        measured.differences.iter().for_each(|difference| eprintln!("error: {difference}"));
        if !measured.differences.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn proxy(args: &BenchArgs, progress: &Progress, collected: &mut Collected) -> Result<(), Box<dyn Error>> {
    progress.part("giving commands", 0);
    let backend = args.backend.open(args.seed)?;
    for _ in 0..args.repeat {
        for (variant, speed) in [
            ("by the host", ProxySpeed::of_host()?),
            ("by a kernel", ProxySpeed::measure(&backend, args.core)?),
        ] {
            let parts = [
                ("taken", 1e6 / speed.taken_per_s),
                ("posted", 1e6 / speed.posted_per_s),
                ("round trip", speed.round_trip_ns / 1e3),
            ];
            // Not a number: not measured.
            for (operation, time) in parts.into_iter().filter(|(_, time)| time.is_finite()) {
                let (operation, variant) = (operation.into(), variant.into());
                let key =
                    Key { section: Section::Proxy, operation, variant, ranks: 1, tokens: None, sms: None };
                collected.times(key, None, vec![time]);
            }
        }
    }
    progress.end();
    Ok(())
}
