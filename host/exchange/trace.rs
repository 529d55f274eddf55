//! What the kernels of calls did, and when: recorded on the device from [`Exchange::start_trace`] to
//! [`Exchange::stop_trace`], by all calls of both families in between.
//!
//! GPUs' kernels record only in builds with feature `trace`, where a call that is not traced pays a branch for each thing that
//! a traced one would record. A graph does what its calls were
//! captured as: those captured in between record whenever it is launched, others never do.
//!
//! ```
//! use tokenrail::{Backend, Config, Error, Exchange, Group, Input};
//!
//! let member = Group::in_process(1, &Backend::emulator(0))?.remove(0);
//! let mut exchange = Exchange::new(member, &Config::new(4, 2, 64, 8))?;
//! let gpu = exchange.gpu().clone();
//! let stream = gpu.stream()?;
//! let x = gpu.upload(&[half::bf16::ONE; 3 * 64])?;
//! let topk_idx = gpu.upload(&[0, 3, 1, 2, 2, -1])?;
//! let topk_weights = gpu.upload(&[0.5f32; 6])?;
//!
//! exchange.start_trace(100_000)?;
//! exchange.dispatch(&stream, &Input::new(&x, &topk_idx, &topk_weights, 3))?;
//! let trace = exchange.stop_trace(&stream)?;
//! for span in &trace.spans {
//!     println!("block {} warp {}: {} ns {}", span.block, span.warp, span.ns(), span.activity.name());
//! }
//! assert_eq!(trace.lost, 0);
//! # Ok::<(), Error>(())
//! ```

use super::Exchange;
use crate::Error;
use crate::gpu::{Buffer, Stream};
use std::collections::HashMap;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::trace::{self as device, Mark};

pub use tokenrail_device::trace::{Activity, Operation, Role};

/// Most marks of a ring.
const MAX_MARKS: u32 = 1 << 30;

/// What one thread did from one moment to another. Those of one thread follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began, in nanoseconds of the GPU's clock, which ranks that share a GPU share. The emulator has one clock for
    /// all ranks of a group.
    pub begin_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// What it did.
    pub activity: Activity,
    /// Of which its kernel was part.
    pub operation: Operation,
    /// The rank that it waited for, or whose token it had in hand.
    pub peer: Option<u32>,
    /// The token that it had in hand: the peer's if there is one, this rank's else.
    pub token: Option<u32>,
    /// Its block.
    pub block: u32,
    /// Its warp in the block.
    pub warp: u32,
    /// Its number in the warp. What a warp does together its first thread stands for; others are there for what they wait for
    /// alone.
    pub lane: u32,
    /// The multiprocessor that it ran on.
    pub sm: u32,
}

impl Span {
    /// How long it took, in nanoseconds.
    pub fn ns(&self) -> u64 {
        self.end_ns - self.begin_ns
    }
}

/// What was recorded on one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// All of it, by time of the begin.
    pub spans: Vec<Span>,
    /// Marks for which there was no room: the last ones.
    pub lost: u32,
}

/// Where an exchange's kernels record.
#[derive(Default)]
pub(super) struct Recorder {
    /// The last one is in use. Others stay, as graphs may have them.
    rings: Vec<Ring>,
    is_on: bool,
}

struct Ring {
    buffer: Buffer,
    capacity: u32,
}

impl Recorder {
    /// What kernels are told that use a set of buffers.
    pub fn device_side(&self, operation: Operation, buffers: u32) -> device::Trace {
        let ring = self.rings.last().filter(|_| self.is_on);
        let ring = ring.map_or(Address::NULL, |ring| ring.buffer.address());
        device::Trace { ring, call: device::Trace::call_of(operation, buffers) }
    }
}

impl Exchange {
    /// Has the calls that follow record what their warps do, in room for so many marks: a mark ends each thing that a warp
    /// does, for example a row's way to its ranks. 24 bytes of device memory each, which the exchange keeps. Begins anew if
    /// it has begun already. No traced kernel may be under way, nor one of a rank that shares the GPU.
    ///
    /// # Errors
    /// [`Error::Argument`] for no marks, or more than 2^30; [`Error::Unavailable`] on a GPU without feature `trace`;
    /// [`Error::Device`] without enough memory; [`Error::Capture`] within [`Stream::capture`].
    pub fn start_trace(&mut self, marks: u32) -> Result<(), Error> {
        if !(1..=MAX_MARKS).contains(&marks) {
            let limit = format!("it must be 1 to {MAX_MARKS}");
            return Err(Error::Argument { argument: "marks", value: marks.to_string(), limit });
        }
        let is_gpu = self.gpu().description().capability > 0;
        if is_gpu && !cfg!(feature = "trace") {
            return Err(Error::Unavailable {
                what: "a trace of a GPU's kernels".into(),
                why: "this build's record nothing; build with feature `trace`".into(),
            });
        }
        let has_room = self.recorder.rings.last().is_some_and(|ring| ring.capacity >= marks);
        if !has_room {
            let buffer = self.gpu().alloc(device::Trace::bytes(marks) as usize)?;
            self.recorder.rings.push(Ring { buffer, capacity: marks });
        }
        if let Some(ring) = self.recorder.rings.last() {
            self.gpu().write(ring.buffer.part(0, device::Trace::HEADER_BYTES), &[0, marks])?;
        }
        self.recorder.is_on = true;
        Ok(())
    }

    /// Waits for the stream, and gives what was recorded. The calls that follow record nothing. Traced calls on other streams
    /// have to be waited for before.
    ///
    /// # Errors
    /// [`Error::Argument`] if nothing is recorded, [`Error::Device`] if earlier work failed, [`Error::Capture`] while the
    /// stream is captured.
    pub fn stop_trace(&mut self, stream: &Stream) -> Result<Trace, Error> {
        let Some(ring) = self.recorder.rings.last().filter(|_| self.recorder.is_on) else {
            let limit = "nothing is recorded: call start_trace before".into();
            return Err(Error::Argument { argument: "trace", value: "None".into(), limit });
        };
        let header = ring.buffer.part(0, device::Trace::HEADER_BYTES);
        let header: Vec<u32> = self.gpu().download(stream, header, 2)?;
        let (made, room) = (header[0], header[1]);
        let kept = made.min(room);
        let marks =
            ring.buffer.part(device::Trace::HEADER_BYTES, device::Trace::MARK_BYTES * u64::from(kept));
        let words: Vec<u64> = self.gpu().download(stream, marks, Mark::WORDS * kept as usize)?;
        self.recorder.is_on = false;
        let spans = spans(words.as_chunks().0.iter().filter_map(|&words| Mark::from_words(words)));
        Ok(Trace { spans, lost: made - kept })
    }
}

/// What lies between marks of the same thread, by time.
fn spans(marks: impl Iterator<Item = Mark>) -> Vec<Span> {
    let mut last = HashMap::new();
    let mut spans = Vec::new();
    for mark in marks {
        let Mark { operation, peer, token, block, thread, multiprocessor: sm, .. } = mark;
        let began = last.insert((operation, mark.buffers, block, thread), mark.at_ns);
        if let (Some(activity), Some(begin_ns)) = (mark.activity, began) {
            let (warp, lane, end_ns) = (thread / WARP, thread % WARP, mark.at_ns.max(begin_ns));
            spans.push(Span { begin_ns, end_ns, activity, operation, peer, token, block, warp, lane, sm });
        }
    }
    spans.sort_by_key(|span| (span.begin_ns, span.end_ns));
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::low_latency;
    use crate::{Backend, Config, Group, Input, LowLatency};

    fn mark(at_ns: u64, activity: Option<Activity>, block: u32, thread: u32) -> Mark {
        let (operation, peer, token) = (Operation::Dispatch, Some(2), None);
        Mark { at_ns, activity, operation, buffers: 0, peer, token, multiprocessor: 5, block, thread }
    }

    #[test]
    fn a_span_lies_between_two_marks_of_a_thread() {
        let marks = [
            mark(10, None, 0, 0),
            mark(12, None, 1, 33),
            mark(14, Some(Activity::Load), 0, 0),
            mark(15, Some(Activity::WaitRows), 1, 33),
            mark(17, Some(Activity::Send), 0, 0),
            // Nothing of what came between is a span.
            mark(20, None, 0, 0),
            mark(21, Some(Activity::Meet), 0, 0),
            // What it began is not there.
            mark(22, Some(Activity::Meet), 2, 0),
        ];
        let found: Vec<_> = spans(marks.into_iter())
            .iter()
            .map(|span| (span.begin_ns, span.end_ns, span.activity, span.block, span.warp, span.lane))
            .collect();
        let want = [
            (10, 14, Activity::Load, 0, 0, 0),
            (12, 15, Activity::WaitRows, 1, 1, 1),
            (14, 17, Activity::Send, 0, 0, 0),
            (20, 21, Activity::Meet, 0, 0, 0),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn calls_that_are_not_traced_write_nothing() -> Result<(), Error> {
        const POISON: u8 = 0xa5;
        let member = Group::in_process(1, &Backend::emulator(0))?.remove(0);
        let config = Config { low_latency: Some(LowLatency::new(2)), ..Config::new(4, 2, 64, 2) };
        let mut exchange = Exchange::new(member, &config)?;
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream()?;
        exchange.start_trace(1000)?;
        exchange.stop_trace(&stream)?;
        let ring = exchange.recorder.rings[0].buffer.view();
        gpu.fill(&stream, ring, POISON)?;

        let x = gpu.alloc_zeroed(2 * 2 * 64)?;
        let topk_idx = gpu.upload(&[0, 3, 1, -1])?;
        let topk_weights = gpu.alloc_zeroed(2 * 2 * 4)?;
        let received = exchange.dispatch(&stream, &Input::new(&x, &topk_idx, &topk_weights, 2))?;
        let combined = gpu.alloc(2 * 2 * 64)?;
        exchange.combine(&stream, &received, &combined)?;
        let (rows, scales, y) =
            (gpu.alloc(4 * 2 * 64)?, gpu.alloc(4 * 2 * 4)?, gpu.alloc_zeroed(4 * 2 * 2 * 64)?);
        let mut calls = exchange.low_latency()?;
        let input = low_latency::Input::new(&x, &topk_idx, &topk_weights, 2);
        let batch = calls.dispatch(&stream, &input, &low_latency::Rows::fp8(&rows, &scales))?;
        calls.combine(&stream, &batch, &y, &low_latency::Sums::new(&combined))?;
        exchange.finish(&stream)?;
        let bytes: Vec<u8> = gpu.download(&stream, ring, ring.bytes())?;
        assert!(bytes.iter().all(|&byte| byte == POISON));
        Ok(())
    }
}
