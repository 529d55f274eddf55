//! An exchange's way to ranks of other nodes: the ring, the proxy that serves it, the fabric that the proxy drives.

use crate::arena::Arena;
use crate::config::{ArenaMemory, Internode, LinkPlan, Plan, Via};
use crate::fabric::proxy::{Flags, Proxy, Shared};
use crate::fabric::ring::Consumer;
#[cfg(feature = "rdma")]
use crate::fabric::verbs::{Verbs, VerbsOptions};
use crate::fabric::{Arrival, Fabric, Memory, ProxyStatistics};
use crate::gpu::agent::{Running, ThreadOptions};
use crate::gpu::{Buffer, HostBuffer};
use crate::group::{pack, unpack};
use crate::{Config, Error, Member};
use std::sync::Arc;
use std::time::Duration;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::internode::{self, ring::Ring};

/// The way, as long as it is kept.
pub struct Link {
    // Dropped first: the proxy uses all the rest.
    _running: Running,
    shared: Arc<Shared>,
    ring: Ring,
    flags: Address,
    lanes: u32,
    ranks: u32,
    _commands: HostBuffer,
    _flags: Option<HostBuffer>,
}

impl Link {
    /// Sets it up, with the fabric that [`prepare`] gave. All ranks of the group call it together.
    pub fn new(
        member: &Member,
        config: &Config,
        plan: &Plan,
        arena: &Arena,
        workspace: &Buffer,
        fabric: Option<Box<dyn Fabric>>,
        patience: Duration,
    ) -> Result<Option<Self>, Error> {
        let (Some(internode), Some(link)) = (&config.internode, plan.link) else { return Ok(None) };
        let Some(mut fabric) = fabric else { return Ok(None) };
        let gpu = member.gpu();
        let node = |rank: u32| rank / link.ranks_per_node;
        let is_far = |peer: u32| node(peer) != node(member.rank());
        let address = |peer| if is_far(peer) { fabric.address(peer) } else { Ok(Vec::new()) };
        // Ranks for which something fails still meet the others, who would wait for them otherwise.
        let addresses = (0..link.ranks).map(address).collect::<Result<Vec<_>, _>>();
        let told = pack(addresses.as_deref().unwrap_or_default());
        let all = member.all_gather_bytes(told, "exchange of the fabric's addresses", patience)?;
        let connected = addresses.and_then(|_| fabric.connect(&peers(member.rank(), &link, &all)?));
        agree(member, connected, "connecting of the fabric", patience)?;

        let commands = gpu.alloc_host(link.ring_bytes() as usize)?;
        let words = workspace.part(plan.link_words_offset(), LinkPlan::WORDS_BYTES).address();
        let ring = Ring {
            commands: commands.address(),
            taken: commands.address().offset(16 << link.ring_log2),
            reserved: Address(words),
            seen: Address(words + 128),
            log2: link.ring_log2,
        };
        let counted = match internode.arrival {
            Arrival::Counted => Some(gpu.alloc_host(link.flags_bytes() as usize)?),
            Arrival::Ordered => None,
        };
        let own_flags = arena.own().address().offset(plan.flags_offset());
        let flags = counted.as_ref().map_or(own_flags, HostBuffer::address);
        let at = if counted.is_some() { flags.0 } else { plan.flags_offset() };
        let LinkPlan { channels, ranks, lanes, .. } = link;
        let told = Flags { arrival: internode.arrival, at, channels, ranks, lanes };
        // SAFETY: the ring is this exchange's, of the size that its logarithm says, zeroed, and kept until the proxy is gone.
        let consumer = unsafe { Consumer::new(&ring) };
        let (proxy, shared) = Proxy::new(consumer, fabric, told, member.rank());
        let is_open = !matches!(internode.via, Via::Loopback(_));
        let running = gpu.run(Box::new(proxy), is_open, ThreadOptions { core: internode.core })?;
        Ok(Some(Self {
            _running: running,
            shared,
            ring,
            flags,
            lanes,
            ranks,
            _commands: commands,
            _flags: counted,
        }))
    }

    /// What kernels are given whose first channel is `channel` and whose part of an arena begins at `part`.
    pub fn device_side(&self, channel: u32, part: u64) -> internode::Link {
        let flags = self.flags.offset(8 * u64::from(channel * self.ranks * self.lanes));
        internode::Link { ring: self.ring, flags, part, channel, lanes: self.lanes, ranks: self.ranks }
    }

    /// What the proxy has done.
    pub fn statistics(&self) -> ProxyStatistics {
        self.shared.statistics()
    }

    /// Why the proxy cannot go on, as an error of `rank`.
    pub fn failure(&self, rank: u32) -> Option<Error> {
        Some(self.shared.failure()?.error(rank))
    }
}

/// A rank's arena, and the fabric that knows it, where there is one.
pub fn prepare(
    member: &Member,
    config: &Config,
    plan: &Plan,
) -> Result<(Buffer, Option<Box<dyn Fabric>>), Error> {
    let (gpu, bytes) = (member.gpu(), plan.arena_bytes() as usize);
    let (Some(internode), Some(_)) = (&config.internode, plan.link) else {
        return Ok((gpu.alloc_zeroed(bytes)?, None));
    };
    let mut fabric = open(member, internode)?;
    let mut register = |arena: Buffer| {
        // Emulated memory is the host's.
        let on_device = gpu.description().capability != 0 && !arena.is_on_host();
        let memory = Memory { address: arena.address().0, bytes: bytes as u64, on_device };
        // SAFETY: the arena outlives the proxy, which gets the fabric.
        unsafe { fabric.register(memory) }.map(|_| arena)
    };
    let arena = match internode.memory {
        ArenaMemory::Host => register(gpu.alloc_on_host(bytes)?)?,
        ArenaMemory::Device => register(gpu.alloc_zeroed(bytes)?)?,
        ArenaMemory::Best => match register(gpu.alloc_zeroed(bytes)?) {
            Ok(arena) => arena,
            // What a GPU's memory cannot be registered for, the host's may.
            Err(_) => register(gpu.alloc_on_host(bytes)?)?,
        },
    };
    Ok((arena, Some(fabric)))
}

/// What has come of something on this rank, or that another rank has failed in it. All ranks of the group call it together.
pub fn agree<T>(
    member: &Member,
    outcome: Result<T, Error>,
    place: &'static str,
    patience: Duration,
) -> Result<T, Error> {
    let all = member.all_gather_bytes(vec![outcome.is_ok().into()], place, patience)?;
    let outcome = outcome?;
    match all.iter().position(|well| well[..] != [1]) {
        Some(peer) => Err(Error::Fabric { call: place.into(), reason: format!("rank {peer} could not") }),
        None => Ok(outcome),
    }
}

/// A rank's end of what moves bytes between nodes.
fn open(member: &Member, internode: &Internode) -> Result<Box<dyn Fabric>, Error> {
    let (rank, gpu) = (member.rank(), member.gpu());
    match &internode.via {
        Via::Loopback(_) if member.is_spanning() => {
            let limit = "ranks of other processes are not reached by it".into();
            Err(Error::Config { field: "internode.via", value: "Loopback".into(), limit })
        }
        Via::Loopback(network) => Ok(Box::new(network.end(rank, internode.lanes, gpu.carrier()?))),
        #[cfg(feature = "rdma")]
        Via::Verbs(options) => {
            let near = options.near.clone().or_else(|| gpu.description().pci.clone());
            let options = VerbsOptions { lanes: internode.lanes, near, ..options.clone() };
            Ok(Box::new(Verbs::open(rank, member.ranks(), &options, Some(gpu.dma_buf_export()))?))
        }
    }
}

/// No way.
pub const NOWHERE: internode::Link =
    internode::Link { ring: Ring::NONE, flags: Address::NULL, part: 0, channel: 0, lanes: 0, ranks: 0 };

/// What each rank of another node has given for this one.
fn peers(rank: u32, link: &LinkPlan, all: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, Error> {
    let node = |rank: u32| rank / link.ranks_per_node;
    let of = |(peer, packed): (u32, &Vec<u8>)| {
        if node(peer) == node(rank) {
            return Ok(None);
        }
        let addresses = unpack(packed).unwrap_or_default();
        match addresses.get(rank as usize) {
            Some(address) => Ok(Some(address.clone())),
            None => {
                let reason = format!("rank {peer} has no address for rank {rank}: its fabric is not there");
                Err(Error::Fabric { call: "connecting".into(), reason })
            }
        }
    };
    (0..).zip(all).map(of).collect()
}
