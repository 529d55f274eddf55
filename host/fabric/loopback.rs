//! A fabric within a process: ranks that are declared to be on different nodes, and what a real network does to them, such
//! as delay, another order, loss and death, drawn from a seed.

use super::{Cause, Event, Fabric, Lane, Memory, Outlook, Payload, Region, Write};
use crate::Error;
use crate::gpu::device::Carrier;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
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
}

impl Default for LoopbackOptions {
    /// At once, in order, without losses.
    fn default() -> Self {
        Self { seed: 0, delay_ns: 0..=0, ordered: true, lose_one_in: 0, depth: 256 }
    }
}

/// A network that ranks of this process share. Clones are the same network.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    options: LoopbackOptions,
    random: u64,
    ends: BTreeMap<u32, End>,
    lanes: BTreeMap<(u32, Lane), Queue>,
}

/// What the network knows of a rank.
#[derive(Default)]
struct End {
    regions: Vec<Memory>,
    inbox: Vec<Event>,
    dead: bool,
    down: bool,
    /// Counts the ends that the rank has had.
    generation: u64,
}

/// Writes of a lane.
#[derive(Default)]
struct Queue {
    writes: VecDeque<Flying>,
    failed: bool,
}

struct Flying {
    due_ns: u64,
    write: Write,
    /// What it will fail with.
    fate: Option<Cause>,
    delivered: bool,
}

/// A rank's end of a [`Network`].
pub struct Loopback {
    network: Network,
    rank: u32,
    lanes: u32,
    now_ns: u64,
    carrier: Box<dyn Carrier>,
    generation: u64,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("Network").field(&self.state().options).finish()
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
        let random = options.seed;
        let (ends, lanes) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { options, random, ends, lanes })))
    }

    /// What it is like.
    pub fn options(&self) -> LoopbackOptions {
        self.state().options.clone()
    }

    /// A rank dies: it sends nothing more, and lanes to it fail.
    pub fn kill(&self, rank: u32) {
        self.state().ends.entry(rank).or_default().dead = true;
    }

    /// A rank's port goes down, and its lanes fail when they are used, or comes up again.
    pub fn set_port(&self, rank: u32, up: bool) {
        let mut state = self.state();
        let end = state.ends.entry(rank).or_default();
        if end.down == up {
            end.down = !up;
            end.inbox.push(if up { Event::PortUp } else { Event::PortDown });
        }
    }

    /// A rank's end. An end that the rank had before is gone, and its lanes with it.
    pub(crate) fn end(&self, rank: u32, lanes: u32, carrier: Box<dyn Carrier>) -> Loopback {
        let mut state = self.state();
        let end = state.ends.entry(rank).or_default();
        (end.regions, end.inbox, end.dead) = (Vec::new(), Vec::new(), false);
        end.generation += 1;
        let generation = end.generation;
        state.lanes.retain(|(from, lane), _| *from != rank && lane.peer != rank);
        drop(state);
        Loopback { network: self.clone(), rank, lanes, now_ns: 0, carrier, generation }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made whole before anything can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// SplitMix64, as the emulator's.
    fn draw(&mut self, least: u64, most: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        least + mixed % (most - least).saturating_add(1).max(1)
    }

    fn region(&self, rank: u32, region: Region) -> Option<Memory> {
        self.ends.get(&rank)?.regions.get(region.0 as usize).copied()
    }

    /// Where `bytes` bytes of a region are, if it has them.
    fn place(&self, rank: u32, region: Region, offset: u64, bytes: u64) -> Option<u64> {
        let memory = self.region(rank, region)?;
        (offset <= memory.bytes && bytes <= memory.bytes - offset).then(|| memory.address + offset)
    }

    /// Which of the lane's writes are delivered now.
    fn due(&mut self, from: u32, lane: Lane, now_ns: u64) -> Vec<usize> {
        let ordered = self.options.ordered;
        let Some(queue) = self.lanes.get(&(from, lane)).filter(|queue| !queue.failed) else {
            return Vec::new();
        };
        let is_due = |flying: &Flying| !flying.delivered && flying.due_ns <= now_ns;
        let all = queue.writes.iter().enumerate();
        if ordered {
            return all.take_while(|(_, flying)| flying.due_ns <= now_ns).map(|(at, _)| at).collect();
        }
        let mut due: Vec<usize> = all.filter(|(_, flying)| is_due(flying)).map(|(at, _)| at).collect();
        for at in (1..due.len()).rev() {
            due.swap(at, self.draw(0, at as u64) as usize);
        }
        due
    }

    /// Why nothing goes from one to the other, if so.
    fn severed(&self, from: u32, to: u32) -> Option<Cause> {
        let is = |rank: u32, what: fn(&End) -> bool| self.ends.get(&rank).is_some_and(what);
        if is(from, |end| end.down || end.dead) {
            Some(Cause::Local)
        } else if is(to, |end| end.down || end.dead) || !self.ends.contains_key(&to) {
            Some(Cause::Unreachable)
        } else {
            None
        }
    }
}

impl Loopback {
    fn lane_error(&self, lane: Lane, cause: Cause) -> Error {
        Error::Link { rank: self.rank, peer: lane.peer, lane: lane.index, cause }
    }

    /// Delivers what is due on a lane.
    fn deliver(&mut self, lane: Lane, now_ns: u64, events: &mut Vec<Event>) -> Result<(), Error> {
        let network = self.network.clone();
        let mut state = network.state();
        let mut failed = None;
        for at in state.due(self.rank, lane, now_ns) {
            let severed = state.severed(self.rank, lane.peer);
            let Some(queue) = state.lanes.get_mut(&(self.rank, lane)) else { break };
            let flying = &mut queue.writes[at];
            let write = flying.write;
            failed = severed.or_else(|| flying.fate.take());
            if failed.is_some() {
                queue.failed = true;
                break;
            }
            flying.delivered = true;
            let bytes = match write.payload {
                Payload::Bytes { bytes, .. } => bytes.into(),
                Payload::Word(_) => 8,
                Payload::Nothing => 0,
            };
            // Both were checked when it was written; an end that was made anew since has taken its lanes with it.
            let to = state.place(lane.peer, write.region, write.offset, bytes);
            match (write.payload, to) {
                (Payload::Bytes { region, offset, bytes }, Some(to)) => {
                    if let Some(from) = state.place(self.rank, region, offset, bytes.into()) {
                        self.carrier.copy(from, to, bytes.into())?;
                    }
                }
                (Payload::Word(value), Some(to)) => {
                    self.carrier.settle()?;
                    self.carrier.word(to, value)?;
                }
                _ => {}
            }
            if let Some(immediate) = write.immediate {
                self.carrier.settle()?;
                let back = Lane { peer: self.rank, index: lane.index };
                let end = state.ends.entry(lane.peer).or_default();
                end.inbox.push(Event::Arrived { lane: back, immediate });
            }
        }
        self.carrier.settle()?;
        if let Some(queue) = state.lanes.get_mut(&(self.rank, lane)) {
            let done = queue.writes.iter().take_while(|flying| flying.delivered).count();
            queue.writes.drain(..done);
            if done > 0 {
                events.push(Event::Written { lane, count: done as u32 });
            }
        }
        if let Some(cause) = failed {
            events.push(Event::Failed { lane, cause });
        }
        Ok(())
    }
}

impl Fabric for Loopback {
    unsafe fn register(&mut self, memory: Memory) -> Result<Region, Error> {
        let mut state = self.network.state();
        let regions = &mut state.ends.entry(self.rank).or_default().regions;
        regions.push(memory);
        Ok(Region(regions.len() as u32 - 1))
    }

    fn address(&mut self, _peer: u32) -> Result<Vec<u8>, Error> {
        Ok(self.rank.to_le_bytes().to_vec())
    }

    fn connect(&mut self, peers: &[Option<Vec<u8>>]) -> Result<(), Error> {
        for (rank, address) in (0u32..).zip(peers) {
            match address {
                Some(address) if address[..] != rank.to_le_bytes() => {
                    let (call, reason) = ("connecting".into(), format!("rank {rank} gave another's address"));
                    return Err(Error::Fabric { call, reason });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lanes(&self) -> u32 {
        self.lanes
    }

    fn is_ordered(&self) -> bool {
        self.network.state().options.ordered
    }

    fn room(&self, lane: Lane) -> u32 {
        let state = self.network.state();
        let taken = state.lanes.get(&(self.rank, lane)).map_or(0, |queue| queue.writes.len());
        state.options.depth.saturating_sub(taken as u32)
    }

    fn write(&mut self, lane: Lane, write: &Write) -> Result<(), Error> {
        let mut state = self.network.state();
        let refused = |cause| Err(self.lane_error(lane, cause));
        if lane.index >= self.lanes {
            let cause = Cause::Other(format!("there are {} lanes", self.lanes));
            return refused(cause);
        }
        if state.lanes.get(&(self.rank, lane)).is_some_and(|queue| queue.failed) {
            return refused(Cause::Flushed);
        }
        let bytes: u64 = match write.payload {
            Payload::Bytes { region, offset, bytes } => {
                if state.place(self.rank, region, offset, bytes.into()).is_none() {
                    return refused(Cause::Local);
                }
                bytes.into()
            }
            Payload::Word(_) => 8,
            Payload::Nothing => 0,
        };
        let is_refused = bytes > 0 && state.place(lane.peer, write.region, write.offset, bytes).is_none();
        let is_lost = state.options.lose_one_in > 0 && {
            let most = state.options.lose_one_in.into();
            state.draw(1, most) == 1
        };
        let fate = match (is_refused, is_lost) {
            (true, _) => Some(Cause::Refused),
            (_, true) => Some(Cause::Unreachable),
            _ => None,
        };
        let (least, most) = state.options.delay_ns.clone().into_inner();
        let delay_ns = state.draw(least, most.max(least));
        let queue = state.lanes.entry((self.rank, lane)).or_default();
        queue.writes.push_back(Flying {
            due_ns: self.now_ns + delay_ns,
            write: *write,
            fate,
            delivered: false,
        });
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> Result<Outlook, Error> {
        self.now_ns = now_ns;
        let network = self.network.clone();
        let own = |state: &State| -> Vec<Lane> {
            let all = state.lanes.iter().filter(|((from, _), queue)| *from == self.rank && !queue.failed);
            all.map(|((_, lane), _)| *lane).collect()
        };
        let lanes = own(&network.state());
        for lane in lanes {
            self.deliver(lane, now_ns, events)?;
        }
        let mut state = network.state();
        if let Some(end) = state.ends.get_mut(&self.rank) {
            events.append(&mut end.inbox);
        }
        let ordered = state.options.ordered;
        let queues = state.lanes.iter().filter(|((from, _), queue)| *from == self.rank && !queue.failed);
        let next = queues.filter_map(|(_, queue)| {
            let waiting = queue.writes.iter().filter(|flying| !flying.delivered).map(|flying| flying.due_ns);
            if ordered { waiting.take(1).min() } else { waiting.min() }
        });
        Ok(next.min().map_or(Outlook::Quiet, Outlook::At))
    }

    fn close(&mut self) {
        let mut state = self.network.state();
        // A later end of the same rank is not this one's to close.
        if let Some(end) = state.ends.get_mut(&self.rank).filter(|end| end.generation == self.generation) {
            end.dead = true;
            end.regions.clear();
            state.lanes.retain(|(from, _), _| *from != self.rank);
        }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.close();
    }
}
