//! The machine as PTX: inline assembly, and LLVM intrinsics where lanes or threads must stay converged.
//!
//! No `asm!` here is `pure` or `nomem`: each orders itself against all memory accesses around it, so that a load stays
//! behind the acquire it depends on. Documentation stands on the public wrappers.

use super::mem::Quad;
use core::arch::{asm, global_asm, nvptx};

// One declaration for the module; only kernels launched with dynamic shared memory are charged for it.
global_asm!(".extern .shared .align 1024 .b8 dyn_smem[];");

unsafe extern "C" {
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn intrinsic_warp_barrier(mask: u32);
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn intrinsic_shuffle(mask: u32, value: u32, from: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn intrinsic_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn intrinsic_match_any(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn intrinsic_block_barrier(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.sync.count"]
    fn intrinsic_named_barrier(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn intrinsic_block_barrier_or(id: u32, predicate: bool) -> bool;
}

#[inline(always)]
pub fn thread_index() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_x() as u32 }
}

#[inline(always)]
pub fn block_index() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_x() as u32 }
}

#[inline(always)]
pub fn multiprocessor() -> u32 {
    let number;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %smid;", out(reg32) number, options(nostack)) };
    number
}

#[inline(always)]
pub fn block_size() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_dim_x() as u32 }
}

#[inline(always)]
pub fn grid_size() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_x() as u32 }
}

pub fn trap() -> ! {
    // SAFETY: does not return; the host sees a launch failure.
    unsafe { nvptx::trap() }
}

#[inline(always)]
pub fn now_ns() -> u64 {
    let now;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u64 {}, %globaltimer;", out(reg64) now, options(nostack)) };
    now
}

#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    let same;
    // SAFETY: a copy.
    unsafe { asm!("mov.u64 {}, {};", out(reg64) same, in(reg64) value, options(nostack)) };
    same
}

#[inline(always)]
pub fn warp_barrier(mask: u32) {
    // SAFETY: the lanes in `mask` all call this, by the wrapper's contract.
    unsafe { intrinsic_warp_barrier(mask) }
}

#[inline(always)]
pub fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    // SAFETY: as above. The clamp 31 lets every lane be a source.
    unsafe { intrinsic_shuffle(mask, value, from, 31) }
}

#[inline(always)]
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    // SAFETY: as above.
    unsafe { intrinsic_ballot(mask, predicate) }
}

#[inline(always)]
pub fn match_any(mask: u32, value: u32) -> u32 {
    // SAFETY: as above.
    unsafe { intrinsic_match_any(mask, value) }
}

#[inline(always)]
pub fn block_barrier() {
    // SAFETY: every thread of the block calls this, by the wrapper's contract.
    unsafe { intrinsic_block_barrier(0) }
}

#[inline(always)]
pub fn named_barrier(id: u32, threads: u32) {
    // SAFETY: `threads` threads call this, by the wrapper's contract.
    unsafe { intrinsic_named_barrier(id, threads) }
}

#[inline(always)]
pub fn block_barrier_or(predicate: bool) -> bool {
    // SAFETY: every thread of the block calls this, by the wrapper's contract.
    unsafe { intrinsic_block_barrier_or(0, predicate) }
}

/// Loads: name, instruction, result type, register class.
macro_rules! load {
    ($($name:ident, $instruction:literal, $ty:ty, $class:ident;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(at: u64) -> $ty {
            let value;
            // SAFETY: the caller vouches for the address.
            unsafe { asm!(concat!($instruction, " {}, [{}];"), out($class) value, in(reg64) at, options(nostack)) };
            value
        }
    )*};
}

load! {
    load_u32, "ld.global.u32", u32, reg32;
    load_u64, "ld.global.u64", u64, reg64;
    load_relaxed_gpu_u32, "ld.relaxed.gpu.global.u32", u32, reg32;
    load_acquire_gpu_u32, "ld.acquire.gpu.global.u32", u32, reg32;
    load_relaxed_sys_u64, "ld.relaxed.sys.global.u64", u64, reg64;
    load_acquire_sys_u64, "ld.acquire.sys.global.u64", u64, reg64;
}

/// Stores: name, instruction, value type, register class.
macro_rules! store {
    ($($name:ident, $instruction:literal, $ty:ty, $class:ident;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(at: u64, value: $ty) {
            // SAFETY: the caller vouches for the address.
            unsafe { asm!(concat!($instruction, " [{}], {};"), in(reg64) at, in($class) value, options(nostack)) };
        }
    )*};
}

store! {
    store_u32, "st.global.u32", u32, reg32;
    store_u64, "st.global.u64", u64, reg64;
    store_relaxed_gpu_u32, "st.relaxed.gpu.global.u32", u32, reg32;
    store_release_gpu_u32, "st.release.gpu.global.u32", u32, reg32;
    store_relaxed_sys_u64, "st.relaxed.sys.global.u64", u64, reg64;
    store_release_sys_u64, "st.release.sys.global.u64", u64, reg64;
}

#[inline(always)]
pub unsafe fn store_u8(at: u64, value: u8) {
    // SAFETY: the caller vouches for the address. A byte travels in a 16-bit register.
    unsafe { asm!("st.global.u8 [{}], {};", in(reg64) at, in(reg16) value as u16, options(nostack)) };
}

#[inline(always)]
pub unsafe fn load_quad(at: u64) -> Quad {
    let [a, b, c, d]: [u32; 4];
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("ld.global.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) at, options(nostack))
    };
    Quad([a, b, c, d])
}

#[inline(always)]
pub unsafe fn store_quad(at: u64, value: Quad) {
    let Quad([a, b, c, d]) = value;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("st.global.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) at, in(reg32) a, in(reg32) b, in(reg32) c, in(reg32) d, options(nostack))
    };
}

#[inline(always)]
pub unsafe fn load_relaxed_sys_b128(at: u64) -> Quad {
    let [low, high]: [u64; 2];
    // SAFETY: the caller vouches for the address. `{{` opens a scope, so the register's name is local.
    unsafe {
        asm!(
            "{{",
            ".reg .b128 quad;",
            "ld.relaxed.sys.global.b128 quad, [{}];",
            "mov.b128 {{{}, {}}}, quad;",
            "}}",
            in(reg64) at, out(reg64) low, out(reg64) high, options(nostack))
    };
    Quad([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
}

#[inline(always)]
pub unsafe fn store_relaxed_sys_b128(at: u64, value: Quad) {
    let Quad([a, b, c, d]) = value;
    let (low, high) = ((b as u64) << 32 | a as u64, (d as u64) << 32 | c as u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "{{",
            ".reg .b128 quad;",
            "mov.b128 quad, {{{}, {}}};",
            "st.relaxed.sys.global.b128 [{}], quad;",
            "}}",
            in(reg64) low, in(reg64) high, in(reg64) at, options(nostack))
    };
}

#[inline(always)]
pub unsafe fn wait_tag(at: u64, tag: u32, deadline_ns: u64) -> bool {
    loop {
        // SAFETY: the caller vouches for the address.
        if unsafe { load_relaxed_sys_b128(at) }.0[3] == tag {
            return true;
        }
        if now_ns() > deadline_ns {
            return false;
        }
    }
}

#[inline(always)]
pub unsafe fn max_relaxed_gpu_u32(at: u64, value: u32) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("red.relaxed.gpu.global.max.u32 [{}], {};", in(reg64) at, in(reg32) value, options(nostack))
    };
}

/// Atomic additions: name, instruction.
macro_rules! fetch_add {
    ($($name:ident, $instruction:literal;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(at: u64, value: u32) -> u32 {
            let old;
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!($instruction, " {}, [{}], {};"),
                    out(reg32) old, in(reg64) at, in(reg32) value, options(nostack))
            };
            old
        }
    )*};
}

fetch_add! {
    fetch_add_relaxed_gpu_u32, "atom.relaxed.gpu.global.add.u32";
    fetch_add_acq_rel_gpu_u32, "atom.acq_rel.gpu.global.add.u32";
    fetch_add_acq_rel_sys_u32, "atom.acq_rel.sys.global.add.u32";
}

#[inline(always)]
pub unsafe fn compare_exchange_acq_rel_gpu_u32(at: u64, expected: u32, new: u32) -> u32 {
    let old;
    // SAFETY: the caller vouches for the address.
    unsafe {
        asm!("atom.acq_rel.gpu.global.cas.b32 {}, [{}], {}, {};",
            out(reg32) old, in(reg64) at, in(reg32) expected, in(reg32) new, options(nostack))
    };
    old
}

#[inline(always)]
pub fn fence_acq_rel_gpu() {
    // SAFETY: a fence accesses nothing.
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack)) };
}

#[inline(always)]
pub fn fence_acq_rel_sys() {
    // SAFETY: a fence accesses nothing.
    unsafe { asm!("fence.acq_rel.sys;", options(nostack)) };
}

#[inline(always)]
pub unsafe fn wait_at_least(at: u64, want: u64, deadline_ns: u64) -> Result<(), u64> {
    loop {
        // SAFETY: the caller vouches for the address.
        let seen = unsafe { load_acquire_sys_u64(at) };
        if seen >= want {
            return Ok(());
        }
        if now_ns() > deadline_ns {
            return Err(seen);
        }
    }
}

#[inline(always)]
pub fn shared_base() -> u32 {
    let base;
    // SAFETY: takes the address of the declaration above.
    unsafe { asm!("mov.u32 {}, dyn_smem;", out(reg32) base, options(nostack, nomem, pure)) };
    base
}

/// Shared loads: name, instruction, result type, register class.
macro_rules! shared_load {
    ($($name:ident, $instruction:literal, $ty:ty, $class:ident;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(at: u32) -> $ty {
            let value;
            // SAFETY: the caller vouches for the offset.
            unsafe { asm!(concat!($instruction, " {}, [{}];"), out($class) value, in(reg32) at, options(nostack)) };
            value
        }
    )*};
}

shared_load! {
    shared_load_u32, "ld.shared.u32", u32, reg32;
    shared_load_u64, "ld.shared.u64", u64, reg64;
}

/// Shared stores: name, instruction, value type, register class.
macro_rules! shared_store {
    ($($name:ident, $instruction:literal, $ty:ty, $class:ident;)*) => {$(
        #[inline(always)]
        pub unsafe fn $name(at: u32, value: $ty) {
            // SAFETY: the caller vouches for the offset.
            unsafe { asm!(concat!($instruction, " [{}], {};"), in(reg32) at, in($class) value, options(nostack)) };
        }
    )*};
}

shared_store! {
    shared_store_u32, "st.shared.u32", u32, reg32;
    shared_store_u64, "st.shared.u64", u64, reg64;
    shared_add_u32, "red.relaxed.cta.shared.add.u32", u32, reg32;
}

#[inline(always)]
pub unsafe fn shared_load_quad(at: u32) -> Quad {
    let [a, b, c, d]: [u32; 4];
    // SAFETY: the caller vouches for the offset.
    unsafe {
        asm!("ld.shared.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) at, options(nostack))
    };
    Quad([a, b, c, d])
}

#[cfg(bulk_copy)]
pub use with_bulk_copy::*;

/// What sm_90 brought.
#[cfg(bulk_copy)]
mod with_bulk_copy {
    use crate::gpu::mem::Address;
    use core::arch::asm;

    #[inline(always)]
    pub unsafe fn mbarrier_init(barrier: u32, arrivals: u32) {
        // SAFETY: the caller vouches for the offset.
        unsafe {
            asm!("mbarrier.init.shared.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack))
        };
    }

    #[inline(always)]
    pub unsafe fn mbarrier_arrive_expect(barrier: u32, bytes: u32) {
        // SAFETY: the caller vouches for the offset.
        unsafe {
            asm!("mbarrier.arrive.expect_tx.shared.b64 _, [{}], {};",
                in(reg32) barrier, in(reg32) bytes, options(nostack))
        };
    }

    #[inline(always)]
    pub unsafe fn mbarrier_wait(barrier: u32, parity: u32) {
        loop {
            let done: u32;
            // SAFETY: the caller vouches for the offset. `{{` opens a scope, so the predicate's name is local.
            unsafe {
                asm!(
                    "{{",
                    ".reg .pred done;",
                    "mbarrier.try_wait.parity.shared.b64 done, [{}], {};",
                    "selp.u32 {}, 1, 0, done;",
                    "}}",
                    in(reg32) barrier, in(reg32) parity, out(reg32) done, options(nostack))
            };
            if done != 0 {
                return;
            }
        }
    }

    #[inline(always)]
    pub unsafe fn bulk_load(to: u32, from: Address, bytes: u32, barrier: u32) {
        // SAFETY: the caller vouches for both ends.
        unsafe {
            asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
                in(reg32) to, in(reg64) from.0, in(reg32) bytes, in(reg32) barrier, options(nostack))
        };
    }

    #[inline(always)]
    pub unsafe fn bulk_store(to: Address, from: u32, bytes: u32) {
        // SAFETY: the caller vouches for both ends.
        unsafe {
            asm!("cp.async.bulk.global.shared::cta.bulk_group [{}], [{}], {};",
                in(reg64) to.0, in(reg32) from, in(reg32) bytes, options(nostack))
        };
    }

    #[inline(always)]
    pub fn bulk_commit() {
        // SAFETY: touches no memory.
        unsafe { asm!("cp.async.bulk.commit_group;", options(nostack)) };
    }

    #[inline(always)]
    pub fn bulk_wait_read() {
        // SAFETY: touches no memory.
        unsafe { asm!("cp.async.bulk.wait_group.read 0;", options(nostack)) };
    }

    #[inline(always)]
    pub fn bulk_wait_written() {
        // SAFETY: touches no memory.
        unsafe { asm!("cp.async.bulk.wait_group 0;", options(nostack)) };
    }

    #[inline(always)]
    pub fn fence_proxy_async() {
        // SAFETY: a fence accesses nothing.
        unsafe { asm!("fence.proxy.async;", options(nostack)) };
    }
}

#[inline(always)]
pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    let packed;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};",
            out(reg32) packed, in(reg32) high, in(reg32) low, options(nostack, nomem, pure))
    };
    packed
}

#[inline(always)]
pub fn f16x2_to_f32(packed: u32) -> [f32; 2] {
    let (low, high);
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.f32.f16 {}, {};", out(reg32) low, in(reg16) packed as u16, options(nostack, nomem, pure));
        asm!("cvt.f32.f16 {}, {};", out(reg32) high, in(reg16) (packed >> 16) as u16, options(nostack, nomem, pure));
    };
    [low, high]
}

#[inline(always)]
pub fn f32_to_f16x2(low: f32, high: f32) -> u32 {
    let packed;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};",
            out(reg32) packed, in(reg32) high, in(reg32) low, options(nostack, nomem, pure))
    };
    packed
}

#[cfg(bulk_copy)]
#[inline(always)]
pub fn f32_to_e4m3x2(low: f32, high: f32) -> u16 {
    let packed;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.satfinite.e4m3x2.f32 {}, {}, {};",
            out(reg16) packed, in(reg32) high, in(reg32) low, options(nostack, nomem, pure))
    };
    packed
}

#[cfg(not(bulk_copy))]
pub fn f32_to_e4m3x2(low: f32, high: f32) -> u16 {
    u16::from_le_bytes([super::convert::f32_to_e4m3(low), super::convert::f32_to_e4m3(high)])
}
