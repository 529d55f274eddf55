//! The order of threads: drawn from the seed, and nothing else. Time. Deadlocks.

mod common;
use common::*;
use std::ptr::with_exposed_provenance;
use std::thread;
use tokenrail_emulator::{Launch, Machine, Options, simt};

/// The order in which threads of two devices, each driven by a host thread, append to one log.
fn log(seed: u64, preempt_one_in: u32) -> Vec<u64> {
    let machine = Machine::new(Options { devices: 2, seed, preempt_one_in, ..Options::default() });
    let devices = [machine.device(0).unwrap(), machine.device(1).unwrap()];
    let log = Words::new(&devices[0], 1 + 2 * 4 * 64 * 2);
    let at = log.at(0);
    thread::scope(|scope| {
        for device in devices {
            scope.spawn(move || {
                run_on(&device, (4, 64), 0, move || {
                    let me = simt::device_ordinal() as u64 * 1000
                        + u64::from(simt::block_index() * 64 + simt::thread_index());
                    for _ in 0..2 {
                        simt::preempt();
                        let place = fetch_add(at, 1);
                        store(at + 8 * (1 + place), me);
                    }
                })
                .unwrap();
            });
        }
    });
    log.read()
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 0..4 {
        let first = log(seed, 4);
        for _ in 0..4 {
            assert!(first == log(seed, 4), "seed {seed}");
        }
    }
}

#[test]
fn other_seeds_give_other_runs() {
    let first = log(0, 4);
    assert!((1..4).all(|seed| first != log(seed, 4)));
}

#[test]
fn preemption_exposes_a_race() {
    // Adds without atomicity: the threads read, may be interrupted, and write.
    let sum = |preempt_one_in| {
        let machine = Machine::new(Options { preempt_one_in, ..Options::default() });
        let device = machine.device(0).unwrap();
        let sum = Words::new(&device, 1);
        let at = sum.at(0);
        run_on(&device, (4, 64), 0, move || {
            let old = load(at);
            simt::preempt();
            store(at, old + 1);
        })
        .unwrap();
        sum.read()[0]
    };
    assert_eq!(sum(0), 256);
    assert!(sum(2) < 256);
}

#[test]
fn blocks_beyond_the_limit_wait_for_others_to_end() {
    let most = |resident_blocks| {
        let machine = Machine::new(Options { resident_blocks, preempt_one_in: 2, ..Options::default() });
        let device = machine.device(0).unwrap();
        let words = Words::new(&device, 3);
        let [running, most, ended] = [words.at(0), words.at(1), words.at(2)];
        run_on(&device, (12, 1), 0, move || {
            let now = fetch_add(running, 1) + 1;
            store(most, load(most).max(now));
            (0..20).for_each(|_| simt::preempt());
            store(running, load(running) - 1);
            fetch_add(ended, 1);
        })
        .unwrap();
        assert_eq!(words.read()[2], 12);
        words.read()[1]
    };
    assert!(most(3) <= 3);
    assert!(most(132) > 3);
}

#[test]
fn kernels_of_two_streams_run_at_the_same_time() {
    let device = device();
    let words = Words::new(&device, 2);
    let [ping, pong] = [words.at(0), words.at(1)];
    let streams = [device.stream(), device.stream()];
    for (stream, mine, other) in [(&streams[0], ping, pong), (&streams[1], pong, ping)] {
        let meet = move || {
            store(mine, 1);
            assert!(simt::wait_at_least(with_exposed_provenance(other as usize), 1, u64::MAX));
        };
        stream.launch(Launch { name: "meet", grid: 1, block: 1, shared_bytes: 0 }, Box::new(meet)).unwrap();
    }
    for stream in &streams {
        stream.synchronize().unwrap();
    }
}

#[test]
fn the_clock_jumps_to_a_deadline_when_nothing_else_can_happen() {
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let words = Words::new(&device, 3);
    let at = words.at(0);
    run_on(&device, (1, 2), 0, move || {
        let me = u64::from(simt::thread_index());
        let came = simt::wait_at_least(with_exposed_provenance(at as usize), 1, 5_000_000_000 * (me + 1));
        store(at + 8 * (1 + me), 1000 * u64::from(came) + simt::now_ns() / 1_000_000_000);
    })
    .unwrap();
    assert_eq!(words.read(), [0, 5, 10]);
    assert!(machine.now_ns() >= 10_000_000_000);
}

#[test]
fn a_polling_loop_sees_stores_and_time() {
    let device = device();
    let words = Words::new(&device, 2);
    let at = words.at(0);
    run_on(&device, (2, 1), 0, move || {
        if simt::block_index() == 0 {
            while load(at) == 0 {
                simt::spin();
            }
            let deadline_ns = simt::now_ns() + 3_000_000_000;
            while simt::now_ns() < deadline_ns {
                simt::spin();
            }
            store(at + 8, simt::now_ns());
        } else {
            store(at, 1);
        }
    })
    .unwrap();
    assert!((3_000_000_000..6_000_000_000).contains(&words.read()[1]), "{:?}", words.read());
}

#[test]
fn a_polling_loop_without_end_is_a_deadlock() {
    let message = fault_of((1, 1), 0, || {
        loop {
            simt::spin();
        }
    });
    assert!(message.contains("thread 0 (warp 0) waits for a store, in a polling loop"), "{message}");
}

#[test]
fn a_deadlock_of_two_devices_is_reported_to_both() {
    let machine = machine(3, 0);
    let devices = [0, 1, 2].map(|ordinal| machine.device(ordinal).unwrap());
    let words = Words::new(&devices[0], 1);
    let at = words.at(0);
    words.write(0, 4);
    let streams = [devices[0].stream(), devices[1].stream()];
    for stream in &streams {
        let wait = move || _ = simt::wait_at_least(with_exposed_provenance(at as usize), 6, u64::MAX);
        stream.launch(Launch { name: "wait", grid: 1, block: 1, shared_bytes: 0 }, Box::new(wait)).unwrap();
    }
    for (device, stream) in streams.iter().enumerate() {
        let fault = stream.synchronize().unwrap_err();
        assert_eq!((fault.device, fault.kernel), (device, "wait"));
        for other in 0..2 {
            let line = format!(
                "wait on device {other}, block 0: thread 0 (warp 0) waits for the word at {at:#x}: 4, wanted at least 6"
            );
            assert!(fault.message.contains(&line), "{}", fault.message);
        }
    }
    run_on(&devices[2], (1, 1), 0, || {}).unwrap();
}
