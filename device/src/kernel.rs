//! What the host needs to know to launch a kernel on either machine.

/// A kernel: its name in the PTX module, its argument struct, and the function the emulator runs.
pub trait Kernel {
    /// The entry's name in the PTX module.
    const NAME: &'static str;
    /// The one by-value parameter. `#[repr(C)]`, so that host and device agree on every offset.
    type Args: Copy + Send + Sync + 'static;
    /// The body, for one GPU thread.
    ///
    /// # Safety
    /// To be called by a launch alone, with arguments that meet the contract of the argument struct.
    unsafe fn run(args: Self::Args);
}

/// Declares a kernel: a marker type for the host and, on the GPU, the PTX entry.
macro_rules! kernel {
    ($(#[$doc:meta])* $marker:ident, $entry:ident, $args:ty, $body:path) => {
        $(#[$doc])*
        pub struct $marker;

        impl $crate::kernel::Kernel for $marker {
            const NAME: &'static str = stringify!($entry);
            type Args = $args;
            unsafe fn run(args: $args) {
                // SAFETY: the caller's promise, passed on.
                unsafe { $body(args) }
            }
        }

        $(#[$doc])*
        ///
        /// # Safety
        /// To be launched by the host with arguments that meet the contract of the argument struct.
        #[cfg(target_arch = "nvptx64")]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $entry(args: $args) {
            // SAFETY: the host's promise at launch, passed on.
            unsafe { $body(args) }
        }
    };
}
pub(crate) use kernel;
