//! The settings of what goes between nodes.

use super::{refuse, within};
use crate::Error;
#[cfg(feature = "rdma")]
use crate::fabric::verbs::VerbsOptions;
use crate::fabric::{Arrival, Network};
use tokenrail_device::internode::command::{MAX_CHANNELS, MAX_LANES, MAX_OFFSET};
use tokenrail_device::low_latency::batch::channel;
use tokenrail_device::throughput::across;

/// What moves bytes between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Via {
    /// Nothing leaves the process: for ranks of one process that are declared to be on different nodes.
    Loopback(Network),
    /// NICs with RDMA, by libibverbs. Its `lanes` is [`Internode::lanes`], whatever is given, and `near`, if it is not given,
    /// the rank's GPU.
    #[cfg(feature = "rdma")]
    Verbs(VerbsOptions),
}

impl Via {
    /// Whether lanes keep their order.
    fn is_ordered(&self) -> bool {
        match self {
            Self::Loopback(network) => network.options().ordered,
            #[cfg(feature = "rdma")]
            Self::Verbs(_) => true,
        }
    }

    /// Checks what it is given.
    fn check(&self, _lanes: u32) -> Result<(), Error> {
        match self {
            Self::Loopback(_) => Ok(()),
            #[cfg(feature = "rdma")]
            Self::Verbs(options) => VerbsOptions { lanes: _lanes, ..options.clone() }.check(),
        }
    }
}

/// Where the arena lies that NICs read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ArenaMemory {
    /// In the GPU's memory if the fabric can register that, by dma-buf or `nvidia_peermem`; else in the host's.
    #[default]
    Best,
    /// In the GPU's memory, or not at all.
    Device,
    /// In pinned memory of the host, which kernels reach over PCIe. Slower, also between GPUs of a node; works with any NIC.
    Host,
}

/// How ranks of other nodes are reached: through a proxy on the host, which serves a ring of commands that kernels write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Internode {
    /// What moves the bytes.
    pub via: Via,
    /// Connections to each rank of another node, 1 to 32. What they carry is shared out by token; dispatch and combine go
    /// on with what came by one while the next brings more.
    pub lanes: u32,
    /// How arrival is told. [`Arrival::Counted`] where connections keep no order.
    pub arrival: Arrival,
    /// Where the arena lies. [`Exchange::arena_memory`](crate::Exchange::arena_memory) says what was found possible.
    pub memory: ArenaMemory,
    /// Logarithm of the number of commands that the ring holds, 6 to 20.
    pub ring_log2: u32,
    /// The core that the proxy's thread stays on; of those that the process may use. On the emulator without effect where
    /// nothing leaves the process.
    pub core: Option<usize>,
}

impl Internode {
    /// One lane, flags behind the bytes, 2^14 commands.
    pub fn new(via: Via) -> Self {
        let (arrival, memory) = (Arrival::default(), ArenaMemory::default());
        Self { via, lanes: 1, arrival, memory, ring_log2: 14, core: None }
    }

    /// What ranks must agree on.
    pub(super) fn shared(&self) -> String {
        let via = match self.via {
            Via::Loopback(_) => "loopback",
            #[cfg(feature = "rdma")]
            Via::Verbs(_) => "verbs",
        };
        format!("{via}, lanes {}, {:?}", self.lanes, self.arrival)
    }
}

/// Most lanes that make sense; commands name up to [`MAX_LANES`].
const LANES: u32 = tokenrail_device::wire::MAX_LANES;
const _: () = assert!(LANES <= MAX_LANES);

/// Where things lie that a proxy and kernels share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkPlan {
    pub ranks: u32,
    pub ranks_per_node: u32,
    pub lanes: u32,
    pub channels: u32,
    pub ring_log2: u32,
}

impl LinkPlan {
    pub(super) fn new(
        internode: &Internode,
        ranks: u32,
        ranks_per_node: u32,
        batches: u32,
        flights: u32,
    ) -> Result<Self, Error> {
        within("internode.lanes", internode.lanes, 1, LANES)?;
        within("internode.ring_log2", internode.ring_log2, 6, 20)?;
        internode.via.check(internode.lanes)?;
        if internode.arrival == Arrival::Ordered && !internode.via.is_ordered() {
            let limit = "lanes of this network keep no order: it must be Counted";
            return Err(refuse("internode.arrival", "Ordered", limit));
        }
        let channels = batches * channel::COUNT + flights * across::channel::COUNT;
        within("channels of all batches and dispatches in flight", channels, 1, MAX_CHANNELS)?;
        let (lanes, ring_log2) = (internode.lanes, internode.ring_log2);
        Ok(Self { ranks, ranks_per_node, lanes, channels, ring_log2 })
    }

    /// The first channel of a dispatch in flight, behind those of `batches` batches.
    pub fn flight_channel(batches: u32, flight: u32) -> u32 {
        batches * channel::COUNT + flight * across::channel::COUNT
    }

    /// Bytes of all flags.
    pub fn flags_bytes(&self) -> u64 {
        8 * u64::from(self.channels) * u64::from(self.ranks) * u64::from(self.lanes)
    }

    /// Bytes of the words of device memory that kernels share the ring by, each in a line of its own.
    pub const WORDS_BYTES: u64 = 256;

    /// Bytes of the ring: the commands, and in a line of its own how many were taken.
    pub fn ring_bytes(&self) -> u64 {
        (16 << self.ring_log2) + 128
    }

    /// Commands hold offsets in arenas of no more than this; words' are of half as much.
    pub fn check_arena(&self, bytes: u64) -> Result<(), Error> {
        let limit = MAX_OFFSET / 2;
        if bytes <= limit {
            return Ok(());
        }
        let limit = format!("with internode, arenas are at most {limit} bytes; fewer tokens need less");
        Err(refuse("arena", bytes, limit))
    }
}
