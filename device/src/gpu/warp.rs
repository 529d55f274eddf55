//! What the 32 threads of a warp do together. Every lane in `mask` must make the same call with the same mask.
//!
//! These are LLVM intrinsics, which are `convergent`; as inline assembly the compiler may duplicate them into both
//! arms of a branch, where lanes would wait for each other at different places.

use super::{machine, thread};

/// All 32 lanes.
pub const ALL: u32 = u32::MAX;

/// Waits for the lanes in `mask` and orders their memory accesses (`bar.warp.sync`, sm_70).
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn barrier(mask: u32) {
    machine::warp_barrier(mask);
}

/// The value that lane `from` passed (`shfl.sync.idx.b32`, sm_70).
pub fn shuffle(mask: u32, value: u32, from: u32) -> u32 {
    machine::shuffle(mask, value, from)
}

/// [`shuffle`] of 64 bits, in two halves.
pub fn shuffle_u64(mask: u32, value: u64, from: u32) -> u64 {
    let low = shuffle(mask, value as u32, from);
    let high = shuffle(mask, (value >> 32) as u32, from);
    (high as u64) << 32 | low as u64
}

/// The lanes whose `predicate` holds, as a bit mask (`vote.sync.ballot.b32`, sm_70).
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    machine::ballot(mask, predicate)
}

/// The lanes that passed the same value (`match.any.sync.b32`, sm_70).
pub fn match_any(mask: u32, value: u32) -> u32 {
    machine::match_any(mask, value)
}

/// True on exactly one lane of `mask`, the lowest.
pub fn elect(mask: u32) -> bool {
    thread::lane() == mask.trailing_zeros()
}

/// The lanes before this one, as a bit mask.
pub fn lanes_below() -> u32 {
    (1 << thread::lane()) - 1
}

/// The largest of all 32 lanes' values, on every lane.
pub fn max_f32(mut value: f32) -> f32 {
    let mut distance = thread::WARP / 2;
    while distance > 0 {
        let other = f32::from_bits(shuffle(ALL, value.to_bits(), thread::lane() ^ distance));
        value = if other > value { other } else { value };
        distance /= 2;
    }
    value
}

/// The largest of the values of each `width` neighbouring lanes, a power of two, on all of these.
pub fn max_within(width: u32, mut value: u32) -> u32 {
    let mut distance = width / 2;
    while distance > 0 {
        let other = shuffle(ALL, value, thread::lane() ^ distance);
        value = if other > value { other } else { value };
        distance /= 2;
    }
    value
}

/// The sum of the values of the lanes up to and including this one, on all 32 lanes.
pub fn inclusive_sum(mut value: u32) -> u32 {
    let lane = thread::lane();
    let mut distance = 1;
    while distance < thread::WARP {
        let below = shuffle(ALL, value, lane.wrapping_sub(distance) % thread::WARP);
        value += if lane >= distance { below } else { 0 };
        distance *= 2;
    }
    value
}

/// The sum of all 32 lanes' values, on every lane.
pub fn sum(value: u32) -> u32 {
    shuffle(ALL, inclusive_sum(value), thread::WARP - 1)
}
