//! What moves bytes between nodes: one-sided writes into memory that the other side has registered.
//!
//! A rank has one [`Fabric`], which its proxy drives from one thread. To every rank that it reaches there are a number of
//! **lanes**; a lane is one reliable connection, which a queue pair is to a NIC.
//!
//! What holds on every fabric, and all that may be relied on:
//! * A write is delivered once and whole, or its lane fails and says so.
//! * An immediate arrives after the bytes of its own write are in place.
//! * On a fabric that is [`ordered`](Fabric::is_ordered), bytes of a lane are in place in the order of its writes: who sees
//!   a later write sees the earlier ones. Between lanes, and elsewhere, nothing is ordered.

mod loopback;
mod measure;
pub(crate) mod proxy;
pub(crate) mod ring;
#[cfg(feature = "rdma")]
pub mod verbs;

pub(crate) use loopback::HostMemory;
pub use loopback::{Loopback, LoopbackOptions, Network};
pub use measure::ProxySpeed;
pub use proxy::{Arrival, ProxyStatistics};

use crate::Error;
use std::fmt;

/// Registered memory, by number: the first that an endpoint registers is 0, and so on. Ranks register in the same order,
/// so that a number means the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region(pub u32);

/// Memory to register.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Where it begins: an address of the rank's GPU, or of the host.
    pub address: u64,
    /// Its size.
    pub bytes: u64,
    /// Whether it is the GPU's.
    pub on_device: bool,
}

/// One of the connections to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The rank at the other end.
    pub peer: u32,
    /// Which of the lanes to it.
    pub index: u32,
}

/// What a write carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Registered bytes, which stay as they are until the write is done.
    Bytes {
        /// Where they are.
        region: Region,
        /// From which byte on.
        offset: u64,
        /// How many.
        bytes: u32,
    },
    /// Eight bytes, the number in the machine's order, taken now. They appear at once, never half.
    Word(u64),
    /// Nothing: for the immediate alone.
    Nothing,
}

/// A write into a peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// What.
    pub payload: Payload,
    /// Into which of the peer's regions.
    pub region: Region,
    /// At which byte of it; a multiple of 8 for a word.
    pub offset: u64,
    /// What the peer is told when it has arrived.
    pub immediate: Option<u32>,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The oldest writes of a lane are done: what they were made from may change.
    Written {
        /// The lane.
        lane: Lane,
        /// How many.
        count: u32,
    },
    /// A peer's write with an immediate has arrived, on the peer's lane of the same index.
    Arrived {
        /// The lane.
        lane: Lane,
        /// The immediate.
        immediate: u32,
    },
    /// A lane is not usable any more. What was under way on it may or may not have arrived.
    Failed {
        /// The lane.
        lane: Lane,
        /// Why.
        cause: Cause,
    },
    /// All lanes of a port are out of use, until it comes back.
    PortDown,
    /// The port is back. Lanes that have failed meanwhile stay so.
    PortUp,
}

/// Why a lane has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The other end does not answer: it is gone, or the way to it is.
    Unreachable,
    /// The other end has refused a write: wrong key, or outside what it has registered.
    Refused,
    /// The other end takes no more immediates in.
    NotReady,
    /// This end could not send: its port is down, or its memory is not registered any more.
    Local,
    /// The lane had failed before.
    Flushed,
    /// Something else, in the driver's words.
    Other(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unreachable => {
                f.write_str("it does not answer: the process, its machine or the way to it is gone")
            }
            Self::Refused => {
                f.write_str("it has refused a write: wrong key, or outside its registered memory")
            }
            Self::NotReady => f.write_str("it takes nothing more in: its proxy does not run"),
            Self::Local => f.write_str("this end could not send: its port is down or its memory gone"),
            Self::Flushed => f.write_str("the connection had failed before"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// What to expect after a [`poll`](Fabric::poll).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing happens before something is written, here or at a peer of this process.
    Quiet,
    /// Something happens at this moment of the clock that was given.
    At(u64),
    /// Something may come from outside this process at any moment.
    Open,
}

/// One rank's end of what moves bytes between nodes.
///
/// In this order: register, give peers the [`address`](Fabric::address), [`connect`](Fabric::connect), write and poll,
/// [`close`](Fabric::close). Only connecting and closing may block, and both have an end.
pub trait Fabric: Send {
    /// Makes memory known, here and to what peers learn from [`Fabric::address`].
    ///
    /// # Safety
    /// The memory stays allocated until the fabric is dropped.
    ///
    /// # Errors
    /// [`Error::Fabric`] if there is no way to do so, or if it is too late.
    unsafe fn register(&mut self, memory: Memory) -> Result<Region, Error>;

    /// What `peer` has to know to connect to this end: opaque, of at most [`MAX_ADDRESS_BYTES`].
    ///
    /// # Errors
    /// [`Error::Fabric`] if connections cannot be prepared.
    fn address(&mut self, peer: u32) -> Result<Vec<u8>, Error>;

    /// Connects all lanes. `peers` has an entry for every rank: what that rank gave for this one, or `None` if it is not
    /// to be reached. To be called when all have their addresses; when it returns, peers may not have called it yet, so
    /// meet before the first write.
    ///
    /// # Errors
    /// [`Error::Fabric`] if an address makes no sense or a connection is refused.
    fn connect(&mut self, peers: &[Option<Vec<u8>>]) -> Result<(), Error>;

    /// Lanes to each peer.
    fn lanes(&self) -> u32;

    /// Whether bytes of a lane are in place in the order of its writes.
    fn is_ordered(&self) -> bool;

    /// How many more writes a lane takes now.
    fn room(&self, lane: Lane) -> u32;

    /// Queues a write on a lane that has room. It may wait for [`Fabric::flush`].
    ///
    /// # Errors
    /// [`Error::Link`] if the lane has failed, or refuses it.
    fn write(&mut self, lane: Lane, write: &Write) -> Result<(), Error>;

    /// Sees to it that all that was queued is under way.
    ///
    /// # Errors
    /// [`Error::Link`] if a lane refuses.
    fn flush(&mut self) -> Result<(), Error>;

    /// Adds what has happened to `events`, without blocking. `now_ns` is a clock that does not go back, of a kind that all
    /// ends in a process share.
    ///
    /// # Errors
    /// [`Error::Fabric`] if nothing works any more. What concerns a lane is an event.
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> Result<Outlook, Error>;

    /// Ends all connections. Peers see their lanes to this end fail, if they use them.
    fn close(&mut self);
}

/// Most bytes of what ranks tell each other about their ends.
pub const MAX_ADDRESS_BYTES: usize = 16 << 10;
