// What packets carry, bf16, FP8 with scales, 10-bit logarithms: device/src/low_latency/format.rs.
#pragma once
#include "../quantize.cuh"
#include "packet.cuh"

namespace low_latency {

// Lanes that have 128 channels between them.
constexpr u32 GROUP_LANES = 8;

// The f32 values of a lane's cells, by plane; of bf16 the first eight of each.
struct Values {
    float of[3][16];
};

// A lane's quads of bf16 in a tile of a row, by plane: the second ones where cells have 16 channels.
struct Quads {
    Quad of[3][2];
};

// The values of a lane's quads.
template <class F>
DEVICE Values values(const Quads &quads) {
    Values values{};
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
#pragma unroll
        for (u32 quad = 0; quad < F::QUADS; quad++) {
#pragma unroll
            for (u32 word = 0; word < 4; word++) {
                convert::Pair pair = convert::bf16x2_to_f32(quads.of[plane][quad].words[word]);
                values.of[plane][8 * quad + 2 * word] = pair.low;
                values.of[plane][8 * quad + 2 * word + 1] = pair.high;
            }
        }
    }
    return values;
}

// Eight values, rounded to bf16.
DEVICE Quad pack(const float *eight) {
    return {{convert::f32_to_bf16x2(eight[0], eight[1]), convert::f32_to_bf16x2(eight[2], eight[3]),
             convert::f32_to_bf16x2(eight[4], eight[5]), convert::f32_to_bf16x2(eight[6], eight[7])}};
}

// From each lane's word for the group that it is of, by plane, to what the first four lanes send.
DEVICE void gather(u32 (&groups)[3]) {
    u32 from = GROUP_LANES * (thread::lane() % 4);
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) groups[plane] = warp::shuffle(warp::ALL, groups[plane], from);
}

// From what the first four lanes have received to each lane's word for the group that it is of.
DEVICE Three spread(const u32 (&groups)[3]) {
    Three spread;
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
        spread.words[plane] = warp::shuffle(warp::ALL, groups[plane], thread::lane() / GROUP_LANES);
    }
    return spread;
}

// How FP8 is scaled.
enum class Scaling { F32, POWER_OF_TWO, UE8M0 };

// Values as FP8. Cells past the end of a row, of which `cells` are left, have zeros for scales.
DEVICE Tile quantize(const Values &values, Scaling scaling, u32 cells) {
    Tile tile{};
#pragma unroll
    for (u32 plane = 0; plane < 3; plane++) {
        const float(&of)[16] = values.of[plane];
        float amax = quantize::AMAX_FLOOR;
#pragma unroll
        for (u32 at = 0; at < 16; at++) amax = quantize::larger(amax, of[at]);
        // No negative number and no NaN: bits are in the order of the values.
        amax = __uint_as_float(warp::max_within(GROUP_LANES, __float_as_uint(amax)));
        u32 code = quantize::scale_code(amax);
        float factor = scaling == Scaling::F32 ? quantize::E4M3_MAX / amax : quantize::inverse(code);
        u32 word = scaling == Scaling::F32            ? __float_as_uint(amax / quantize::E4M3_MAX)
                   : scaling == Scaling::POWER_OF_TWO ? code << 23
                                                      : code;
        tile.groups[plane] = 32 * plane + thread::lane() < cells ? word : 0;
#pragma unroll
        for (u32 at = 0; at < 4; at++) {
            float a = of[4 * at] * factor, b = of[4 * at + 1] * factor;
            float c = of[4 * at + 2] * factor, d = of[4 * at + 3] * factor;
            tile.words[at][plane] = (u32)convert::f32_to_e4m3x2(c, d) << 16 | convert::f32_to_e4m3x2(a, b);
        }
    }
    gather(tile.groups);
    return tile;
}

// bf16.
struct Bf16 {
    static constexpr u32 WORDS = 4, QUADS = 1;
    static constexpr bool GROUPED = false;

    DEVICE static Tile encode(const Values &values) {
        Tile tile{};
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            Quad quad = pack(values.of[plane]);
#pragma unroll
            for (u32 word = 0; word < 4; word++) tile.words[word][plane] = quad.words[word];
        }
        return tile;
    }

    DEVICE static Values decode(const Tile &tile) {
        Values values{};
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
#pragma unroll
            for (u32 word = 0; word < 4; word++) {
                convert::Pair pair = convert::bf16x2_to_f32(tile.words[word][plane]);
                values.of[plane][2 * word] = pair.low;
                values.of[plane][2 * word + 1] = pair.high;
            }
        }
        return values;
    }
};

// FP8 e4m3 with scales.
struct E4m3 {
    static constexpr u32 WORDS = 4, QUADS = 2;
    static constexpr bool GROUPED = true;

    DEVICE static Tile encode(const Values &values) { return quantize(values, Scaling::F32, MAX_U32); }

    DEVICE static Values decode(const Tile &tile) {
        Three scales = spread(tile.groups);
        Values values;
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            float scale = __uint_as_float(scales.words[plane]);
#pragma unroll
            for (u32 at = 0; at < 16; at++) {
                u8 byte = tile.words[at / 4][plane] >> (8 * (at % 4));
                values.of[plane][at] = convert::e4m3_to_f32(byte) * scale;
            }
        }
        return values;
    }
};

// Sign and 9 bits of logarithm. A group's codes go from the smallest magnitude, `low`, to the largest, `high`, both
// bf16 bits and rounded outward, in equal steps of an f32's bits.
struct Log10 {
    static constexpr u32 WORDS = 5, QUADS = 2;
    static constexpr bool GROUPED = true;

    // Octaves below the largest magnitude that logarithms reach, in steps of bf16's last bit.
    static constexpr u32 OCTAVES = 32 << 7;
    // Steps between the lowest and the highest code.
    static constexpr float STEPS = 509.0f;
    // The code of what is not finite.
    static constexpr u32 NOT_FINITE = 511;
    // The bits of infinity.
    static constexpr u32 INFINITE = 0x7f800000;

    DEVICE static Tile encode(const Values &values) {
        Tile tile{};
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            const float(&of)[16] = values.of[plane];
            u32 most_bits = 0, least_bits = 0;
#pragma unroll
            for (u32 at = 0; at < 16; at++) {
                u32 magnitude = __float_as_uint(of[at]) & 0x7fffffff;
                bool finite = magnitude < INFINITE;
                most_bits = most(most_bits, finite ? magnitude : 0);
                // The least as the largest of the complements; zeros do not count.
                least_bits = most(least_bits, finite && magnitude != 0 ? ~magnitude : 0);
            }
            most_bits = warp::max_within(GROUP_LANES, most_bits);
            least_bits = warp::max_within(GROUP_LANES, least_bits);
            u32 high = least((most_bits + 0xffff) >> 16, 0x7f7f);
            u32 low = most(least_bits == 0 ? 0 : ~least_bits >> 16, high > OCTAVES ? high - OCTAVES : 0);
            tile.groups[plane] = high << 16 | low;
            u32 base = low << 16, range = (high - low) << 16;
            float inverse = range == 0 ? 0.0f : STEPS / (float)range;
#pragma unroll
            for (u32 at = 0; at < 16; at++) {
                u32 code = code_of(__float_as_uint(of[at]), base, inverse);
                tile.words[10 * at / 32][plane] |= code << (10 * at % 32);
                if (10 * at % 32 > 22) {
                    tile.words[(10 * at / 32 + 1) % 5][plane] |= code >> ((32 - 10 * at % 32) % 32);
                }
            }
        }
        gather(tile.groups);
        return tile;
    }

    DEVICE static Values decode(const Tile &tile) {
        Three groups = spread(tile.groups);
        Values values;
#pragma unroll
        for (u32 plane = 0; plane < 3; plane++) {
            u32 high = groups.words[plane] >> 16, low = groups.words[plane] & 0xffff;
            u32 base = low << 16;
            float step = (float)((high - low) << 16) / STEPS;
#pragma unroll
            for (u32 at = 0; at < 16; at++) {
                u32 code = tile.words[10 * at / 32][plane] >> (10 * at % 32);
                if (10 * at % 32 > 22) {
                    code |= tile.words[(10 * at / 32 + 1) % 5][plane] << ((32 - 10 * at % 32) % 32);
                }
                values.of[plane][at] = value_of(code & 0x3ff, base, step);
            }
        }
        return values;
    }

    // Sign and code of an f32's bits: 0 for zero, then the steps from `base` on.
    DEVICE static u32 code_of(u32 bits, u32 base, float inverse) {
        u32 magnitude = bits & 0x7fffffff, code;
        if (magnitude >= INFINITE) {
            code = NOT_FINITE;
        } else if (magnitude == 0) {
            code = 0;
        } else if (magnitude < base) {
            // The nearer of zero and the smallest.
            code = __uint_as_float(magnitude) * 2.0f >= __uint_as_float(base);
        } else {
            code = 1 + least(nearest((float)(magnitude - base) * inverse), (u32)STEPS);
        }
        return bits >> 31 << 9 | code;
    }

    DEVICE static float value_of(u32 code, u32 base, float step) {
        u32 steps = code & 0x1ff;
        if (steps == NOT_FINITE) return __uint_as_float(0x7fffffff);
        u32 magnitude = steps == 0 ? 0 : base + nearest((float)(steps - 1) * step);
        return __uint_as_float(code >> 9 << 31 | magnitude);
    }

    // The nearest whole number of one that is not negative; halves go up.
    DEVICE static u32 nearest(float value) { return (u32)(value + 0.5f); }
};

}  // namespace low_latency
