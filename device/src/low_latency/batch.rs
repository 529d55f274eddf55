//! What all kernels of a batch have in common: its epochs, what peers are told, statistics.
//!
//! No kernel has its blocks meet. Each block counts epochs for itself, and what the last to finish would do, the next
//! kernel of the batch does as it begins: [`Batch::acknowledge`].

use super::layout::{ArenaLayout, Shape, WorkspaceLayout};
use crate::gpu::mem::{self, Address};
use crate::gpu::{block, shared, thread};
use crate::internode::Link;
use crate::internode::command::{Command, Target};
#[cfg(doc)]
use crate::internode::ring::Ring;
use crate::trace::{About, Activity, Trace};
use crate::wire::{Failure, Phase, Report, write_report};

/// What a batch counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sending of dispatches.
    DispatchSent = 0,
    /// Receiving.
    DispatchReceived = 1,
    /// Sending of combines.
    CombineSent = 2,
    /// Receiving.
    CombineReceived = 3,
}

impl Step {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// Whose waits are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Those for what a dispatch brings.
    Dispatch = 0,
    /// Those for what a combine brings.
    Combine = 1,
}

/// What every kernel of a batch is given.
///
/// Contract: `workspace` has the bytes that `work` says, its `peers` are the addresses of `shape.ranks` arenas laid out as
/// `arena`, `report` is host-visible and 64 bytes, all zeroed before the first launch. Grids have at most `blocks` blocks,
/// of whole warps. Kernels with the same workspace run one after the other, in the order: a dispatch's sending,
/// its receiving, a combine's sending, its receiving, of which the combine may be missing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The sizes all ranks agree on.
    pub shape: Shape,
    /// Where things lie in every arena.
    pub arena: ArenaLayout,
    /// Where things lie in the workspace.
    pub work: WorkspaceLayout,
    /// This batch's workspace.
    pub workspace: Address,
    /// This batch's part of this rank's own arena.
    pub own: Address,
    /// Where a failure is reported: host-visible memory of [`Report::WORDS`] u64.
    pub report: Address,
    /// Where what warps do is recorded, if it is.
    pub trace: Trace,
    /// How long any one wait may take, in nanoseconds.
    pub timeout_ns: u64,
    /// The way to ranks of other nodes, where there are any. Its channels are [`channel`]'s.
    pub link: Link,
    /// Blocks that the workspace was made for.
    pub blocks: u32,
    /// This rank.
    pub rank: u32,
    /// The first rank of this one's node.
    pub first_near: u32,
}

/// Channels of a batch's [`Link`].
pub mod channel {
    /// What dispatches send.
    pub const DISPATCH: u32 = 0;
    /// What combines send.
    pub const COMBINE: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

impl Batch {
    /// Address of a region of the workspace.
    #[inline(always)]
    pub fn work(&self, offset: u64) -> Address {
        self.workspace.offset(offset)
    }

    /// Address of `rank`'s arena.
    ///
    /// # Safety
    /// The struct's contract holds and `rank` is below `shape.ranks`. So for all methods here.
    #[inline(always)]
    pub unsafe fn peer(&self, rank: u32) -> Address {
        // SAFETY: the peers table has an entry for every rank.
        Address(unsafe { mem::load_u64(self.work(self.work.peers).long(rank)) })
    }

    /// Whether `rank` is on another node.
    #[inline(always)]
    pub fn is_far(&self, rank: u32) -> bool {
        rank.wrapping_sub(self.first_near) >= self.shape.near_ranks
    }

    #[inline(always)]
    fn epochs(&self, step: Step) -> Address {
        self.work(self.work.epochs).long(step as u32 * self.blocks)
    }

    /// The epoch of the step that this kernel takes.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn next(&self, step: Step) -> u64 {
        // SAFETY: this block's own count.
        unsafe { mem::load_u64(self.epochs(step).long(thread::block_index())) + 1 }
    }

    /// Counts the step. By every block, after a barrier behind [`Batch::next`].
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn count(&self, step: Step, epoch: u64) {
        let counts = self.epochs(step);
        // SAFETY: a block writes its own count, the first one also those of blocks that are not in this grid.
        unsafe {
            if block::is_first_thread() {
                mem::store_u64(counts.long(thread::block_index()), epoch);
            }
            if thread::block_index() == 0 {
                let first = thread::grid_size() + thread::index();
                for absent in thread::Strided::new(first, self.blocks, thread::block_size()) {
                    mem::store_u64(counts.long(absent), epoch);
                }
            }
        }
    }

    /// Tells every peer what this batch's earlier kernels have read of what it sent. By the last warp of the first block,
    /// before anything is waited for; the others need not wait for it.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn acknowledge<const FAR: bool>(&self, deadline_ns: u64) {
        if thread::block_index() != 0 || thread::warp_index() + 1 != thread::warps() {
            return;
        }
        // SAFETY: kernels of the batch run one after the other, so that the first block's counts are all blocks'.
        unsafe {
            let dispatched = mem::load_u64(self.epochs(Step::DispatchReceived));
            let combined = mem::load_u64(self.epochs(Step::CombineReceived));
            // Partner: the wait for dispatch_read or combine_read in `may_send`, on the peer (acquire, sys). What it
            // releases, for both stores: the reads of an earlier kernel, which stream order puts before this one.
            mem::fence_acq_rel_sys();
            for peer in thread::lane_strided(self.shape.ranks) {
                if FAR && self.is_far(peer) {
                    continue;
                }
                let there = self.peer(peer);
                mem::store_relaxed_sys_u64(
                    there.offset(self.arena.dispatch_read).long(self.rank),
                    dispatched,
                );
                mem::store_relaxed_sys_u64(there.offset(self.arena.combine_read).long(self.rank), combined);
            }
            if FAR {
                self.acknowledge_far(self.arena.dispatch_read, dispatched, deadline_ns);
                self.acknowledge_far(self.arena.combine_read, combined, deadline_ns);
            }
        }
    }

    /// Tells ranks of other nodes. A warp.
    #[inline(always)]
    unsafe fn acknowledge_far(&self, read: u64, epoch: u64, deadline_ns: u64) {
        let at = self.link.part + read + 8 * self.rank as u64;
        let mut first = 0;
        while first < self.shape.ranks {
            let peer = first + thread::lane();
            let command = Command::Word { to: Target { peer, lane: 0 }, at, value: epoch };
            let has = peer < self.shape.ranks && self.is_far(peer);
            // SAFETY: the contract. Partner: as for near ranks.
            unsafe { self.push(has, command, epoch, deadline_ns) };
            first += thread::WARP;
        }
    }

    /// Gives the proxy commands, those of the lanes that have one; a report if there is no room in time. A warp.
    ///
    /// # Safety
    /// See [`Batch::peer`]; what the commands refer to was released ([`Ring::release`]) after it was written.
    #[inline(always)]
    pub unsafe fn push(&self, has: bool, command: Command, epoch: u64, deadline_ns: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.link.ring.push(has, command, deadline_ns) && thread::lane() == 0 {
                self.late(Phase::Ring, self.rank, epoch, 0, 0);
            }
        }
    }

    /// Signals ranks of other nodes that all that this operation puts has been put, on all lanes. A warp, after a barrier
    /// behind the last of the puts.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn signal_far(&self, channel: u32, epoch: u64, deadline_ns: u64) {
        let lanes = self.link.lanes.max(1);
        let mut first = 0;
        while first < self.shape.ranks * lanes {
            let (peer, lane) = ((first + thread::lane()) / lanes, (first + thread::lane()) % lanes);
            let to = Target { peer, lane };
            let command = Command::Signal { to, channel: self.link.channel + channel, value: epoch };
            let has = peer < self.shape.ranks && self.is_far(peer);
            // SAFETY: the contract. Partner: `Link::wait`, on the peer.
            unsafe { self.push(has, command, epoch, deadline_ns) };
            first += thread::WARP;
        }
    }

    /// Waits until all ranks of other nodes have signalled an operation on all lanes, also those by which nothing came: where
    /// lanes keep no order, what comes next must not be counted to this operation. False, and a report, if one does not in
    /// time. By the first block, whose threads share the lanes, before it counts an epoch.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn all_lanes(&self, channel: u32, epoch: u64, deadline_ns: u64, phase: Phase) -> bool {
        let lanes = self.link.lanes.max(1);
        let mut all = true;
        if thread::block_index() == 0 {
            for index in thread::strided(self.shape.ranks * lanes) {
                let (peer, lane) = (index / lanes, index % lanes);
                if !self.is_far(peer) {
                    continue;
                }
                // SAFETY: the contract. Partner: `signal_far`, on `peer`.
                unsafe {
                    self.trace.begin();
                    let waited = self.link.wait(channel, peer, lane, epoch, deadline_ns);
                    self.trace.end(Activity::wait(phase), About::peer(peer));
                    if let Err(seen) = waited {
                        self.late(phase, peer, epoch, epoch, seen);
                        all = false;
                    }
                }
            }
        }
        all
    }

    /// Adds up how long the batch's earlier kernels have waited. By the last warp of the last block, before
    /// it counts an epoch.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn add_up_waits(&self) {
        let is_last = thread::block_index() + 1 == thread::grid_size();
        if !is_last || thread::warp_index() + 1 != thread::warps() {
            return;
        }
        // SAFETY: kernels of the batch run one after the other, and this one measures its waits under the other parity.
        unsafe {
            let dispatched = self.next(Step::DispatchReceived) - 1;
            let combined = self.next(Step::CombineReceived) - 1;
            for peer in thread::lane_strided(self.shape.ranks) {
                self.add_up(Waited::Dispatch, dispatched, peer);
                self.add_up(Waited::Combine, combined, peer);
            }
        }
    }

    #[inline(always)]
    fn waited(&self, what: Waited, epoch: u64, source: u32) -> Address {
        let set = 2 * what as u32 + (epoch % 2) as u32;
        self.work(self.work.waited).word(set * self.shape.ranks + source)
    }

    #[inline(always)]
    unsafe fn add_up(&self, what: Waited, epoch: u64, source: u32) {
        let sum = self.work(self.work.waits).long(what as u32 * self.shape.ranks + source);
        let last = self.waited(what, epoch, source);
        // SAFETY: see `add_up_waits`.
        unsafe {
            let waited = mem::load_u32(last);
            if waited != 0 {
                mem::store_u64(sum, mem::load_u64(sum) + waited as u64);
                mem::store_u32(last, 0);
            }
        }
    }

    /// Notes that something of `source` was waited for since `since_ns`.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn has_waited(&self, what: Waited, epoch: u64, source: u32, waited_ns: u64) {
        // SAFETY: one word for each source.
        unsafe {
            mem::max_relaxed_gpu_u32(self.waited(what, epoch, source), waited_ns.min(u32::MAX as u64) as u32)
        };
    }

    /// Waits until every peer has read what this rank sent it in the epoch before; false, and a report, if one does not in
    /// time. A block's threads share the peers: follow with [`block::barrier_or`].
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn may_send(&self, read: u64, epoch: u64, deadline_ns: u64) -> bool {
        let mut may = true;
        // SAFETY: `read` is the offset of a region with a count for every rank.
        unsafe {
            for peer in thread::strided(self.shape.ranks) {
                // Partner: `acknowledge` on `peer` (fence, then relaxed, sys).
                let flag = self.own.offset(read).long(peer);
                self.trace.begin();
                let waited = mem::wait_at_least_acquire_sys(flag, epoch - 1, deadline_ns);
                self.trace.end(Activity::WaitRead, About::peer(peer));
                if let Err(seen) = waited {
                    self.late(Phase::Read, peer, epoch, epoch - 1, seen);
                    may = false;
                }
            }
        }
        may
    }

    /// Reports a peer as late.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn late(&self, phase: Phase, peer: u32, epoch: u64, expected: u64, seen: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.fail(Report::new(Failure::Late, phase, peer, epoch, expected, seen)) };
    }

    /// Writes the report unless another thread has.
    ///
    /// # Safety
    /// See [`Batch::peer`].
    #[inline(always)]
    pub unsafe fn fail(&self, report: Report) {
        // SAFETY: the claim word and the report are where the contract says.
        unsafe { write_report(self.work(self.work.report_claim), self.report, report) };
    }
}

/// Addresses of peers' arenas in shared memory, where they are at hand.
#[derive(Clone, Copy)]
pub struct Peers(u32);

impl Peers {
    /// Bytes that they take.
    pub const fn bytes(shape: &Shape) -> u32 {
        8 * shape.ranks
    }

    /// Brings them to `at`, aligned to 8 bytes, for use behind the next barrier. By the whole block.
    ///
    /// # Safety
    /// [`Batch`]'s contract; the block's shared memory has room.
    #[inline(always)]
    pub unsafe fn load(batch: &Batch, at: u32) -> Self {
        for peer in thread::strided(batch.shape.ranks) {
            // SAFETY: the caller's promise.
            unsafe { shared::store_u64(at + 8 * peer, batch.peer(peer).0) };
        }
        Self(at)
    }

    /// Address of `rank`'s arena.
    ///
    /// # Safety
    /// A barrier came after [`Peers::load`], and there is such a rank.
    #[inline(always)]
    pub unsafe fn of(self, rank: u32) -> Address {
        // SAFETY: the caller's promise.
        Address(unsafe { shared::load_u64(self.0 + 8 * rank) })
    }
}

/// What a lane of a warp that shares work over the whole grid takes: warps of different blocks first, so that little work
/// is spread over all multiprocessors.
#[inline(always)]
pub fn share(items: u32) -> thread::Strided {
    let first = thread::warp_index() * thread::grid_size() + thread::block_index();
    thread::Strided::new(first, items, thread::warps() * thread::grid_size())
}
