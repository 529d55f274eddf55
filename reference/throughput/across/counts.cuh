// Counts for ranks of other nodes: device/src/throughput/across/counts.rs.
#pragma once
#include "../dispatch.cuh"
#include "lanes.cuh"

namespace throughput::across::counts {

using dispatch::Block;

// The channel of a dispatch's counts, and its how manieth signal this is.
struct Signal {
    u32 channel;
    u64 value;

    DEVICE explicit Signal(u64 epoch)
        : channel(channel::COUNTS + (u32)(epoch % 2)), value(epoch / 2 + (epoch % 2 != 0)) {}
};

// Where the words for `peer` are put together.
DEVICE Address outbox(const Block &block, u32 peer) {
    const Exchange &exchange = block.args.exchange;
    return exchange.own().offset(exchange.arena.count_outbox_of(exchange.shape, block.epoch, peer));
}

// Has the proxy send them. A warp, once they are written.
DEVICE void post(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Link &link = block.link;
    const Shape &shape = exchange.shape;
    const ArenaLayout &arena = exchange.arena;
    Signal signal(block.epoch);
    u32 channel = link.channel + signal.channel;
    Ring::release();
    for (u32 first = 0; first < 2 * shape.ranks; first += thread::WARP) {
        // The puts, then the signals: the ring keeps the order.
        u32 at = first + thread::lane();
        bool puts = at < shape.ranks;
        u32 peer = puts ? at : at - shape.ranks;
        Target to{peer, 0};
        Command command;
        if (puts) {
            u64 from = link.part + arena.count_outbox_of(shape, block.epoch, peer);
            u64 there = link.part + arena.counts_of(shape, block.epoch, exchange.rank);
            command = Command::put(to, channel, from, there, 4 * shape.count_words());
        } else {
            command = Command::signal(to, channel, signal.value);
        }
        bool has = peer < shape.ranks && !block.is_near(peer);
        push(exchange, link, has, command, block.epoch, block.deadline_ns);
    }
}

// Waits for those of `peer`; false, and a report, if they do not come.
DEVICE bool wait(const Block &block, u32 peer) {
    Signal signal(block.epoch);
    u64 seen;
    if (block.link.wait(signal.channel, peer, 0, signal.value, block.deadline_ns, seen)) return true;
    block.args.exchange.fail(Report(LATE, COUNTS, peer, block.epoch, signal.value, seen));
    return false;
}

}  // namespace throughput::across::counts
