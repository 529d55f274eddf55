//! All that is unsafe about libibverbs: its objects, each ended when it is dropped, and never before those made from it.
//! Failures are `io::Error`s with the system's number.

mod completion;
mod context;
mod memory;
mod queue_pair;
mod request;

pub use completion::{Completion, CompletionQueue};
pub use context::{AsyncEvent, Context, Gid, GidKind, LinkLayer, Port, device_names};
pub use memory::{MemoryRegion, ProtectionDomain};
pub use queue_pair::{Capacity, Link, QueuePair};
pub use request::{Request, Requests, Source};

use std::io;
use std::ptr::NonNull;

/// What a call that gives an object gave, or errno.
fn object<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// What a call that gives 0, a number of an error, or −1 gave.
fn status(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        code => Err(io::Error::from_raw_os_error(code.abs())),
    }
}

/// For a driver that leaves a function out.
fn unsupported() -> io::Error {
    io::Error::from(io::ErrorKind::Unsupported)
}
