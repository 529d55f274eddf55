//! Streams and events of the driver, and the capture of streams.
//!
//! They are made here, not through `cust`, which leaves out the flag of non-blocking streams and hides the handles of
//! events.

use super::{Card, graph::CudaGraph};
use crate::Error;
use crate::gpu::device::{Launch, Moment, Queue, Replay, other_backend};
use crate::gpu::driver::{self, DevicePointer, Handle, check};
use cust::context::ContextHandle;
use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// A stream. The card outlives it.
pub struct CudaQueue {
    stream: Handle,
    /// Not to be destroyed here.
    foreign: bool,
    card: Arc<Card>,
}

/// An event.
struct CudaMoment {
    event: Handle,
    /// Recorded while the stream was captured, by this library or someone else.
    captured: bool,
    card: Arc<Card>,
}

impl CudaQueue {
    pub fn new(card: Arc<Card>) -> Result<Self, Error> {
        card.enter()?;
        let mut stream = ptr::null_mut();
        // SAFETY: writes one handle.
        check("cuStreamCreate", unsafe { driver::cuStreamCreate(&mut stream, driver::STREAM_NON_BLOCKING) })?;
        Ok(Self { stream: Handle(stream), foreign: false, card })
    }

    /// # Safety
    /// `raw` is a stream that outlives this.
    pub unsafe fn foreign(card: Arc<Card>, raw: u64) -> Result<Self, Error> {
        card.enter()?;
        let stream: *mut c_void = ptr::with_exposed_provenance_mut(raw as usize);
        let mut context = ptr::null_mut();
        // SAFETY: the caller's promise; writes one handle. Special streams are of the context that is current.
        check("cuStreamGetCtx", unsafe { driver::cuStreamGetCtx(stream, &mut context) })?;
        if context != card.context.get_inner().cast() {
            let limit = format!("it has to be one of the primary context of GPU {}", card.ordinal);
            let value = "one of another context".into();
            return Err(Error::Argument { argument: "stream", value, limit });
        }
        Ok(Self { stream: Handle(stream), foreign: true, card })
    }

    /// The driver's stream, with the context made current.
    pub fn enter(&self) -> Result<*mut c_void, Error> {
        self.card.enter()?;
        Ok(self.stream.0)
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        if !self.foreign && self.card.enter().is_ok() {
            // SAFETY: made by `new`, destroyed once. Work under way goes on. A failure means the context is lost.
            unsafe { driver::cuStreamDestroy_v2(self.stream.0) };
        }
    }
}

impl Queue for CudaQueue {
    fn raw(&self) -> Option<u64> {
        Some(self.stream.0.expose_provenance() as u64)
    }

    fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the stream is alive.
        check("a kernel or copy", unsafe { driver::cuStreamSynchronize(self.enter()?) })
    }

    fn record(&self) -> Result<Box<dyn Moment>, Error> {
        let captured = self.is_capturing()?;
        let mut event = ptr::null_mut();
        // SAFETY: writes one handle; the stream's context, whose the event is to be, is current since the line before.
        check("cuEventCreate", unsafe { driver::cuEventCreate(&mut event, driver::EVENT_DEFAULT) })?;
        // Destroyed from here on, whatever comes.
        let moment = CudaMoment { event: Handle(event), captured, card: self.card.clone() };
        // SAFETY: both are alive, and of one context.
        check("cuEventRecord", unsafe { driver::cuEventRecord(event, self.enter()?) })?;
        Ok(Box::new(moment))
    }

    fn wait(&self, moment: &dyn Moment) -> Result<(), Error> {
        let moment = CudaMoment::of(moment)?;
        // SAFETY: both are alive; the event may be of another context. Destroying it later does not undo the wait.
        check("cuStreamWaitEvent", unsafe { driver::cuStreamWaitEvent(self.enter()?, moment.event.0, 0) })
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let stream = self.enter()?;
        // SAFETY: callers pass memory as large as this; the destination outlives the synchronisation.
        unsafe {
            // Before the copy: into pageable memory it waits for the stream inside the driver, and other threads' launches
            // in this context, for which kernels of this stream may be waiting, would wait for it.
            check("a kernel or copy", driver::cuStreamSynchronize(stream))?;
            let to = bytes.as_mut_ptr().expose_provenance() as DevicePointer;
            check("cuMemcpyAsync", driver::cuMemcpyAsync(to, from, bytes.len(), stream))?;
            check("a kernel or copy", driver::cuStreamSynchronize(stream))
        }
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        // SAFETY: callers keep both ranges alive until the stream has come this far, or as long as the graph is launched.
        check("cuMemcpyAsync", unsafe { driver::cuMemcpyAsync(to, from, bytes, self.enter()?) })
    }

    fn fill(&self, to: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        // SAFETY: callers keep the range alive until the stream has come this far, or as long as the graph is launched.
        check("cuMemsetD8Async", unsafe { driver::cuMemsetD8Async(to, byte, bytes, self.enter()?) })
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), Error> {
        let stream = self.enter()?;
        let function = self.card.functions.get(launch.name).ok_or_else(|| Error::Unavailable {
            what: format!("kernel {}", launch.name),
            why: format!(
                "the kernels loaded for GPU {} are without it; bulk copies need sm_90",
                self.card.ordinal
            ),
        })?;
        let grid = launch.grid;
        let mut parameters = [launch.args.cast_mut().cast::<c_void>()];
        // SAFETY: the kernel has one by-value parameter, which the driver copies now, into the graph if the stream is
        // captured; the rest is the caller's promise.
        let status = unsafe {
            driver::cuLaunchKernel(
                function.0,
                grid.blocks,
                1,
                1,
                grid.threads,
                1,
                1,
                grid.shared_bytes,
                stream,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(launch.name, status)
    }

    fn is_capturing(&self) -> Result<bool, Error> {
        let mut status = driver::CAPTURE_NONE;
        // SAFETY: the stream is alive; writes one integer.
        check("cuStreamIsCapturing", unsafe { driver::cuStreamIsCapturing(self.enter()?, &mut status) })?;
        Ok(status != driver::CAPTURE_NONE)
    }

    fn begin_capture(&self) -> Result<(), Error> {
        // SAFETY: the stream is alive.
        let status = unsafe { driver::cuStreamBeginCapture_v2(self.enter()?, driver::CAPTURE_RELAXED) };
        check("cuStreamBeginCapture", status)
    }

    fn end_capture(&self) -> Result<Box<dyn Replay>, Error> {
        let stream = self.enter()?;
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is alive; writes one handle, or null if the capture was spoilt.
        check("cuStreamEndCapture", unsafe { driver::cuStreamEndCapture(stream, &mut graph) })?;
        // SAFETY: made just now, and nobody else's.
        Ok(Box::new(unsafe { CudaGraph::new(graph, self.card.clone())? }))
    }

    // The driver makes a stream part of a capture when it waits for an event of it.
    fn join_capture(&self, _origin: &dyn Queue) {}

    fn leave_capture(&self) {}
}

impl CudaMoment {
    fn of(moment: &dyn Moment) -> Result<&Self, Error> {
        let moment: &dyn Any = moment;
        moment.downcast_ref().ok_or_else(|| other_backend("event"))
    }

    /// The driver's event, with the context made current; an error for one that never comes by itself, of which the
    /// driver must not be asked.
    fn enter(&self, call: &'static str) -> Result<*mut c_void, Error> {
        if self.captured {
            let why = "it was recorded in a capture, and never comes by itself";
            return Err(Error::Capture { call, why });
        }
        self.card.enter()?;
        Ok(self.event.0)
    }
}

impl Drop for CudaMoment {
    fn drop(&mut self) {
        if self.card.enter().is_ok() {
            // SAFETY: made by `record`, destroyed once; the driver keeps what streams still wait for.
            unsafe { driver::cuEventDestroy_v2(self.event.0) };
        }
    }
}

impl Moment for CudaMoment {
    fn synchronize(&self) -> Result<(), Error> {
        let event = self.enter("waiting for an event")?;
        // SAFETY: the event is alive.
        check("a kernel or copy", unsafe { driver::cuEventSynchronize(event) })
    }

    fn is_reached(&self) -> Result<bool, Error> {
        let event = self.enter("asking for an event")?;
        // SAFETY: the event is alive.
        match unsafe { driver::cuEventQuery(event) } {
            driver::NOT_READY => Ok(false),
            status => check("a kernel or copy", status).map(|()| true),
        }
    }

    fn elapsed_ms(&self, later: &dyn Moment) -> Result<f64, Error> {
        let to = Self::of(later)?.enter("measuring to an event")?;
        let from = self.enter("measuring from an event")?;
        let mut milliseconds = 0f32;
        // SAFETY: both are alive; writes one number.
        let status = unsafe { driver::cuEventElapsedTime(&mut milliseconds, from, to) };
        check("measuring between two events", status)?;
        Ok(milliseconds.into())
    }
}
