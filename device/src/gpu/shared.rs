//! The block's dynamic shared memory, addressed by 32-bit offsets in the shared window. On every architecture, but for
//! the atomic.
//!
//! # Safety
//! Every function that accesses it needs an offset inside the block's dynamic shared memory, aligned to the size of
//! the access, and no other thread writing there at the same time unless by the atomic.

use super::{machine, mem::Quad};

/// Offset of the first byte of dynamic shared memory, aligned to 1024 bytes (`mov.u32 %r, dyn_smem`).
pub fn base() -> u32 {
    machine::shared_base()
}

/// Declares documented wrappers of the machine's shared-memory accesses.
macro_rules! accesses {
    ($($(#[$doc:meta])* $name:ident = $machine:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// See the module's.
        #[inline(always)]
        #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
        pub unsafe fn $name(at: u32 $(, $arg: $ty)*) $(-> $out)? {
            // SAFETY: the caller's promise, passed on.
            unsafe { machine::$machine(at $(, $arg)*) }
        }
    )*};
}

accesses! {
    /// `ld.shared.u32`.
    load_u32 = shared_load_u32() -> u32;
    /// `ld.shared.u64`.
    load_u64 = shared_load_u64() -> u64;
    /// `ld.shared.v4.u32`.
    load_quad = shared_load_quad() -> Quad;
    /// `st.shared.u32`.
    store_u32 = shared_store_u32(value: u32);
    /// `st.shared.u64`.
    store_u64 = shared_store_u64(value: u64);
    /// `red.relaxed.cta.shared.add.u32` (sm_70).
    add_u32 = shared_add_u32(value: u32);
}
