// Low-latency dispatch: device/src/low_latency/dispatch/mod.rs.
#include "dispatch/receive.cuh"
#include "dispatch/send.cuh"

namespace low_latency {
namespace dispatch {

// `FAR`: there are ranks of other nodes. Arguments by value, as behind a reference they are loaded again after every
// `asm` that clobbers memory.
template <bool FAR>
DEVICE void run(DispatchArgs args) {
    if (args.halves & halves::SEND) send<FAR>(args);
    // Both use the same shared memory.
    if (args.halves == halves::BOTH) block::barrier();
    if (args.halves & halves::RECEIVE) receive<FAR>(args);
}

}  // namespace dispatch
}  // namespace low_latency

KERNEL(tokenrail_low_latency_dispatch, low_latency::DispatchArgs, low_latency::dispatch::run<false>(args))
KERNEL(tokenrail_low_latency_dispatch_across, low_latency::DispatchArgs, low_latency::dispatch::run<true>(args))
