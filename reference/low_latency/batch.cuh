// What all kernels of a batch have in common: device/src/low_latency/batch.rs.
#pragma once
#include "../internode.cuh"
#include "layout.cuh"

namespace low_latency {

namespace halves {
constexpr u32 SEND = 1, RECEIVE = 2, BOTH = SEND | RECEIVE;
}

namespace channel {
constexpr u32 DISPATCH = 0, COMBINE = 1;
}

// What a batch counts.
enum class Step : u32 { DISPATCH_SENT, DISPATCH_RECEIVED, COMBINE_SENT, COMBINE_RECEIVED };

// Whose waits are measured.
enum class Waited : u32 { DISPATCH, COMBINE };

struct Batch {
    Shape shape;
    ArenaLayout arena;
    WorkspaceLayout work_layout;
    Address workspace;
    Address own;
    Address report;
    Trace trace;
    u64 timeout_ns;
    internode::Link link;
    u32 blocks;
    u32 rank;
    u32 first_near;

    DEVICE Address work(u64 offset) const { return workspace.offset(offset); }
    DEVICE Address peer(u32 of) const { return {mem::load_u64(work(work_layout.peers).long_at(of))}; }
    DEVICE bool is_far(u32 of) const { return of - first_near >= shape.near_ranks; }
    DEVICE Address epochs(Step step) const { return work(work_layout.epochs).long_at((u32)step * blocks); }
    DEVICE u64 next(Step step) const { return mem::load_u64(epochs(step).long_at(thread::block_index())) + 1; }

    // By every block, after a barrier behind `next`.
    DEVICE void count(Step step, u64 epoch) const {
        Address counts = epochs(step);
        if (block::is_first_thread()) mem::store_u64(counts.long_at(thread::block_index()), epoch);
        if (thread::block_index() == 0) {
            for (u32 absent = thread::grid_size() + thread::index(); absent < blocks; absent += thread::block_size()) {
                mem::store_u64(counts.long_at(absent), epoch);
            }
        }
    }

    // Tells every peer what this batch's earlier kernels have read of what it sent. By the last warp of the first
    // block.
    template <bool FAR>
    DEVICE void acknowledge(u64 deadline_ns) const {
        if (thread::block_index() != 0 || thread::warp_index() + 1 != thread::warps()) return;
        u64 dispatched = mem::load_u64(epochs(Step::DISPATCH_RECEIVED));
        u64 combined = mem::load_u64(epochs(Step::COMBINE_RECEIVED));
        // Partner: `may_send`, on the peer.
        mem::fence_acq_rel_sys();
        for (u32 to = thread::lane(); to < shape.ranks; to += thread::WARP) {
            if (FAR && is_far(to)) continue;
            Address there = peer(to);
            mem::store_relaxed_sys_u64(there.offset(arena.dispatch_read).long_at(rank), dispatched);
            mem::store_relaxed_sys_u64(there.offset(arena.combine_read).long_at(rank), combined);
        }
        if (FAR) {
            acknowledge_far(arena.dispatch_read, dispatched, deadline_ns);
            acknowledge_far(arena.combine_read, combined, deadline_ns);
        }
    }

    // Tells ranks of other nodes. A warp.
    DEVICE void acknowledge_far(u64 read, u64 epoch, u64 deadline_ns) const {
        u64 at = link.part + read + 8 * (u64)rank;
        for (u32 first = 0; first < shape.ranks; first += thread::WARP) {
            u32 to = first + thread::lane();
            bool has = to < shape.ranks && is_far(to);
            push(has, internode::Command::word({to, 0}, at, epoch), epoch, deadline_ns);
        }
    }

    // Gives the proxy commands, those of the lanes that have one; a report if there is no room in time. A warp.
    DEVICE void push(bool has, const internode::Command &command, u64 epoch, u64 deadline_ns) const {
        if (!link.ring.push(has, command, deadline_ns) && thread::lane() == 0) late(RING, rank, epoch, 0, 0);
    }

    // Signals ranks of other nodes, on all lanes, that all has been put. A warp, after a barrier behind the last put.
    DEVICE void signal_far(u32 channel, u64 epoch, u64 deadline_ns) const {
        u32 lanes = at_least_one(link.lanes);
        for (u32 first = 0; first < shape.ranks * lanes; first += thread::WARP) {
            u32 to = (first + thread::lane()) / lanes, lane = (first + thread::lane()) % lanes;
            bool has = to < shape.ranks && is_far(to);
            push(has, internode::Command::signal({to, lane}, link.channel + channel, epoch), epoch, deadline_ns);
        }
    }

    // Waits until all ranks of other nodes have signalled on all lanes; false, and a report, if one does not. By the
    // first block, whose threads share the lanes.
    DEVICE bool all_lanes(u32 channel, u64 epoch, u64 deadline_ns, Phase phase) const {
        u32 lanes = at_least_one(link.lanes);
        bool all = true;
        if (thread::block_index() == 0) {
            for (u32 index = thread::index(); index < shape.ranks * lanes; index += thread::block_size()) {
                u32 from = index / lanes, lane = index % lanes;
                if (!is_far(from)) continue;
                u64 seen;
                if (!link.wait(channel, from, lane, epoch, deadline_ns, seen)) {
                    late(phase, from, epoch, epoch, seen);
                    all = false;
                }
            }
        }
        return all;
    }

    // Adds up how long the batch's earlier kernels have waited. By the last warp of the last block.
    DEVICE void add_up_waits() const {
        bool is_last = thread::block_index() + 1 == thread::grid_size();
        if (!is_last || thread::warp_index() + 1 != thread::warps()) return;
        u64 dispatched = next(Step::DISPATCH_RECEIVED) - 1, combined = next(Step::COMBINE_RECEIVED) - 1;
        for (u32 of = thread::lane(); of < shape.ranks; of += thread::WARP) {
            add_up(Waited::DISPATCH, dispatched, of);
            add_up(Waited::COMBINE, combined, of);
        }
    }

    DEVICE Address waited(Waited what, u64 epoch, u32 source) const {
        u32 set = 2 * (u32)what + (u32)(epoch % 2);
        return work(work_layout.waited).word(set * shape.ranks + source);
    }

    DEVICE void add_up(Waited what, u64 epoch, u32 source) const {
        Address sum = work(work_layout.waits).long_at((u32)what * shape.ranks + source);
        Address last = waited(what, epoch, source);
        u32 ns = mem::load_u32(last);
        if (ns != 0) {
            mem::store_u64(sum, mem::load_u64(sum) + ns);
            mem::store_u32(last, 0);
        }
    }

    DEVICE void has_waited(Waited what, u64 epoch, u32 source, u64 waited_ns) const {
        u32 ns = waited_ns < MAX_U32 ? (u32)waited_ns : MAX_U32;
        mem::max_relaxed_gpu_u32(waited(what, epoch, source), ns);
    }

    // Waits until every peer has read what this rank sent it in the epoch before. A block's threads share the peers.
    DEVICE bool may_send(u64 read, u64 epoch, u64 deadline_ns) const {
        bool may = true;
        for (u32 of = thread::index(); of < shape.ranks; of += thread::block_size()) {
            // Partner: `acknowledge`, on the peer.
            u64 seen;
            if (!mem::wait_at_least_acquire_sys(own.offset(read).long_at(of), epoch - 1, deadline_ns, seen)) {
                late(READ, of, epoch, epoch - 1, seen);
                may = false;
            }
        }
        return may;
    }

    DEVICE void late(Phase phase, u32 of, u64 epoch, u64 expected, u64 seen) const {
        fail(Report(LATE, phase, of, epoch, expected, seen));
    }

    DEVICE void fail(const Report &why) const { write_report(work(work_layout.report_claim), report, why); }
};

// Addresses of peers' arenas in shared memory.
struct Peers {
    u32 at;

    DEVICE static u32 bytes(const Shape &shape) { return 8 * shape.ranks; }
    // For use behind the next barrier. By the whole block.
    DEVICE static Peers load(const Batch &batch, u32 at) {
        for (u32 peer = thread::index(); peer < batch.shape.ranks; peer += thread::block_size()) {
            shared::store_u64(at + 8 * peer, batch.peer(peer).at);
        }
        return {at};
    }
    DEVICE Address of(u32 rank) const { return {shared::load_u64(at + 8 * rank)}; }
};

// What a warp takes that shares work over the whole grid: warps of different blocks first.
struct Share {
    u32 item, end, step;

    DEVICE explicit Share(u32 items)
        : item(thread::warp_index() * thread::grid_size() + thread::block_index()), end(items),
          step(thread::warps() * thread::grid_size()) {}
    DEVICE bool has() const { return item < end; }
    DEVICE void advance() { item += step; }
};

}  // namespace low_latency
