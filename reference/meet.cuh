// Where the blocks of a grid meet: device/src/meet.rs.
#pragma once
#include "gpu.cuh"

// True, on all threads, for the last block of the grid to arrive.
DEVICE bool last_block(Address counter) {
    block::barrier();
    bool last = false;
    if (block::is_first_thread()) {
        last = mem::fetch_add_acq_rel_gpu_u32(counter, 1) == thread::grid_size() - 1;
        if (last) mem::store_relaxed_gpu_u32(counter, 0);
    }
    return block::barrier_or(last);
}
