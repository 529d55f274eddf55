//! A fabric within a process: ranks that are declared to be on different nodes, and what a real network does to them, such
//! as delay, another order, loss and death, drawn from a seed.

use super::{Cause, Event, Fabric, Lane, Memory, Outlook, Payload, Region, Write};
use crate::Error;
use crate::gpu::device::Carrier;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the network is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopbackOptions {
    /// What delays, order and losses are drawn from.
    pub seed: u64,
    /// How long a write takes, in nanoseconds of the agents' clock.
    pub delay_ns: RangeInclusive<u64>,
    /// Whether a lane keeps its order.
    pub ordered: bool,
    /// One in so many writes is lost, and its lane with it; 0: none.
    pub lose_one_in: u32,
    /// Writes under way on a lane.
    pub depth: u32,
    /// Whether a GPU's memory can be registered.
    pub device_memory: bool,
}

impl Default for LoopbackOptions {
    /// At once, in order, without losses.
    fn default() -> Self {
        Self { seed: 0, delay_ns: 0..=0, ordered: true, lose_one_in: 0, depth: 256, device_memory: true }
    }
}

/// A network that ranks of this process share. Clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Shared>);

struct Shared {
    options: LoopbackOptions,
    ends: Mutex<BTreeMap<u32, Arc<End>>>,
}

/// What others know of a rank's end.
#[derive(Default)]
struct End {
    regions: Mutex<Vec<Memory>>,
    inbox: Mutex<Vec<Event>>,
    has_mail: AtomicBool,
    state: AtomicU8,
}

/// States of an end.
const ALIVE: u8 = 0;
const DOWN: u8 = 1;
const DEAD: u8 = 2;

/// A peer as a rank's end sees it once it is connected.
struct Peer {
    end: Arc<End>,
    regions: Vec<Memory>,
}

/// Writes of a lane.
#[derive(Default)]
struct Queue {
    writes: VecDeque<Flying>,
    failed: bool,
    /// Whether it is among those that have writes.
    is_busy: bool,
}

struct Flying {
    due_ns: u64,
    payload: Resolved,
    /// Where it goes.
    to: u64,
    immediate: Option<u32>,
    fate: Fate,
    delivered: bool,
}

/// What a write carries, where it is.
#[derive(Clone, Copy)]
enum Resolved {
    Bytes { from: u64, bytes: u32 },
    Word(u64),
    Nothing,
}

/// What becomes of a write.
#[derive(Clone, Copy)]
enum Fate {
    Arrives,
    IsRefused,
    GetsLost,
}

impl Fate {
    fn cause(self) -> Option<Cause> {
        match self {
            Self::Arrives => None,
            Self::IsRefused => Some(Cause::Refused),
            Self::GetsLost => Some(Cause::Unreachable),
        }
    }
}

/// A rank's end of a [`Network`].
pub struct Loopback {
    network: Network,
    options: LoopbackOptions,
    rank: u32,
    lanes: u32,
    now_ns: u64,
    random: u64,
    carrier: Box<dyn Carrier>,
    own: Arc<End>,
    regions: Vec<Memory>,
    peers: Vec<Option<Peer>>,
    /// By peer, by lane.
    queues: Vec<Queue>,
    /// Those that have writes.
    busy: Vec<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is a single call, so a panic elsewhere leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("Network").field(&self.0.options).finish()
    }
}

impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Network {}

impl Network {
    /// A network like that.
    pub fn new(options: LoopbackOptions) -> Self {
        Self(Arc::new(Shared { options, ends: Mutex::default() }))
    }

    /// What it is like.
    pub fn options(&self) -> &LoopbackOptions {
        &self.0.options
    }

    /// A rank dies: it sends nothing more, and lanes to it fail.
    pub fn kill(&self, rank: u32) {
        if let Some(end) = lock(&self.0.ends).get(&rank) {
            end.state.store(DEAD, Ordering::Release);
        }
    }

    /// A rank's port goes down, and its lanes fail when they are used, or comes up again.
    pub fn set_port(&self, rank: u32, up: bool) {
        if let Some(end) = lock(&self.0.ends).get(&rank) {
            let (from, to) = if up { (DOWN, ALIVE) } else { (ALIVE, DOWN) };
            if end.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                end.tell(if up { Event::PortUp } else { Event::PortDown });
            }
        }
    }

    /// A rank's end. Lanes to one that it had before are dead.
    pub(crate) fn end(&self, rank: u32, lanes: u32, carrier: Box<dyn Carrier>) -> Loopback {
        let own = Arc::new(End::default());
        if let Some(before) = lock(&self.0.ends).insert(rank, own.clone()) {
            before.state.store(DEAD, Ordering::Release);
        }
        Loopback {
            network: self.clone(),
            options: self.0.options.clone(),
            rank,
            lanes,
            now_ns: 0,
            random: self.0.options.seed ^ u64::from(rank) << 32,
            carrier,
            own,
            regions: Vec::new(),
            peers: Vec::new(),
            queues: Vec::new(),
            busy: Vec::new(),
        }
    }
}

impl End {
    fn tell(&self, event: Event) {
        lock(&self.inbox).push(event);
        self.has_mail.store(true, Ordering::Release);
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }
}

/// Where `bytes` bytes of a region are, if it has them.
fn place(regions: &[Memory], region: Region, offset: u64, bytes: u64) -> Option<u64> {
    let memory = regions.get(region.0 as usize)?;
    (offset <= memory.bytes && bytes <= memory.bytes - offset).then(|| memory.address + offset)
}

impl Loopback {
    /// A number of that range. SplitMix64, as the emulator's.
    fn draw(&mut self, least: u64, most: u64) -> u64 {
        if most <= least {
            return least;
        }
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        least + mixed % (most - least + 1)
    }

    fn index(&self, lane: Lane) -> Option<usize> {
        let index = lane.peer as usize * self.lanes as usize + lane.index as usize;
        let is_connected = self.peers.get(lane.peer as usize).is_some_and(Option::is_some);
        (lane.index < self.lanes && is_connected).then_some(index)
    }

    fn lane(&self, index: usize) -> Lane {
        Lane { peer: index as u32 / self.lanes, index: index as u32 % self.lanes }
    }

    /// Which of the writes of a lane that keeps no order are delivered now, and in which order.
    fn due(&mut self, index: usize, now_ns: u64) -> Vec<usize> {
        let writes = self.queues[index].writes.iter().enumerate();
        let is_due = |flying: &Flying| !flying.delivered && flying.due_ns <= now_ns;
        let mut due: Vec<usize> = writes.filter(|(_, flying)| is_due(flying)).map(|(at, _)| at).collect();
        for at in (1..due.len()).rev() {
            due.swap(at, self.draw(0, at as u64) as usize);
        }
        due
    }

    /// Delivers what is due on a lane; whether it has writes left.
    fn deliver(&mut self, index: usize, now_ns: u64, events: &mut Vec<Event>) -> Result<bool, Error> {
        let lane = self.lane(index);
        let due = if self.options.ordered { Vec::new() } else { self.due(index, now_ns) };
        let Some(peer) = &self.peers[lane.peer as usize] else { return Ok(false) };
        let severed = if !self.own.is(ALIVE) {
            Some(Cause::Local)
        } else if !peer.end.is(ALIVE) {
            Some(Cause::Unreachable)
        } else {
            None
        };
        let queue = &mut self.queues[index];
        let mut failed = None;
        let mut done = 0;
        let mut next = 0;
        loop {
            let at = if self.options.ordered { next } else { due.get(next).copied().unwrap_or(usize::MAX) };
            next += 1;
            let Some(flying) = queue.writes.get_mut(at).filter(|flying| flying.due_ns <= now_ns) else {
                break;
            };
            failed = severed.clone().or_else(|| flying.fate.cause());
            if failed.is_some() {
                break;
            }
            flying.delivered = true;
            match flying.payload {
                Resolved::Bytes { from, bytes } => self.carrier.copy(from, flying.to, bytes.into())?,
                Resolved::Word(value) => {
                    self.carrier.settle()?;
                    self.carrier.word(flying.to, value)?;
                }
                Resolved::Nothing => {}
            }
            if let Some(immediate) = flying.immediate {
                self.carrier.settle()?;
                let lane = Lane { peer: self.rank, index: lane.index };
                peer.end.tell(Event::Arrived { lane, immediate });
            }
        }
        self.carrier.settle()?;
        while queue.writes.front().is_some_and(|flying| flying.delivered) {
            queue.writes.pop_front();
            done += 1;
        }
        if done > 0 {
            events.push(Event::Written { lane, count: done });
        }
        if let Some(cause) = failed {
            queue.failed = true;
            queue.writes.clear();
            events.push(Event::Failed { lane, cause });
        }
        Ok(!queue.writes.is_empty())
    }
}

impl Fabric for Loopback {
    unsafe fn register(&mut self, memory: Memory) -> Result<Region, Error> {
        if memory.on_device && !self.options.device_memory {
            let (call, reason) = ("registering memory".into(), "this network takes the host's alone".into());
            return Err(Error::Fabric { call, reason });
        }
        self.regions.push(memory);
        lock(&self.own.regions).push(memory);
        Ok(Region(self.regions.len() as u32 - 1))
    }

    fn address(&mut self, _peer: u32) -> Result<Vec<u8>, Error> {
        Ok(self.rank.to_le_bytes().to_vec())
    }

    fn connect(&mut self, peers: &[Option<Vec<u8>>]) -> Result<(), Error> {
        let refuse = |reason: String| Error::Fabric { call: "connecting".into(), reason };
        let ends = lock(&self.network.0.ends);
        let known = |(rank, address): (u32, &Option<Vec<u8>>)| {
            let Some(address) = address else { return Ok(None) };
            if address[..] != rank.to_le_bytes() {
                return Err(refuse(format!("rank {rank} gave another's address")));
            }
            let end = ends.get(&rank).ok_or_else(|| refuse(format!("rank {rank} has no end here")))?;
            Ok(Some(Peer { end: end.clone(), regions: lock(&end.regions).clone() }))
        };
        self.peers = (0..).zip(peers).map(known).collect::<Result<_, _>>()?;
        self.queues = (0..peers.len() * self.lanes as usize).map(|_| Queue::default()).collect();
        Ok(())
    }

    fn lanes(&self) -> u32 {
        self.lanes
    }

    fn is_ordered(&self) -> bool {
        self.options.ordered
    }

    fn room(&self, lane: Lane) -> u32 {
        let taken = self.index(lane).map_or(0, |index| self.queues[index].writes.len());
        self.options.depth.saturating_sub(taken as u32)
    }

    fn write(&mut self, lane: Lane, write: &Write) -> Result<(), Error> {
        let rank = self.rank;
        let refuse = |cause| Err(Error::Link { rank, peer: lane.peer, lane: lane.index, cause });
        let Some(index) = self.index(lane) else {
            return refuse(Cause::Other("there is no such lane".into()));
        };
        if self.queues[index].failed {
            return refuse(Cause::Flushed);
        }
        let (payload, bytes) = match write.payload {
            Payload::Bytes { region, offset, bytes } => {
                let Some(from) = place(&self.regions, region, offset, bytes.into()) else {
                    return refuse(Cause::Local);
                };
                (Resolved::Bytes { from, bytes }, bytes.into())
            }
            Payload::Word(value) => (Resolved::Word(value), 8),
            Payload::Nothing => (Resolved::Nothing, 0),
        };
        let theirs = self.peers[lane.peer as usize].as_ref().map_or(&[][..], |peer| &peer.regions);
        let to = place(theirs, write.region, write.offset, bytes);
        let is_refused = bytes > 0 && to.is_none();
        let one_in = u64::from(self.options.lose_one_in);
        let fate = if is_refused {
            Fate::IsRefused
        } else if one_in > 0 && self.draw(1, one_in) == 1 {
            Fate::GetsLost
        } else {
            Fate::Arrives
        };
        let (least, most) = (*self.options.delay_ns.start(), *self.options.delay_ns.end());
        let due_ns = self.now_ns + self.draw(least, most);
        let queue = &mut self.queues[index];
        let (to, immediate) = (to.unwrap_or_default(), write.immediate);
        queue.writes.push_back(Flying { due_ns, payload, to, immediate, fate, delivered: false });
        if !std::mem::replace(&mut queue.is_busy, true) {
            self.busy.push(index);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> Result<Outlook, Error> {
        self.now_ns = now_ns;
        let mut busy = std::mem::take(&mut self.busy);
        let mut outcome = Ok(());
        busy.retain(|&index| match self.deliver(index, now_ns, events) {
            Ok(has_more) => {
                self.queues[index].is_busy = has_more;
                has_more
            }
            Err(error) => {
                outcome = Err(error);
                true
            }
        });
        self.busy = busy;
        outcome?;
        if self.own.has_mail.swap(false, Ordering::AcqRel) {
            events.append(&mut lock(&self.own.inbox));
        }
        let ordered = self.options.ordered;
        let next = self.busy.iter().filter_map(|&index| {
            let writes = self.queues[index].writes.iter();
            let waiting = writes.filter(|flying| !flying.delivered).map(|flying| flying.due_ns);
            if ordered { waiting.take(1).min() } else { waiting.min() }
        });
        Ok(next.min().map_or(Outlook::Quiet, Outlook::At))
    }

    fn close(&mut self) {
        self.own.state.store(DEAD, Ordering::Release);
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.close();
    }
}

/// Copies within the host's memory.
pub(crate) struct HostMemory;

impl Carrier for HostMemory {
    fn copy(&mut self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        let from = with_exposed_provenance::<u8>(from as usize);
        // SAFETY: callers keep both ranges alive; who reads what is written waits for a flag.
        unsafe { with_exposed_provenance_mut::<u8>(to as usize).copy_from(from, bytes as usize) };
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn word(&mut self, to: u64, value: u64) -> Result<(), Error> {
        // SAFETY: alive, as above, and aligned.
        unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(to as usize)) }
            .store(value, Ordering::Release);
        Ok(())
    }
}
