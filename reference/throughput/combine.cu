// Combine: every rank pulls the partial results of its tokens and sums them: device/src/throughput/combine.rs.
#include "../meet.cuh"
#include "across/combine.cuh"
#include "combine.cuh"
#include "pull.cuh"

namespace throughput::combine {

template <typename Pull>
DEVICE void combine(const CombineArgs &args, Pull pull) {
    const Exchange &exchange = args.exchange;
    u32 ranks = exchange.shape.ranks;
    Address at = exchange.work(exchange.work_layout.combine_epoch);
    u64 epoch = mem::load_u64(at) + 1;
    u32 tokens = mem::load_u32(exchange.handle(exchange.handle_layout.tokens));
    u64 deadline_ns = clock_::now_ns() + exchange.timeout_ns;
    if (thread::block_index() == 0) {
        for (u32 peer = thread::index(); peer < ranks; peer += thread::block_size()) {
            // Partner: the wait for ready_flags below, on `peer` (acquire, sys). What it releases: the outputs, which
            // stream order puts before this kernel.
            Address flag = exchange.peer(peer).offset(exchange.arena.ready_flags).long_at(exchange.rank);
            mem::store_release_sys_u64(flag, epoch);
        }
    }
    bool late = false;
    for (u32 peer = thread::index(); peer < ranks; peer += thread::block_size()) {
        late |= !exchange.wait_flag(exchange.arena.ready_flags, peer, epoch, deadline_ns, READY);
    }
    if (!block::barrier_or(late)) {
        if (!args.slots_out.is_null()) pull::slots(args, tokens);
        pull::tokens_of_all_ranks(args, tokens, pull);
    }
    if (last_block(exchange.work(exchange.work_layout.arrived)) && block::is_first_thread()) {
        mem::store_u64(at, epoch);
    }
}

}  // namespace throughput::combine

KERNEL(tokenrail_combine, throughput::combine::CombineArgs,
       throughput::combine::combine(args, throughput::pull::Bulk(args)))
KERNEL(tokenrail_combine_plain, throughput::combine::CombineArgs,
       throughput::combine::combine(args, throughput::pull::Plain{}))
KERNEL(tokenrail_combine_across, throughput::combine::CombineAcrossArgs,
       throughput::across::combine::combine(args, throughput::pull::Bulk(args.combine)))
KERNEL(tokenrail_combine_across_plain, throughput::combine::CombineAcrossArgs,
       throughput::across::combine::combine(args, throughput::pull::Plain{}))
