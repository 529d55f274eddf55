// Arguments of low-latency dispatch: device/src/low_latency/dispatch/mod.rs.
#pragma once
#include "../batch.cuh"

namespace low_latency {

struct DispatchArgs {
    Batch batch;
    Address x;
    Address topk_idx;
    Address topk_weights;
    Address tokens_at;
    u32 tokens;
    u32 halves;
    Address out;
    Address out_scales;
};

}  // namespace low_latency
