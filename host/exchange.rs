//! The calls a user makes: layout, dispatch, combine.

mod combine;
mod dispatch;
mod failure;
mod input;
mod layout;
mod link;
pub mod low_latency;
mod received;
mod staging;
pub mod trace;

pub use input::{Input, Output, Outputs, Routing, Slots, Tokens, Transport, Weights};
pub use layout::Layout;
pub use received::{ByExpert, Counts, Handle, Received};

use crate::arena::Arena;
use crate::config::{ArenaMemory, Plan};
use crate::fabric::ProxyStatistics;
use crate::gpu::{Buffer, Gpu, Grid, HostBuffer, Stream};
use crate::{Config, Error, Event, Member};
use link::Link;
use low_latency::Buffers;
use staging::{CombineStaging, DispatchStaging};
use std::sync::Arc;
use std::time::Duration;
use tokenrail_device::internode;
use tokenrail_device::kernel::Kernel;
use tokenrail_device::wire::{self, Report};
use trace::{Operation, Recorder};

/// One rank's end of an exchange: its arena, its workspace, and the operations on them.
///
/// Calls only queue work on the stream they are given, but for those of [`Transport::CopyEngine`];
/// [`Exchange::finish`] waits for it and says whether it went well. All ranks make the same calls in the same order.
///
/// Dispatches take turns with [`Config::in_flight`] sets of buffers. What belongs to one of them (a dispatch, the
/// combine of what it brought, and the dispatch that takes the set again) runs in this order, on one stream or on
/// several that wait for each other's events; different ones may run at the same time, as long as all their
/// multiprocessors are free at once.
pub struct Exchange {
    /// The way to other nodes. Before the memory that it uses, which goes after it.
    link: Option<Link>,
    member: Member,
    config: Config,
    plan: Plan,
    arena: Arena,
    workspace: Arc<Buffer>,
    flights: Vec<Flight>,
    handles: Vec<KeptHandle>,
    batches: Vec<Buffers>,
    low_latency_sms: u32,
    communication: Stream,
    sms: u32,
    most_sms: u32,
    bulk_copy: bool,
    dispatch_staging: DispatchStaging,
    combine_staging: CombineStaging,
    dispatches: u64,
    routings: u64,
    batches_begun: u64,
    recorder: Recorder,
    failed: bool,
}

/// One set of buffers.
struct Flight {
    report: HostBuffer,
    /// The dispatch whose rows are in it; 0 for none.
    dispatch: u64,
    /// Whether they have been combined.
    combined: bool,
}

/// One handle's memory.
#[derive(Clone, Copy, Default)]
struct KeptHandle {
    /// The routing that is in it; 0 for none.
    generation: u64,
    /// Most tokens it can be of.
    tokens: u32,
}

/// How long ranks wait for each other to set up, at least: drivers take their time, however short a kernel's wait is.
const SETUP_PATIENCE: Duration = Duration::from_secs(30);

impl Exchange {
    /// Sets up this rank's end. All ranks of the group call it together.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that are not possible here, [`Error::Disagreement`] if ranks were given
    /// different ones, [`Error::Device`] without enough memory, [`Error::Rendezvous`] if a rank does not come.
    pub fn new(member: Member, config: &Config) -> Result<Self, Error> {
        // Ranks whose own settings are impossible still tell the others, who would wait for them otherwise.
        let plan = Plan::new(config, member.ranks());
        let patience = config.timeout.max(SETUP_PATIENCE);
        let terms = member.all_gather_bytes(config.terms(), "comparison of the settings", patience)?;
        let plan = plan?;
        let shape = &plan.shape;
        for (rank, theirs) in (0..).zip(&terms) {
            config.agree(member.rank(), theirs, rank)?;
        }
        if shape.ranks_per_node != member.ranks_per_node() && (plan.link.is_some() || member.is_on_nodes()) {
            let limit = format!("the group has {} on each node", member.ranks_per_node());
            return Err(Error::Config {
                field: "ranks_per_node",
                value: shape.ranks_per_node.to_string(),
                limit,
            });
        }
        if plan.link.is_none() && member.is_on_nodes() {
            let limit = "ranks of the group are on several nodes: say how they are reached".into();
            return Err(Error::Config { field: "internode", value: "None".into(), limit });
        }
        let device = member.gpu().description().clone();
        let sms = config.sms.unwrap_or(device.default_sms.min(config.max_sms));
        let most = device.multiprocessors / device.ranks;
        if sms > most {
            let limit = format!("{} has {} for {} ranks", device.name, device.multiprocessors, device.ranks);
            return Err(Error::Config { field: "sms", value: sms.to_string(), limit });
        }
        let bulk_copy = config.bulk_copy.unwrap_or(device.bulk_copy);
        if bulk_copy && !device.bulk_copy {
            let limit = format!("{} has no bulk copies", device.name);
            return Err(Error::Config { field: "bulk_copy", value: "true".into(), limit });
        }
        let dispatch_staging = DispatchStaging::new(shape, &device, bulk_copy)?;
        let combine_staging = CombineStaging::new(shape, &device, bulk_copy)?;
        let low_latency_sms = low_latency::sms(config, &plan, &device)?;

        let gpu = member.gpu();
        let workspace = gpu.alloc_zeroed(plan.workspace_bytes() as usize);
        let flights = (0..config.in_flight)
            .map(|_| Ok(Flight { report: gpu.alloc_host(8 * Report::WORDS)?, dispatch: 0, combined: false }))
            .collect::<Result<Vec<_>, Error>>();
        let batches = Buffers::all(gpu, &plan);
        let communication = gpu.stream();
        let prepared = link::prepare(&member, config, &plan);
        let (own, end) = if plan.link.is_some() {
            link::agree(&member, prepared, "making of the fabric", patience)?
        } else {
            prepared?
        };
        let arena = Arena::new(&member, own, patience)?;
        let (workspace, flights, batches) = (workspace?, flights?, batches?);
        let communication = communication?;
        for flight in 0..config.in_flight {
            let offset = plan.arena_offset(flight);
            let peers = arena.addresses(offset);
            let at = plan.work_offset(flight) + plan.work.peers;
            gpu.write(workspace.part(at, 8 * shape.ranks as u64), &peers)?;
        }
        low_latency::write_peers(gpu, &plan, &workspace, &arena)?;
        let link = Link::new(&member, config, &plan, &arena, &workspace, end, patience)?;
        Ok(Self {
            link,
            config: config.clone(),
            plan,
            arena,
            workspace: Arc::new(workspace),
            flights,
            handles: vec![KeptHandle::default(); config.handle_count() as usize],
            batches,
            low_latency_sms,
            communication,
            sms,
            most_sms: most.min(config.max_sms),
            bulk_copy,
            dispatch_staging,
            combine_staging,
            dispatches: 0,
            routings: 0,
            batches_begun: 0,
            recorder: Recorder::default(),
            failed: false,
            member,
        })
    }

    /// This rank's GPU.
    pub fn gpu(&self) -> &Gpu {
        self.member.gpu()
    }

    /// This rank's number.
    pub fn rank(&self) -> u32 {
        self.member.rank()
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> u32 {
        self.member.ranks()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Streaming multiprocessors that a kernel occupies unless a call says otherwise.
    pub fn sms(&self) -> u32 {
        self.sms
    }

    /// Gives every rank what each has put up, on the host: [`Member::all_gather`]. Also a way to meet, so that no rank
    /// frees memory while another's kernels still run.
    ///
    /// # Errors
    /// Those of [`Member::all_gather`].
    pub fn all_gather<T>(&self, value: T, place: &'static str, timeout: Duration) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        self.member.all_gather(value, place, timeout)
    }

    /// Gives every rank the bytes that each has put up, whichever processes they are in: [`Member::all_gather_bytes`].
    ///
    /// # Errors
    /// Those of [`Member::all_gather_bytes`].
    pub fn all_gather_bytes(
        &self,
        bytes: Vec<u8>,
        place: &'static str,
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.member.all_gather_bytes(bytes, place, timeout)
    }

    /// Number, over all ranks, of this rank's first expert.
    pub fn first_expert(&self) -> u32 {
        self.rank() * self.plan.shape.experts_per_rank()
    }

    /// Experts that this rank owns.
    pub fn local_experts(&self) -> u32 {
        let shape = &self.plan.shape;
        shape.experts.saturating_sub(self.first_expert()).min(shape.experts_per_rank())
    }

    /// Where this rank's arena lies: `Device` or `Host`.
    pub fn arena_memory(&self) -> ArenaMemory {
        if self.arena.own().is_on_host() { ArenaMemory::Host } else { ArenaMemory::Device }
    }

    /// What this rank's proxy has done; `None` if there is none, as all ranks are on one node.
    pub fn proxy_statistics(&self) -> Option<ProxyStatistics> {
        self.link.as_ref().map(Link::statistics)
    }

    /// A stream of the exchange's own, for communication beside what `stream`s compute.
    pub fn communication_stream(&self) -> &Stream {
        &self.communication
    }

    /// Queues what `calls` asks for on the [communication stream](Exchange::communication_stream), behind what `compute`
    /// was given so far. The event is reached when it is done: have streams that need its results wait for it.
    ///
    /// # Errors
    /// What `calls` gives, and [`Error::Device`].
    pub fn overlap<T>(
        &mut self,
        compute: &Stream,
        calls: impl FnOnce(&mut Self, &Stream) -> Result<T, Error>,
    ) -> Result<(T, Event), Error> {
        let communication = self.communication.clone();
        communication.wait(&compute.record()?)?;
        let value = calls(self, &communication)?;
        Ok((value, communication.record()?))
    }

    /// Waits for a dispatch and reads how much it has brought.
    ///
    /// # Errors
    /// What [`Exchange::finish`] gives, and [`Error::Stale`].
    pub fn counts(&mut self, stream: &Stream, received: &Received) -> Result<Counts, Error> {
        self.current(received)?;
        self.finish(stream)?;
        let experts = self.local_experts() as usize;
        let words = |view: crate::gpu::View, count| self.gpu().download::<u32>(stream, view, count);
        let word = |view| words(view, 1).map(|words| words[0]);
        let [dropped_rows, dropped_routes, dropped_pairs] = received.dropped();
        Ok(Counts {
            rows: word(received.rows())?,
            tokens_per_source: words(received.tokens_per_source(), self.ranks() as usize)?,
            tokens_per_expert: words(received.tokens_per_expert(), experts)?,
            expert_starts: match received.by_expert() {
                Some(form) => words(form.starts, experts + 1)?,
                None => Vec::new(),
            },
            dropped_rows: word(dropped_rows)?,
            dropped_routes: word(dropped_routes)?,
            dropped_pairs: word(dropped_pairs)?,
        })
    }

    fn usable(&self) -> Result<(), Error> {
        if self.failed { Err(Error::Failed) } else { Ok(()) }
    }

    pub(crate) fn current(&self, received: &Received) -> Result<(), Error> {
        let current = self.flights.get(received.flight as usize).map_or(0, |flight| flight.dispatch);
        if received.dispatch != current || !Arc::ptr_eq(&received.arena, self.arena.own()) {
            return Err(Error::Stale { used: received.dispatch, current: self.dispatches });
        }
        self.valid(&received.handle)
    }

    /// Whether the handle's memory still holds its routing.
    fn valid(&self, handle: &Handle) -> Result<(), Error> {
        let kept = self.handles.get(handle.index as usize).copied().unwrap_or_default();
        if kept.generation == handle.generation && Arc::ptr_eq(&handle.workspace, &self.workspace) {
            return Ok(());
        }
        Err(Error::StaleHandle { used: handle.generation, current: self.routings })
    }

    /// Multiprocessors of a call.
    fn blocks(&self, asked: Option<u32>) -> Result<u32, Error> {
        match asked {
            None => Ok(self.sms),
            Some(sms) if (1..=self.most_sms).contains(&sms) => Ok(sms),
            Some(sms) => {
                let limit = format!("it must be 1 to {}", self.most_sms);
                Err(Error::Argument { argument: "sms", value: sms.to_string(), limit })
            }
        }
    }

    /// What every kernel of an operation is told about this exchange, a flight of it, and a handle.
    fn device_side(&self, operation: Operation, flight: u32, handle: u32) -> wire::Exchange {
        let workspace = |offset| self.workspace.address().offset(offset);
        wire::Exchange {
            shape: self.plan.shape,
            arena: self.plan.arena,
            work: self.plan.work,
            handle: self.plan.handle,
            workspace: workspace(self.plan.work_offset(flight)),
            handle_at: workspace(self.plan.handle_offset(handle)),
            report: self.flights[flight as usize].report.address(),
            trace: self.recorder.device_side(operation, flight),
            timeout_ns: self.config.timeout.as_nanos() as u64,
            rank: self.rank(),
            flight,
        }
    }

    /// A flight's way to other nodes, if dispatch and combine have one.
    fn way(&self, flight: u32) -> Option<internode::Link> {
        let link = self.link.as_ref().filter(|_| self.plan.shape.is_across())?;
        Some(link.device_side(self.plan.flight_channel(flight), self.plan.arena_offset(flight)))
    }

    /// An error where there are low-latency calls alone.
    fn has_throughput(&self) -> Result<(), Error> {
        if self.link.is_some() && !self.plan.shape.is_across() {
            let limit = "with internode and a config of 0 tokens there are low-latency calls alone".into();
            return Err(Error::Argument { argument: "tokens", value: "0".into(), limit });
        }
        Ok(())
    }

    /// Launches the variant that this exchange moves rows with.
    ///
    /// # Safety
    /// `args` meets the contract of both kernels.
    unsafe fn launch<P, B>(&self, stream: &Stream, grid: Grid, args: &P::Args) -> Result<(), Error>
    where
        P: Kernel,
        B: Kernel<Args = P::Args>,
    {
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if self.bulk_copy {
                self.gpu().launch::<B>(stream, grid, args)
            } else {
                self.gpu().launch::<P>(stream, grid, args)
            }
        }
    }
}
