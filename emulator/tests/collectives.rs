//! Warp collectives; `model.rs` has those of many masks at once.

mod common;
use common::*;
use tokenrail_emulator::simt;

#[test]
fn shuffle_gives_the_source_lanes_value() {
    let device = device();
    let out = Words::new(&device, 64);
    let at = out.at(0);
    run_on(&device, (1, 64), 0, move || {
        let index = simt::thread_index();
        let value = simt::shuffle(ALL, 100 + u64::from(index), (lane() + 1) % 32);
        store(at + 8 * u64::from(index), value);
    })
    .unwrap();
    let expected: Vec<u64> = (0..64).map(|index| 100 + index / 32 * 32 + (index + 1) % 32).collect();
    assert_eq!(out.read(), expected);
}

#[test]
fn warp_barrier_orders_what_lanes_do() {
    for seed in 0..8 {
        let device = machine(1, seed).device(0).unwrap();
        let flags = Words::new(&device, 33);
        let at = flags.at(0);
        run_on(&device, (1, 32), 0, move || {
            simt::preempt();
            store(at + 8 * u64::from(lane()), 1);
            simt::warp_barrier(ALL);
            if lane() == 7 {
                store(at + 8 * 32, (0..32).map(|other| load(at + 8 * other)).sum());
            }
        })
        .unwrap();
        assert_eq!(flags.read()[32], 32);
    }
}

#[test]
fn a_block_may_end_within_a_warp() {
    let device = device();
    let out = Words::new(&device, 1);
    let at = out.at(0);
    run_on(&device, (1, 40), 0, move || {
        let mask = if simt::thread_index() < 32 { ALL } else { 0xff };
        let lanes = simt::ballot(mask, true);
        simt::barrier(0, simt::block_size());
        if simt::thread_index() == 39 {
            store(at, lanes.into());
        }
    })
    .unwrap();
    assert_eq!(out.read(), [0xff]);
}

#[test]
fn different_operations_at_once_are_a_fault() {
    let message = fault_of((1, 32), 0, || {
        if lane() == 3 {
            simt::ballot(ALL, true);
        } else {
            simt::warp_barrier(ALL);
        }
    });
    assert!(message.contains("ballot") && message.contains("warp_barrier"), "{message}");
}

#[test]
fn overlapping_masks_are_a_fault() {
    let message = fault_of((1, 32), 0, || {
        if lane() == 0 {
            // Keeps the lower lanes from completing.
            simt::barrier(0, 32);
        }
        simt::warp_barrier(if lane() < 16 { 0xffff } else { 0xffff_8000 });
    });
    assert!(message.contains("0x0000ffff") && message.contains("0xffff8000"), "{message}");
}

#[test]
fn a_lane_outside_its_mask_is_a_fault() {
    let message = fault_of((1, 32), 0, || simt::warp_barrier(0xff));
    assert!(message.contains("called by lane"), "{message}");
}

#[test]
fn a_collective_with_lanes_that_return_is_a_fault() {
    for seed in 0..8 {
        let device = machine(1, seed).device(0).unwrap();
        let fault = run_on(&device, (1, 32), 0, || {
            if lane() != 5 {
                simt::warp_barrier(ALL);
            }
        });
        let message = fault.unwrap_err().message;
        assert!(message.contains("returned"), "{message}");
    }
}
