//! What a backend does. The wrappers in this folder keep its rules; addresses are the backend's own, and callers keep
//! them alive and in bounds.

use super::agent::{Agent, Running, ThreadOptions};
use super::{Description, Grid};
use crate::Error;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A launch as backends see it.
pub struct Launch {
    pub name: &'static str,
    pub grid: Grid,
    /// The kernel's body for one emulated thread; takes the arguments' address.
    pub body: unsafe fn(*const u8),
    pub args: *const u8,
    pub args_bytes: usize,
}

/// One rank's use of a device, and what all handles on it share.
pub struct Core {
    pub device: Box<dyn Device>,
    /// Bytes that its live buffers were asked for.
    pub allocated: AtomicU64,
}

/// A device.
pub trait Device: Send + Sync {
    fn description(&self) -> &Description;
    /// Uninitialised memory, aligned to at least 256 bytes. Zero bytes are possible.
    fn alloc(&self, bytes: usize) -> Result<u64, Error>;
    fn free(&self, address: u64);
    /// Zeroed memory that host and device can both reach at the same address.
    fn alloc_host(&self, bytes: usize) -> Result<u64, Error>;
    fn free_host(&self, address: u64);
    /// Copies to the device and waits.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Error>;
    fn queue(&self) -> Result<Box<dyn Queue>, Error>;
    /// A queue that someone else owns.
    ///
    /// # Safety
    /// `raw` is a stream of this device in the backend's own terms, and outlives the queue.
    unsafe fn foreign_queue(&self, raw: u64) -> Result<Box<dyn Queue>, Error>;
    /// Blocks the calling thread until `ready` holds; false when `timeout` passes first.
    fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool;
    /// Wakes those who wait on the host.
    fn notify(&self);
    /// Has an agent work beside the streams: in emulated time where there is such, unless what it waits for comes from
    /// outside the process (`open`); else on a thread.
    fn run(&self, agent: Box<dyn Agent>, open: bool, thread: ThreadOptions) -> Result<Running, Error>;
    /// Device memory in the form in which the kernel hands it from driver to driver, and how many bytes of it come before
    /// `address`; `None` if the driver gives none.
    #[cfg(feature = "rdma")]
    fn dma_buf(&self, _address: u64, _bytes: u64) -> Option<(std::os::fd::OwnedFd, u64)> {
        None
    }
    /// Moves bytes between memory of devices in this process.
    fn carrier(&self) -> Result<Box<dyn Carrier>, Error>;
}

/// Moves bytes for a fabric in this process, beside the streams. Addresses are live, of any device here.
pub trait Carrier: Send {
    /// Begins a copy, which is done when [`Carrier::settle`] has returned.
    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error>;
    /// Waits for all copies.
    fn settle(&mut self) -> Result<(), Error>;
    /// Stores a number, at once.
    fn word(&mut self, to: u64, value: u64) -> Result<(), Error>;
}

/// A stream.
pub trait Queue: Any + Send + Sync {
    /// What the driver calls it, where there is a driver.
    fn raw(&self) -> Option<u64>;
    fn synchronize(&self) -> Result<(), Error>;
    fn record(&self) -> Result<Box<dyn Moment>, Error>;
    fn wait(&self, moment: &dyn Moment) -> Result<(), Error>;
    /// Copies from the device, after all that the queue was given before, and waits.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error>;
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error>;
    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Error>;
    /// # Safety
    /// The arguments meet the kernel's contract until it has ended.
    unsafe fn launch(&self, launch: &Launch) -> Result<(), Error>;

    /// Whether what it is given is kept for a graph, rather than done.
    fn is_capturing(&self) -> Result<bool, Error>;
    fn begin_capture(&self) -> Result<(), Error>;
    /// Ends what `begin_capture` began, whatever it gives.
    fn end_capture(&self) -> Result<Box<dyn Replay>, Error>;
    /// Becomes part of the capture of `origin`. Backends whose driver sees to that by itself have nothing to do here.
    fn join_capture(&self, origin: &dyn Queue);
    /// The capture that it had joined has ended.
    fn leave_capture(&self);
}

/// An event.
pub trait Moment: Any + Send + Sync {
    /// Waits on the host.
    fn synchronize(&self) -> Result<(), Error>;
    fn is_reached(&self) -> Result<bool, Error>;
    /// Milliseconds until `later`; both have been reached.
    fn elapsed_ms(&self, later: &dyn Moment) -> Result<f64, Error>;
}

/// A graph.
pub trait Replay: Send + Sync {
    fn launch(&self, queue: &dyn Queue) -> Result<(), Error>;
}

/// An event, a stream or a graph of one backend was used with another.
pub fn other_backend(argument: &'static str) -> Error {
    let limit =
        "what it is used with belongs to the emulator, or to another machine of it, or to the GPUs".into();
    Error::Argument { argument, value: "one of another backend".into(), limit }
}
