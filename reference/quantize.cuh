// The quantising functions of device/src/quantize.rs.
#pragma once
#include "gpu.cuh"

namespace quantize {

// The largest e4m3 value.
constexpr float E4M3_MAX = 448.0f;

// Groups smaller than this are scaled as if they reached it.
constexpr float AMAX_FLOOR = 1e-4f;

// The UE8M0 code of the smallest power of two that is at least `amax` / 448.
DEVICE u32 scale_code(float amax) {
    u32 bits = __float_as_uint(amax);
    u32 exponent = bits >> 23, mantissa = bits & 0x7fffff;
    return exponent - 8 + (mantissa > 0x600000);
}

// 1 / 2^(code - 127).
DEVICE float inverse(u32 code) { return __uint_as_float((254 - code) << 23); }

// `amax`, or the magnitude of `value` if that is larger. A NaN is not.
DEVICE float larger(float amax, float value) {
    float magnitude = __uint_as_float(__float_as_uint(value) & 0x7fffffff);
    return magnitude > amax ? magnitude : amax;
}

}  // namespace quantize
