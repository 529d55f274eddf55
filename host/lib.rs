#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod arena;
pub mod bootstrap;
pub mod config;
mod error;
pub mod exchange;
pub mod fabric;
pub mod gpu;
mod group;
pub mod oracle;
pub mod tuning;
pub mod workload;

/// The kernels, and what kernels of an engine's own can be written with: launch them with [`Gpu::launch`].
pub use tokenrail_device as device;

pub use config::{
    ArenaMemory, CombineFormat, Config, DispatchFormat, Element, ExpertMajor, Half, Internode, LowLatency,
    Overflow, ScaleLayout, Summation, Via, bytes_for,
};
pub use error::Error;
pub use exchange::{
    ByExpert, Counts, Exchange, Handle, Input, Layout, Output, Outputs, Received, Routing, Slots, Tokens,
    Transport, Weights,
};
pub use exchange::{low_latency, trace};
pub use gpu::{Backend, Buffer, Event, Gpu, Graph, Stream};
pub use group::{Group, Member};
