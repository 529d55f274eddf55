// Low-latency combine: device/src/low_latency/combine/mod.rs.
#include "combine/receive.cuh"
#include "combine/send.cuh"

namespace low_latency {
namespace combine {

// `AHEAD` rows, 1 to 4, are on their way to a warp at once. `FAR`: there are ranks of other nodes.
// Arguments by value: see the dispatch's.
template <class F, u32 AHEAD, bool FAR>
DEVICE void run(CombineArgs args) {
    if (args.halves & halves::SEND) send<F, AHEAD, FAR>(args);
    // For the counts of epochs.
    if (args.halves == halves::BOTH) block::barrier();
    if (args.halves & halves::RECEIVE) receive<F, AHEAD, FAR>(args);
}

}  // namespace combine
}  // namespace low_latency

#define COMBINE(entry, format, ahead, far) \
    KERNEL(entry, low_latency::CombineArgs, (low_latency::combine::run<low_latency::format, ahead, far>(args)))
COMBINE(tokenrail_low_latency_combine, Bf16, 4, false)
COMBINE(tokenrail_low_latency_combine_fp8, E4m3, 1, false)
COMBINE(tokenrail_low_latency_combine_log10, Log10, 1, false)
COMBINE(tokenrail_low_latency_combine_across, Bf16, 1, true)
COMBINE(tokenrail_low_latency_combine_fp8_across, E4m3, 1, true)
COMBINE(tokenrail_low_latency_combine_log10_across, Log10, 1, true)
#undef COMBINE
