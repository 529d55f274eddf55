//! What goes to other nodes: kernels put [`command`]s into a [`ring`] in pinned host memory, a proxy on the host has a NIC
//! carry them out, and what has arrived is told by flags.
//!
//! # What is relied on
//! A proxy carries a rank's commands out in the order of the ring. Bytes go from arena to arena. To each peer there are
//! several *lanes*, which know nothing of each other: bytes and flag of one operation are on the same lane, and who waits
//! for them waits for the flags of all lanes that they may have come by.
//! * Where a lane keeps its order (a queue pair of a reliable connection does), [`Command::Signal`](command::Command) is a
//!   write of the flag behind the bytes, into the peer's arena.
//! * Where it does not, every write carries an immediate and the signal says how many there were: the peer's proxy sets
//!   the flag, in host memory, when it has counted so many.
//!
//! In both cases a flag is set once for each operation on a *channel*, of which a rank's commands name the number, and an
//! operation's bytes are sent only when the peer has told that it is done with those of the one before.

pub mod command;
pub mod ring;

use crate::gpu::mem::{self, Address};
use ring::Ring;

/// A kernel's way to ranks of other nodes.
///
/// Contract: `ring` keeps its own; `flags` are u64 `[channel, rank, lane]` that this GPU can read; `lanes` is 1 or more
/// where there are such ranks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Commands to this rank's proxy.
    pub ring: Ring,
    /// From the first of the operation's channels on.
    pub flags: Address,
    /// Where the operation's part of every arena begins.
    pub part: u64,
    /// The first of the operation's channels.
    pub channel: u32,
    /// Lanes to each peer.
    pub lanes: u32,
    /// Ranks of the group.
    pub ranks: u32,
}

impl Link {
    /// No way.
    pub const NONE: Self =
        Self { ring: Ring::NONE, flags: Address::NULL, part: 0, channel: 0, lanes: 0, ranks: 0 };

    /// The lane of what has this number.
    #[inline(always)]
    pub fn lane_of(&self, number: u32) -> u32 {
        number % if self.lanes == 0 { 1 } else { self.lanes }
    }

    #[inline(always)]
    fn flag(&self, channel: u32, peer: u32, lane: u32) -> Address {
        self.flags.long((channel * self.ranks + peer) * self.lanes + lane)
    }

    /// Whether `peer` has signalled `epoch` already: see [`Link::wait`].
    ///
    /// # Safety
    /// The struct's contract.
    #[inline(always)]
    pub unsafe fn has_come(&self, channel: u32, peer: u32, lane: u32, epoch: u64) -> bool {
        // SAFETY: the caller's promise. Partner: as of `wait`.
        unsafe { mem::load_acquire_sys_u64(self.flag(channel, peer, lane)) >= epoch }
    }

    /// Waits until `peer` has signalled `epoch` on a lane of the operation's channel `channel`; its last signal if it does
    /// not in time. What came by the lane before is there then.
    ///
    /// # Safety
    /// The struct's contract.
    #[inline(always)]
    pub unsafe fn wait(
        &self,
        channel: u32,
        peer: u32,
        lane: u32,
        epoch: u64,
        deadline_ns: u64,
    ) -> Result<(), u64> {
        let flag = self.flag(channel, peer, lane);
        // SAFETY: the caller's promise. Partner: `Signal` of the peer, by way of a NIC, or of this rank's proxy (a release
        // store of the host).
        unsafe { mem::wait_at_least_acquire_sys(flag, epoch, deadline_ns) }
    }
}
