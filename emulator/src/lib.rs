#![doc = include_str!("../README.md")]
//!
//! # Example
//!
//! ```
//! use tokenrail_emulator::{Launch, Machine, Options, simt};
//!
//! let machine = Machine::new(Options::default());
//! let device = machine.device(0)?;
//! let sums = device.alloc(4 * 4)?;
//! let out = sums.ptr().expose_provenance();
//! let stream = device.stream();
//! let launch = Launch { name: "lanes", grid: 4, block: 32, shared_bytes: 0 };
//! stream.launch(launch, Box::new(move || {
//!     let odd = simt::ballot(u32::MAX, simt::thread_index() % 2 == 1).count_ones();
//!     if simt::thread_index() == 0 {
//!         let at = out + 4 * simt::block_index() as usize;
//!         simt::check(at as u64, 4, "store");
//!         // SAFETY: checked just now.
//!         unsafe { std::ptr::with_exposed_provenance_mut::<u32>(at).write(odd) };
//!     }
//! }))?;
//! stream.synchronize()?;
//! // SAFETY: four words, which the kernel has written.
//! assert_eq!(unsafe { sums.ptr().cast::<[u32; 4]>().read() }, [16; 4]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod actor;
mod block;
mod bulk;
pub mod check;
mod collective;
mod engine;
mod machine;
mod memory;
mod random;
mod report;
mod scheduler;
mod script;
pub mod simt;
mod stack;
mod stream;

pub use actor::{Actor, Attached, Outlook};
pub use machine::{Device, Machine};
pub use memory::Allocation;
pub use script::Script;
pub use stream::{Event, Launch, Stream};

use std::fmt;

/// How a machine is built.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of devices.
    pub devices: usize,
    /// What the order of threads is drawn from.
    pub seed: u64,
    /// An ordered memory operation lets others run with a chance of 1 in this many; 0: never.
    pub preempt_one_in: u32,
    /// Most shared memory of a block, in bytes.
    pub shared_bytes_per_block: usize,
    /// Most blocks that run on a device at once; others wait.
    pub resident_blocks: u32,
    /// Pairs of devices that cannot map each other's memory: a kernel of one that touches the other's is a fault.
    pub no_peer_access: Vec<(usize, usize)>,
    /// Memory of a device, in bytes.
    pub memory_bytes: usize,
    /// Runs this schedule, instead of one that is drawn from the seed.
    pub script: Option<Script>,
    /// Looks for races, at some cost.
    pub checker: Option<check::Checker>,
}

impl Default for Options {
    /// One device like an H100: 132 resident blocks, 227 KiB of shared memory each, 80 GiB.
    fn default() -> Self {
        Self {
            devices: 1,
            seed: 0,
            preempt_one_in: 16,
            shared_bytes_per_block: 227 << 10,
            resident_blocks: 132,
            no_peer_access: Vec::new(),
            memory_bytes: 80 << 30,
            script: None,
            checker: None,
        }
    }
}

impl Options {
    fn can_access_peer(&self, from: usize, to: usize) -> bool {
        !self.no_peer_access.iter().any(|&pair| pair == (from, to) || pair == (to, from))
    }
}

/// A call that the machine refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device.
    #[error("device {ordinal}: the machine has {devices}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// Devices of the machine.
        devices: usize,
    },
    /// The device's memory is used up.
    #[error("{bytes} bytes: device {device} has {free} of its {limit} bytes left")]
    OutOfMemory {
        /// The device.
        device: usize,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes left.
        free: usize,
        /// Bytes of the device.
        limit: usize,
    },
    /// A launch is larger than the device allows.
    #[error("kernel {name}: {field} = {value}, must be {limit}")]
    Launch {
        /// The kernel.
        name: &'static str,
        /// What is out of range.
        field: &'static str,
        /// Its value.
        value: usize,
        /// What it must be.
        limit: String,
    },
}

/// Why a kernel was ended. All later work of its device fails with it, as after a fault of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device.
    pub device: usize,
    /// The kernel.
    pub kernel: &'static str,
    /// The block, and the thread in it; `None` if it concerns more than one.
    pub thread: Option<(u32, u32)>,
    /// What happened.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} on device {}", self.kernel, self.device)?;
        if let Some((block, thread)) = self.thread {
            write!(f, ", block {block}, thread {thread}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}
