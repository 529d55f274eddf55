//! Bulk copies between shared and global memory, done by the copy engine of the SM (TMA), and the `mbarrier` on which
//! loads complete. sm_90 and later.
//!
//! Addresses and sizes are multiples of 16 bytes. The copy engine works in the *async proxy*: what ordinary
//! instructions wrote is visible to it only after [`fence_proxy_async`]; its own completion, once observed, makes its
//! writes visible to the observing thread.
//!
//! # Safety
//! Global addresses must be mapped for this GPU and stay so until the copy completes; shared offsets must lie in the
//! block's dynamic shared memory and not be touched while a copy that was not waited for uses them. An mbarrier is 8
//! bytes, aligned to 8, initialised once before use.

use super::{machine, mem::Address};

/// Declares documented wrappers of the machine's bulk operations.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $machine:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See the module's.
        #[inline(always)]
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        pub unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the caller's promise, passed on.
            unsafe { machine::$machine($($arg),*) }
        }
    )*};
}

operations! {
    /// Prepares an mbarrier for `arrivals` arrivals a phase (`mbarrier.init.shared.b64`). Follow with
    /// [`fence_proxy_async`] and a barrier before anyone uses it.
    mbarrier_init = mbarrier_init(barrier: u32, arrivals: u32);
    /// Arrives, and makes the phase wait for `bytes` more bytes (`mbarrier.arrive.expect_tx.shared.b64`).
    mbarrier_arrive_expect = mbarrier_arrive_expect(barrier: u32, bytes: u32);
    /// Waits until the phase of parity `parity` has completed (`mbarrier.try_wait.parity.shared.b64`, in a loop).
    mbarrier_wait = mbarrier_wait(barrier: u32, parity: u32);
    /// Starts a copy from global to shared memory that completes on `barrier`
    /// (`cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`).
    load = bulk_load(to: u32, from: Address, bytes: u32, barrier: u32);
    /// Starts a copy from shared to global memory, in this thread's open group
    /// (`cp.async.bulk.global.shared::cta.bulk_group`).
    store = bulk_store(to: Address, from: u32, bytes: u32);
}

/// Closes this thread's open group of stores (`cp.async.bulk.commit_group`).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn commit() {
    machine::bulk_commit();
}

/// Waits until this thread's stores have *read* their source, which may then be overwritten
/// (`cp.async.bulk.wait_group.read 0`). Says nothing about the destination.
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn wait_read() {
    machine::bulk_wait_read();
}

/// Waits until this thread's stores are complete: written, and visible to this thread (`cp.async.bulk.wait_group 0`).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn wait_written() {
    machine::bulk_wait_written();
}

/// Orders ordinary accesses and the async proxy's, in both directions (`fence.proxy.async`).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn fence_proxy_async() {
    machine::fence_proxy_async();
}
