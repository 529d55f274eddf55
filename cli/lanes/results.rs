//! What came of a comparison, as it is written and printed.

use super::args::short;
use super::line::{GOAL, Line, REFERENCE, Subject, Verdict};
use super::turns::Cell;
use crate::report::table;
use serde::Serialize;

/// Everything, as it is written.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Of this format.
    pub version: u32,
    /// Of the library.
    pub tokenrail: &'static str,
    /// `cuda`, or `emulator`, whose times are virtual.
    pub backend: &'static str,
    /// The GPU of each rank: name and number.
    pub devices: Vec<String>,
    /// Lanes, in the order of their turns.
    pub lanes: Vec<String>,
    /// Elements of a token.
    pub hidden: u32,
    /// Experts over all ranks.
    pub experts: u32,
    /// Experts of a token.
    pub topk: u32,
    /// How often lanes took turns with each size.
    pub repetitions: u32,
    /// Most that a ratio may be.
    pub goal: f64,
    /// Measurements.
    pub lines: Vec<Line>,
    /// Results of which those of all lanes were equal, bit for bit.
    pub equal: usize,
    /// What went wrong.
    pub failures: Vec<String>,
    /// Kernels that are not timed, and why.
    pub left_out: Vec<LeftOut>,
}

/// A kernel that is not timed.
#[derive(Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub kernel: &'static str,
    /// Why not.
    pub why: &'static str,
}

/// In words.
pub fn describe(subject: &Subject) -> String {
    let Subject { operation, ranks, cell: Cell { tokens, sms }, .. } = subject;
    let sms = sms.map_or(String::new(), |sms| format!(", SMs {sms}"));
    format!("{operation}, ranks {ranks}, tokens {tokens}{sms}")
}

/// Lines in which a lane is slower than it may be: its name, the line, and the ratio.
pub fn slower(results: &Results) -> impl Iterator<Item = (&str, &Line, f64)> {
    results.lines.iter().flat_map(|line| {
        line.lanes.iter().filter_map(move |timed| {
            let against = timed.against.filter(|against| against.verdict == Some(Verdict::Slower))?;
            Some((timed.lane.as_str(), line, against.ratio))
        })
    })
}

/// For people.
pub fn print(results: &Results) -> String {
    let mut text = format!(
        "{} ({}); hidden {}, {} experts, top-{}; {} repetitions, in which lanes take turns\n{}\n{}",
        results.backend,
        results.devices.join(", "),
        results.hidden,
        results.experts,
        results.topk,
        results.repetitions,
        match results.backend {
            "emulator" =>
                "virtual µs: the emulator counts a nanosecond a step, which says nothing about a GPU",
            _ => "µs of the slowest rank, median; beside a ratio to CUDA is the distance of its quartiles",
        },
        lines(results),
    );
    text += &beside(results);
    for LeftOut { kernel, why } in &results.left_out {
        text += &format!("not timed: {kernel}: {why}\n");
    }
    for failure in &results.failures {
        text += &format!("FAILED: {failure}\n");
    }
    for (lane, line, ratio) in slower(results) {
        text += &format!("slower: {lane}, {}: {ratio:.3} of CUDA's\n", describe(&line.subject));
    }
    for lane in &results.lanes {
        text += &summary(results, lane).unwrap_or_default();
    }
    if !results.lanes.iter().any(|lane| lane == REFERENCE) {
        text += "no ratios: the lane of the reference in CUDA C++ is not among these\n";
    }
    if results.failures.is_empty() {
        let (equal, lanes) = (results.equal, results.lanes.len());
        text += &format!("ok: {equal} results of {lanes} lanes are equal, bit for bit\n");
    }
    text
}

/// What is in times that is no kernel.
fn beside(results: &Results) -> String {
    let mut what: Vec<&Subject> = Vec::new();
    for Line { subject, .. } in &results.lines {
        if subject.beside.is_some() && what.iter().all(|other| other.beside != subject.beside) {
            what.push(subject);
        }
    }
    let sentence = |subject: &&Subject| {
        let judged = if subject.judged { "" } else { ", and are not judged" };
        let beside = subject.beside.unwrap_or_default();
        format!("times such as of {} have in them {beside}{judged}\n", subject.operation)
    };
    what.iter().map(sentence).collect()
}

/// The table.
fn lines(results: &Results) -> String {
    let others: Vec<&str> =
        results.lanes.iter().map(String::as_str).filter(|&lane| lane != REFERENCE).collect();
    let mut head = ["operation", "ranks", "tokens", "SMs"].map(str::to_owned).to_vec();
    head.extend(results.lanes.iter().cloned());
    let compared = results.lines.iter().any(|line| line.lanes.iter().any(|timed| timed.against.is_some()));
    if compared {
        head.extend(
            others.iter().flat_map(|lane| [format!("{lane}/{REFERENCE}"), "±".into(), String::new()]),
        );
    }
    let mut rows = vec![head];
    for line in &results.lines {
        let Subject { operation, kernels, ranks, cell, .. } = &line.subject;
        let kernels: Vec<&str> = kernels.iter().map(|kernel| short(kernel)).collect();
        let mut row = vec![
            format!("{operation} ({})", kernels.join(", ")),
            ranks.to_string(),
            cell.tokens.to_string(),
            cell.sms.map_or("–".into(), |sms| sms.to_string()),
        ];
        row.extend(line.lanes.iter().map(|timed| format!("{:.1}", timed.time)));
        for against in line.lanes.iter().filter_map(|timed| timed.against) {
            let verdict = match against.verdict {
                Some(Verdict::Ok) => "ok",
                Some(Verdict::WithinNoise) => "noise",
                Some(Verdict::Slower) => "slower",
                None => "–",
            };
            row.extend([format!("{:.3}", against.ratio), format!("{:.3}", against.noise), verdict.into()]);
        }
        rows.push(row);
    }
    table(&rows)
}

/// How a lane does beside the reference; `None` without any judged line.
fn summary(results: &Results, lane: &str) -> Option<String> {
    let timed = results.lines.iter().flat_map(|line| &line.lanes).filter(|timed| timed.lane == lane);
    let judged = timed.filter_map(|timed| timed.against).filter(|against| against.verdict.is_some());
    let judged: Vec<_> = judged.collect();
    let count = |verdict| judged.iter().filter(|against| against.verdict == Some(verdict)).count();
    let mut ratios: Vec<f64> = judged.iter().map(|against| against.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let (median, most) = (ratios.get(ratios.len() / 2)?, ratios.last()?);
    Some(format!(
        "{lane}: of {} lines {} are at most {GOAL} of CUDA's time, {} above it by no more than noise, {} slower; \
         median ratio {median:.3}, largest {most:.3}\n",
        judged.len(),
        count(Verdict::Ok),
        count(Verdict::WithinNoise),
        count(Verdict::Slower),
    ))
}
