//! Streams, and the events that order them.

use super::capture::{Capture, Stamp};
use super::device::{Core, Moment, Queue};
use crate::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An in-order queue of work for one GPU. Cheap to clone: clones are the same stream, which goes with the last of them.
#[derive(Clone)]
pub struct Stream(pub(super) Arc<Line>);

/// What the clones of a stream share.
pub struct Line {
    pub(super) core: Arc<Core>,
    pub(super) queue: Box<dyn Queue>,
    /// The capture that it is part of.
    pub(super) capture: Mutex<Option<Arc<Capture>>>,
}

/// A moment in a stream. Cheap to clone: clones are the same moment.
#[derive(Clone)]
pub struct Event(Arc<Mark>);

struct Mark {
    moment: Box<dyn Moment>,
    /// Set if it is a moment of a graph, which never comes by itself.
    stamp: Option<Stamp>,
}

impl Line {
    fn captured(&self) -> MutexGuard<'_, Option<Arc<Capture>>> {
        // Every change is a single assignment, so a panic elsewhere leaves it whole.
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capture that it is part of, now.
    pub(super) fn capture(&self) -> Option<Arc<Capture>> {
        self.captured().clone()
    }

    pub(super) fn set_capture(&self, capture: Option<Arc<Capture>>) {
        *self.captured() = capture;
    }

    /// Gives work to the queue, and tells the capture about it.
    pub(super) fn issue(&self, work: impl FnOnce(&dyn Queue) -> Result<(), Error>) -> Result<(), Error> {
        work(&*self.queue)?;
        if let Some(capture) = self.capture() {
            capture.issued(self);
        }
        Ok(())
    }

    /// An error if nothing is done on this stream now.
    pub(super) fn runs(&self, call: &'static str) -> Result<(), Error> {
        // Asked before the driver would refuse: a refusal there spoils the whole capture.
        let why = "the stream is being captured into a graph";
        if self.queue.is_capturing()? { Err(Error::Capture { call, why }) } else { Ok(()) }
    }

    /// An error unless `core` has made it.
    pub(super) fn of(&self, core: &Arc<Core>) -> Result<&Self, Error> {
        if Arc::ptr_eq(&self.core, core) {
            return Ok(self);
        }
        let name = |core: &Core| {
            let description = core.device.description();
            format!("{} {}", description.name, description.ordinal)
        };
        let value = format!("one of {}", name(&self.core));
        let limit = format!("it has to be one that this rank's {} has made", name(core));
        Err(Error::Argument { argument: "stream", value, limit })
    }
}

impl Stream {
    pub(super) fn new(core: Arc<Core>, queue: Box<dyn Queue>) -> Self {
        Self(Arc::new(Line { core, queue, capture: Mutex::default() }))
    }

    /// Waits for all work given so far.
    ///
    /// # Errors
    /// [`Error::Device`] if some of it failed; [`Error::Capture`] while the stream is captured.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.0.runs("synchronize")?;
        self.0.queue.synchronize()
    }

    /// Marks this moment in the stream.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn record(&self) -> Result<Event, Error> {
        let moment = self.0.queue.record()?;
        let stamp = self.0.capture().map(|capture| capture.stamp(&self.0));
        Ok(Event(Arc::new(Mark { moment, stamp })))
    }

    /// Makes all work that this stream is given from now on wait for `event`, which may be one of another GPU of the
    /// same group. The host does not wait.
    ///
    /// In a capture ([`Stream::capture`]) this is how another stream becomes part of it, and how it is joined back.
    ///
    /// # Errors
    /// [`Error::Argument`] for an event of another backend, or of another emulated machine; [`Error::Capture`] if only
    /// one of the two is part of a capture that is under way, or if the event's has ended.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        let mark = &*event.0;
        let queue = || self.0.queue.wait(&*mark.moment);
        match (self.0.capture(), &mark.stamp) {
            (None, None) => queue(),
            (None, Some(stamp)) => stamp.join(&self.0, queue),
            (Some(capture), stamp) => capture.wait(&self.0, stamp.as_ref(), queue),
        }
    }

    /// The driver's handle of this stream (a `CUstream`), for libraries that take one. It is valid as long as a clone
    /// of the stream is. `None` on the emulator.
    pub fn raw(&self) -> Option<u64> {
        self.0.queue.raw()
    }
}

impl Event {
    /// Waits on the host until it is reached, with all work that the stream was given before it.
    ///
    /// # Errors
    /// [`Error::Device`] if that work failed; [`Error::Capture`] for an event that was recorded in a capture.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.0.happens("waiting for an event")?;
        self.0.moment.synchronize()
    }

    /// Whether it has been reached. On the emulator, where time stands still while the host runs, the call blocks for
    /// about a millisecond if it has not, so that a loop around it comes to an end. It counts as waiting: what a kernel
    /// needs to go on is to be queued before, or by another thread, as for [`Event::synchronize`].
    ///
    /// # Errors
    /// As [`Event::synchronize`].
    pub fn is_reached(&self) -> Result<bool, Error> {
        self.0.happens("asking for an event")?;
        self.0.moment.is_reached()
    }

    /// Milliseconds from `self` to `later`; both must have been reached. Virtual time on the emulator.
    ///
    /// # Errors
    /// [`Error::Device`] if one has not been reached, [`Error::Argument`] if they are of different backends,
    /// [`Error::Capture`] if one was recorded in a capture.
    pub fn elapsed_ms(&self, later: &Self) -> Result<f64, Error> {
        self.0.happens("measuring from an event")?;
        later.0.happens("measuring to an event")?;
        self.0.moment.elapsed_ms(&*later.0.moment)
    }
}

impl Mark {
    fn happens(&self, call: &'static str) -> Result<(), Error> {
        let why = "it was recorded in a capture, and never comes by itself";
        if self.stamp.is_some() { Err(Error::Capture { call, why }) } else { Ok(()) }
    }
}
