//! Traces as Chrome's trace events, which Perfetto reads too.

use super::Ranks;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tokenrail::gpu::Description;
use tokenrail::trace::Span;

/// Threads of a warp, and most warps of a block.
const WARP: u32 = 32;

/// A file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct File<'a> {
    trace_events: Vec<Event<'a>>,
    display_time_unit: &'static str,
    other_data: Metadata<'a>,
}

/// What the file is of.
#[derive(Serialize)]
struct Metadata<'a> {
    tokenrail: &'static str,
    settings: &'a str,
    clock: String,
    /// By rank.
    lost_marks: Vec<u32>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Event<'a> {
    Span(Complete<'a>),
    Name(Name),
}

/// A complete event.
#[derive(Serialize)]
struct Complete<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'static str,
    /// µs.
    ts: f64,
    /// µs.
    dur: f64,
    pid: usize,
    tid: u32,
    args: About<'a>,
}

/// What a span is about.
#[derive(Serialize)]
struct About<'a> {
    operation: &'a str,
    sm: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u32>,
}

/// A metadata event.
#[derive(Serialize)]
struct Name {
    name: &'static str,
    ph: &'static str,
    pid: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u32>,
    args: BTreeMap<&'static str, serde_json::Value>,
}

/// The number of a thread's track: warps in their order, the threads of each behind it.
fn track(span: &Span) -> u32 {
    (span.block * WARP + span.warp) * WARP + span.lane
}

fn thread_name(track: u32) -> String {
    let (block, warp, lane) = (track / (WARP * WARP), track / WARP % WARP, track % WARP);
    match lane {
        0 => format!("block {block} warp {warp}"),
        lane => format!("block {block} warp {warp} thread {lane}"),
    }
}

/// Which clock a rank's times are of.
fn clock(device: &Description) -> usize {
    // The emulator has one for all.
    if device.capability == 0 { 0 } else { device.ordinal }
}

/// Makes the events of all ranks.
pub fn file<'a>(ranks: &'a Ranks, devices: &[Description], settings: &'a str) -> File<'a> {
    let mut begins = BTreeMap::new();
    for (spans, device) in ranks.spans.iter().zip(devices) {
        for span in spans {
            let begin = begins.entry(clock(device)).or_insert(span.begin_ns);
            *begin = span.begin_ns.min(*begin);
        }
    }
    let mut events = Vec::new();
    for (rank, (spans, device)) in ranks.spans.iter().zip(devices).enumerate() {
        let begin = begins.get(&clock(device)).copied().unwrap_or(0);
        let micros = |ns: u64| ns as f64 / 1e3;
        let tracks: BTreeSet<u32> = spans.iter().map(track).collect();
        let process = format!("rank {rank}: {} ({})", device.name, device.ordinal);
        events.push(name("process_name", rank, None, "name", process.into()));
        events.push(name("process_sort_index", rank, None, "sort_index", rank.into()));
        for track in tracks {
            events.push(name("thread_name", rank, Some(track), "name", thread_name(track).into()));
            events.push(name("thread_sort_index", rank, Some(track), "sort_index", track.into()));
        }
        events.extend(spans.iter().map(|span| {
            Event::Span(Complete {
                name: span.activity.name(),
                cat: span.activity.role().name(),
                ph: "X",
                ts: micros(span.begin_ns - begin),
                dur: micros(span.ns()),
                pid: rank,
                tid: track(span),
                args: About {
                    operation: span.operation.name(),
                    sm: span.sm,
                    peer: span.peer,
                    token: span.token,
                },
            })
        }));
    }
    let clock = if begins.len() > 1 {
        "each GPU's own, from its first event on: times of ranks on different GPUs are not comparable to the microsecond"
    } else {
        "one for all ranks, from the first event on"
    };
    let (lost_marks, clock) = (ranks.lost.clone(), clock.to_owned());
    let other_data = Metadata { tokenrail: env!("CARGO_PKG_VERSION"), settings, clock, lost_marks };
    File { trace_events: events, display_time_unit: "ns", other_data }
}

fn name<'a>(
    name: &'static str,
    pid: usize,
    tid: Option<u32>,
    key: &'static str,
    value: serde_json::Value,
) -> Event<'a> {
    Event::Name(Name { name, ph: "M", pid, tid, args: BTreeMap::from([(key, value)]) })
}
