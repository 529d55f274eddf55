//! What a run prints: tables for people.

use crate::measure::{Times, copy_bytes};
use crate::rank::Calls;
use crate::reference::Reference;
use crate::run::Machine;
use crate::workload::Workload;
use std::fmt::Write;
use tokenrail::{Backend, Element, Transport, bytes_for};

/// Most characters of a load profile.
const PROFILE_WIDTH: usize = 64;
const LEVELS: [char; 9] = ['·', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Rows of cells, the first column flush left, the others flush right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _ =
                if column == 0 { write!(out, "  {cell:<width$}") } else { write!(out, "  {cell:>width$}") };
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// Bytes with a decimal unit.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The settings.
pub fn configuration(workload: &Workload, machine: &Machine, calls: Calls) -> String {
    let config = &workload.config;
    let device = &machine.devices[0];
    let ordinals: Vec<usize> = machine.devices.iter().map(|device| device.ordinal).collect();
    let backend = match &machine.backend {
        Backend::Emulator(options) => format!("emulator, seed {}", options.seed),
        Backend::Cuda(_) => format!("cuda: {}, ranks on GPUs {ordinals:?}", device.name),
    };
    let counts: Vec<usize> = workload.batches.iter().map(|batch| batch.tokens).collect();
    let tokens = match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least != most => format!("{counts:?}"),
        _ => format!("{} a rank", config.tokens),
    };
    let element = match config.element {
        Element::Bf16 => "bf16",
        Element::F16 => "f16",
        Element::Fp8E4m3 => "fp8 e4m3",
        Element::Fp8E4m3Ue8m0 => "fp8 e4m3 with ue8m0",
        Element::Opaque { .. } => "opaque",
    };
    let row_bytes = config.element.row_bytes(config.hidden);
    let copies = if config.bulk_copy.unwrap_or(device.bulk_copy) { "bulk copies" } else { "plain copies" };
    let copies = if calls.transport == Transport::CopyEngine { "copy engines" } else { copies };
    let sms = config.sms.unwrap_or(device.default_sms);
    let sms = match (calls.dispatch_sms.unwrap_or(sms), calls.combine_sms.unwrap_or(sms)) {
        (dispatch, combine) if dispatch == combine => format!("{dispatch} SMs"),
        (dispatch, combine) => format!("{dispatch} SMs to dispatch, {combine} to combine"),
    };
    let by_expert = config
        .expert_major
        .map_or(String::new(), |form| format!(", and by expert, from multiples of {}", form.alignment));
    let rows = config.receive_rows.unwrap_or(workload.ranks * config.tokens);
    let arena = bytes_for(config, workload.ranks).unwrap_or(0);
    format!(
        "backend    {backend}\n\
         ranks      {}, with up to {} of {} experts each\n\
         tokens     {tokens}, of {} {element} ({row_bytes} bytes)\n\
         routing    {}, {} experts a token\n\
         kernels    {sms}, up to {} warps a block, {copies}\n\
         arena      {} a rank, room for {rows} rows{by_expert}\n",
        workload.ranks,
        workload.placement.experts_per_rank(),
        config.experts,
        config.hidden,
        workload.gate,
        config.topk,
        device.warps,
        size(arena),
    )
}

/// Tokens that go from each rank to each.
pub fn traffic(workload: &Workload, reference: &Reference) -> String {
    let mut rows = vec![vec!["from \\ to".to_owned()]];
    rows[0].extend((0..workload.ranks).map(|rank| format!("rank {rank}")));
    rows[0].push("all".into());
    let sent: Vec<&[u32]> =
        reference.layouts.iter().map(|layout| layout.tokens_per_rank.as_slice()).collect();
    for (rank, to) in sent.iter().enumerate() {
        let mut row = vec![format!("rank {rank}")];
        row.extend(to.iter().chain([&to.iter().sum()]).map(u32::to_string));
        rows.push(row);
    }
    let all: u64 = sent.iter().copied().flatten().map(|&tokens| u64::from(tokens)).sum();
    let bytes = |row: u64| size(all * row);
    format!(
        "tokens dispatched ({} out, {} back)\n{}",
        bytes(dispatched_row_bytes(workload)),
        bytes(combined_row_bytes(workload)),
        table(&rows),
    )
}

/// Bytes of one dispatched row: elements and scales. Expert ids, weights and source are not counted.
fn dispatched_row_bytes(workload: &Workload) -> u64 {
    let (element, hidden) = (workload.config.element, workload.config.hidden);
    u64::from(element.row_bytes(hidden)) + 4 * u64::from(element.scale_words(hidden))
}

fn combined_row_bytes(workload: &Workload) -> u64 {
    2 * u64::from(workload.config.hidden)
}

/// Tokens of each rank's experts, and how evenly they are spread.
pub fn load(reference: &Reference) -> String {
    let counts: Vec<&Vec<u32>> =
        reference.received.iter().map(|received| &received.tokens_per_expert).collect();
    let most = counts.iter().copied().flatten().copied().max().unwrap_or(0);
    let mut rows = vec![["", "min", "mean", "max"].map(str::to_owned).to_vec()];
    for (rank, counts) in counts.iter().enumerate() {
        let mean = f64::from(counts.iter().sum::<u32>()) / counts.len().max(1) as f64;
        let number = |count: Option<&u32>| count.map_or("-".to_owned(), u32::to_string);
        rows.push(vec![
            format!("rank {rank}"),
            number(counts.iter().min()),
            format!("{mean:.1}"),
            number(counts.iter().max()),
        ]);
    }
    let profiles =
        ["profile".to_owned()].into_iter().chain(counts.iter().map(|counts| profile(counts, most)));
    let lines: String =
        table(&rows).lines().zip(profiles).map(|(line, profile)| format!("{line}  {profile}\n")).collect();
    format!("tokens per expert\n{lines}")
}

/// A bar for each expert, or for the busiest of as many as share a character; full for `most`.
fn profile(counts: &[u32], most: u32) -> String {
    let experts = counts.len().div_ceil(PROFILE_WIDTH).max(1);
    let level = |group: &[u32]| {
        let busiest = group.iter().copied().max().unwrap_or(0);
        (busiest as usize * (LEVELS.len() - 1)).div_ceil(most.max(1) as usize)
    };
    counts.chunks(experts).map(|group| LEVELS[level(group)]).collect()
}

/// Times of all ranks, and what they come to in bytes a second.
pub fn times(workload: &Workload, reference: &Reference, machine: &Machine, times: &[&Times]) -> String {
    let ordinal = |rank: usize| machine.devices[rank].ordinal;
    let rows_where = |counts: &dyn Fn(usize, usize) -> bool| -> f64 {
        let pairs = reference.layouts.iter().enumerate().flat_map(|(from, layout)| {
            let to = layout.tokens_per_rank.iter().enumerate();
            to.filter(move |(to, _)| counts(from, *to)).map(|(_, &tokens)| f64::from(tokens))
        });
        pairs.sum::<f64>() / f64::from(workload.ranks)
    };
    let rows_all = rows_where(&|_, _| true);
    let rows_between = rows_where(&|from, to| ordinal(from) != ordinal(to));
    let emulated = matches!(machine.backend, Backend::Emulator(_));

    let copy = slowest(times, |times| &times.peer_copy);
    // Bytes in so many µs, in GB a second.
    let rate = |bytes: f64, (median, _): (f64, f64)| bytes / median / 1e3;
    let ceiling = copy.map(|copy| rate(copy_bytes(machine.repetitions.copy_pieces) as f64, copy));
    // A copy to the next rank is one between GPUs if there is more than one of them.
    let compared = if rows_between > 0.0 { rows_between } else { rows_all };

    let (out, back) = (dispatched_row_bytes(workload) as f64, combined_row_bytes(workload) as f64);
    let mut rows = vec![["", "median", "min"].map(str::to_owned).to_vec()];
    if !emulated {
        rows[0].extend(["GB/s between GPUs", "GB/s in all", "of the copy"].map(str::to_owned));
    }
    let both = slowest(times, |times| &times.both);
    for (name, bytes, time) in [
        ("dispatch", out, slowest(times, |times| &times.dispatch)),
        ("combine", back, slowest(times, |times| &times.combine)),
        ("both", out + back, both),
        ("cached dispatch", out, slowest(times, |times| &times.cached)),
    ] {
        let Some(time) = time else { continue };
        let mut row = vec![name.to_owned(), format!("{:.1}", time.0), format!("{:.1}", time.1)];
        if !emulated {
            let ratio = ceiling.map(|ceiling| rate(compared * bytes, time) / ceiling);
            row.push(format!("{:.1}", rate(rows_between * bytes, time)));
            row.push(format!("{:.1}", rate(rows_all * bytes, time)));
            row.push(ratio.map_or("-".into(), |ratio| format!("{:.0} %", 100.0 * ratio)));
        }
        rows.push(row);
    }
    if let (Some(copy), Some(ceiling)) = (copy, ceiling) {
        let between = if rows_between > 0.0 { format!("{ceiling:.1}") } else { "-".into() };
        let name = format!("copy of {}", size(copy_bytes(machine.repetitions.copy_pieces)));
        rows.push(vec![
            name,
            format!("{:.1}", copy.0),
            format!("{:.1}", copy.1),
            between,
            format!("{ceiling:.1}"),
        ]);
    }
    let repetitions = machine.repetitions;
    let unit = if emulated {
        "virtual µs: the emulator counts a nanosecond a step, which says nothing about a GPU"
    } else {
        "µs of the slowest rank, and its mean GB/s a rank: rows and scales, one way"
    };
    format!(
        "times of {} repetitions after {}, queued back to back, without experts: {unit}\n{}",
        repetitions.timed,
        repetitions.warmup,
        table(&rows)
    )
}

/// Median and minimum, over repetitions, of the slowest rank's time.
fn slowest(times: &[&Times], which: impl Fn(&Times) -> &Vec<f64>) -> Option<(f64, f64)> {
    let repetitions = times.iter().map(|times| which(times).len()).min()?;
    let slowest = |repetition: usize| times.iter().map(|times| which(times)[repetition]).fold(0.0, f64::max);
    let mut all: Vec<f64> = (0..repetitions).map(slowest).collect();
    all.sort_by(f64::total_cmp);
    Some((*all.get(repetitions / 2)?, *all.first()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["".to_owned(), "min".into()], vec!["rank 10".into(), "7".into()]];
        assert_eq!(table(&rows), "           min\n  rank 10    7\n");
    }

    #[test]
    fn profile_shows_zero_and_the_most() {
        assert_eq!(profile(&[0, 1, 8, 4], 8), "·▁█▄");
        assert_eq!(profile(&[0; 3], 0), "···");
        assert_eq!(profile(&[1; 200], 1).chars().count(), 50);
        assert_eq!(profile(&[], 5), "");
    }

    #[test]
    fn slowest_rank_decides() {
        let rank = |dispatch: &[f64]| Times { dispatch: dispatch.to_vec(), ..Times::default() };
        let (a, b) = (rank(&[1.0, 5.0, 3.0]), rank(&[4.0, 2.0, 2.0]));
        assert_eq!(slowest(&[&a, &b], |times| &times.dispatch), Some((4.0, 3.0)));
        assert_eq!(slowest(&[&a, &b], |times| &times.combine), None);
    }
}
