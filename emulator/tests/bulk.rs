//! Bulk copies: what a wait guarantees, and that nothing is guaranteed without one.

mod common;
use common::*;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use tokenrail_emulator::simt;

const WORDS: u64 = 64;
const BYTES: u32 = 8 * WORDS as u32;
/// Shared memory: an mbarrier, and a buffer behind it.
const BARRIER: u32 = 1024;
const BUFFER: u32 = 1024 + 16;

fn load_buffer(from: u64) {
    simt::mbarrier_init(BARRIER, 1);
    simt::mbarrier_arrive_expect_tx(BARRIER, BYTES);
    simt::bulk_load(BUFFER, with_exposed_provenance(from as usize), BYTES, BARRIER);
}

fn store_buffer(to: u64) {
    simt::bulk_store(with_exposed_provenance_mut(to as usize), BUFFER, BYTES);
    simt::bulk_commit();
}

fn fill_buffer(value: u64) {
    (0..WORDS as u32).for_each(|index| shared_store(BUFFER + 8 * index, value));
}

/// What a thread sees in the buffer after a load of sevens.
fn loaded(seed: u64, wait: bool) -> Vec<u64> {
    let device = machine(1, seed).device(0).unwrap();
    let (from, out) = (Words::new(&device, 64), Words::new(&device, 64));
    (0..64).for_each(|index| from.write(index, 7));
    let (from, to) = (from.at(0), out.at(0));
    run_on(&device, (1, 1), 16 + BYTES as usize, move || {
        load_buffer(from);
        if wait {
            simt::mbarrier_wait(BARRIER, 0);
        }
        (0..64).for_each(|index| store(to + 8 * index, shared_load(BUFFER + 8 * index as u32)));
        simt::mbarrier_wait(BARRIER, 0);
    })
    .unwrap_or_else(|fault| panic!("{fault}"));
    out.read()
}

#[test]
fn a_load_is_there_after_the_wait() {
    for seed in 0..16 {
        assert_eq!(loaded(seed, true), [7; 64]);
    }
}

#[test]
fn a_load_without_a_wait_shows_poison() {
    assert!((0..16).any(|seed| loaded(seed, false) == [0xa5a5_a5a5_a5a5_a5a5; 64]));
}

/// What is at the destination of a store of nines after `wait`; then the buffer is overwritten.
fn stored(seed: u64, wait: fn()) -> (u64, u64) {
    let device = machine(1, seed).device(0).unwrap();
    let (to, seen) = (Words::new(&device, 64), Words::new(&device, 1));
    let (at, seen_at) = (to.at(0), seen.at(0));
    run_on(&device, (1, 1), 16 + BYTES as usize, move || {
        fill_buffer(9);
        store_buffer(at);
        wait();
        store(seen_at, load(at));
        fill_buffer(1);
        simt::bulk_wait(0, false);
    })
    .unwrap_or_else(|fault| panic!("{fault}"));
    (seen.read()[0], to.read()[0])
}

#[test]
fn a_store_is_written_after_the_full_wait() {
    for seed in 0..16 {
        assert_eq!(stored(seed, || simt::bulk_wait(0, false)), (9, 9));
    }
}

#[test]
fn after_the_read_wait_the_source_is_free_and_the_destination_open() {
    let all: Vec<_> = (0..64).map(|seed| stored(seed, || simt::bulk_wait(0, true))).collect();
    assert!(all.iter().all(|&(_, last)| last == 9));
    assert!(all.iter().any(|&(seen, _)| seen == 0), "the write never came late");
}

#[test]
fn without_a_wait_the_source_may_be_overwritten() {
    // With `preempt` others run: copies too.
    assert!((0..64).any(|seed| stored(seed, || {}).1 == 1));
}

#[test]
fn a_wait_leaves_the_latest_groups_pending() {
    let written = |pending: u32, seed| {
        let device = machine(1, seed).device(0).unwrap();
        let (to, seen) = (Words::new(&device, 64 * 3), Words::new(&device, 3));
        let (at, seen_at) = (to.at(0), seen.at(0));
        run_on(&device, (1, 1), 16 + BYTES as usize, move || {
            fill_buffer(9);
            (0..3).for_each(|group| store_buffer(at + group * u64::from(BYTES)));
            simt::bulk_wait(pending, false);
            (0..3).for_each(|group| store(seen_at + 8 * group, load(at + group * u64::from(BYTES))));
            simt::bulk_wait(0, false);
        })
        .unwrap();
        seen.read()
    };
    for seed in 0..16 {
        assert_eq!(written(0, seed), [9, 9, 9]);
        assert_eq!(written(1, seed)[..2], [9, 9]);
    }
    assert!((0..16).any(|seed| written(2, seed)[2] == 0));
}

#[test]
fn a_flag_behind_the_full_wait_never_overtakes_the_data() {
    // The same with the read wait is a bug, which some seed shows.
    let early = |seed, read_only: bool| {
        let [from, to] = pair(seed);
        let (data, flag, seen) = (Words::new(&to, 64), Words::new(&to, 1), Words::new(&to, 1));
        let (data_at, flag_at, seen_at) = (data.at(0), flag.at(0), seen.at(0));
        let sender = from.stream();
        let send = move || {
            fill_buffer(9);
            store_buffer(data_at);
            simt::bulk_wait(0, read_only);
            store(flag_at, 1);
        };
        launch(&sender, (1, 1), 16 + BYTES as usize, send);
        run_on(&to, (1, 1), 0, move || {
            assert!(wait(flag_at, 1, u64::MAX));
            store(seen_at, load(data_at + 8 * 63));
        })
        .unwrap();
        sender.synchronize().unwrap();
        seen.read()[0] == 0
    };
    assert!((0..64).all(|seed| !early(seed, false)));
    assert!((0..64).any(|seed| early(seed, true)));
}

#[test]
fn bad_copies_are_faults() {
    let device = device();
    let words = Words::new(&device, 64);
    let at = words.at(0);
    let copy = |to: u64, shared: u32, bytes: u32| {
        let device = self::device();
        let words = Words::new(&device, 64);
        let at = words.at(0);
        let kernel = move || simt::bulk_store(with_exposed_provenance_mut((at + to) as usize), shared, bytes);
        run_on(&device, (1, 1), 1024, kernel).unwrap_err().message
    };
    assert!(copy(0, 1024, 24).contains("multiples of 16"));
    assert!(copy(8, 1024, 16).contains("multiples of 16"));
    assert!(copy(0, 1032, 16).contains("multiples of 16"));
    assert!(copy(0, 1024, 0).contains("multiples of 16"));
    assert!(copy(256, 1024, 512).contains("not in live memory"));
    assert!(copy(0, 2032, 32).contains("shared memory at 2032"));
    let early_end = run_on(&device, (1, 1), 1024, move || {
        simt::bulk_store(with_exposed_provenance_mut(at as usize), 1024, 16);
        simt::bulk_commit();
    });
    assert!(early_end.unwrap_err().message.contains("bulk copies still used its shared memory"));
}
