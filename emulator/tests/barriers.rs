//! Block barriers and mbarriers.

mod common;
use common::*;
use tokenrail_emulator::simt;

#[test]
fn barrier_waits_for_the_whole_block() {
    for seed in 0..8 {
        let device = machine(1, seed).device(0).unwrap();
        let out = Words::new(&device, 1);
        let at = out.at(0);
        run_on(&device, (1, 256), 8 * 256, move || {
            let index = simt::thread_index();
            let base = simt::shared_base();
            for round in 1..=5 {
                shared_store(base + 8 * index, round);
                simt::barrier(0, 256);
                if (0..256).any(|other| shared_load(base + 8 * other) != round) {
                    simt::fault(format!("thread {index} is ahead of others in round {round}"));
                }
                simt::barrier(0, 256);
            }
            fetch_add(at, 1);
        })
        .unwrap();
        assert_eq!(out.read(), [256]);
    }
}

#[test]
fn named_barriers_join_parts_of_a_block() {
    let device = device();
    let out = Words::new(&device, 2);
    let at = out.at(0);
    run_on(&device, (1, 128), 0, move || {
        // Two pairs of warps, each with its own barrier, and different numbers of rounds.
        let pair = simt::thread_index() / 64;
        for _ in 0..=pair {
            fetch_add(at + 8 * u64::from(pair), 1);
            simt::barrier(1 + pair, 64);
            if !load(at + 8 * u64::from(pair)).is_multiple_of(64) {
                simt::fault("not all have come".into());
            }
            simt::barrier(1 + pair, 64);
        }
    })
    .unwrap();
    assert_eq!(out.read(), [64, 128]);
}

#[test]
fn barrier_or_gives_everyone_whether_anyone_said_true() {
    let device = device();
    let out = Words::new(&device, 2);
    let at = out.at(0);
    run_on(&device, (1, 96), 0, move || {
        let some = simt::barrier_or(0, 96, simt::thread_index() == 70);
        let none = simt::barrier_or(0, 96, false);
        fetch_add(at, some.into());
        fetch_add(at + 8, none.into());
    })
    .unwrap();
    assert_eq!(out.read(), [96, 0]);
}

#[test]
fn a_barrier_of_two_sizes_is_a_fault() {
    let message = fault_of((1, 96), 0, || simt::barrier(2, if simt::thread_index() < 32 { 64 } else { 96 }));
    assert!(message.starts_with("barrier 2 of"), "{message}");
}

#[test]
fn barrier_numbers_and_sizes_are_checked() {
    assert!(fault_of((1, 64), 0, || simt::barrier(16, 64)).starts_with("barrier 16"));
    assert!(fault_of((1, 64), 0, || simt::barrier(0, 33)).contains("33 threads"));
    assert!(fault_of((1, 64), 0, || simt::barrier(0, 96)).contains("96 threads"));
}

#[test]
fn a_barrier_that_returned_threads_miss_is_reported() {
    let message = fault_of((2, 64), 0, || {
        if simt::block_index() == 0 || simt::thread_index() < 40 {
            simt::barrier(3, 64);
        }
    });
    assert!(message.contains("deadlock"), "{message}");
    assert!(message.contains("kernel on device 0, block 1: barrier 3: 40 of 64 arrived"), "{message}");
    assert!(message.contains("returned: threads 40-63"), "{message}");
    assert!(!message.contains("block 0"), "{message}");
}

#[test]
fn an_mbarrier_goes_from_phase_to_phase() {
    for seed in 0..8 {
        let device = machine(1, seed).device(0).unwrap();
        let out = Words::new(&device, 1);
        let at = out.at(0);
        run_on(&device, (1, 64), 16, move || {
            let (barrier, count) = (simt::shared_base(), simt::shared_base() + 8);
            if simt::thread_index() == 0 {
                simt::mbarrier_init(barrier, 64);
                shared_store(count, 0);
            }
            simt::barrier(0, 64);
            for phase in 0..6u32 {
                simt::preempt();
                shared_store(count, shared_load(count) + 1);
                simt::mbarrier_arrive(barrier);
                simt::mbarrier_wait(barrier, phase % 2);
                let seen = shared_load(count);
                if seen < 64 * u64::from(phase + 1) {
                    simt::fault(format!("phase {phase}: {seen} arrivals"));
                }
            }
            fetch_add(at, 1);
            simt::barrier(0, 64);
            if simt::thread_index() == 0 {
                simt::mbarrier_invalidate(barrier);
                simt::mbarrier_init(barrier, 1);
            }
        })
        .unwrap();
        assert_eq!(out.read(), [64]);
    }
}

#[test]
fn an_mbarrier_can_be_polled() {
    let device = device();
    run_on(&device, (1, 64), 8, || {
        let barrier = simt::shared_base();
        if simt::thread_index() == 0 {
            simt::mbarrier_init(barrier, 1);
            // The phase before the first counts as over.
            assert!(simt::mbarrier_test(barrier, 1));
        }
        simt::barrier(0, 64);
        if simt::thread_index() == 40 {
            simt::mbarrier_arrive(barrier);
        }
        while !simt::mbarrier_test(barrier, 0) {}
    })
    .unwrap();
}

#[test]
fn an_mbarrier_that_stays_incomplete_is_reported() {
    let message = fault_of((1, 32), 8, || {
        let barrier = simt::shared_base();
        if lane() == 0 {
            simt::mbarrier_init(barrier, 3);
            simt::mbarrier_arrive_expect_tx(barrier, 96);
            simt::mbarrier_wait(barrier, 0);
        }
    });
    let expected = "mbarrier at 1024 (phase 0, parity waited for 0): 2 arrivals and 96 bytes missing";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn misuse_of_an_mbarrier_is_a_fault() {
    assert!(fault_of((1, 1), 8, || simt::mbarrier_arrive(1024)).contains("not initialised"));
    assert!(fault_of((1, 1), 8, || simt::mbarrier_init(1024, 0)).contains("0 arrivals"));
    let twice = || {
        simt::mbarrier_init(1024, 1);
        simt::mbarrier_init(1024, 1);
    };
    assert!(fault_of((1, 1), 8, twice).contains("twice"));
    let too_many = || {
        simt::mbarrier_init(1024, 1);
        simt::mbarrier_arrive_expect_tx(1024, 16);
        simt::mbarrier_arrive(1024);
    };
    assert!(fault_of((1, 1), 8, too_many).contains("more arrivals than its 1"));
}
