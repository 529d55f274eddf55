// bf16 rows to FP8 e4m3: device/src/quantize.rs.
#include "quantize.cuh"
#include "wire.cuh"

namespace quantize {

struct QuantizeArgs {
    Address x;
    Address quantized;
    Address scales;
    u32 rows;
    u32 hidden;
    u32 ue8m0;
};

DEVICE void quantize(const QuantizeArgs &args) {
    u32 groups = div_ceil(args.hidden, SCALE_CHANNELS);
    u32 first = thread::block_index() * thread::warps() + thread::warp_index();
    for (u32 row = first; row < args.rows; row += thread::grid_size() * thread::warps()) {
        // The scales of up to four groups, until their word is whole.
        u32 packed = 0;
        for (u32 group = 0; group < groups; group++) {
            u32 channel = group * SCALE_CHANNELS + 4 * thread::lane();
            bool inside = channel < args.hidden;
            u64 at = (u64)row * args.hidden + channel;
            u64 four = inside ? mem::load_u64(args.x.offset(2 * at)) : 0;
            convert::Pair low = convert::bf16x2_to_f32((u32)four), high = convert::bf16x2_to_f32((u32)(four >> 32));
            float amax = larger(larger(larger(larger(AMAX_FLOOR, low.low), low.high), high.low), high.high);
            amax = warp::max_f32(amax);
            u32 code = scale_code(amax);
            float factor = args.ue8m0 == 0 ? E4M3_MAX / amax : inverse(code);
            if (inside) {
                u32 low_codes = convert::f32_to_e4m3x2(low.low * factor, low.high * factor);
                u32 high_codes = convert::f32_to_e4m3x2(high.low * factor, high.high * factor);
                mem::store_u32(args.quantized.offset(at), high_codes << 16 | low_codes);
            }
            packed = (group % 4 == 0 ? 0 : packed) | code << (8 * (group % 4));
            bool whole = group % 4 == 3 || group + 1 == groups;
            if (thread::lane() == 0 && args.ue8m0 == 0) {
                mem::store_u32(args.scales.word(row * groups + group), __float_as_uint(amax / E4M3_MAX));
            } else if (thread::lane() == 0 && whole) {
                mem::store_u32(args.scales.word(row * div_ceil(groups, 4) + group / 4), packed);
            }
        }
    }
}

}  // namespace quantize

KERNEL(tokenrail_quantize, quantize::QuantizeArgs, quantize::quantize(args))
