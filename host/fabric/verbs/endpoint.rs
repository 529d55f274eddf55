//! A rank's end.

use super::address::{Address, LaneAddress, NUMBER_BITS, RemoteRegion};
use super::lane::{LaneState, slot_of};
use super::memory::{DmaBufExport, Registered, Registration, register};
use super::nic::Nic;
use super::raw::{AsyncEvent, Completion, Request, Source};
use super::{VerbsOptions, failed, refused};
use crate::Error;
use crate::fabric::{Cause, Event, Fabric, Lane, Memory, Outlook, Payload, Region, Write};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// How long closing waits for what is under way to be flushed.
const DRAIN: Duration = Duration::from_millis(100);
/// How often devices are asked for what has happened to them, which takes a system call.
const ASK_EVERY_NS: u64 = 1_000_000;
/// The same if the clock stands still.
const ASK_EVERY_POLLS: u32 = 256;
/// How often lanes are looked at before they have to be given up.
const LOOKS: u64 = 8;
/// Most batches of completions of a NIC that one poll takes.
const BATCHES: u32 = 16;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Registering,
    Addressed,
    Connected,
    Closed,
}

/// A peer.
struct Peer {
    /// Number of its first lane among all.
    first_slot: usize,
    regions: Vec<RemoteRegion>,
}

/// One rank's NICs, and its connections through them.
pub struct Verbs {
    rank: u32,
    options: VerbsOptions,
    export: Option<DmaBufExport>,
    stage: Stage,
    /// By rank.
    peers: Vec<Option<Peer>>,
    /// Of all peers.
    lanes: Vec<LaneState>,
    registered: Vec<Registered>,
    nics: Vec<Nic>,
    /// Lanes with something to post, by number.
    queued: Vec<usize>,
    /// Lanes that a poll has to look after.
    touched: Vec<usize>,
    completions: Vec<Completion>,
    ask_at_ns: u64,
    look_at_ns: u64,
    polls: u32,
}

impl Verbs {
    /// The end of `rank`, one of `ranks`. GPU memory can be registered by dma-buf if `export` gives one.
    ///
    /// # Errors
    /// [`Error::Config`] with a setting that is not possible; [`Error::Unavailable`] if there is no NIC, or its port is
    /// down; [`Error::Fabric`] if the system does not give what it takes.
    pub fn open(
        rank: u32,
        ranks: u32,
        options: &VerbsOptions,
        export: Option<DmaBufExport>,
    ) -> Result<Self, Error> {
        options.check()?;
        let nics = Nic::open_all(options, ranks)?;
        Ok(Self {
            rank,
            options: options.clone(),
            export,
            stage: Stage::Registering,
            peers: (0..ranks).map(|_| None).collect(),
            lanes: Vec::new(),
            registered: Vec::new(),
            nics,
            queued: Vec::new(),
            touched: Vec::new(),
            completions: Vec::new(),
            ask_at_ns: 0,
            look_at_ns: 0,
            polls: 0,
        })
    }

    /// Names of the NICs that it uses.
    pub fn nics(&self) -> impl Iterator<Item = &str> {
        self.nics.iter().map(|nic| nic.name.as_str())
    }

    /// How memory came to be known; `None` if there is no such region.
    pub fn registration(&self, region: Region) -> Option<Registration> {
        Some(self.registered.get(region.0 as usize)?.registration)
    }

    fn slot(&self, lane: Lane) -> Option<usize> {
        let peer = self.peers.get(lane.peer as usize)?.as_ref()?;
        (lane.index < self.options.lanes).then(|| peer.first_slot + lane.index as usize)
    }

    fn link_error(&self, lane: Lane, cause: Cause) -> Error {
        Error::Link { rank: self.rank, peer: lane.peer, lane: lane.index, cause }
    }

    /// Queue pairs for all lanes to a peer.
    fn prepare(&mut self, peer: u32) -> Result<usize, Error> {
        let first_slot = self.lanes.len();
        let numbers = RandomState::new();
        for index in 0..self.options.lanes {
            let slot = self.lanes.len();
            let at = index as usize % self.nics.len();
            let nic = &mut self.nics[at];
            let queue_pair = nic.queue_pair(&self.options)?;
            // Not always the same, so that packets of an earlier connection are not taken for its own.
            let first_packet = numbers.hash_one(index) as u32 >> (32 - NUMBER_BITS);
            let lane = Lane { peer, index };
            let state = LaneState::new(lane, slot, at, queue_pair, first_packet, &self.options)
                .map_err(failed(format!("posting receives on {}", nic.name)))?;
            self.lanes.push(state);
        }
        Ok(first_slot)
    }

    fn connect_peer(&mut self, rank: usize, told: &[u8]) -> Result<(), Error> {
        let refused = |reason: String| refused(format!("connecting to rank {rank}"), reason);
        let told = Address::decode(told).map_err(|why| refused(format!("its address: {why}")))?;
        if told.from as usize != rank || told.to != self.rank {
            return Err(refused(format!("its address is of rank {} for rank {}", told.from, told.to)));
        }
        if told.lanes.len() != self.options.lanes as usize {
            let (theirs, ours) = (told.lanes.len(), self.options.lanes);
            return Err(refused(format!("it has {theirs} lanes, and this end {ours}")));
        }
        let peer = self.peers[rank].as_mut();
        let peer = peer.ok_or_else(|| refused("it was given no address of this end".into()))?;
        for (index, lane) in told.lanes.iter().enumerate() {
            let state = &mut self.lanes[peer.first_slot + index];
            let peer_nic = index % told.nics.len();
            let mut link = self.nics[state.nic].link(&told.nics[peer_nic], &self.options).map_err(refused)?;
            link.queue_pair = lane.queue_pair;
            link.receive_number = lane.first_packet;
            link.send_number = state.first_packet;
            state.connect(&link, peer_nic).map_err(|error| refused(format!("lane {index}: {error}")))?;
        }
        peer.regions = told.regions;
        Ok(())
    }

    /// What is to be posted for a write, or why it cannot be.
    fn request(&self, slot: usize, write: &Write) -> Result<Request, Cause> {
        let lane = &self.lanes[slot];
        lane.check()?;
        if lane.room() == 0 {
            return Err(Cause::Other("it has no room".into()));
        }
        let (source, bytes) = self.source(lane, write.payload)?;
        let peer = self.peers.get(lane.lane.peer as usize).and_then(Option::as_ref);
        let region = peer.and_then(|peer| peer.regions.get(write.region.0 as usize)).ok_or(Cause::Refused)?;
        if !holds(region.bytes, write.offset, bytes) {
            return Err(Cause::Refused);
        }
        let remote_address = region.address + write.offset;
        if matches!(source, Source::Word(_)) && !remote_address.is_multiple_of(8) {
            return Err(Cause::Other("a word has to be written to a multiple of 8".into()));
        }
        // An address that was taken has a key for each of the peer's NICs.
        let remote_key = region.keys[lane.peer_nic];
        Ok(Request { source, remote_address, remote_key, immediate: write.immediate })
    }

    /// Where a write's bytes are, and how many.
    fn source(&self, lane: &LaneState, payload: Payload) -> Result<(Source, u32), Cause> {
        let (region, offset, bytes) = match payload {
            Payload::Word(word) => return Ok((Source::Word(word), 8)),
            Payload::Nothing => return Ok((Source::Nothing, 0)),
            Payload::Bytes { region, offset, bytes } => (region, offset, bytes),
        };
        let registered = self.registered.get(region.0 as usize).ok_or(Cause::Local)?;
        if !holds(registered.memory.bytes, offset, bytes) {
            return Err(Cause::Local);
        }
        let most = self.nics[lane.nic].message_bytes();
        if bytes > most {
            return Err(Cause::Other(format!("{bytes} bytes are more than a write can have, {most}")));
        }
        let address = registered.memory.address + offset;
        let source = if bytes == 0 {
            Source::Nothing
        } else if bytes <= self.options.inline_bytes && !registered.memory.on_device {
            Source::Copied { address, bytes }
        } else {
            Source::Registered { address, bytes, key: registered.regions[lane.nic].local_key() }
        };
        Ok((source, bytes))
    }

    /// What devices say unasked.
    fn ask_devices(&mut self, events: &mut Vec<Event>) -> Result<(), Error> {
        for (at, nic) in self.nics.iter().enumerate() {
            let name = &nic.name;
            while let Some(event) =
                nic.context.event().map_err(failed(format!("asking {name} for events")))?
            {
                match event {
                    AsyncEvent::PortDown(port) if port == self.options.port => events.push(Event::PortDown),
                    AsyncEvent::PortUp(port) if port == self.options.port => events.push(Event::PortUp),
                    AsyncEvent::Fatal(what) => {
                        let lanes = self.lanes.iter_mut().enumerate();
                        for (slot, lane) in lanes.filter(|(_, lane)| lane.nic == at) {
                            lane.fail(Cause::Other(what.into()));
                            self.touched.push(slot);
                        }
                        return Err(refused(name, what));
                    }
                    AsyncEvent::QueuePair(number, what) => {
                        let mut lanes = self.lanes.iter_mut().enumerate();
                        let lane = lanes.find(|(_, lane)| lane.nic == at && lane.number() == number);
                        if let Some((slot, lane)) = lane {
                            lane.fail(Cause::Other(what.into()));
                            self.touched.push(slot);
                        }
                    }
                    AsyncEvent::PortDown(_) | AsyncEvent::PortUp(_) | AsyncEvent::Other => {}
                }
            }
        }
        Ok(())
    }

    /// Gives up lanes on which nothing gets done any more.
    fn look_for_overdue(&mut self, now_ns: u64) {
        let deadline_ns = self.options.deadline.as_nanos() as u64;
        self.look_at_ns = now_ns.saturating_add(deadline_ns / LOOKS);
        for (slot, lane) in self.lanes.iter_mut().enumerate() {
            if lane.is_overdue(now_ns, deadline_ns) {
                self.touched.push(slot);
            }
        }
    }

    /// What has become of requests.
    fn take_completions(&mut self, events: &mut Vec<Event>) -> Result<(), Error> {
        for nic in &self.nics {
            for _ in 0..BATCHES {
                let more = nic.completions.poll(&mut self.completions);
                let more = more.map_err(failed(format!("polling {}", nic.name)))?;
                for completion in self.completions.drain(..) {
                    let slot = slot_of(&completion);
                    if let Some(lane) = self.lanes.get_mut(slot) {
                        lane.complete(completion, events);
                        if self.touched.last() != Some(&slot) {
                            self.touched.push(slot);
                        }
                    }
                }
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let nics: Vec<_> = self.nics().collect();
        let mut out = f.debug_struct("Verbs");
        out.field("rank", &self.rank).field("nics", &nics).field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Whether all of these bytes are among the first `total`.
fn holds(total: u64, offset: u64, bytes: u32) -> bool {
    offset.checked_add(bytes.into()).is_some_and(|end| end <= total)
}

impl Fabric for Verbs {
    unsafe fn register(&mut self, memory: Memory) -> Result<Region, Error> {
        if self.stage != Stage::Registering {
            return Err(refused("registering memory", "peers have been told of this end already"));
        }
        let domains = self.nics.iter().map(|nic| &nic.domain);
        // SAFETY: the caller's promise; it is dropped with `self`.
        let registered = unsafe { register(domains, memory, self.export.as_mut()) }?;
        self.registered.push(registered);
        Ok(Region(self.registered.len() as u32 - 1))
    }

    fn address(&mut self, peer: u32) -> Result<Vec<u8>, Error> {
        let call = format!("preparing connections to rank {peer}");
        let known = self.peers.get(peer as usize).map(|peer| peer.as_ref().map(|peer| peer.first_slot));
        let Some(known) = known else { return Err(refused(call, "there is no such rank")) };
        if self.stage > Stage::Addressed {
            return Err(refused(call, "it is too late"));
        }
        self.stage = Stage::Addressed;
        let first_slot = match known {
            Some(first_slot) => first_slot,
            None => self.prepare(peer)?,
        };
        self.peers[peer as usize] = Some(Peer { first_slot, regions: Vec::new() });
        let lanes = self.lanes[first_slot..].iter().take(self.options.lanes as usize);
        let regions = self.registered.iter().map(|registered| RemoteRegion {
            address: registered.memory.address,
            bytes: registered.memory.bytes,
            keys: registered.regions.iter().map(|region| region.remote_key()).collect(),
        });
        let address = Address {
            from: self.rank,
            to: peer,
            nics: self.nics.iter().map(Nic::address).collect(),
            lanes: lanes
                .map(|lane| LaneAddress { queue_pair: lane.number(), first_packet: lane.first_packet })
                .collect(),
            regions: regions.collect(),
        };
        address.encode().map_err(|why| refused(call, why))
    }

    fn connect(&mut self, peers: &[Option<Vec<u8>>]) -> Result<(), Error> {
        if self.stage > Stage::Addressed {
            return Err(refused("connecting", "it was done before"));
        }
        if peers.len() != self.peers.len() {
            let reason = format!("there are {} addresses for {} ranks", peers.len(), self.peers.len());
            return Err(refused("connecting", reason));
        }
        for (rank, told) in peers.iter().enumerate() {
            if let Some(told) = told {
                self.connect_peer(rank, told)?;
            }
        }
        self.stage = Stage::Connected;
        Ok(())
    }

    fn lanes(&self) -> u32 {
        self.options.lanes
    }

    fn is_ordered(&self) -> bool {
        true
    }

    fn room(&self, lane: Lane) -> u32 {
        self.slot(lane).map_or(0, |slot| self.lanes[slot].room())
    }

    /// A range that the peer has not registered is [`Cause::Refused`] and one that this end has not is [`Cause::Local`];
    /// nothing is sent, and the lane is as before. A lane that fails here is also an event of the next poll.
    fn write(&mut self, lane: Lane, write: &Write) -> Result<(), Error> {
        let slot = self.slot(lane);
        let slot = slot.ok_or_else(|| self.link_error(lane, Cause::Other("it is not connected".into())))?;
        let request = self.request(slot, write).map_err(|cause| self.link_error(lane, cause))?;
        let state = &mut self.lanes[slot];
        if !std::mem::replace(&mut state.listed, true) {
            self.queued.push(slot);
        }
        // SAFETY: copied is only memory of the host, which was promised to stay until `self` is dropped.
        let pushed = unsafe { state.push(&request) };
        pushed.map_err(|cause| {
            self.touched.push(slot);
            self.link_error(lane, cause)
        })
    }

    fn flush(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some(slot) = self.queued.pop() {
            let state = &mut self.lanes[slot];
            state.listed = false;
            // One that has failed meanwhile has been told of, or will be.
            if state.check().is_err() {
                continue;
            }
            let lane = state.lane;
            if let Err(cause) = state.post() {
                self.touched.push(slot);
                let error = self.link_error(lane, cause);
                result = result.and(Err(error));
            }
        }
        result
    }

    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> Result<Outlook, Error> {
        self.polls = self.polls.wrapping_add(1);
        self.take_completions(events)?;
        // Why requests were flushed a device may know.
        let failing = self.touched.iter().any(|&slot| self.lanes[slot].is_failing());
        if failing || now_ns >= self.ask_at_ns || self.polls.is_multiple_of(ASK_EVERY_POLLS) {
            self.ask_at_ns = now_ns.saturating_add(ASK_EVERY_NS);
            self.ask_devices(events)?;
        }
        if now_ns >= self.look_at_ns {
            self.look_for_overdue(now_ns);
        }
        for slot in self.touched.drain(..) {
            let lane = &mut self.lanes[slot];
            lane.replenish();
            events.extend(lane.news());
        }
        Ok(Outlook::Open)
    }

    fn close(&mut self) {
        if self.stage == Stage::Closed {
            return;
        }
        self.stage = Stage::Closed;
        self.lanes.iter_mut().for_each(LaneState::end);
        // Flushing takes no time, unless the device is gone: then there is nothing to wait for.
        let end = Instant::now() + DRAIN;
        let mut ignored = Vec::new();
        while self.lanes.iter().any(LaneState::is_busy) && Instant::now() < end {
            if self.take_completions(&mut ignored).is_err() {
                break;
            }
            ignored.clear();
            std::thread::yield_now();
        }
        // Queue pairs before memory: what no queue pair uses nobody writes any more.
        self.peers.iter_mut().for_each(|peer| *peer = None);
        self.lanes.clear();
        self.queued.clear();
        self.touched.clear();
        self.registered.clear();
    }
}

impl Drop for Verbs {
    fn drop(&mut self) {
        self.close();
    }
}
