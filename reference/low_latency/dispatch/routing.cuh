// What a dispatch tells beside the rows: device/src/low_latency/dispatch/routing.rs.
#pragma once
#include "../../meet.cuh"
#include "../packet.cuh"
#include "args.cuh"

namespace low_latency {
namespace dispatch {

// Offsets in a block's dynamic shared memory, from its base.
struct Shared {
    u32 experts;
    u32 firsts;
    u32 places;
    u32 peers;
    u32 summary;

    DEVICE Shared(const Shape &shape, u32 blocks) {
        u32 slots = round_up(shape.tokens * shape.topk, 4);
        u32 own = div_ceil(shape.tokens, at_least_one(blocks));
        experts = 0;
        firsts = experts + 4 * slots;
        places = firsts + 4 * slots;
        peers = round_up(places + 4 * own * shape.topk, 8);
        summary = peers + Peers::bytes(shape);
    }
};

// This lane's weight of `token`, as bits; 0 without weights, and on lanes without a slot.
DEVICE u32 weight_of(const DispatchArgs &args, u32 token) {
    u32 topk = args.batch.shape.topk;
    if (args.topk_weights.is_null() || thread::lane() >= topk) return 0;
    return mem::load_u32(args.topk_weights.word(token * topk + thread::lane()));
}

// A block's view of a dispatch's routing.
struct Routing {
    const DispatchArgs &args;
    const Batch &batch;
    const Shape &shape;
    u64 epoch;
    u32 tag;
    // Addresses in shared memory.
    u32 experts, firsts, places, summary;
    Peers peers;
    // Tokens of this rank; 0 if its input is not valid.
    u32 tokens;
    bool valid;

    DEVICE Routing(const DispatchArgs &args, u64 epoch)
        : args(args), batch(args.batch), shape(args.batch.shape), epoch(epoch), tag(packet::tag(epoch)) {}

    // Loads and checks the routing, and makes sure that peers are ready for it; false, and a report, if one is late.
    // Ends with a barrier, ahead of which `meanwhile` is called.
    template <bool FAR, class Meanwhile>
    DEVICE bool begin(u64 deadline_ns, Meanwhile meanwhile) {
        Shared offsets(shape, thread::grid_size());
        u32 base = shared::base();
        experts = base + offsets.experts;
        firsts = base + offsets.firsts;
        places = base + offsets.places;
        summary = base + offsets.summary;
        u32 counted = args.tokens_at.is_null() ? args.tokens : mem::load_u32(args.tokens_at);
        bool fits = counted <= shape.tokens;
        if (!fits && thread::block_index() == 0 && block::is_first_thread()) {
            batch.fail(Report(TOO_MANY_TOKENS, NO_PHASE, batch.rank, epoch, shape.tokens, counted));
        }
        peers = Peers::load(batch, base + offsets.peers);
        tokens = fits ? counted : 0;
        valid = fits;
        bool all_valid = stage() && fits;
        batch.acknowledge<FAR>(deadline_ns);
        clear();
        meanwhile();
        bool ready = batch.may_send(batch.arena.dispatch_read, epoch, deadline_ns);
        if (!block::barrier_or(!(ready && all_valid))) return true;
        if (block::barrier_or(!ready)) return false;
        tokens = 0;
        valid = false;
        return true;
    }

    // Brings the routing to shared memory; false, and a report, if this thread has come upon an id out of range. A lane
    // has a slot, and a warp as many whole tokens as it has lanes for.
    DEVICE bool stage() const {
        u32 topk = at_least_one(shape.topk), lane = thread::lane();
        u32 at_once = thread::WARP / topk;
        u32 token_here = lane / topk;
        u32 slots = tokens * topk;
        bool all_valid = true;
        u32 groups = div_ceil(tokens, at_least_one(at_once));
        for (u32 group = thread::warp_index(); group < groups; group += thread::warps()) {
            u32 slot = group * at_once * topk + lane;
            u32 expert = MAX_U32;
            bool has_slot = token_here < at_once && slot < slots;
            if (has_slot) expert = mem::load_u32(args.topk_idx.word(slot));
            bool known = expert < shape.experts;
            if (!known && expert != MAX_U32) {
                all_valid = false;
                out_of_range(slot, expert);
            }
            // Experts have 14 bits.
            u32 of_token = known ? token_here << 16 | expert : MAX_U32;
            u32 same = warp::match_any(warp::ALL, of_token);
            if (has_slot) {
                bool first = known && (same & warp::lanes_below()) == 0;
                shared::store_u32(experts + 4 * slot, expert);
                shared::store_u32(firsts + 4 * slot, first ? expert : NO_ROW);
            }
        }
        for (u32 slot = slots + thread::index(); slot < round_up(slots, 4); slot += 4) {
            shared::store_u32(firsts + 4 * slot, NO_ROW);
        }
        return all_valid;
    }

    DEVICE void out_of_range(u32 slot, u32 expert) const {
        u32 topk = at_least_one(shape.topk);
        batch.fail(Report(EXPERT_OUT_OF_RANGE, NO_PHASE, batch.rank, epoch, shape.experts, expert, slot / topk,
                          slot % topk));
    }

    // Tokens that this block tells of.
    DEVICE u32 own_tokens() const {
        u32 left = tokens > thread::block_index() ? tokens - thread::block_index() : 0;
        return div_ceil(left, at_least_one(thread::grid_size()));
    }

    // Makes places and summary zero.
    DEVICE void clear() const {
        u32 own = own_tokens() * shape.topk;
        for (u32 place = thread::index(); place < own; place += thread::block_size()) {
            shared::store_u32(places + 4 * place, 0);
        }
        clear_summary();
    }

    // The rank that this lane's slot of `token` goes to, `MAX_U32` for none, and the lanes that are the first of their
    // token to go to theirs. All lanes of a warp.
    DEVICE u32 destinations(u32 token, u32 &leaders) const {
        u32 rank = MAX_U32;
        if (thread::lane() < shape.topk) {
            u32 slot = token * shape.topk + thread::lane();
            u32 expert = shared::load_u32(experts + 4 * slot);
            if (expert < shape.experts) rank = expert / shape.experts_per_rank();
        }
        u32 same = warp::match_any(warp::ALL, rank);
        bool first = rank != MAX_U32 && (same & warp::lanes_below()) == 0;
        leaders = warp::ballot(warp::ALL, first);
        return rank;
    }

    // Tells everybody. `first_weight` is this lane's weight in the first token that this warp tells of. By the whole
    // block.
    template <bool FAR>
    DEVICE void tell(u32 first_weight) const {
        u32 slots = tokens * shape.topk, blocks = thread::grid_size();
        u32 own = own_tokens();
        count_places(own);
        u32 peer = thread::block_index();
        if (peer < shape.ranks) count_summary(peer);
        block::barrier();
        for (u32 index = thread::warp_index(); index < own; index += thread::warps()) {
            tell_message<FAR>(index, first_weight);
        }
        while (peer < shape.ranks) {
            tell_summary<FAR>(peer);
            peer += blocks;
            if (peer < shape.ranks) {
                block::barrier();
                clear_summary();
                block::barrier();
                count_summary(peer);
                block::barrier();
            }
        }
        // For the receiving half of the combine.
        if (thread::block_index() == 0) {
            const WorkspaceLayout &work = batch.work_layout;
            for (u32 slot = thread::index(); slot < slots; slot += thread::block_size()) {
                u32 expert = shared::load_u32(experts + 4 * slot);
                mem::store_u32(batch.work(work.topk_idx).word(slot), expert);
            }
            if (block::is_first_thread()) mem::store_u32(batch.work(work.tokens), tokens);
        }
    }

    // For each slot of the block's tokens, how many earlier tokens name its expert. Warps share the earlier tokens.
    DEVICE void count_places(u32 own) const {
        u32 topk = shape.topk;
        for (u32 index = 0; index < own; index++) {
            u32 token = thread::block_index() + index * thread::grid_size();
            u32 earlier = token * topk;
            u32 expert = thread::lane() < topk ? shared::load_u32(experts + 4 * (earlier + thread::lane())) : NO_ROW;
            u32 named = 0;
            for (u32 quad = thread::warp_index(); quad < div_ceil(earlier, 4); quad += thread::warps()) {
                Quad four = shared::load_quad(firsts + 16 * quad);
#pragma unroll
                for (u32 at = 0; at < 4; at++) named += four.words[at] == expert && 4 * quad + at < earlier;
            }
            if (named > 0 && expert != NO_ROW) shared::add_u32(places + 4 * (index * topk + thread::lane()), named);
        }
    }

    DEVICE void clear_summary() const {
        u32 words = 3 * shape.summary_packets();
        for (u32 word = thread::index(); word < words; word += thread::block_size()) {
            shared::store_u32(summary + 4 * word, 0);
        }
    }

    // Adds up what `peer` is told.
    DEVICE void count_summary(u32 peer) const {
        u32 mine = shape.experts_per_rank(), bits = summary::TOKENS_THERE;
        u32 topk = at_least_one(shape.topk);
        auto there = [&](u32 expert) { return expert - peer * mine < mine; };
        u32 slots = tokens * topk;
        for (u32 slot = thread::index(); slot < slots; slot += thread::block_size()) {
            u32 expert = shared::load_u32(firsts + 4 * slot);
            if (!there(expert)) continue;
            u32 word = bits + shape.token_bits() + (expert - peer * mine);
            shared::add_u32(summary + 4 * word, 1);
            u32 token = slot / topk;
            bool first = true;
            for (u32 back = 1; back < slot % topk + 1; back++) {
                first &= !there(shared::load_u32(firsts + 4 * (slot - back)));
            }
            if (first) shared::add_u32(summary + 4 * (bits + token / 32), 1u << (token % 32));
        }
        if (block::is_first_thread()) {
            shared::add_u32(summary + 4 * summary::TOKENS, valid ? tokens : summary::INVALID);
        }
    }

    // Sends `peer` its summary.
    template <bool FAR>
    DEVICE void tell_summary(u32 peer) const {
        if (FAR && batch.is_far(peer)) {
            Address to = far_summary(peer);
            for (u32 word = thread::index(); word < shape.summary_words(); word += thread::block_size()) {
                mem::store_u32(to.word(word), shared::load_u32(summary + 4 * word));
            }
            return;
        }
        // Partner of the packets: the receiving half's wait for summaries, on `peer`.
        u32 packets = shape.summary_packets();
        Address region = peers.of(peer).offset(batch.arena.summaries);
        for (u32 index = thread::index(); index < packets; index += thread::block_size()) {
            u32 a = shared::load_u32(summary + 4 * (3 * index));
            u32 b = shared::load_u32(summary + 4 * (3 * index + 1));
            u32 c = shared::load_u32(summary + 4 * (3 * index + 2));
            packet::write(packet::nth(region, batch.rank * packets + index), a, b, c, tag);
        }
    }

    // Begins the messages of one of the block's tokens, a packet for each slot: expert there and place among the rank's
    // rows for it, or `NO_ROW`; weight; how many ranks below the token goes to. A warp.
    template <bool FAR>
    DEVICE void tell_message(u32 index, u32 first_weight) const {
        u32 token = thread::block_index() + index * thread::grid_size();
        u32 lane = thread::lane(), mine = shape.experts_per_rank();
        u32 leaders, rank = destinations(token, leaders);
        u32 expert = 0, place = 0, bits = 0;
        if (lane < shape.topk) {
            expert = shared::load_u32(experts + 4 * (token * shape.topk + lane));
            place = shared::load_u32(places + 4 * (index * shape.topk + lane));
            bits = index == thread::warp_index() ? first_weight : weight_of(args, token);
        }
        u32 left = leaders;
        if (FAR) {
            u32 far = warp::ballot(warp::ALL, batch.is_far(rank)) & leaders;
            left &= ~far;
            if (far != 0 && lane < shape.topk) {
                u32 row = rank != MAX_U32 ? expert << 16 | place : NO_ROW;
                mem::store_u64(far_message(token).long_at(lane), (u64)bits << 32 | row);
            }
        }
        while (left != 0) {
            u32 peer = warp::shuffle(warp::ALL, rank, warp::trailing_zeros(left));
            bool below = (leaders >> lane & 1) != 0 && rank < peer;
            u32 part = __popc(warp::ballot(warp::ALL, below));
            if (lane < shape.topk) {
                u32 row = rank == peer ? (expert - peer * mine) << 16 | place : NO_ROW;
                packet::write(packet::nth(message(peer, token), lane), row, bits, part, tag);
            }
            left &= left - 1;
        }
    }

    // Where in the outbox `token`'s message for ranks of other nodes is.
    DEVICE Address far_message(u32 token) const {
        return batch.own.offset(batch.arena.outbox_messages + (u64)token * shape.far_message_bytes());
    }

    // Where in the outbox the summary for `peer` is.
    DEVICE Address far_summary(u32 peer) const {
        return batch.own.offset(batch.arena.outbox_summaries + (u64)peer * shape.far_summary_bytes());
    }

    // Has the proxy send what the outbox holds, once all blocks have written it. By the whole block.
    DEVICE void post(u64 deadline_ns) const {
        const ArenaLayout &arena = batch.arena;
        const internode::Link &link = batch.link;
        u32 channel = link.channel + channel::DISPATCH;
        if (!last_block(batch.work(batch.work_layout.meetings).word(channel::DISPATCH))) return;
        internode::Ring::release();
        for (u32 token = thread::warp_index(); token < tokens; token += thread::warps()) {
            u32 leaders, rank = destinations(token, leaders);
            u64 there = (u64)(batch.rank * shape.tokens + token) * shape.message_packets();
            u64 from = link.part + arena.outbox_messages + (u64)token * shape.far_message_bytes();
            u64 at = link.part + arena.messages + packet::PACKET_BYTES * there;
            bool has = (leaders >> thread::lane() & 1) != 0 && batch.is_far(rank);
            auto command =
                internode::Command::put({rank, link.lane_of(token)}, channel, from, at, shape.far_message_bytes());
            batch.push(has, command, epoch, deadline_ns);
        }
        for (u32 group = thread::warp_index(); group < div_ceil(shape.ranks, thread::WARP); group += thread::warps()) {
            u32 peer = group * thread::WARP + thread::lane();
            u64 there = (u64)batch.rank * shape.summary_packets();
            u64 from = link.part + arena.outbox_summaries + (u64)peer * shape.far_summary_bytes();
            u64 at = link.part + arena.summaries + packet::PACKET_BYTES * there;
            bool has = peer < shape.ranks && batch.is_far(peer);
            auto command = internode::Command::put({peer, 0}, channel, from, at, shape.far_summary_bytes());
            batch.push(has, command, epoch, deadline_ns);
        }
        // Places in the ring are in the order of the puts and, behind the barrier, the signals.
        block::barrier();
        if (thread::warp_index() == 0) batch.signal_far(channel::DISPATCH, epoch, deadline_ns);
    }

    // Where `token`'s message for `peer` goes.
    DEVICE Address message(u32 peer, u32 token) const {
        u64 index = (u64)(batch.rank * shape.tokens + token) * shape.message_packets();
        return packet::nth(peers.of(peer).offset(batch.arena.messages), index);
    }
};

}  // namespace dispatch
}  // namespace low_latency
