// The end of a dispatch across nodes: device/src/throughput/across/finish.rs.
#pragma once
#include "../dispatch.cuh"
#include "lanes.cuh"

namespace throughput::across::finish {

using dispatch::Block;

// Waits for all that the rail has sent, and tells it that its messages were read. False, and a report, if something has
// not come. By the last block.
DEVICE bool finish(const Block &block) {
    const Exchange &exchange = block.args.exchange;
    const Link &link = block.link;
    Lanes lanes{exchange, link, channel::MESSAGES, block.epoch, block.deadline_ns};
    bool all = lanes.wait_all(MESSAGES);
    if (block::barrier_or(!all)) return false;
    if (thread::warp_index() == 0) {
        Ring::release();
        Rail rail = lanes.rail();
        u32 nodes = exchange.shape.far_nodes();
        for (u32 first = 0; first < nodes; first += thread::WARP) {
            u32 far = first + thread::lane();
            u64 at = link.part + exchange.arena.forwarded + 8 * (u64)rail.own_node(far);
            Command word = Command::word({rail.rank(far), 0}, at, block.epoch);
            push(exchange, link, far < nodes, word, block.epoch, block.deadline_ns);
        }
    }
    return true;
}

// Keeps in the handle how many tokens the rail's other ranks have; none after a failure.
DEVICE void settle(const Block &block, bool sent) {
    const Exchange &exchange = block.args.exchange;
    for (u32 far = thread::index(); far < exchange.shape.far_nodes(); far += thread::block_size()) {
        u32 tokens = sent ? shared::load_u32(block.shared.far_tokens + 4 * far) : 0;
        mem::store_u32(exchange.handle(exchange.handle_layout.far_tokens).word(far), tokens);
    }
}

}  // namespace throughput::across::finish
