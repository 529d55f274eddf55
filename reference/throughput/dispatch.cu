// Dispatch: device/src/throughput/dispatch.rs.
#include "../meet.cuh"
#include "across/forward.cuh"
#include "across/pack.cuh"
#include "announce.cuh"
#include "arrive.cuh"
#include "count.cuh"
#include "dispatch.cuh"
#include "expand.cuh"
#include "plan.cuh"
#include "send.cuh"

namespace throughput::dispatch {

// What a warp does with a block's rows.
using Rows = void(const Block &);

template <bool BY_EXPERT, bool ACROSS, Rows SEND, Rows FORWARD, Rows EXPAND>
DEVICE void dispatch(const DispatchArgs &args, const Link &link) {
    const Exchange &exchange = args.exchange;
    const Block block = Block::make<BY_EXPERT>(args, link);
    Address meetings = exchange.work(exchange.work_layout.arrived);
    if (args.cached == 0) {
        count::count<BY_EXPERT>(block);
        if (last_block(meetings)) announce::announce<BY_EXPERT, ACROSS>(block);
    } else if (thread::block_index() == 0) {
        announce::announce_handle<ACROSS>(block);
    }
    if (exchange.shape.side_words[0] != 0 && block::is_first_thread()) send::list_sides(block);
    if (ACROSS) across::pack::pack<BY_EXPERT>(block);
    plan::Plan plan = plan::plan<BY_EXPERT, ACROSS>(block);
    if (plan.send) {
        if (!BY_EXPERT && !ACROSS && args.cached == 0) announce::send_expert_counts(block);
        if (thread::warp_index() < args.senders) {
            SEND(block);
            if (ACROSS) FORWARD(block);
        } else if (plan.expand) {
            EXPAND(block);
        } else {
            expand::clear(block);
        }
    }
    if (last_block(meetings.word(1))) {
        if (args.pack == 0) arrive::signal<ACROSS>(block);
        // While the rows are on their way.
        arrive::settle<BY_EXPERT, ACROSS>(block);
        if (args.pack == 0) arrive::wait<BY_EXPERT, ACROSS>(block);
    }
}

// A dispatch whose ranks reach each other's memory.
template <bool BY_EXPERT, Rows SEND, Rows EXPAND>
DEVICE void near(const DispatchArgs &args) {
    const Link none = Link::none();
    dispatch<BY_EXPERT, false, SEND, expand::nothing, EXPAND>(args, none);
}

// A dispatch across nodes.
template <bool BY_EXPERT, Rows SEND, Rows FORWARD, Rows EXPAND>
DEVICE void across_nodes(const DispatchAcrossArgs &args) {
    dispatch<BY_EXPERT, true, SEND, FORWARD, EXPAND>(args.dispatch, args.link);
}

DEVICE void dispatch_bulk(const DispatchArgs &args) {
    near<false, send::bulk<false, false>, expand::nothing>(args);
}

DEVICE void dispatch_plain(const DispatchArgs &args) {
    near<false, send::plain<false, false>, expand::nothing>(args);
}

DEVICE void dispatch_by_expert_bulk(const DispatchArgs &args) {
    near<true, send::bulk<true, false>, expand::bulk>(args);
}

DEVICE void dispatch_by_expert_plain(const DispatchArgs &args) {
    near<true, send::plain<true, false>, expand::plain>(args);
}

DEVICE void across_bulk(const DispatchAcrossArgs &args) {
    across_nodes<false, send::bulk<false, true>, across::forward::bulk<false>, expand::nothing>(args);
}

DEVICE void across_plain(const DispatchAcrossArgs &args) {
    across_nodes<false, send::plain<false, true>, across::forward::plain<false>, expand::nothing>(args);
}

DEVICE void by_expert_across_bulk(const DispatchAcrossArgs &args) {
    across_nodes<true, send::bulk<true, true>, across::forward::bulk<true>, expand::bulk>(args);
}

DEVICE void by_expert_across_plain(const DispatchAcrossArgs &args) {
    across_nodes<true, send::plain<true, true>, across::forward::plain<true>, expand::plain>(args);
}

// The end of a dispatch whose rows were packed and moved by copy engines. One block.
DEVICE void arrive_alone(const DispatchArgs &args) {
    const Link none = Link::none();
    const Block block = Block::make<false>(args, none);
    arrive::signal<false>(block);
    arrive::wait<false, false>(block);
}

}  // namespace throughput::dispatch

KERNEL(tokenrail_dispatch, throughput::dispatch::DispatchArgs, throughput::dispatch::dispatch_bulk(args))
KERNEL(tokenrail_dispatch_plain, throughput::dispatch::DispatchArgs, throughput::dispatch::dispatch_plain(args))
KERNEL(tokenrail_dispatch_by_expert, throughput::dispatch::DispatchArgs,
       throughput::dispatch::dispatch_by_expert_bulk(args))
KERNEL(tokenrail_dispatch_by_expert_plain, throughput::dispatch::DispatchArgs,
       throughput::dispatch::dispatch_by_expert_plain(args))
KERNEL(tokenrail_dispatch_across, throughput::dispatch::DispatchAcrossArgs, throughput::dispatch::across_bulk(args))
KERNEL(tokenrail_dispatch_across_plain, throughput::dispatch::DispatchAcrossArgs,
       throughput::dispatch::across_plain(args))
KERNEL(tokenrail_dispatch_by_expert_across, throughput::dispatch::DispatchAcrossArgs,
       throughput::dispatch::by_expert_across_bulk(args))
KERNEL(tokenrail_dispatch_by_expert_across_plain, throughput::dispatch::DispatchAcrossArgs,
       throughput::dispatch::by_expert_across_plain(args))
KERNEL(tokenrail_arrive, throughput::dispatch::DispatchArgs, throughput::dispatch::arrive_alone(args))
