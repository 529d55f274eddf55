//! Dispatch and combine across nodes: in two levels. A *rail* is the ranks with the same number on their nodes.
//!
//! # Dispatch
//! A token crosses once for each other node that it goes to, as a *message*: to the rank of the same rail there, which
//! *forwards* its row to the ranks of its node. Beside what [`dispatch`](super::dispatch) does on one node:
//! 1. `counts`: a rank's row of counts goes to ranks of other nodes by way of the proxy;
//! 2. `pack`: messages are written to an outbox and put, before anybody else's counts are known: a message says
//!    how many earlier tokens of its source go to each of its ranks, and the counts that the forwarder has, too, make rows
//!    of that;
//! 3. `forward`: once a rank's own rows are sent, it writes those of the other ranks of its rail to their final places on
//!    its node, and keeps in the handle where that is;
//! 4. one flag a near rank then covers own rows and forwarded ones, and the rail is told that its messages were read.
//!
//! A message lies in the inbox at its token's index, and has the epoch of its dispatch: one that was not sent is known by
//! an earlier one. So nothing is counted for it. Its lane is that of its chunk ([`lane_of`]): each block's first
//! tokens go by the first lane, and while others follow, what came by it is forwarded.
//!
//! # Combine
//! The ranks that have forwarded sum up what their node holds of each token, in f32 and by ascending rank, round once to the
//! 16 bits that travel, and send these *partials* back, with what goes to the slots. A token's rank adds, in f32: by
//! ascending node, of its own node each rank's row, of another its partial; then the biases; and rounds once.
//!
//! # What keeps ranks in step
//! * Each dispatch signals each lane of [`channel::MESSAGES`] to the whole rail once, whatever is wrong with it, and waits
//!   for the rail's signals; so does each combine with [`channel::PARTIALS`]. Counts are signalled to all far ranks, on
//!   the first lane.
//! * Messages are overwritten once the rail has told that they were forwarded: `ArenaLayout::forwarded`.
//! * Partials need no such word: a rank combines again only after a dispatch, which has waited for the messages that its
//!   rail sends after their last combine.
//! * Counts alternate between two channels, and two places, as they do on one node: who sends a dispatch's counts has those
//!   of all ranks for the one before, and so all ranks have done with the one before that.

pub mod combine;
pub(super) mod counts;
pub(super) mod finish;
pub(super) mod forward;
mod lanes;
mod message;
pub(super) mod pack;
mod walk;

use crate::internode::Link;
use crate::internode::command::Command;
use crate::wire::{CHUNK, Exchange, Failure, Phase, Report, Shape};

/// Channels of a dispatch in flight.
pub mod channel {
    /// Counts of dispatches: this and the next in turn.
    pub const COUNTS: u32 = 0;
    /// Messages of dispatches.
    pub const MESSAGES: u32 = 2;
    /// Partial sums of combines.
    pub const PARTIALS: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// The lane that a token's message and partials go by.
#[inline(always)]
pub fn lane_of(link: &Link, token: u32) -> u32 {
    link.lane_of(token / CHUNK)
}

/// The ranks with this one's number on other nodes. These are numbered without one's own.
#[derive(Clone, Copy)]
pub(super) struct Rail {
    near_ranks: u32,
    node: u32,
    number: u32,
}

impl Rail {
    #[inline(always)]
    pub fn new(shape: &Shape, rank: u32) -> Self {
        let near_ranks = shape.near_ranks.max(1);
        Self { near_ranks, node: rank / near_ranks, number: rank % near_ranks }
    }

    /// The rail's rank on another node.
    #[inline(always)]
    pub fn rank(&self, far: u32) -> u32 {
        (far + (far >= self.node) as u32) * self.near_ranks + self.number
    }

    /// The node of `rank` among the others.
    #[inline(always)]
    pub fn far_node(&self, rank: u32) -> u32 {
        let node = rank / self.near_ranks;
        node - (node > self.node) as u32
    }

    /// This node among the others as one of them sees it.
    #[inline(always)]
    pub fn own_node(&self, far: u32) -> u32 {
        self.node - (far < self.node) as u32
    }
}

/// Gives the proxy commands, those of the lanes that have one; a report if there is no room in time. A warp.
///
/// # Safety
/// The contracts of [`Exchange`] and [`Link`]; what the commands refer to was released
/// ([`Ring::release`](crate::internode::ring::Ring::release)) after it was written.
#[inline(always)]
unsafe fn push(exchange: &Exchange, link: &Link, has: bool, command: Command, epoch: u64, deadline_ns: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if !link.ring.push(has, command, deadline_ns) && crate::gpu::thread::lane() == 0 {
            exchange.fail(Report::new(Failure::Late, Phase::Ring, exchange.rank, epoch, 0, 0));
        }
    }
}
