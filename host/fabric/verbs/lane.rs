//! A lane: a queue pair and what is under way on it.

use super::raw::{Completion, Link, QueuePair, Request, Requests};
use crate::fabric::{Cause, Event, Lane};
use std::collections::VecDeque;
use std::io;

pub struct LaneState {
    pub lane: Lane,
    /// The NIC that it is on.
    pub nic: usize,
    /// The peer's.
    pub peer_nic: usize,
    /// Where it leads to, once it does.
    connected: bool,
    queue_pair: QueuePair,
    /// Number of the first packet that goes out.
    pub first_packet: u32,
    /// Not posted yet.
    requests: Requests,
    /// Whether a flush will look at it.
    pub listed: bool,
    /// Of each posted request that will be reported, how many writes are done with it.
    reports: VecDeque<u32>,
    /// Writes that are posted and not reported.
    posted: u32,
    /// Since when none of them was reported, as far as anybody has looked.
    waiting_since_ns: Option<u64>,
    depth: u32,
    signal_every: usize,
    /// Number of what was received.
    receive_id: u64,
    receive_depth: u32,
    /// Receives that are used up.
    used: u32,
    cause: Option<Cause>,
    told: bool,
}

/// Which lane a completion is of: the number that requests have.
pub fn slot_of(completion: &Completion) -> usize {
    (completion.id >> 1) as usize
}

impl LaneState {
    /// The lane with number `slot` among all.
    pub fn new(
        lane: Lane,
        slot: usize,
        nic: usize,
        queue_pair: QueuePair,
        first_packet: u32,
        options: &super::VerbsOptions,
    ) -> io::Result<Self> {
        let id = (slot as u64) << 1;
        let receive_id = id | 1;
        queue_pair.receive(receive_id, options.receive_depth)?;
        Ok(Self {
            lane,
            nic,
            peer_nic: 0,
            connected: false,
            queue_pair,
            first_packet,
            requests: Requests::new(id, options.signal_every as usize),
            listed: false,
            reports: VecDeque::new(),
            posted: 0,
            waiting_since_ns: None,
            depth: options.send_depth,
            signal_every: options.signal_every as usize,
            receive_id,
            receive_depth: options.receive_depth,
            used: 0,
            cause: None,
            told: false,
        })
    }

    pub fn number(&self) -> u32 {
        self.queue_pair.number()
    }

    pub fn connect(&mut self, link: &Link, peer_nic: usize) -> io::Result<()> {
        self.queue_pair.connect(link)?;
        self.peer_nic = peer_nic;
        self.connected = true;
        Ok(())
    }

    /// `Err` if it takes no writes.
    pub fn check(&self) -> Result<(), Cause> {
        match &self.cause {
            Some(cause) => Err(cause.clone()),
            None if !self.connected => Err(Cause::Other("it is not connected".into())),
            None => Ok(()),
        }
    }

    pub fn room(&self) -> u32 {
        if self.check().is_err() { 0 } else { self.depth - self.posted - self.queued() }
    }

    /// Writes that are not posted yet.
    pub fn queued(&self) -> u32 {
        self.requests.len() as u32
    }

    /// Queues a request on a lane that has room, and posts if it was the last of a batch.
    ///
    /// # Safety
    /// As of [`Requests::push`].
    pub unsafe fn push(&mut self, request: &Request) -> Result<(), Cause> {
        // SAFETY: the caller's promise.
        unsafe { self.requests.push(request) };
        if self.requests.len() == self.signal_every { self.post() } else { Ok(()) }
    }

    /// Posts what is queued.
    pub fn post(&mut self) -> Result<(), Cause> {
        self.check()?;
        let count = self.queued();
        if count == 0 {
            return Ok(());
        }
        if let Err(error) = self.requests.post(&self.queue_pair) {
            self.fail(Cause::Other(format!("the NIC took no writes: {error}")));
            return self.check();
        }
        self.reports.push_back(count);
        self.posted += count;
        Ok(())
    }

    /// Takes in what has become of a request.
    pub fn complete(&mut self, completion: Completion, events: &mut Vec<Event>) {
        let received = completion.id == self.receive_id;
        match completion.outcome {
            Err(cause) => self.fail(cause),
            Ok(immediate) if received => {
                self.used += 1;
                if let Some(immediate) = immediate {
                    events.push(Event::Arrived { lane: self.lane, immediate });
                }
            }
            Ok(_) => {
                let count = self.reports.pop_front().unwrap_or(0);
                self.posted -= count;
                self.waiting_since_ns = None;
                events.push(Event::Written { lane: self.lane, count });
            }
        }
    }

    /// Fails, and says so, if nothing has been done for too long. To be called now and then.
    pub fn is_overdue(&mut self, now_ns: u64, deadline_ns: u64) -> bool {
        if !self.is_busy() {
            return false;
        }
        let since = *self.waiting_since_ns.get_or_insert(now_ns);
        let overdue = now_ns.saturating_sub(since) >= deadline_ns;
        if overdue {
            self.fail(Cause::Unreachable);
        }
        overdue
    }

    /// Posts receives again, if half of them are used up.
    pub fn replenish(&mut self) {
        if self.used < self.receive_depth.div_ceil(2) || self.cause.is_some() {
            return;
        }
        match self.queue_pair.receive(self.receive_id, self.used) {
            Ok(()) => self.used = 0,
            Err(error) => self.fail(Cause::Other(format!("the NIC took no receives: {error}"))),
        }
    }

    /// Only the first reason counts, and any is better than that requests were flushed, which follows from it.
    pub fn fail(&mut self, cause: Cause) {
        if self.cause.is_none() {
            // So that nothing is under way any more, whoever found out. If it cannot be told it is beyond that.
            let _ = self.queue_pair.fail();
        }
        if self.cause.is_none() || (self.cause == Some(Cause::Flushed) && !self.told) {
            self.cause = Some(cause);
        }
    }

    /// Whether it has failed and not said so.
    pub fn is_failing(&self) -> bool {
        self.cause.is_some() && !self.told
    }

    /// Why it has failed: once.
    pub fn news(&mut self) -> Option<Event> {
        let cause = self.cause.clone().filter(|_| !self.told)?;
        self.told = true;
        Some(Event::Failed { lane: self.lane, cause })
    }

    /// Whether something is under way, so that it will be told of its end.
    pub fn is_busy(&self) -> bool {
        self.posted > 0 && self.cause.is_none()
    }

    /// Ends it.
    pub fn end(&mut self) {
        // If it has no such state any more it has ended.
        let _ = self.queue_pair.fail();
    }
}
