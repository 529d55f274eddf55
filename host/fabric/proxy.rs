//! The proxy: takes commands out of a rank's ring and has its fabric carry them out.
//!
//! It is the only one that drives the fabric, and never blocks: where a lane has no room it comes back to the command later,
//! and goes on polling meanwhile, so that room comes. Commands are carried out in the order of the ring.
//!
//! # Order
//! Of an ordered fabric it is relied on that who sees a flag sees the bytes that were written on its lane before
//! ([`Arrival::Ordered`]). Of one that is not, only that an immediate comes after its own write's bytes
//! ([`Arrival::Counted`]): each write of a channel carries one, a signal says how many there were, and the flag is set here,
//! by the receiving side, when as many have come. The next operation's writes can't be among them: they are sent when all
//! ranks have told that they have seen this one's flags on all lanes.

use super::ring::Consumer;
use super::{Cause, Event, Fabric, Lane, Outlook, Payload, Region, Write};
use crate::Error;
use crate::gpu::agent::{self, Agent};
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokenrail_device::internode::command::{Command, Target};

/// How a flag is set when what is before it has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// By a write behind the bytes, on a lane that keeps its order.
    #[default]
    Ordered,
    /// By the receiving proxy, which counts immediates. For any order.
    Counted,
}

/// What a proxy has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyStatistics {
    /// Commands taken out of the ring.
    pub taken: u64,
    /// Writes given to the fabric.
    pub posted: u64,
    /// Writes that the fabric has said to be done.
    pub completed: u64,
    /// Bytes of those that were given to it.
    pub bytes: u64,
    /// Immediates that have arrived.
    pub arrived: u64,
    /// Commands for lanes that had failed, which nobody carries out.
    pub dropped: u64,
    /// Most commands that were seen waiting in the ring.
    pub high_water: u64,
    /// How long commands have waited for room on their lane, in nanoseconds.
    pub blocked_ns: u64,
}

/// What a proxy tells while it runs.
#[derive(Default)]
pub struct Shared {
    counters: [AtomicU64; 8],
    failure: Mutex<Option<Failure>>,
}

/// Why a proxy cannot go on as it should.
#[derive(Clone, Debug)]
pub enum Failure {
    /// A connection is gone.
    Link(Lane, Cause),
    /// The fabric is, or a kernel has asked for nonsense.
    Fabric(String),
}

#[derive(Clone, Copy)]
enum Counter {
    Taken,
    Posted,
    Completed,
    Bytes,
    Arrived,
    Dropped,
    HighWater,
    BlockedNs,
}

impl Shared {
    fn add(&self, counter: Counter, number: u64) {
        // One writer, so that no addition gets lost; readers want no more than a number that was right a moment ago.
        let counter = &self.counters[counter as usize];
        counter.store(counter.load(Ordering::Relaxed) + number, Ordering::Relaxed);
    }

    /// What was done so far.
    pub fn statistics(&self) -> ProxyStatistics {
        let [taken, posted, completed, bytes, arrived, dropped, high_water, blocked_ns] =
            self.counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        ProxyStatistics { taken, posted, completed, bytes, arrived, dropped, high_water, blocked_ns }
    }

    /// The first failure.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, failure: Failure) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }
}

impl Failure {
    /// As an error of `rank`.
    pub fn error(self, rank: u32) -> Error {
        match self {
            Self::Link(lane, cause) => Error::Link { rank, peer: lane.peer, lane: lane.index, cause },
            Self::Fabric(reason) => Error::Fabric { call: "the proxy's work".into(), reason },
        }
    }
}

/// Where flags are, by channel, rank and lane.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// How they are set.
    pub arrival: Arrival,
    /// Where they begin: an offset in peers' arenas if they are written there, else the address of this rank's own, in
    /// memory that its GPU and the host share.
    pub at: u64,
    /// Channels.
    pub channels: u32,
    /// Ranks.
    pub ranks: u32,
    /// Lanes to each.
    pub lanes: u32,
}

impl Flags {
    /// Which of the lanes to all ranks this is, if it is one.
    fn lane(&self, lane: Lane) -> Option<usize> {
        let is_one = lane.peer < self.ranks && lane.index < self.lanes;
        is_one.then_some((lane.peer * self.lanes + lane.index) as usize)
    }

    /// Where the flag is that `rank` sets.
    fn of(&self, channel: u32, rank: u32, lane: u32) -> u64 {
        let index = (channel * self.ranks + rank) * self.lanes + lane;
        self.at + 8 * u64::from(index)
    }
}

/// A rank's proxy.
pub struct Proxy {
    consumer: Consumer,
    fabric: Box<dyn Fabric>,
    flags: Flags,
    rank: u32,
    arena: Region,
    shared: Arc<Shared>,
    events: Vec<Event>,
    /// By lane, by channel: writes since the last signal.
    sent: Vec<u32>,
    /// By lane, by channel: what has arrived of an operation.
    rounds: Vec<Round>,
    /// By lane: whether it has failed.
    failed: Vec<bool>,
    /// Since when the next command waits for room.
    blocked_since_ns: Option<u64>,
    under_way: u64,
    /// In this step: writes, and their bytes.
    posted: u64,
    bytes: u64,
    /// Steps in which there was something to carry out.
    steps: u32,
}

/// An operation as its receiver counts it.
#[derive(Clone, Default)]
struct Round {
    counted: u32,
    announced: Option<u32>,
    epoch: u64,
}

/// What is told with a write: its channel, and of a signal how many writes came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Immediate {
    channel: u32,
    announced: Option<u32>,
}

impl Immediate {
    /// Most writes of an operation on one lane.
    const MAX_COUNT: u32 = (1 << 23) - 1;

    fn encode(self) -> u32 {
        self.channel << 24 | self.announced.map_or(0, |count| 1 << 23 | count)
    }

    fn decode(immediate: u32) -> Self {
        let announced = (immediate >> 23 & 1 != 0).then_some(immediate & Self::MAX_COUNT);
        Self { channel: immediate >> 24, announced }
    }
}

/// Most commands of a step, between two looks at what has happened.
const AT_ONCE: u32 = 64;
/// How rarely it looks how many commands wait behind those of a step.
const STEPS_PER_LOOK: u32 = 16;
/// How long a proxy that goes sends what is still in its ring.
const FAREWELL: Duration = Duration::from_secs(2);

impl Proxy {
    /// A proxy of `rank`, whose arena is the fabric's first region.
    pub fn new(consumer: Consumer, fabric: Box<dyn Fabric>, flags: Flags, rank: u32) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        let lanes = flags.ranks as usize * flags.lanes as usize;
        let proxy = Self {
            consumer,
            fabric,
            flags,
            rank,
            arena: Region(0),
            shared: shared.clone(),
            events: Vec::new(),
            sent: vec![0; lanes * flags.channels as usize],
            rounds: vec![Round::default(); lanes * flags.channels as usize],
            failed: vec![false; lanes],
            blocked_since_ns: None,
            under_way: 0,
            posted: 0,
            bytes: 0,
            steps: 0,
        };
        (proxy, shared)
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Written { count, .. } => {
                self.shared.add(Counter::Completed, count.into());
                self.under_way = self.under_way.saturating_sub(count.into());
            }
            Event::Arrived { lane, immediate } => self.arrived(lane, Immediate::decode(immediate)),
            Event::Failed { lane, cause } => self.lost(lane, cause),
            Event::PortDown => self.shared.fail(Failure::Fabric("the port is down".into())),
            Event::PortUp => {}
        }
    }

    fn lost(&mut self, lane: Lane, cause: Cause) {
        if let Some(index) = self.flags.lane(lane)
            && !std::mem::replace(&mut self.failed[index], true)
        {
            self.shared.fail(Failure::Link(lane, cause));
        }
    }

    /// Counts an immediate, and sets the flag if it was the last.
    fn arrived(&mut self, lane: Lane, immediate: Immediate) {
        self.shared.add(Counter::Arrived, 1);
        let channel = immediate.channel;
        let index = self.flags.lane(lane).filter(|_| channel < self.flags.channels);
        let Some(index) = index.filter(|_| self.flags.arrival == Arrival::Counted) else {
            let told = format!("rank {} tells of channel {channel}, which nobody counts", lane.peer);
            return self.shared.fail(Failure::Fabric(told));
        };
        let round = &mut self.rounds[index * self.flags.channels as usize + channel as usize];
        match immediate.announced {
            Some(count) => round.announced = Some(count),
            None => round.counted += 1,
        }
        if round.announced == Some(round.counted) {
            round.epoch += 1;
            (round.counted, round.announced) = (0, None);
            let flag = self.flags.of(channel, lane.peer, lane.index);
            // Partner: `Link::wait` of a kernel (acquire, sys). What it releases: the bytes, which the fabric says are there.
            // SAFETY: there is a flag for each channel, rank and lane; nobody else writes it.
            unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(flag as usize)) }
                .store(round.epoch, Ordering::Release);
        }
    }

    /// Has the fabric carry a command out; false if the lane has no room now.
    fn carry_out(&mut self, command: Command) -> bool {
        let target = match command {
            Command::Put { to, .. } | Command::Word { to, .. } | Command::Signal { to, .. } => to,
        };
        let Target { peer, lane: index } = target;
        let lane = Lane { peer, index };
        let channel = match command {
            Command::Put { channel, .. } | Command::Signal { channel, .. } => channel,
            Command::Word { .. } => 0,
        };
        let known = self.flags.lane(lane).filter(|_| peer != self.rank && channel < self.flags.channels);
        let Some(at) = known else {
            self.shared
                .fail(Failure::Fabric(format!("a kernel has asked for what there is not: {command:?}")));
            return true;
        };
        if self.failed[at] {
            self.shared.add(Counter::Dropped, 1);
            return true;
        }
        let sent = &mut self.sent[at * self.flags.channels as usize + channel as usize];
        if self.fabric.room(lane) == 0 {
            return false;
        }
        let counted = self.flags.arrival == Arrival::Counted;
        let (region, told) = (self.arena, |channel, announced| Immediate { channel, announced }.encode());
        let write = match command {
            Command::Put { channel, from, at, bytes, .. } => {
                *sent += 1;
                self.bytes += u64::from(bytes);
                let payload = Payload::Bytes { region, offset: from, bytes };
                Write { payload, region, offset: at, immediate: counted.then(|| told(channel, None)) }
            }
            Command::Word { at, value, .. } => {
                Write { payload: Payload::Word(value), region, offset: at, immediate: None }
            }
            Command::Signal { channel, value, .. } => {
                let count = std::mem::take(sent).min(Immediate::MAX_COUNT);
                if counted {
                    let immediate = Some(told(channel, Some(count)));
                    Write { payload: Payload::Nothing, region, offset: 0, immediate }
                } else {
                    let offset = self.flags.of(channel, self.rank, index);
                    Write { payload: Payload::Word(value), region, offset, immediate: None }
                }
            }
        };
        match self.fabric.write(lane, &write) {
            Ok(()) => self.posted += 1,
            Err(Error::Link { cause, .. }) => self.lost(lane, cause),
            Err(error) => self.shared.fail(Failure::Fabric(error.to_string())),
        }
        true
    }

    /// Carries out what is in the ring, so much of it as there is room for; how many commands.
    fn serve(&mut self, now_ns: u64) -> u32 {
        let mut served = 0;
        while served < AT_ONCE {
            let done = match self.consumer.next() {
                None => break,
                Some(Ok(command)) => self.carry_out(command),
                Some(Err(words)) => {
                    self.shared.fail(Failure::Fabric(format!("a kernel has asked for nonsense: {words:x?}")));
                    true
                }
            };
            if !done {
                let since = *self.blocked_since_ns.get_or_insert(now_ns);
                self.shared.add(Counter::BlockedNs, now_ns.saturating_sub(since));
                self.blocked_since_ns = Some(now_ns);
                break;
            }
            self.blocked_since_ns = None;
            self.consumer.take();
            served += 1;
        }
        if served > 0 {
            self.consumer.tell();
            self.steps = self.steps.wrapping_add(1);
            // To look ahead means to fetch lines that a GPU has just written: not often.
            let ahead = if self.steps.is_multiple_of(STEPS_PER_LOOK) { self.consumer.waiting() } else { 0 };
            let waiting = u64::from(served) + ahead;
            self.shared.counters[Counter::HighWater as usize].fetch_max(waiting, Ordering::Relaxed);
            self.shared.add(Counter::Taken, served.into());
            self.under_way += self.posted;
            self.shared.add(Counter::Posted, std::mem::take(&mut self.posted));
            self.shared.add(Counter::Bytes, std::mem::take(&mut self.bytes));
            if let Err(error) = self.fabric.flush() {
                self.shared.fail(Failure::Fabric(error.to_string()));
            }
        }
        served
    }
}

impl Agent for Proxy {
    fn step(&mut self, now_ns: u64) -> agent::Outlook {
        let mut events = std::mem::take(&mut self.events);
        let polled = self.fabric.poll(now_ns, &mut events);
        let worked = !events.is_empty();
        for event in events.drain(..) {
            self.happened(event);
        }
        self.events = events;
        let served = self.serve(now_ns);
        match polled {
            _ if worked || served > 0 => agent::Outlook::Worked,
            Ok(Outlook::Quiet) => agent::Outlook::Quiet,
            Ok(Outlook::At(moment)) => agent::Outlook::At(moment),
            Ok(Outlook::Open) => agent::Outlook::Open,
            Err(error) => {
                self.shared.fail(Failure::Fabric(error.to_string()));
                agent::Outlook::Quiet
            }
        }
    }
}

impl Drop for Proxy {
    /// Sends what is still in the ring: peers may wait for it. Not for ever.
    fn drop(&mut self) {
        let since = Instant::now();
        let mut now_ns = agent::now_ns();
        while since.elapsed() < FAREWELL && self.shared.failure().is_none() {
            match self.step(now_ns) {
                agent::Outlook::At(moment) => now_ns = now_ns.max(moment),
                agent::Outlook::Quiet => break,
                agent::Outlook::Open if self.under_way == 0 => break,
                _ => {}
            }
        }
        self.fabric.close();
    }
}
