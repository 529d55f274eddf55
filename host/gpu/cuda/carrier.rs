//! Copies between devices of this process, for the fabric that stays in it.

use super::queue::CudaQueue;
use crate::Error;
use crate::gpu::device::Carrier;
use crate::gpu::driver::{self, DevicePointer, check};

/// Copies on a stream of its own.
pub struct CudaCarrier(pub CudaQueue);

impl Carrier for CudaCarrier {
    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        let stream = self.0.enter()?;
        // SAFETY: callers keep both ranges alive; unified addressing tells the driver where they are.
        check("cuMemcpyAsync", unsafe { driver::cuMemcpyAsync(to, from, bytes as usize, stream) })
    }

    fn settle(&mut self) -> Result<(), Error> {
        let stream = self.0.enter()?;
        // SAFETY: the stream is alive.
        check("copies of a fabric", unsafe { driver::cuStreamSynchronize(stream) })
    }

    fn word(&mut self, to: u64, value: u64) -> Result<(), Error> {
        let stream = self.0.enter()?;
        let from = (&raw const value).expose_provenance() as DevicePointer;
        // SAFETY: the number outlives the copy, which is waited for.
        check("cuMemcpyAsync", unsafe { driver::cuMemcpyAsync(to, from, size_of_val(&value), stream) })?;
        self.settle()
    }
}
