// Arguments of low-latency combine: device/src/low_latency/combine/mod.rs.
#pragma once
#include "../batch.cuh"

namespace low_latency {

struct CombineArgs {
    Batch batch;
    Address y;
    Address topk_weights;
    Address out;
    u32 halves;
};

}  // namespace low_latency
