// The machine under the kernels: device/src/gpu/ in CUDA C++, name for name. What is inline PTX there is inline PTX here,
// what is an LLVM intrinsic there is CUDA's own.
#pragma once
#include <cstdint>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

#define DEVICE __device__ __forceinline__

constexpr u32 MAX_U32 = ~0u;

DEVICE constexpr u32 div_ceil(u32 a, u32 b) { return a / b + (a % b != 0); }
DEVICE constexpr u32 round_up(u32 a, u32 to) { return div_ceil(a, to) * to; }
DEVICE constexpr u32 at_least_one(u32 number) { return number == 0 ? 1 : number; }
DEVICE constexpr u32 least(u32 a, u32 b) { return a < b ? a : b; }
DEVICE constexpr u32 most(u32 a, u32 b) { return a > b ? a : b; }

// An address in global memory: of this GPU, of a peer, or of pinned host memory.
struct Address {
    u64 at;
    DEVICE Address offset(u64 bytes) const { return {at + bytes}; }
    DEVICE Address word(u32 index) const { return offset(4 * (u64)index); }
    DEVICE Address long_at(u32 index) const { return offset(8 * (u64)index); }
    DEVICE bool is_null() const { return at == 0; }
};
constexpr Address NULL_ADDRESS{0};

// Sixteen bytes.
struct alignas(16) Quad {
    u32 words[4];
};

namespace thread {
constexpr u32 WARP = 32;
DEVICE u32 index() { return threadIdx.x; }
DEVICE u32 block_index() { return blockIdx.x; }
DEVICE u32 block_size() { return blockDim.x; }
DEVICE u32 grid_size() { return gridDim.x; }
DEVICE u32 lane() { return index() % WARP; }
DEVICE u32 warp_index() { return index() / WARP; }
DEVICE u32 warps() { return block_size() / WARP; }
[[noreturn]] DEVICE void trap() {
    __trap();
    __builtin_unreachable();
}
}  // namespace thread

namespace clock_ {
DEVICE u64 now_ns() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
}
}  // namespace clock_

namespace warp {
constexpr u32 ALL = MAX_U32;
DEVICE void barrier(u32 mask) { __syncwarp(mask); }
DEVICE u32 shuffle(u32 mask, u32 value, u32 from) { return __shfl_sync(mask, value, from); }
DEVICE u64 shuffle_u64(u32 mask, u64 value, u32 from) {
    u32 low = shuffle(mask, (u32)value, from), high = shuffle(mask, (u32)(value >> 32), from);
    return (u64)high << 32 | low;
}
DEVICE u32 ballot(u32 mask, bool predicate) { return __ballot_sync(mask, predicate); }
DEVICE u32 match_any(u32 mask, u32 value) { return __match_any_sync(mask, value); }
DEVICE u32 trailing_zeros(u32 bits) { return bits == 0 ? 32 : __ffs(bits) - 1; }
DEVICE bool elect(u32 mask) { return thread::lane() == trailing_zeros(mask); }
DEVICE u32 lanes_below() { return (1u << thread::lane()) - 1; }
DEVICE float max_f32(float value) {
    for (u32 distance = thread::WARP / 2; distance > 0; distance /= 2) {
        float other = __uint_as_float(shuffle(ALL, __float_as_uint(value), thread::lane() ^ distance));
        value = other > value ? other : value;
    }
    return value;
}
DEVICE u32 max_within(u32 width, u32 value) {
    for (u32 distance = width / 2; distance > 0; distance /= 2) {
        u32 other = shuffle(ALL, value, thread::lane() ^ distance);
        value = other > value ? other : value;
    }
    return value;
}
DEVICE u32 inclusive_sum(u32 value) {
    for (u32 distance = 1; distance < thread::WARP; distance *= 2) {
        u32 below = shuffle(ALL, value, (thread::lane() - distance) % thread::WARP);
        value += thread::lane() >= distance ? below : 0;
    }
    return value;
}
DEVICE u32 sum(u32 value) { return shuffle(ALL, inclusive_sum(value), thread::WARP - 1); }
}  // namespace warp

namespace block {
DEVICE void barrier() { __syncthreads(); }
DEVICE void named_barrier(u32 id, u32 threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE bool barrier_or(bool predicate) { return __syncthreads_or(predicate) != 0; }
DEVICE bool is_first_thread() { return thread::index() == 0; }
}  // namespace block

// Scoped and ordered accesses. Every one orders itself against all memory accesses around it.
namespace mem {
#define LOAD(name, instruction, type, letter)                                                  \
    DEVICE type name(Address from) {                                                           \
        type value;                                                                            \
        asm volatile(instruction " %0, [%1];" : "=" letter(value) : "l"(from.at) : "memory");  \
        return value;                                                                          \
    }
LOAD(load_u32, "ld.global.u32", u32, "r")
LOAD(load_u64, "ld.global.u64", u64, "l")
LOAD(load_relaxed_gpu_u32, "ld.relaxed.gpu.global.u32", u32, "r")
LOAD(load_acquire_gpu_u32, "ld.acquire.gpu.global.u32", u32, "r")
LOAD(load_relaxed_sys_u64, "ld.relaxed.sys.global.u64", u64, "l")
LOAD(load_acquire_sys_u64, "ld.acquire.sys.global.u64", u64, "l")
#undef LOAD
#define STORE(name, instruction, type, letter)                                              \
    DEVICE void name(Address to, type value) {                                              \
        asm volatile(instruction " [%0], %1;" ::"l"(to.at), letter(value) : "memory");      \
    }
STORE(store_u32, "st.global.u32", u32, "r")
STORE(store_u64, "st.global.u64", u64, "l")
STORE(store_relaxed_gpu_u32, "st.relaxed.gpu.global.u32", u32, "r")
STORE(store_release_gpu_u32, "st.release.gpu.global.u32", u32, "r")
STORE(store_relaxed_sys_u64, "st.relaxed.sys.global.u64", u64, "l")
STORE(store_release_sys_u64, "st.release.sys.global.u64", u64, "l")
STORE(max_relaxed_gpu_u32, "red.relaxed.gpu.global.max.u32", u32, "r")
#undef STORE
DEVICE void store_u8(Address to, u8 value) {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(to.at), "h"((u16)value) : "memory");
}
DEVICE Quad load_quad(Address from) {
    Quad q;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.words[0]), "=r"(q.words[1]), "=r"(q.words[2]), "=r"(q.words[3])
                 : "l"(from.at)
                 : "memory");
    return q;
}
DEVICE void store_quad(Address to, Quad q) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to.at), "r"(q.words[0]), "r"(q.words[1]),
                 "r"(q.words[2]), "r"(q.words[3])
                 : "memory");
}
DEVICE Quad load_relaxed_sys_b128(Address from) {
    u64 low, high;
    asm volatile("{ .reg .b128 quad; ld.relaxed.sys.global.b128 quad, [%2]; mov.b128 {%0, %1}, quad; }"
                 : "=l"(low), "=l"(high)
                 : "l"(from.at)
                 : "memory");
    return {(u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32)};
}
DEVICE void store_relaxed_sys_b128(Address to, Quad q) {
    u64 low = (u64)q.words[1] << 32 | q.words[0], high = (u64)q.words[3] << 32 | q.words[2];
    asm volatile("{ .reg .b128 quad; mov.b128 quad, {%1, %2}; st.relaxed.sys.global.b128 [%0], quad; }" ::"l"(to.at),
                 "l"(low), "l"(high)
                 : "memory");
}
#define FETCH_ADD(name, instruction)                                                                          \
    DEVICE u32 name(Address at, u32 value) {                                                                  \
        u32 old;                                                                                              \
        asm volatile(instruction " %0, [%1], %2;" : "=r"(old) : "l"(at.at), "r"(value) : "memory");           \
        return old;                                                                                           \
    }
FETCH_ADD(fetch_add_relaxed_gpu_u32, "atom.relaxed.gpu.global.add.u32")
FETCH_ADD(fetch_add_acq_rel_gpu_u32, "atom.acq_rel.gpu.global.add.u32")
FETCH_ADD(fetch_add_acq_rel_sys_u32, "atom.acq_rel.sys.global.add.u32")
#undef FETCH_ADD
DEVICE u32 compare_exchange_acq_rel_gpu_u32(Address at, u32 expected, u32 value) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "l"(at.at), "r"(expected), "r"(value)
                 : "memory");
    return old;
}
DEVICE void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
DEVICE void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// Polls until the word is at least `want`; false, with what was seen last, when the deadline passes first.
DEVICE bool wait_at_least_acquire_sys(Address at, u64 want, u64 deadline_ns, u64 &seen) {
    while (true) {
        seen = load_acquire_sys_u64(at);
        if (seen >= want) return true;
        if (clock_::now_ns() > deadline_ns) return false;
    }
}
// Polls 16 bytes until the last four are `tag`; false when the deadline passes first.
DEVICE bool wait_tag(Address at, u32 tag, u64 deadline_ns) {
    while (true) {
        if (load_relaxed_sys_b128(at).words[3] == tag) return true;
        if (clock_::now_ns() > deadline_ns) return false;
    }
}
}  // namespace mem

extern "C" {
extern __shared__ __align__(1024) u8 dyn_smem[];
}

// The block's dynamic shared memory, by 32-bit offsets in the shared window.
namespace shared {
DEVICE u32 base() { return (u32)__cvta_generic_to_shared(dyn_smem); }
DEVICE u32 load_u32(u32 at) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(at) : "memory");
    return value;
}
DEVICE u64 load_u64(u32 at) {
    u64 value;
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(value) : "r"(at) : "memory");
    return value;
}
DEVICE Quad load_quad(u32 at) {
    Quad q;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.words[0]), "=r"(q.words[1]), "=r"(q.words[2]), "=r"(q.words[3])
                 : "r"(at)
                 : "memory");
    return q;
}
DEVICE void store_u32(u32 at, u32 value) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory"); }
DEVICE void store_u64(u32 at, u64 value) { asm volatile("st.shared.u64 [%0], %1;" ::"r"(at), "l"(value) : "memory"); }
DEVICE void add_u32(u32 at, u32 value) {
    asm volatile("red.relaxed.cta.shared.add.u32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
}
}  // namespace shared

// Bulk copies, and the mbarriers that loads complete on.
namespace bulk {
DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{ .reg .pred done; mbarrier.try_wait.parity.shared.b64 done, [%1], %2; selp.u32 %0, 1, 0, done; }"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (done == 0);
}
DEVICE void load(u32 to, Address from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from.at), "r"(bytes), "r"(barrier)
                 : "memory");
}
DEVICE void store(Address to, u32 from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to.at), "r"(from), "r"(bytes)
                 : "memory");
}
DEVICE void commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
DEVICE void wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
DEVICE void wait_written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }
}  // namespace bulk

// Number formats, as device/src/gpu/convert.rs has them: every operation rounded by itself.
namespace convert {
struct Pair {
    float low, high;
};
DEVICE Pair bf16x2_to_f32(u32 packed) {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
}
DEVICE u32 f32_to_bf16x2(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE Pair f16x2_to_f32(u32 packed) {
    Pair pair;
    asm("cvt.f32.f16 %0, %1;" : "=f"(pair.low) : "h"((u16)packed));
    asm("cvt.f32.f16 %0, %1;" : "=f"(pair.high) : "h"((u16)(packed >> 16)));
    return pair;
}
DEVICE u32 f32_to_f16x2(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE float ue8m0_to_f32(u8 code) {
    return __uint_as_float(code == 0 ? 1u << 22 : code == 255 ? 0x7fffffffu : (u32)code << 23);
}
DEVICE u16 f32_to_e4m3x2(float low, float high) {
    u16 packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
}
DEVICE float e4m3_to_f32(u8 code) {
    u32 sign = ((u32)code & 0x80) << 24, magnitude = code & 0x7f;
    if (magnitude == 0x7f) return __uint_as_float(sign | 0x7fffffff);
    float scaled = __uint_as_float(magnitude << 20) * __uint_as_float((127 + 120) << 23);
    return __uint_as_float(sign | __float_as_uint(scaled));
}
}  // namespace convert

// Declares a kernel: the PTX entry with one by-value parameter, as `kernel!` does in Rust.
#define KERNEL(entry, args_type, body) \
    extern "C" __global__ void entry(const __grid_constant__ args_type args) { body; }
