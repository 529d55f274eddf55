//! The machine as `tokenrail-emulator`: every access is checked against the live allocations, ordered operations give
//! other threads a chance to run, and bulk copies complete when the scheduler likes.
//!
//! Emulated threads run one at a time, so plain reads and writes through raw pointers are as good as atomics; what
//! matters is where a thread may be interrupted, which is at every ordered operation.

use super::mem::{Address, Quad};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokenrail_emulator::simt;

pub use simt::{
    ballot, barrier as named_barrier, block_index, block_size, bulk_commit, grid_size, now_ns, shared_base,
    thread_index, warp_barrier,
};

pub fn multiprocessor() -> u32 {
    simt::block_index()
}

pub fn opaque(value: u64) -> u64 {
    value
}

pub fn trap() -> ! {
    simt::fault("trap".into())
}

pub fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    simt::shuffle(mask, value as u64, from) as u32
}

pub fn match_any(mask: u32, value: u32) -> u32 {
    simt::match_any(mask, value as u64)
}

pub fn block_barrier() {
    simt::barrier(0, simt::block_size());
}

pub fn block_barrier_or(predicate: bool) -> bool {
    simt::barrier_or(0, simt::block_size(), predicate)
}

/// Reads a `T` of global memory after checking that it is there.
unsafe fn read<T: Copy>(at: u64, what: &'static str) -> T {
    simt::check(at, size_of::<T>(), what);
    // SAFETY: `check` faults the kernel unless the address lies in a live allocation and is aligned; allocations
    // expose their provenance.
    unsafe { with_exposed_provenance::<T>(at as usize).read() }
}

/// Writes a `T` to global memory after checking that it is there.
unsafe fn write<T: Copy>(at: u64, value: T, what: &'static str) {
    simt::check(at, size_of::<T>(), what);
    // SAFETY: as in `read`.
    unsafe { with_exposed_provenance_mut::<T>(at as usize).write(value) };
    simt::stored();
}

macro_rules! plain {
    ($($load:ident, $store:ident, $ty:ty;)*) => {$(
        pub unsafe fn $load(at: u64) -> $ty {
            // SAFETY: `read` checks.
            unsafe { read(at, stringify!($load)) }
        }
        pub unsafe fn $store(at: u64, value: $ty) {
            // SAFETY: `write` checks.
            unsafe { write(at, value, stringify!($store)) }
        }
    )*};
}

plain! {
    load_u32, store_u32, u32;
    load_u64, store_u64, u64;
    load_quad, store_quad, Quad;
}

pub unsafe fn store_u8(at: u64, value: u8) {
    // SAFETY: `write` checks.
    unsafe { write(at, value, "store_u8") }
}

// Ordered operations are atomics of the host: NICs and the threads that serve them may touch the same memory.

macro_rules! ordered_load {
    ($($name:ident, $ty:ty, $atomic:ty;)*) => {$(
        pub unsafe fn $name(at: u64) -> $ty {
            simt::preempt();
            simt::check(at, size_of::<$ty>(), stringify!($name));
            // SAFETY: live and aligned, as checked; allocations expose their provenance.
            unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(at as usize)) }.load(Ordering::Acquire)
        }
    )*};
}

ordered_load! {
    load_relaxed_gpu_u32, u32, AtomicU32;
    load_acquire_gpu_u32, u32, AtomicU32;
    load_relaxed_sys_u64, u64, AtomicU64;
    load_acquire_sys_u64, u64, AtomicU64;
}

/// Both halves of 16 bytes, as atomics.
fn halves(at: u64, what: &'static str) -> [&'static AtomicU64; 2] {
    simt::check(at, size_of::<Quad>(), what);
    // SAFETY: live and aligned, as checked; used before the next thread runs.
    [at, at + 8].map(|at| unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at as usize)) })
}

/// Emulated threads see 16 bytes at once. Others see the half with the tag last.
pub unsafe fn load_relaxed_sys_b128(at: u64) -> Quad {
    simt::preempt();
    let [low, high] = halves(at, "load_relaxed_sys_b128");
    let high = high.load(Ordering::Acquire);
    let low = low.load(Ordering::Relaxed);
    Quad([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
}

pub unsafe fn store_relaxed_sys_b128(at: u64, Quad([a, b, c, d]): Quad) {
    simt::preempt();
    let [low, high] = halves(at, "store_relaxed_sys_b128");
    low.store(u64::from(b) << 32 | u64::from(a), Ordering::Relaxed);
    high.store(u64::from(d) << 32 | u64::from(c), Ordering::Release);
    simt::stored();
}

macro_rules! ordered_store {
    ($($name:ident, $ty:ty, $atomic:ty;)*) => {$(
        pub unsafe fn $name(at: u64, value: $ty) {
            simt::preempt();
            simt::check(at, size_of::<$ty>(), stringify!($name));
            // SAFETY: as for the loads.
            let word = unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(at as usize)) };
            word.store(value, Ordering::Release);
            simt::stored();
        }
    )*};
}

ordered_store! {
    store_relaxed_gpu_u32, u32, AtomicU32;
    store_release_gpu_u32, u32, AtomicU32;
    store_relaxed_sys_u64, u64, AtomicU64;
    store_release_sys_u64, u64, AtomicU64;
}

macro_rules! fetch_add {
    ($($name:ident)*) => {$(
        pub unsafe fn $name(at: u64, value: u32) -> u32 {
            simt::preempt();
            // SAFETY: `read` and `write` check; no thread runs between them.
            unsafe {
                let old: u32 = read(at, stringify!($name));
                write(at, old.wrapping_add(value), stringify!($name));
                old
            }
        }
    )*};
}

fetch_add! { fetch_add_relaxed_gpu_u32 fetch_add_acq_rel_gpu_u32 fetch_add_acq_rel_sys_u32 }

pub unsafe fn compare_exchange_acq_rel_gpu_u32(at: u64, expected: u32, new: u32) -> u32 {
    simt::preempt();
    // SAFETY: `read` and `write` check; no thread runs between them.
    unsafe {
        let old: u32 = read(at, "compare_exchange");
        if old == expected {
            write(at, new, "compare_exchange");
        }
        old
    }
}

pub fn fence_acq_rel_gpu() {
    simt::preempt();
}

pub fn fence_acq_rel_sys() {
    simt::preempt();
}

pub unsafe fn wait_at_least(at: u64, want: u64, deadline_ns: u64) -> Result<(), u64> {
    simt::check(at, 8, "wait_at_least");
    let pointer = with_exposed_provenance::<u64>(at as usize);
    if simt::wait_at_least(pointer, want, deadline_ns) {
        return Ok(());
    }
    // SAFETY: checked above.
    Err(unsafe { pointer.read() })
}

pub unsafe fn wait_tag(at: u64, tag: u32, deadline_ns: u64) -> bool {
    simt::check(at, size_of::<Quad>(), "wait_tag");
    // The tag is the high half of the second word, and only grows.
    simt::wait_at_least(with_exposed_provenance::<u64>(at as usize + 8), (tag as u64) << 32, deadline_ns)
}

pub unsafe fn max_relaxed_gpu_u32(at: u64, value: u32) {
    simt::preempt();
    // SAFETY: `read` and `write` check; no thread runs between them.
    unsafe { write(at, value.max(read(at, "max")), "max") };
}

macro_rules! shared {
    ($($load:ident, $store:ident, $ty:ty;)*) => {$(
        pub unsafe fn $load(at: u32) -> $ty {
            // SAFETY: `shared_pointer` faults the kernel unless the range lies in the block's shared memory.
            unsafe { simt::shared_pointer(at, size_of::<$ty>()).cast::<$ty>().read() }
        }
        pub unsafe fn $store(at: u32, value: $ty) {
            // SAFETY: as above.
            unsafe { simt::shared_pointer(at, size_of::<$ty>()).cast::<$ty>().write(value) }
        }
    )*};
}

shared! {
    shared_load_u32, shared_store_u32, u32;
    shared_load_u64, shared_store_u64, u64;
}

pub unsafe fn shared_load_quad(at: u32) -> Quad {
    // SAFETY: as above.
    unsafe { simt::shared_pointer(at, size_of::<Quad>()).cast::<Quad>().read() }
}

pub unsafe fn shared_add_u32(at: u32, value: u32) {
    // SAFETY: both check; no thread runs between them.
    unsafe { shared_store_u32(at, shared_load_u32(at).wrapping_add(value)) }
}

pub unsafe fn mbarrier_init(barrier: u32, arrivals: u32) {
    simt::mbarrier_init(barrier, arrivals);
}

pub unsafe fn mbarrier_arrive_expect(barrier: u32, bytes: u32) {
    simt::mbarrier_arrive_expect_tx(barrier, bytes);
}

pub unsafe fn mbarrier_wait(barrier: u32, parity: u32) {
    simt::mbarrier_wait(barrier, parity);
}

pub unsafe fn bulk_load(to: u32, from: Address, bytes: u32, barrier: u32) {
    simt::bulk_load(to, with_exposed_provenance(from.0 as usize), bytes, barrier);
}

pub unsafe fn bulk_store(to: Address, from: u32, bytes: u32) {
    simt::bulk_store(with_exposed_provenance_mut(to.0 as usize), from, bytes);
}

pub fn bulk_wait_read() {
    simt::bulk_wait(0, true);
}

pub fn bulk_wait_written() {
    simt::bulk_wait(0, false);
}

pub fn fence_proxy_async() {
    simt::preempt();
}

pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    let narrow = |value: f32| if value.is_nan() { 0x7fff } else { half::bf16::from_f32(value).to_bits() };
    (narrow(high) as u32) << 16 | narrow(low) as u32
}

pub fn f16x2_to_f32(packed: u32) -> [f32; 2] {
    let widen = |bits: u32| {
        let value = half::f16::from_bits(bits as u16);
        if value.is_nan() { f32::from_bits(0x7fff_ffff) } else { value.to_f32() }
    };
    [widen(packed), widen(packed >> 16)]
}

pub fn f32_to_f16x2(low: f32, high: f32) -> u32 {
    let narrow = |value: f32| if value.is_nan() { 0x7fff } else { half::f16::from_f32(value).to_bits() };
    (narrow(high) as u32) << 16 | narrow(low) as u32
}

pub fn f32_to_e4m3x2(low: f32, high: f32) -> u16 {
    u16::from_le_bytes([super::convert::f32_to_e4m3(low), super::convert::f32_to_e4m3(high)])
}
