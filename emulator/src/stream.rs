//! Streams: in-order queues of work for a device.

use crate::check::Span;
use crate::machine::Device;
use crate::{Error, Fault};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A kernel's name and size.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// The kernel's name, for reports.
    pub name: &'static str,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: usize,
}

/// What a kernel does, for one thread.
pub type Kernel = Box<dyn Fn() + Send + Sync>;

/// An entry of a queue.
pub enum Operation {
    Launch(Launch, Kernel),
    Host(Box<dyn FnOnce() + Send>),
    /// What it is called, where, and what it reads and writes.
    Memory((&'static str, &'static Location<'static>), Vec<Span>, Box<dyn FnOnce() + Send>),
    Record(Event),
    Wait(Event),
}

impl Operation {
    /// Whether what it waits for has come.
    pub fn can_begin(&self) -> bool {
        match self {
            Self::Wait(event) => event.time_ns().is_some(),
            _ => true,
        }
    }
}

/// An in-order queue of work for one device. Work already queued goes on when it is dropped.
pub struct Stream {
    device: Device,
    id: u64,
}

/// A moment in a stream.
#[derive(Clone, Default)]
pub struct Event(Arc<Moment>);

#[derive(Default)]
struct Moment {
    /// 0 before it is reached, then one more than the time.
    reached: AtomicU64,
    /// What the books of a checked machine know it by.
    watched: AtomicUsize,
}

impl Event {
    /// The virtual time at which it was reached; `None` before.
    pub fn time_ns(&self) -> Option<u64> {
        self.0.reached.load(Ordering::Acquire).checked_sub(1)
    }

    pub(crate) fn reach(&self, now_ns: u64) {
        self.0.reached.store(now_ns + 1, Ordering::Release);
    }

    pub(crate) fn set_watched(&self, watched: usize) {
        self.0.watched.store(watched, Ordering::Relaxed);
    }

    pub(crate) fn watched(&self) -> usize {
        self.0.watched.load(Ordering::Relaxed)
    }
}

impl Stream {
    pub(crate) fn new(device: Device) -> Self {
        let id = device.shared().lock().open_stream(device.ordinal());
        Self { device, id }
    }

    /// Queues a kernel, which is called once for each thread.
    ///
    /// # Errors
    /// [`Error::Launch`] if [`Device::allows`] does not.
    pub fn launch(&self, launch: Launch, kernel: Kernel) -> Result<(), Error> {
        self.device.allows(&launch)?;
        self.enqueue(Operation::Launch(launch, kernel));
        Ok(())
    }

    /// Queues something for the engine's thread to do, such as a copy. It must not block on the machine. If it panics,
    /// that is a fault of the device.
    pub fn host_op(&self, operation: Box<dyn FnOnce() + Send>) {
        self.enqueue(Operation::Host(operation));
    }

    /// [`Stream::host_op`], which reads and writes this memory and no other: a machine that is checked sees it as an access of
    /// the stream, called `name`, from here.
    #[track_caller]
    pub fn memory_op(&self, name: &'static str, spans: Vec<Span>, operation: Box<dyn FnOnce() + Send>) {
        self.enqueue(Operation::Memory((name, Location::caller()), spans, operation));
    }

    /// Marks this moment.
    pub fn record(&self) -> Event {
        let event = Event::default();
        self.enqueue(Operation::Record(event.clone()));
        event
    }

    /// Makes later work wait for `event`.
    pub fn wait(&self, event: &Event) {
        self.enqueue(Operation::Wait(event.clone()));
    }

    /// Blocks until all work queued so far is done.
    ///
    /// # Errors
    /// The device's [`Fault`], if it has had one.
    pub fn synchronize(&self) -> Result<(), Fault> {
        let shared = self.device.shared();
        let ready = shared.lock().drained(self.device.ordinal(), self.id);
        shared.wait(Some(self.device.ordinal()), ready, None);
        match shared.lock().fault(self.device.ordinal()) {
            Some(fault) => Err(fault.clone()),
            None => Ok(()),
        }
    }

    fn enqueue(&self, operation: Operation) {
        let shared = self.device.shared();
        let refused = shared.lock().enqueue(self.device.ordinal(), self.id, operation);
        match refused {
            // Others may wait for this moment of a device that has failed.
            Some(Operation::Record(event)) => event.reach(self.device.machine().now_ns()),
            // Dropped here, without the lock: it may hold handles of the machine.
            refused => drop(refused),
        }
        shared.changed.notify_all();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.device.shared().lock().close_stream(self.device.ordinal(), self.id);
    }
}
