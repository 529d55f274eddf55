//! Global memory: plain accesses for data, scoped and ordered ones for what others read while it is written.
//!
//! Plain accesses are on every architecture; the least one for the others stands with them.
//!
//! Everything goes through an [`Address`]. No reference is ever made into memory that another thread, GPU or NIC may
//! write: a load through `&T` may become `ld.global.nc` or be hoisted out of a loop. Read-modify-write operations are
//! inline PTX, because `core`'s atomics lower to `atom.global` without ordering and at `.gpu` scope.
//!
//! # Safety
//! Every function here needs an address inside memory that is mapped for this GPU, aligned to the size of the access.
//! The plain ones further need that no other thread writes there at the same time.

use super::machine;

/// An address in global memory: of this GPU, of a peer, or of pinned host memory.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    /// No memory at all: for optional arguments.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// The address of element `index` of an array of 4-byte words.
    pub fn word(self, index: u32) -> Self {
        self.offset(4 * index as u64)
    }

    /// The address of element `index` of an array of 8-byte words.
    pub fn long(self, index: u32) -> Self {
        self.offset(8 * index as u64)
    }

    /// Whether this is [`Address::NULL`].
    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// Sixteen bytes: the widest single access, and what every row is a multiple of.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quad(pub [u32; 4]);

/// Declares documented wrappers of the machine's loads, stores and atomics.
macro_rules! accesses {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See the module's.
        #[inline(always)]
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        pub unsafe fn $name(at: Address $(, $arg: $ty)*) $(-> $out)? {
            // SAFETY: the caller's promise, passed on.
            unsafe { machine::$name(at.0 $(, $arg)*) }
        }
    )*};
}

accesses! {
    /// Plain load (`ld.global.u32`).
    load_u32() -> u32;
    /// Plain load (`ld.global.u64`).
    load_u64() -> u64;
    /// Plain load of 16 bytes (`ld.global.v4.u32`).
    load_quad() -> Quad;
    /// Plain store of one byte (`st.global.u8`).
    store_u8(value: u8);
    /// Plain store (`st.global.u32`).
    store_u32(value: u32);
    /// Plain store (`st.global.u64`).
    store_u64(value: u64);
    /// Plain store of 16 bytes (`st.global.v4.u32`).
    store_quad(value: Quad);

    /// `ld.relaxed.gpu.global.u32` (sm_70).
    load_relaxed_gpu_u32() -> u32;
    /// `ld.acquire.gpu.global.u32` (sm_70).
    load_acquire_gpu_u32() -> u32;
    /// `ld.relaxed.sys.global.u64` (sm_70).
    load_relaxed_sys_u64() -> u64;
    /// `ld.acquire.sys.global.u64` (sm_70).
    load_acquire_sys_u64() -> u64;
    /// `st.relaxed.gpu.global.u32` (sm_70).
    store_relaxed_gpu_u32(value: u32);
    /// `st.release.gpu.global.u32` (sm_70).
    store_release_gpu_u32(value: u32);
    /// `st.relaxed.sys.global.u64` (sm_70).
    store_relaxed_sys_u64(value: u64);
    /// `st.release.sys.global.u64` (sm_70).
    store_release_sys_u64(value: u64);
    /// `ld.relaxed.sys.global.b128` (sm_70): 16 bytes at once, never half of what a store of 16 bytes wrote.
    load_relaxed_sys_b128() -> Quad;
    /// `st.relaxed.sys.global.b128` (sm_70): 16 bytes at once.
    store_relaxed_sys_b128(value: Quad);
    /// `red.relaxed.gpu.global.max.u32` (sm_70).
    max_relaxed_gpu_u32(value: u32);
    /// `atom.relaxed.gpu.global.add.u32` (sm_70); gives the old value.
    fetch_add_relaxed_gpu_u32(value: u32) -> u32;
    /// `atom.acq_rel.gpu.global.add.u32` (sm_70); gives the old value.
    fetch_add_acq_rel_gpu_u32(value: u32) -> u32;
    /// `atom.acq_rel.sys.global.add.u32` (sm_70); gives the old value.
    fetch_add_acq_rel_sys_u32(value: u32) -> u32;
    /// `atom.acq_rel.gpu.global.cas.b32` (sm_70): stores `new` where `expected` stands; gives the old value.
    compare_exchange_acq_rel_gpu_u32(expected: u32, new: u32) -> u32;
}

/// `fence.acq_rel.gpu` (sm_70).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn fence_acq_rel_gpu() {
    machine::fence_acq_rel_gpu();
}

/// `fence.acq_rel.sys` (sm_70).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn fence_acq_rel_sys() {
    machine::fence_acq_rel_sys();
}

/// Polls the word at `at` with `ld.acquire.sys` until it is at least `want`. When [`super::clock::now_ns`] passes
/// `deadline_ns` first, the value last seen comes back as the error.
///
/// # Safety
/// See the module's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn wait_at_least_acquire_sys(at: Address, want: u64, deadline_ns: u64) -> Result<(), u64> {
    // SAFETY: the caller's promise, passed on.
    unsafe { machine::wait_at_least(at.0, want, deadline_ns) }
}

/// Polls 16 bytes with `ld.relaxed.sys.b128` until the last four are `tag`; false when [`super::clock::now_ns`] passes
/// `deadline_ns` first. Tags at one place only grow.
///
/// # Safety
/// See the module's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub unsafe fn wait_tag(at: Address, tag: u32, deadline_ns: u64) -> bool {
    // SAFETY: the caller's promise, passed on.
    unsafe { machine::wait_tag(at.0, tag, deadline_ns) }
}
