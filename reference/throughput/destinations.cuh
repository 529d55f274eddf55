// Which ranks a token goes to: device/src/throughput/destinations.rs.
#pragma once
#include "../gpu.cuh"
#include "../wire.cuh"

namespace throughput::destinations {

// The destinations of `token` among the ranks `first..first + 32`, as a bit mask. Ids out of range count as empty.
DEVICE u32 mask(const Shape &shape, Address topk_idx, u32 token, u32 first) {
    u32 mask = 0;
    for (u32 slot = 0; slot < shape.topk; slot++) {
        u32 expert = mem::load_u32(topk_idx.word(token * shape.topk + slot));
        // −1 is above every expert as an unsigned number.
        if (expert < shape.experts) {
            u32 rank = expert / shape.experts_per_rank() - first;
            mask |= rank < 32 ? 1u << rank : 0;
        }
    }
    return mask;
}

}  // namespace throughput::destinations
