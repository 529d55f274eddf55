//! When a lane's flags are set: once all warps have put what they had for it.

use super::{Rail, push};
use crate::gpu::{mem, thread, warp};
use crate::internode::Link;
use crate::internode::command::{Command, Target};
use crate::trace::{About, Activity};
use crate::wire::{Exchange, Failure, Phase, Report};

/// What an operation puts to the ranks of its rail.
#[derive(Clone, Copy)]
pub struct Lanes<'a> {
    /// The exchange.
    pub exchange: &'a Exchange,
    /// Its way.
    pub link: &'a Link,
    /// Which of the flight's channels.
    pub channel: u32,
    /// The operation's.
    pub epoch: u64,
    /// When waiting ends.
    pub deadline_ns: u64,
}

impl Lanes<'_> {
    /// Where this rank stands.
    #[inline(always)]
    pub fn rail(&self) -> Rail {
        Rail::new(&self.exchange.shape, self.exchange.rank)
    }

    /// This warp has put all that it will on `lane`; the last warp of the grid signals the rail. By every warp, once for each
    /// lane.
    ///
    /// # Safety
    /// The contracts of [`Exchange`] and [`Link`]. So for all here.
    #[inline(always)]
    pub unsafe fn done(&self, lane: u32) {
        let exchange = self.exchange;
        // Puts of the warp's other lanes come before the addition.
        warp::barrier(warp::ALL);
        let mut last = false;
        // SAFETY: the caller's promise. The additions (acq_rel at gpu scope: both sides are this line) order every warp's
        // reservations in the ring before the last one's.
        unsafe {
            if thread::lane() == 0 {
                let counter = exchange.work(exchange.work.lanes_done).word(lane);
                let warps = thread::grid_size() * thread::warps();
                last = mem::fetch_add_acq_rel_gpu_u32(counter, 1) + 1 == warps;
                if last {
                    // For the next operation: everybody has added.
                    mem::store_relaxed_gpu_u32(counter, 0);
                }
            }
            if warp::ballot(warp::ALL, last) != 0 {
                self.signal(lane);
            }
        }
    }

    #[inline(always)]
    unsafe fn signal(&self, lane: u32) {
        let (rail, nodes) = (self.rail(), self.exchange.shape.far_nodes());
        let mut first = 0;
        while first < nodes {
            let far = first + thread::lane();
            let to = Target { peer: rail.rank(far), lane };
            let (channel, value) = (self.link.channel + self.channel, self.epoch);
            // SAFETY: the caller's promise. Partner: `wait`, on the peer.
            unsafe {
                let signal = Command::Signal { to, channel, value };
                push(self.exchange, self.link, far < nodes, signal, self.epoch, self.deadline_ns);
            }
            first += thread::WARP;
        }
    }

    /// Waits until the rail's rank on another node has signalled a lane; false, and a report, if it does not in time. What
    /// came by the lane is there then.
    #[inline(always)]
    pub unsafe fn wait(&self, far: u32, lane: u32, phase: Phase) -> bool {
        let peer = self.rail().rank(far);
        // SAFETY: the caller's promise. Partner: `signal`, on `peer`, by way of its proxy.
        unsafe {
            let waited = self.link.wait(self.channel, peer, lane, self.epoch, self.deadline_ns);
            let Err(seen) = waited else { return true };
            self.exchange.fail(Report::new(Failure::Late, phase, peer, self.epoch, self.epoch, seen));
            false
        }
    }

    /// [`Lanes::wait`] for this thread alone.
    ///
    /// # Safety
    /// See [`Lanes::done`].
    #[inline(always)]
    pub unsafe fn wait_traced(&self, far: u32, lane: u32, phase: Phase) -> bool {
        let trace = self.exchange.trace;
        // SAFETY: the caller's promise.
        unsafe {
            trace.begin();
            let came = self.wait(far, lane, phase);
            trace.end(Activity::wait(phase), About::peer(self.rail().rank(far)));
            came
        }
    }

    /// Waits for all lanes of the whole rail, also those by which nothing came: where lanes keep no order, what comes next
    /// must not be counted to this operation. False, and a report, if one is not signalled. A block's threads share the
    /// lanes: follow with a barrier.
    #[inline(always)]
    pub unsafe fn wait_all(&self, phase: Phase) -> bool {
        let lanes = self.link.lanes.max(1);
        let mut all = true;
        for index in thread::strided(self.exchange.shape.far_nodes() * lanes) {
            // SAFETY: the caller's promise.
            all &= unsafe { self.wait_traced(index / lanes, index % lanes, phase) };
        }
        all
    }
}
