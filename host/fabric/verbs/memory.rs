//! Making memory known to NICs.

use super::raw::{MemoryRegion, ProtectionDomain};
use super::refused;
use crate::Error;
use crate::fabric::Memory;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// GPU memory in the form in which the kernel hands it from driver to driver.
#[derive(Debug)]
pub struct DmaBuf {
    /// Closed once the memory is registered.
    pub fd: OwnedFd,
    /// Bytes before the memory's beginning.
    pub offset: u64,
}

/// Gives a dma-buf of GPU memory, of at least the bytes that are asked for: `cuMemGetHandleForAddressRange`. `None` if the
/// driver gives none.
pub type DmaBufExport = Box<dyn FnMut(Memory) -> Option<DmaBuf> + Send>;

/// How memory came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// By address: host memory, or a GPU's where `nvidia_peermem` is loaded.
    Plain,
    /// By dma-buf.
    DmaBuf,
}

/// Memory, as every NIC knows it.
pub(super) struct Registered {
    pub memory: Memory,
    pub registration: Registration,
    /// One a NIC.
    pub regions: Vec<MemoryRegion>,
}

/// Registers with all NICs in the same way: a GPU's memory by dma-buf if there is one, else by address.
///
/// # Safety
/// The memory stays allocated until what is returned is dropped.
pub(super) unsafe fn register<'a>(
    domains: impl Iterator<Item = &'a Arc<ProtectionDomain>> + Clone,
    memory: Memory,
    export: Option<&mut DmaBufExport>,
) -> Result<Registered, Error> {
    let Memory { address, bytes, on_device } = memory;
    let call = format!("registering {bytes} bytes{}", if on_device { " of a GPU" } else { "" });
    if bytes == 0 || address.checked_add(bytes).is_none() {
        return Err(refused(call, "there are no such bytes"));
    }
    let buffer = export.filter(|_| on_device).and_then(|export| export(memory));
    let shared = buffer.map(|buffer| {
        let region = |domain| {
            // SAFETY: the caller's promise.
            unsafe { MemoryRegion::dma_buf(domain, buffer.fd.as_fd(), buffer.offset, address, bytes) }
        };
        domains.clone().map(region).collect::<io::Result<Vec<_>>>()
    });
    let why_not = match shared {
        Some(Ok(regions)) => return Ok(Registered { memory, registration: Registration::DmaBuf, regions }),
        Some(Err(error)) => error.to_string(),
        None => "there is none".into(),
    };
    let plain = domains.map(|domain| {
        // SAFETY: the caller's promise.
        unsafe { MemoryRegion::plain(domain, address, bytes) }
    });
    match plain.collect() {
        Ok(regions) => Ok(Registered { memory, registration: Registration::Plain, regions }),
        Err(error) if on_device => Err(refused(
            call,
            format!(
                "by dma-buf: {why_not}; by address (nvidia_peermem has to be loaded): {error}; \
                 sending through host memory is not implemented"
            ),
        )),
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            Err(refused(call, format!("{error}: does `ulimit -l` allow so much?")))
        }
        Err(error) => Err(refused(call, error.to_string())),
    }
}
