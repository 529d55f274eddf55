//! Writes through a NIC with RDMA: InfiniBand, or Ethernet with RoCE v2, driven by libibverbs.
//!
//! A lane is a queue pair of the kind that is reliable and connected, and its writes are RDMA writes. NICs put the bytes of
//! such a connection in place in order, as memory is registered without relaxed ordering.

mod address;
mod device;
mod endpoint;
mod lane;
mod memory;
mod nic;
mod options;
mod raw;

pub use device::{NicDescription, PortDescription, describe};
pub use endpoint::Verbs;
pub use memory::{DmaBuf, DmaBufExport, Registration};
pub use options::VerbsOptions;

use crate::Error;
use std::io;

/// For `map_err`: the system refused a call.
fn failed(call: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    |error| refused(call, error.to_string())
}

fn refused(call: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Fabric { call: call.into(), reason: reason.into() }
}
