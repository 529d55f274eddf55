//! The machine as `tokenrail-emulator`: every access is checked against the live allocations, ordered operations give
//! other threads a chance to run, and bulk copies complete when the scheduler likes.
//!
//! Emulated threads run one at a time, so plain reads and writes through raw pointers are as good as atomics; what
//! matters is where a thread may be interrupted, which is at every ordered operation.

use super::mem::{Address, Quad};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokenrail_emulator::check::{Scope, Strength, Touch};
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

#[track_caller]
pub fn block_barrier() {
    simt::barrier(0, simt::block_size());
}

#[track_caller]
pub fn block_barrier_or(predicate: bool) -> bool {
    simt::barrier_or(0, simt::block_size(), predicate)
}

/// Reads a `T` of global memory after checking that it is there.
#[track_caller]
unsafe fn read<T: Copy>(at: u64, what: &'static str) -> T {
    simt::access(at, size_of::<T>(), Touch::Read, Strength::Plain, what);
    // SAFETY: `access` faults the kernel unless the address lies in a live allocation and is aligned; allocations
    // expose their provenance.
    unsafe { with_exposed_provenance::<T>(at as usize).read() }
}

/// Writes a `T` to global memory after checking that it is there.
#[track_caller]
unsafe fn write<T: Copy>(at: u64, value: T, what: &'static str) {
    simt::access(at, size_of::<T>(), Touch::Write, Strength::Plain, what);
    // SAFETY: as in `read`.
    unsafe { with_exposed_provenance_mut::<T>(at as usize).write(value) };
    simt::stored();
}

macro_rules! plain {
    ($($load:ident, $store:ident, $ty:ty;)*) => {$(
        #[track_caller]
        pub unsafe fn $load(at: u64) -> $ty {
            // SAFETY: `read` checks.
            unsafe { read(at, stringify!($load)) }
        }
        #[track_caller]
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

#[track_caller]
pub unsafe fn store_u8(at: u64, value: u8) {
    // SAFETY: `write` checks.
    unsafe { write(at, value, "store_u8") }
}

// Ordered operations are atomics of the host: NICs and the threads that serve them may touch the same memory.

macro_rules! ordered_load {
    ($($name:ident, $ty:ty, $atomic:ty, $strength:ident $scope:ident;)*) => {$(
        #[track_caller]
        pub unsafe fn $name(at: u64) -> $ty {
            simt::preempt();
            let strength = Strength::$strength(Scope::$scope);
            simt::access(at, size_of::<$ty>(), Touch::Read, strength, stringify!($name));
            // SAFETY: live and aligned, as checked; allocations expose their provenance.
            unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(at as usize)) }.load(Ordering::Acquire)
        }
    )*};
}

ordered_load! {
    load_relaxed_gpu_u32, u32, AtomicU32, relaxed Device;
    load_acquire_gpu_u32, u32, AtomicU32, acquire Device;
    load_relaxed_sys_u64, u64, AtomicU64, relaxed System;
    load_acquire_sys_u64, u64, AtomicU64, acquire System;
}

/// Both halves of 16 bytes, as atomics.
#[track_caller]
fn halves(at: u64, touch: Touch, what: &'static str) -> [&'static AtomicU64; 2] {
    simt::access(at, size_of::<Quad>(), touch, Strength::relaxed(Scope::System), what);
    // SAFETY: live and aligned, as checked; used before the next thread runs.
    [at, at + 8].map(|at| unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at as usize)) })
}

/// Emulated threads see 16 bytes at once. Others see the half with the tag last.
#[track_caller]
pub unsafe fn load_relaxed_sys_b128(at: u64) -> Quad {
    simt::preempt();
    let [low, high] = halves(at, Touch::Read, "load_relaxed_sys_b128");
    let high = high.load(Ordering::Acquire);
    let low = low.load(Ordering::Relaxed);
    Quad([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
}

#[track_caller]
pub unsafe fn store_relaxed_sys_b128(at: u64, Quad([a, b, c, d]): Quad) {
    simt::preempt();
    let [low, high] = halves(at, Touch::Write, "store_relaxed_sys_b128");
    low.store(u64::from(b) << 32 | u64::from(a), Ordering::Relaxed);
    high.store(u64::from(d) << 32 | u64::from(c), Ordering::Release);
    simt::stored();
}

macro_rules! ordered_store {
    ($($name:ident, $ty:ty, $atomic:ty, $strength:ident $scope:ident;)*) => {$(
        #[track_caller]
        pub unsafe fn $name(at: u64, value: $ty) {
            simt::preempt();
            let strength = Strength::$strength(Scope::$scope);
            simt::access(at, size_of::<$ty>(), Touch::Write, strength, stringify!($name));
            // SAFETY: as for the loads.
            let word = unsafe { <$atomic>::from_ptr(with_exposed_provenance_mut(at as usize)) };
            word.store(value, Ordering::Release);
            simt::stored();
        }
    )*};
}

ordered_store! {
    store_relaxed_gpu_u32, u32, AtomicU32, relaxed Device;
    store_release_gpu_u32, u32, AtomicU32, release Device;
    store_relaxed_sys_u64, u64, AtomicU64, relaxed System;
    store_release_sys_u64, u64, AtomicU64, release System;
}

/// Changes a word at once, as an operation of this strength; gives what it was. No thread runs in between.
#[track_caller]
unsafe fn update(at: u64, strength: Strength, what: &'static str, change: impl FnOnce(u32) -> u32) -> u32 {
    simt::preempt();
    simt::access(at, 4, Touch::Update, strength, what);
    let word = with_exposed_provenance_mut::<u32>(at as usize);
    // SAFETY: live and aligned, as checked; allocations expose their provenance.
    unsafe {
        let old = word.read();
        word.write(change(old));
        simt::stored();
        old
    }
}

macro_rules! fetch_add {
    ($($name:ident, $strength:ident $scope:ident;)*) => {$(
        #[track_caller]
        pub unsafe fn $name(at: u64, value: u32) -> u32 {
            let strength = Strength::$strength(Scope::$scope);
            // SAFETY: `update` checks.
            unsafe { update(at, strength, stringify!($name), |old| old.wrapping_add(value)) }
        }
    )*};
}

fetch_add! {
    fetch_add_relaxed_gpu_u32, relaxed Device;
    fetch_add_acq_rel_gpu_u32, both Device;
    fetch_add_acq_rel_sys_u32, both System;
}

#[track_caller]
pub unsafe fn compare_exchange_acq_rel_gpu_u32(at: u64, expected: u32, new: u32) -> u32 {
    let change = |old| if old == expected { new } else { old };
    // SAFETY: `update` checks.
    unsafe { update(at, Strength::both(Scope::Device), "compare_exchange", change) }
}

#[track_caller]
pub unsafe fn max_relaxed_gpu_u32(at: u64, value: u32) {
    // SAFETY: `update` checks.
    unsafe { update(at, Strength::relaxed(Scope::Device), "max_relaxed_gpu_u32", |old| old.max(value)) };
}

#[track_caller]
pub fn fence_acq_rel_gpu() {
    simt::fence(Scope::Device);
}

#[track_caller]
pub fn fence_acq_rel_sys() {
    simt::fence(Scope::System);
}

#[track_caller]
pub unsafe fn wait_at_least(at: u64, want: u64, deadline_ns: u64) -> Result<(), u64> {
    simt::check(at, 8, "wait_at_least");
    let pointer = with_exposed_provenance::<u64>(at as usize);
    if simt::wait_at_least(pointer, want, deadline_ns) {
        simt::access(at, 8, Touch::Read, Strength::acquire(Scope::System), "wait_at_least");
        return Ok(());
    }
    // SAFETY: checked above.
    Err(unsafe { pointer.read() })
}

#[track_caller]
pub unsafe fn wait_tag(at: u64, tag: u32, deadline_ns: u64) -> bool {
    simt::check(at, size_of::<Quad>(), "wait_tag");
    // The tag is the high half of the second word, and only grows.
    let came =
        simt::wait_at_least(with_exposed_provenance::<u64>(at as usize + 8), (tag as u64) << 32, deadline_ns);
    if came {
        simt::access(at, size_of::<Quad>(), Touch::Read, Strength::relaxed(Scope::System), "wait_tag");
    }
    came
}

/// Where bytes of shared memory lie that are about to be accessed.
#[track_caller]
fn shared(at: u32, bytes: usize, touch: Touch, what: &'static str) -> *mut u8 {
    simt::shared_access(at, bytes, touch, Strength::Plain, what)
}

macro_rules! shared {
    ($($load:ident, $store:ident, $ty:ty;)*) => {$(
        #[track_caller]
        pub unsafe fn $load(at: u32) -> $ty {
            // SAFETY: `shared` faults the kernel unless the range lies in the block's shared memory.
            unsafe { shared(at, size_of::<$ty>(), Touch::Read, stringify!($load)).cast::<$ty>().read() }
        }
        #[track_caller]
        pub unsafe fn $store(at: u32, value: $ty) {
            // SAFETY: as above.
            unsafe { shared(at, size_of::<$ty>(), Touch::Write, stringify!($store)).cast::<$ty>().write(value) }
        }
    )*};
}

shared! {
    shared_load_u32, shared_store_u32, u32;
    shared_load_u64, shared_store_u64, u64;
}

#[track_caller]
pub unsafe fn shared_load_quad(at: u32) -> Quad {
    // SAFETY: as above.
    unsafe { shared(at, size_of::<Quad>(), Touch::Read, "shared_load_quad").cast::<Quad>().read() }
}

#[track_caller]
pub unsafe fn shared_add_u32(at: u32, value: u32) {
    let strength = Strength::relaxed(Scope::Block);
    let word = simt::shared_access(at, 4, Touch::Update, strength, "shared_add_u32").cast::<u32>();
    // SAFETY: in the block's shared memory, as checked; no thread runs in between.
    unsafe { word.write(word.read().wrapping_add(value)) };
}

#[track_caller]
pub unsafe fn mbarrier_init(barrier: u32, arrivals: u32) {
    simt::mbarrier_init(barrier, arrivals);
}

#[track_caller]
pub unsafe fn mbarrier_arrive_expect(barrier: u32, bytes: u32) {
    simt::mbarrier_arrive_expect_tx(barrier, bytes);
}

#[track_caller]
pub unsafe fn mbarrier_wait(barrier: u32, parity: u32) {
    simt::mbarrier_wait(barrier, parity);
}

#[track_caller]
pub unsafe fn bulk_load(to: u32, from: Address, bytes: u32, barrier: u32) {
    simt::bulk_load(to, with_exposed_provenance(from.0 as usize), bytes, barrier);
}

#[track_caller]
pub unsafe fn bulk_store(to: Address, from: u32, bytes: u32) {
    simt::bulk_store(with_exposed_provenance_mut(to.0 as usize), from, bytes);
}

#[track_caller]
pub fn bulk_wait_read() {
    simt::bulk_wait(0, true);
}

#[track_caller]
pub fn bulk_wait_written() {
    simt::bulk_wait(0, false);
}

#[track_caller]
pub fn fence_proxy_async() {
    simt::fence_proxy();
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
