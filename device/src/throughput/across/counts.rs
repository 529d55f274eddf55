//! Counts for ranks of other nodes.

use super::channel;
use super::push;
use crate::gpu::mem::Address;
use crate::gpu::thread;
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::throughput::dispatch::Block;
use crate::trace::{About, Activity};
use crate::wire::{Failure, Phase, Report};

/// The channel of this dispatch's counts, and its how manieth signal this is.
#[inline(always)]
fn signal(epoch: u64) -> (u32, u64) {
    (channel::COUNTS + (epoch % 2) as u32, epoch.div_ceil(2))
}

/// Where the words for `peer` are put together.
///
/// # Safety
/// The contract of [`DispatchArgs`](crate::throughput::dispatch::DispatchArgs). So for all here.
#[inline(always)]
pub unsafe fn outbox(block: &Block, peer: u32) -> Address {
    let exchange = &block.args.exchange;
    // SAFETY: the caller's promise.
    let own = unsafe { exchange.own() };
    own.offset(exchange.arena.count_outbox_of(&exchange.shape, block.epoch, peer))
}

/// Has the proxy send them. A warp, once they are written.
#[inline(always)]
pub unsafe fn post(block: &Block) {
    let (exchange, link) = (&block.args.exchange, block.link);
    let (shape, arena) = (&exchange.shape, &exchange.arena);
    let (channel, value) = signal(block.epoch);
    let channel = link.channel + channel;
    Ring::release();
    let mut first = 0;
    while first < 2 * shape.ranks {
        // The puts, then the signals: the ring keeps the order.
        let at = first + thread::lane();
        let (puts, peer) = if at < shape.ranks { (true, at) } else { (false, at - shape.ranks) };
        let to = Target { peer, lane: 0 };
        let command = if puts {
            Command::Put {
                to,
                channel,
                from: link.part + arena.count_outbox_of(shape, block.epoch, peer),
                at: link.part + arena.counts_of(shape, block.epoch, exchange.rank),
                bytes: 4 * shape.count_words(),
            }
        } else {
            // Partner: `wait`, on the peer.
            Command::Signal { to, channel, value }
        };
        let has = peer < shape.ranks && !block.is_near(peer);
        // SAFETY: the caller's promise.
        unsafe { push(exchange, link, has, command, block.epoch, block.deadline_ns) };
        first += thread::WARP;
    }
}

/// Waits for those of `peer`; false, and a report, if they do not come.
#[inline(always)]
pub unsafe fn wait(block: &Block, peer: u32) -> bool {
    let exchange = &block.args.exchange;
    let (channel, value) = signal(block.epoch);
    // SAFETY: the caller's promise. Partner: `post`, on `peer`, by way of its proxy.
    unsafe {
        exchange.trace.begin();
        let waited = block.link.wait(channel, peer, 0, value, block.deadline_ns);
        exchange.trace.end(Activity::WaitCounts, About::peer(peer));
        let Err(seen) = waited else { return true };
        exchange.fail(Report::new(Failure::Late, Phase::Counts, peer, block.epoch, value, seen));
        false
    }
}
