//! Registered memory.

use super::{Context, object};
use ibverbs_sys as sys;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// What queue pairs and memory must have in common to be used together.
pub struct ProtectionDomain {
    raw: NonNull<sys::ibv_pd>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs may be called from any thread, and locks what calls share.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub fn new(context: &Arc<Context>) -> io::Result<Self> {
        // SAFETY: the context is open.
        let raw = object(unsafe { sys::ibv_alloc_pd(context.as_ptr()) })?;
        Ok(Self { raw, _context: context.clone() })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: it is given back once; what was made from it holds it and so is gone.
        unsafe { sys::ibv_dealloc_pd(self.as_ptr()) };
    }
}

/// Memory that a NIC reads and peers write.
pub struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs may be called from any thread, and locks what calls share.
unsafe impl Send for MemoryRegion {}

impl MemoryRegion {
    /// Without relaxed ordering, which would let a later write be seen before an earlier one.
    const ACCESS: i32 = (sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0
        | sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0) as i32;

    /// By address: of the host, or of a GPU whose driver has told the kernel's RDMA of its memory (`nvidia_peermem`).
    ///
    /// # Safety
    /// The memory stays allocated as long as this.
    pub unsafe fn plain(domain: &Arc<ProtectionDomain>, address: u64, bytes: u64) -> io::Result<Self> {
        let start = address as usize as *mut std::ffi::c_void;
        // SAFETY: the domain is there; what is no memory the kernel refuses.
        let raw = unsafe { sys::ibv_reg_mr(domain.as_ptr(), start, bytes as usize, Self::ACCESS) };
        Ok(Self { raw: object(raw)?, _domain: domain.clone() })
    }

    /// By a dma-buf, of which the memory is the part from `offset` on; known by `address`, its own.
    ///
    /// # Safety
    /// The memory stays allocated as long as this.
    pub unsafe fn dma_buf(
        domain: &Arc<ProtectionDomain>,
        buffer: BorrowedFd,
        offset: u64,
        address: u64,
        bytes: u64,
    ) -> io::Result<Self> {
        let (fd, bytes) = (buffer.as_raw_fd(), bytes as usize);
        // SAFETY: the domain is there and the descriptor open; what is no dma-buf the kernel refuses.
        let raw =
            unsafe { sys::ibv_reg_dmabuf_mr(domain.as_ptr(), offset, bytes, address, fd, Self::ACCESS) };
        Ok(Self { raw: object(raw)?, _domain: domain.clone() })
    }

    /// What a request names it by on this end.
    pub fn local_key(&self) -> u32 {
        // SAFETY: it is registered as long as `self`.
        unsafe { self.raw.as_ref() }.lkey
    }

    /// What a peer's request names it by.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: it is registered as long as `self`.
        unsafe { self.raw.as_ref() }.rkey
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: it is given back once.
        unsafe { sys::ibv_dereg_mr(self.raw.as_ptr()) };
    }
}
