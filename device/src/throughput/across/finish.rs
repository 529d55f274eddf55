//! The end of a dispatch across nodes.

use super::channel;
use super::lanes::Lanes;
use super::push;
use crate::gpu::{block, mem, shared, thread};
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::throughput::dispatch::Block;
use crate::wire::Phase;

/// Waits for all that the rail has sent, and tells it that its messages were read. False, and a report, if something has not
/// come. By the last block.
///
/// # Safety
/// The contract of [`DispatchArgs`](crate::throughput::dispatch::DispatchArgs); all blocks have arrived.
#[inline(always)]
pub unsafe fn finish(block: &Block) -> bool {
    let (exchange, link) = (&block.args.exchange, block.link);
    let (channel, epoch, deadline_ns) = (channel::MESSAGES, block.epoch, block.deadline_ns);
    let lanes = Lanes { exchange, link, channel, epoch, deadline_ns };
    // SAFETY: the caller's promise; all threads of the block take the same way.
    unsafe {
        let all = lanes.wait_all(Phase::Messages);
        if block::barrier_or(!all) {
            return false;
        }
        if thread::warp_index() == 0 {
            // Partner: the wait for `forwarded` in `may_pack`, on the peer (acquire, sys). What it releases: this rank's
            // reads of the messages, by way of the meeting of the blocks.
            Ring::release();
            let (rail, nodes) = (lanes.rail(), exchange.shape.far_nodes());
            let mut first = 0;
            while first < nodes {
                let far = first + thread::lane();
                let at = link.part + exchange.arena.forwarded + 8 * rail.own_node(far) as u64;
                let to = Target { peer: rail.rank(far), lane: 0 };
                let word = Command::Word { to, at, value: epoch };
                push(exchange, link, far < nodes, word, epoch, deadline_ns);
                first += thread::WARP;
            }
        }
    }
    true
}

/// Keeps in the handle how many tokens the rail's other ranks have; none after a failure.
///
/// # Safety
/// As [`finish`]; this block has planned if anything was `sent`.
#[inline(always)]
pub unsafe fn settle(block: &Block, sent: bool) {
    let exchange = &block.args.exchange;
    for far in thread::strided(exchange.shape.far_nodes()) {
        // SAFETY: the caller's promise.
        unsafe {
            let tokens = if sent { shared::load_u32(block.shared.far_tokens + 4 * far) } else { 0 };
            mem::store_u32(exchange.handle(exchange.handle.far_tokens).word(far), tokens);
        }
    }
}
