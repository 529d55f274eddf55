//! Emulated streams, events and graphs.
//!
//! A capture is a list of the work that its streams are given, in the order of the calls. Every piece of work comes
//! after those that it waits for in that order too, so a graph is launched by queueing the list on one stream.

use super::{lock, refused};
use crate::Error;
use crate::gpu::device::{Launch, Moment, Queue, Replay, other_backend};
use std::any::Any;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokenrail_emulator::check::{Span, Touch};
use tokenrail_emulator::{Device, Event, Stream};

/// How long a look at an event lets emulated time go on, for programs that look until it is reached.
const GLANCE: Duration = Duration::from_millis(1);

/// A stream.
pub struct EmulatedQueue {
    stream: Stream,
    device: Device,
    /// Where its work goes while it is captured.
    tape: Mutex<Option<Tape>>,
}

/// What the streams of a capture were given.
type Tape = Arc<Mutex<Vec<Step>>>;

/// A piece of work that can be done again.
#[derive(Clone)]
enum Step {
    Kernel(tokenrail_emulator::Launch, Arc<dyn Fn() + Send + Sync>),
    /// What it is called, and what it reads and writes.
    Memory(&'static str, Vec<Span>, Arc<dyn Fn() + Send + Sync>),
}

struct EmulatedMoment {
    event: Event,
    device: Device,
}

struct EmulatedGraph {
    steps: Vec<Step>,
    /// The end of the last launch: launches of a graph follow each other.
    last: Mutex<Option<Event>>,
}

/// Memory that a step reads or writes.
fn span(address: u64, bytes: usize, touch: Touch) -> Span {
    Span { address, bytes, touch }
}

impl Step {
    fn queue(&self, stream: &Stream) -> Result<(), Error> {
        match self.clone() {
            Self::Kernel(size, kernel) => {
                stream.launch(size, Box::new(move || kernel())).map_err(refused(size.name))?;
            }
            Self::Memory(name, spans, operation) => {
                stream.memory_op(name, spans, Box::new(move || operation()));
            }
        }
        Ok(())
    }
}

impl EmulatedQueue {
    pub fn new(device: Device) -> Self {
        Self { stream: device.stream(), device, tape: Mutex::default() }
    }

    fn tape(&self) -> Option<Tape> {
        lock(&self.tape).clone()
    }

    fn submit(&self, step: Step) -> Result<(), Error> {
        match self.tape() {
            Some(tape) => lock(&tape).push(step),
            None => step.queue(&self.stream)?,
        }
        Ok(())
    }
}

impl Queue for EmulatedQueue {
    fn raw(&self) -> Option<u64> {
        None
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.stream.synchronize().map_err(refused("an emulated kernel"))
    }

    fn record(&self) -> Result<Box<dyn Moment>, Error> {
        // In a capture the order of the list is all there is: the event is never reached.
        let event = if self.tape().is_some() { Event::default() } else { self.stream.record() };
        Ok(Box::new(EmulatedMoment { event, device: self.device.clone() }))
    }

    fn wait(&self, moment: &dyn Moment) -> Result<(), Error> {
        let moment = EmulatedMoment::of(moment)?;
        // Another machine's engine would not wake this one.
        if !moment.device.machine().is_same(self.device.machine()) {
            return Err(other_backend("event"));
        }
        if self.tape().is_none() {
            self.stream.wait(&moment.event);
        }
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        // Read below, once the stream has come this far.
        self.stream.memory_op("read", vec![span(from, bytes.len(), Touch::Read)], Box::new(|| ()));
        self.synchronize()?;
        // SAFETY: callers pass memory as large as this; the stream has ended writing it.
        unsafe {
            with_exposed_provenance::<u8>(from as usize)
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        let spans = vec![span(from, bytes, Touch::Read), span(to, bytes, Touch::Write)];
        self.submit(Step::Memory(
            "copy",
            spans,
            Arc::new(move || {
                let from = with_exposed_provenance::<u8>(from as usize);
                // SAFETY: callers keep both ranges alive until the stream has come this far, or as long as the graph is
                // launched. They may overlap.
                unsafe { with_exposed_provenance_mut::<u8>(to as usize).copy_from(from, bytes) }
            }),
        ))
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        // SAFETY: callers keep the range alive until the stream has come this far, or as long as the graph is launched.
        let fill = move || unsafe { with_exposed_provenance_mut::<u8>(to as usize).write_bytes(byte, bytes) };
        self.submit(Step::Memory("fill", vec![span(to, bytes, Touch::Write)], Arc::new(fill)))
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), Error> {
        // The arguments outlive the call on the stack that they came from: words, so that they stay aligned.
        let mut args = vec![0u64; launch.args_bytes.div_ceil(8)];
        // SAFETY: `args` has room, and `launch.args` is the address of `args_bytes` bytes.
        unsafe { launch.args.copy_to_nonoverlapping(args.as_mut_ptr().cast(), launch.args_bytes) };
        let body = launch.body;
        // SAFETY: the launch's promise, which the caller makes.
        let kernel = move || unsafe { body(args.as_ptr().cast()) };
        let size = tokenrail_emulator::Launch {
            name: launch.name,
            grid: launch.grid.blocks,
            block: launch.grid.threads,
            shared_bytes: launch.grid.shared_bytes as usize,
        };
        // In a capture, too, what is not possible is refused now.
        self.device.allows(&size).map_err(refused(launch.name))?;
        self.submit(Step::Kernel(size, Arc::new(kernel)))
    }

    fn is_capturing(&self) -> Result<bool, Error> {
        Ok(self.tape().is_some())
    }

    fn begin_capture(&self) -> Result<(), Error> {
        *lock(&self.tape) = Some(Tape::default());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Replay>, Error> {
        let tape = lock(&self.tape).take().unwrap_or_default();
        let steps = std::mem::take(&mut *lock(&tape));
        Ok(Box::new(EmulatedGraph { steps, last: Mutex::default() }))
    }

    fn join_capture(&self, origin: &dyn Queue) {
        let origin: &dyn Any = origin;
        *lock(&self.tape) = origin.downcast_ref().and_then(Self::tape);
    }

    fn leave_capture(&self) {
        *lock(&self.tape) = None;
    }
}

impl EmulatedMoment {
    fn of(moment: &dyn Moment) -> Result<&Self, Error> {
        let moment: &dyn Any = moment;
        moment.downcast_ref().ok_or_else(|| other_backend("event"))
    }
}

impl Moment for EmulatedMoment {
    fn synchronize(&self) -> Result<(), Error> {
        self.device.wait(&self.event, None).map(drop).map_err(refused("an emulated kernel"))
    }

    fn is_reached(&self) -> Result<bool, Error> {
        self.device.wait(&self.event, Some(GLANCE)).map_err(refused("an emulated kernel"))
    }

    fn elapsed_ms(&self, later: &dyn Moment) -> Result<f64, Error> {
        match (self.event.time_ns(), Self::of(later)?.event.time_ns()) {
            (Some(from), Some(to)) => Ok((to as f64 - from as f64) / 1e6),
            _ => Err(refused("measuring between two events")("one of them has not been reached")),
        }
    }
}

impl Replay for EmulatedGraph {
    fn launch(&self, queue: &dyn Queue) -> Result<(), Error> {
        let queue: &dyn Any = queue;
        let queue = queue.downcast_ref::<EmulatedQueue>().ok_or_else(|| other_backend("stream"))?;
        if queue.is_capturing()? {
            return self.steps.iter().try_for_each(|step| queue.submit(step.clone()));
        }
        let mut last = lock(&self.last);
        if let Some(last) = &*last {
            queue.stream.wait(last);
        }
        let queued = self.steps.iter().try_for_each(|step| step.queue(&queue.stream));
        *last = Some(queue.stream.record());
        queued
    }
}
