// The rail, and when a lane's flags are set: device/src/throughput/across/mod.rs and lanes.rs.
#pragma once
#include "../../gpu.cuh"
#include "../../internode.cuh"
#include "../../wire.cuh"

namespace throughput::across {

using internode::Command;
using internode::Link;
using internode::Ring;
using internode::Target;

// Channels of a dispatch in flight. Counts have this and the next in turn.
namespace channel {
constexpr u32 COUNTS = 0, MESSAGES = 2, PARTIALS = 3;
}

// The lane that a token's message and partials go by.
DEVICE u32 lane_of(const Link &link, u32 token) { return link.lane_of(token / CHUNK); }

// The ranks with this one's number on other nodes. These are numbered without one's own.
struct Rail {
    u32 near_ranks;
    u32 node;
    u32 number;

    DEVICE Rail(const Shape &shape, u32 rank)
        : near_ranks(at_least_one(shape.near_ranks)), node(rank / near_ranks), number(rank % near_ranks) {}

    // The rail's rank on another node.
    DEVICE u32 rank(u32 far) const { return (far + (far >= node)) * near_ranks + number; }
    // The node of `of` among the others.
    DEVICE u32 far_node(u32 of) const {
        u32 its = of / near_ranks;
        return its - (its > node);
    }
    // This node among the others as one of them sees it.
    DEVICE u32 own_node(u32 far) const { return node - (far < node); }
};

// Gives the proxy commands, those of the lanes that have one; a report if there is no room in time. A warp.
DEVICE void push(const Exchange &exchange, const Link &link, bool has, const Command &command, u64 epoch,
                 u64 deadline_ns) {
    if (!link.ring.push(has, command, deadline_ns) && thread::lane() == 0) {
        exchange.fail(Report(LATE, RING, exchange.rank, epoch, 0, 0));
    }
}

// What an operation puts to the ranks of its rail.
struct Lanes {
    const Exchange &exchange;
    const Link &link;
    u32 channel;
    u64 epoch;
    u64 deadline_ns;

    DEVICE Rail rail() const { return Rail(exchange.shape, exchange.rank); }

    // This warp has put all that it will on `lane`; the last warp of the grid signals the rail. By every warp, once for
    // each lane.
    DEVICE void done(u32 lane) const {
        // Puts of the warp's other lanes come before the addition.
        warp::barrier(warp::ALL);
        bool last = false;
        if (thread::lane() == 0) {
            Address counter = exchange.work(exchange.work_layout.lanes_done).word(lane);
            u32 warps = thread::grid_size() * thread::warps();
            last = mem::fetch_add_acq_rel_gpu_u32(counter, 1) + 1 == warps;
            if (last) mem::store_relaxed_gpu_u32(counter, 0);
        }
        if (warp::ballot(warp::ALL, last) != 0) signal(lane);
    }

    DEVICE void signal(u32 lane) const {
        Rail rail = this->rail();
        u32 nodes = exchange.shape.far_nodes();
        for (u32 first = 0; first < nodes; first += thread::WARP) {
            u32 far = first + thread::lane();
            Command signal = Command::signal({rail.rank(far), lane}, link.channel + channel, epoch);
            push(exchange, link, far < nodes, signal, epoch, deadline_ns);
        }
    }

    // Waits until the rail's rank on another node has signalled a lane; false, and a report, if it does not in time.
    DEVICE bool wait(u32 far, u32 lane, Phase phase) const {
        u32 peer = rail().rank(far);
        u64 seen;
        if (link.wait(channel, peer, lane, epoch, deadline_ns, seen)) return true;
        exchange.fail(Report(LATE, phase, peer, epoch, epoch, seen));
        return false;
    }

    // Waits for all lanes of the whole rail. False, and a report, if one is not signalled. A block's threads share the
    // lanes: follow with a barrier.
    DEVICE bool wait_all(Phase phase) const {
        u32 lanes = at_least_one(link.lanes);
        u32 number = exchange.shape.far_nodes() * lanes;
        bool all = true;
        for (u32 index = thread::index(); index < number; index += thread::block_size()) {
            all &= wait(index / lanes, index % lanes, phase);
        }
        return all;
    }
};

}  // namespace throughput::across
