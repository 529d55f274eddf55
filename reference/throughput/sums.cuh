// Sums of rows of 16-bit floats, in f32: device/src/throughput/sums.rs.
#pragma once
#include "../gpu.cuh"

namespace throughput {

// The 16-bit formats.
struct Bf16 {
    DEVICE static convert::Pair unpack(u32 packed) { return convert::bf16x2_to_f32(packed); }
    DEVICE static u32 pack(float low, float high) { return convert::f32_to_bf16x2(low, high); }
};

struct F16 {
    DEVICE static convert::Pair unpack(u32 packed) { return convert::f16x2_to_f32(packed); }
    DEVICE static u32 pack(float low, float high) { return convert::f32_to_f16x2(low, high); }
};

// Eight f32 sums: what a lane makes of one quad of each row.
struct Sums {
    float of[8];

    DEVICE static Sums zero() { return Sums{}; }

    // The first row's part. Not added to zero, so that -0 stays what it is.
    template <typename Half>
    DEVICE static Sums first(Quad quad) {
        Sums sums;
#pragma unroll
        for (int word = 0; word < 4; word++) {
            convert::Pair pair = Half::unpack(quad.words[word]);
            sums.of[2 * word] = pair.low;
            sums.of[2 * word + 1] = pair.high;
        }
        return sums;
    }

    DEVICE Sums times(float weight) const {
        Sums product;
#pragma unroll
        for (int at = 0; at < 8; at++) product.of[at] = of[at] * weight;
        return product;
    }

    DEVICE void add(const Sums &next) {
#pragma unroll
        for (int at = 0; at < 8; at++) of[at] += next.of[at];
    }

    template <typename Half>
    DEVICE Quad round() const {
        Quad quad;
#pragma unroll
        for (int word = 0; word < 4; word++) quad.words[word] = Half::pack(of[2 * word], of[2 * word + 1]);
        return quad;
    }
};

}  // namespace throughput
