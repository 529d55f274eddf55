// What the kernels of combine are given: the structs of device/src/throughput/combine.rs.
#pragma once
#include "../internode.cuh"
#include "../wire.cuh"

namespace throughput::combine {

struct CombineArgs {
    Exchange exchange;
    Address out;
    Address bias[2];
    Address slots_out;
    u32 from_inbox;
    u32 piece_bytes;
    u32 stages;
};

struct CombineAcrossArgs {
    CombineArgs combine;
    internode::Link link;
};

// Offsets in a block's dynamic shared memory, from its base.
struct Shared {
    // mbarriers [warp, stage].
    u32 barriers;
    // Bytes [warp, stage, route_width, piece_bytes].
    u32 stages;

    DEVICE Shared(u32 warps, u32 count) : barriers(0), stages(round_up(8 * warps * count, 128)) {}
};

}  // namespace throughput::combine
