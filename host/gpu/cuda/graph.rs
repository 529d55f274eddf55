//! CUDA graphs.

use super::queue::CudaQueue;
use super::{Card, lock};
use crate::Error;
use crate::gpu::device::{Queue, Replay, other_backend};
use crate::gpu::driver::{self, Handle, check};
use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex};

/// A graph that can be launched. The card, whose kernels it names, outlives it.
pub struct CudaGraph {
    /// The driver leaves it to its callers not to use a graph from two threads at once.
    executable: Mutex<Handle>,
    card: Arc<Card>,
}

impl CudaGraph {
    /// Makes `graph` ready for launches, and brings it to the device: the first launch would otherwise, which may wait
    /// for the whole device.
    ///
    /// # Safety
    /// `graph` is a graph that nobody else has, and the context of `card` is current.
    pub unsafe fn new(graph: *mut c_void, card: Arc<Card>) -> Result<Self, Error> {
        let mut executable = ptr::null_mut();
        // SAFETY: the graph is alive; writes one handle.
        let status = unsafe { driver::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        // SAFETY: the caller's promise. What can be launched does not need it.
        unsafe { driver::cuGraphDestroy(graph) };
        check("cuGraphInstantiate", status)?;
        let made = Self { executable: Mutex::new(Handle(executable)), card };
        // On a stream of its own: work that the captured one was given before may take long.
        let uploads = CudaQueue::new(made.card.clone())?;
        // SAFETY: both are alive.
        check("cuGraphUpload", unsafe { driver::cuGraphUpload(executable, uploads.enter()?) })?;
        uploads.synchronize()?;
        Ok(made)
    }
}

impl Replay for CudaGraph {
    fn launch(&self, queue: &dyn Queue) -> Result<(), Error> {
        let queue: &dyn Any = queue;
        let queue = queue.downcast_ref::<CudaQueue>().ok_or_else(|| other_backend("stream"))?;
        let stream = queue.enter()?;
        let executable = lock(&self.executable);
        // SAFETY: both are alive; what the graph works on outlives its launches, as `Graph` asks of its users.
        check("cuGraphLaunch", unsafe { driver::cuGraphLaunch(executable.0, stream) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.card.enter().is_ok() {
            // SAFETY: made by `new`, destroyed once. A launch under way goes on: the driver frees it afterwards.
            unsafe { driver::cuGraphExecDestroy(lock(&self.executable).0) };
        }
    }
}
