//! Every operation that orders something, made to order less: whatever is needed has to be missed.

use crate::cases::{self, Case};
use crate::on_all_cores;
use std::collections::BTreeMap;
use std::fs;
use tokenrail::gpu::EmulatorOptions;
use tokenrail::gpu::emulator_check::Weakness::{self, Early, Narrow, Nothing};
use tokenrail::gpu::emulator_check::{Checker, Finding, Mutant, Site};

/// Which operation, by what does not change with every edit: its file, the function and the line's text.
pub type Place = (String, String, String);

pub fn place_of(site: &Site) -> Place {
    let source = fs::read_to_string(&site.file).expect("the source of what is tested");
    let lines: Vec<_> = source.lines().take(site.line as usize).map(str::trim).collect();
    let name = |line: &&str| Some(line.split_once("fn ")?.1.split(['(', '<']).next()?.to_owned());
    let is_heading =
        |line: &&&str| !line.starts_with("//") && (line.starts_with("fn ") || line.contains(" fn "));
    let function = lines.iter().rev().filter(is_heading).find_map(name).unwrap_or_default();
    let file = site.file.trim_start_matches("device/src/").to_owned();
    (file, function, lines.last().copied().unwrap_or_default().to_owned())
}

/// Operations that nobody misses in the cases here, and why.
#[rustfmt::skip]
const REDUNDANT: &[(&str, &str, &str, Weakness, &str)] = &[
    ("low_latency/batch.rs", "acknowledge", "mem::fence_acq_rel_sys();", Nothing,
        "it keeps strong reads of packets ahead of strong writes: the wrong order would be no race, but a wrong value"),
    ("low_latency/batch.rs", "acknowledge", "mem::fence_acq_rel_sys();", Narrow, "as above"),
    ("low_latency/batch.rs", "may_send", "let waited = mem::wait_at_least_acquire_sys(flag, epoch - 1, deadline_ns);", Nothing,
        "the other side of that"),
    ("low_latency/batch.rs", "may_send", "let waited = mem::wait_at_least_acquire_sys(flag, epoch - 1, deadline_ns);", Early,
        "the other side of that"),
    ("low_latency/combine/mod.rs", "combine", "block::barrier();", Nothing,
        "a barrier in `receive` comes before the count is written, too"),
    ("low_latency/dispatch/routing.rs", "count_summary", "shared::add_u32(self.shared.summary + 4 * summary::TOKENS, tokens);", Nothing,
        "a single thread adds there, once"),
    ("low_latency/packet.rs", "void", "unsafe { mem::store_relaxed_sys_b128(nth(from, index.into()), Quad::default()) };", Narrow,
        "those that look meanwhile are this device's"),
    ("meet.rs", "last_block", "mem::store_relaxed_gpu_u32(counter, 0);", Nothing,
        "every addition is ordered before, the next kernel's after"),
    ("throughput/arrive.rs", "sent", "unsafe { mem::load_relaxed_gpu_u32(exchange.work(exchange.work.unsent)) == 0 }", Nothing,
        "the meeting of the blocks orders it"),
    ("throughput/arrive.rs", "wait", "mem::store_relaxed_gpu_u32(exchange.work(exchange.work.unsent), 0);", Nothing,
        "the meeting of the blocks orders it"),
    ("throughput/count.rs", "count", "let invalid = block::barrier_or(invalid);", Nothing,
        "the totals are complete before a barrier in `count_tokens`; this one is for the vote"),
    ("throughput/expand.rs", "bulk", "bulk::fence_proxy_async();", Nothing,
        "of the fence for the mbarriers and the one for the rows each is enough for the mbarriers"),
    ("throughput/expand.rs", "bulk", "bulk::fence_proxy_async();", Nothing,
        "rows that bulk copies brought are handed over by the fence in `written` already"),
    ("throughput/expand.rs", "bulk", "bulk::mbarrier_arrive_expect(barrier(ahead_stage), bytes);", Nothing,
        "it tells how many bytes there will be, and releases nothing"),
    ("throughput/expand.rs", "bulk", "bulk::wait_read();", Nothing,
        "with two buffers the one that a chunk begins with is not the one that was stored from last"),
    ("throughput/pull.rs", "begin", "warp::barrier(warp::ALL);", Nothing,
        "the one between a pull's arrival and its copies comes before any use of the mbarriers"),
    ("throughput/pull.rs", "pull", "bulk::mbarrier_arrive_expect(barrier(ahead_stage), count * bytes);", Nothing,
        "it tells how many bytes there will be, and releases nothing"),
    ("throughput/pull.rs", "pull", "warp::barrier(warp::ALL);", Nothing,
        "the other one, behind the sums, orders their reads before the next pull, too"),
    ("throughput/pull.rs", "pull", "warp::barrier(warp::ALL);", Nothing,
        "the other one, ahead of the copies, orders the sums' reads before the next pull, too"),
    ("throughput/send.rs", "bulk", "bulk::mbarrier_arrive_expect(barrier(ahead_stage), bytes);", Nothing,
        "it tells how many bytes there will be, and releases nothing"),
    ("throughput/send.rs", "written", "bulk::fence_proxy_async();", Nothing,
        "a complete copy is visible to ordinary reads, and who loads it in bulk has a fence of its own"),
];

fn options() -> EmulatorOptions {
    EmulatorOptions { seed: 1, preempt_one_in: 16, ..EmulatorOptions::default() }
}

/// All that can be made weaker, each with the cases in which it runs.
pub fn mutants(cases: &[Case]) -> Vec<(Mutant, Vec<&Case>)> {
    let of_cases = on_all_cores(cases, |case| {
        let checker = Checker::new();
        case.run(&checker, options());
        assert_eq!(checker.findings(), [], "{}", case.name);
        (case, checker.mutants())
    });
    let mut all: BTreeMap<(Site, Weakness), Vec<&Case>> = BTreeMap::new();
    for (case, mutants) in of_cases {
        mutants
            .into_iter()
            .for_each(|Mutant { site, weakness }| all.entry((site, weakness)).or_default().push(case));
    }
    all.into_iter().map(|((site, weakness), cases)| (Mutant { site, weakness }, cases)).collect()
}

/// What is found of a mutant.
pub fn findings_of(mutant: &Mutant, case: &Case) -> Vec<Finding> {
    let checker = Checker::of_mutant(mutant.clone());
    case.run(&checker, options());
    checker.findings()
}

#[test]
fn whatever_is_needed_is_missed() {
    let cases = cases::all();
    let all = mutants(&cases);
    let found = on_all_cores(&all, |(mutant, cases)| {
        let is_found = cases.iter().any(|case| !findings_of(mutant, case).is_empty());
        (mutant.clone(), is_found)
    });
    let mut survivors: Vec<_> = found
        .into_iter()
        .filter(|(_, is_found)| !is_found)
        .map(|(Mutant { site, weakness }, _)| (place_of(&site), weakness))
        .collect();
    survivors.sort();
    println!("{} mutants, {} of which nobody misses", all.len(), survivors.len());
    let survivors: Vec<_> = survivors
        .iter()
        .map(|((file, function, line), weakness)| (&file[..], &function[..], &line[..], *weakness))
        .collect();
    let mut known: Vec<_> = REDUNDANT
        .iter()
        .map(|&(file, function, line, weakness, _)| (file, function, line, weakness))
        .collect();
    known.sort();
    // One that is not known is an operation to look at, or a case that is missing; a known one that is missed now has to go.
    assert_eq!(survivors, known);
}
