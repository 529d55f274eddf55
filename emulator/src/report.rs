//! Who waits for what, for people.

use crate::block::{Block, State, WARP};
use crate::scheduler::{Scheduler, word};
use std::fmt::Write;

/// Lines of a report: a deadlock of thousands of threads is understood from the first few.
const MAX_LINES: usize = 24;

/// A deadlock's report: a line for each thing that threads wait for, with those who do.
pub fn deadlock(scheduler: &mut Scheduler) -> String {
    let mut lines = Vec::new();
    for at in 0..scheduler.blocks.len() {
        let Some(block) = scheduler.blocks[at].as_ref() else { continue };
        let Some(grid) = scheduler.grids[block.grid].as_ref() else { continue };
        let place = format!("{} on device {}, block {}", grid.launch.name, grid.device, block.index);
        lines.extend(waits(block).into_iter().map(|wait| format!("{place}: {wait}")));
    }
    let mut text = "deadlock: no thread can go on".to_owned();
    for line in lines.iter().take(MAX_LINES) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {line}");
    }
    if lines.len() > MAX_LINES {
        let _ = write!(text, "\n  and {} more", lines.len() - MAX_LINES);
    }
    text
}

fn waits(block: &Block) -> Vec<String> {
    let mut lines = Vec::new();
    let size = block.threads.len() as u32;
    for (id, barrier) in block.barriers.iter().enumerate().filter(|(_, barrier)| barrier.expected != 0) {
        let arrived = |thread: u32| barrier.arrived[(thread / WARP) as usize] >> (thread % WARP) & 1 != 0;
        let returned = |thread: u32| block.state(thread) == State::Done;
        let missing =
            |gone| ranges((0..size).filter(move |&thread| !arrived(thread) && returned(thread) == gone));
        let mut line = format!("barrier {id}: {} of {} arrived", barrier.count, barrier.expected);
        for (what, threads) in [("missing", missing(false)), ("returned", missing(true))] {
            if !threads.is_empty() {
                let _ = write!(line, ", {what}: threads {threads}");
            }
        }
        lines.push(line);
    }
    for (warp, open) in
        block.warps.iter().enumerate().flat_map(|(at, warp)| warp.open.iter().map(move |open| (at, open)))
    {
        lines.push(format!("warp {warp}: {open}"));
    }
    for thread in 0..size {
        let wait = match block.state(thread) {
            State::Mbarrier(offset, parity) => match block.mbarriers.get(&offset) {
                Some(mbarrier) => format!(
                    "mbarrier at {offset} (phase {}, parity waited for {parity}): {} arrivals and {} bytes missing",
                    mbarrier.phase, mbarrier.pending, mbarrier.bytes
                ),
                None => format!("mbarrier at {offset}, which has gone"),
            },
            State::Bulk { .. } => "its bulk stores".to_owned(),
            State::Spin => "a store, in a polling loop".to_owned(),
            State::Word { address, at_least, .. } => {
                // SAFETY: a thread's word was checked when it began to wait, and no host thread runs that could free
                // its memory.
                let seen = unsafe { word(address) };
                format!("the word at {address:#x}: {seen}, wanted at least {at_least}")
            }
            _ => continue,
        };
        lines.push(format!("thread {thread} (warp {}) waits for {wait}", thread / WARP));
    }
    lines
}

/// `0-31, 40` for numbers in ascending order.
fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let mut spans: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match spans.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => spans.push((number, number)),
        }
    }
    let span =
        |(start, end): &(u32, u32)| if start == end { start.to_string() } else { format!("{start}-{end}") };
    spans.iter().map(span).collect::<Vec<_>>().join(", ")
}
