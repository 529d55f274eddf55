//! The order of threads: drawn from the seed, and nothing else. Time. Deadlocks.

mod common;
use common::*;
use std::collections::HashSet;
use std::sync::mpsc::channel;
use std::thread;
use tokenrail_emulator::{Launch, Machine, Options, simt};

/// The order in which threads of two devices, often interrupted and each driven by a host thread, append to one log.
fn log(seed: u64) -> Vec<u64> {
    let machine = Machine::new(Options { devices: 2, seed, preempt_one_in: 4, ..Options::default() });
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
        let first = log(seed);
        for _ in 0..4 {
            assert!(first == log(seed), "seed {seed}");
        }
    }
}

/// Two host threads, each with a device: each kernel writes itself down and answers the other. `first` launches first,
/// in real time.
fn handshake(seed: u64, first: usize) -> Vec<u64> {
    let devices = pair(seed);
    let words = Words::new(&devices[0], 2);
    let flags = [words.at(0), words.at(1)];
    let log = Log::default();
    let (launched, other_launched) = channel::<()>();
    let (mut launched, mut other_launched) = (Some(launched), Some(other_launched));
    let threads = devices.map(|device| {
        let rank = device.ordinal();
        let log = log.clone();
        let before = if rank == first { launched.take() } else { None };
        let after = if rank == first { None } else { other_launched.take() };
        thread::spawn(move || {
            if let Some(other_launched) = after {
                other_launched.recv().unwrap();
            }
            let stream = device.stream();
            let kernel = move || {
                for round in 1..=5 {
                    simt::preempt();
                    log.push(1000 * round + 100 * rank as u64 + u64::from(simt::thread_index()));
                    if simt::thread_index() == 0 {
                        store(flags[rank], round);
                        assert!(wait(flags[1 - rank], round, u64::MAX));
                    }
                    simt::barrier(0, 64);
                }
            };
            launch(&stream, (1, 64), 0, kernel);
            if let Some(launched) = before {
                launched.send(()).unwrap();
            }
            stream.synchronize().unwrap();
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    log.entries()
}

#[test]
fn the_order_of_host_threads_in_real_time_does_not_matter() {
    let orders: HashSet<Vec<u64>> = (0..16)
        .map(|seed| {
            let order = handshake(seed, 0);
            assert_eq!(order, handshake(seed, 1), "seed {seed}");
            order
        })
        .collect();
    assert_eq!(orders.len(), 16, "seeds give orders of their own");
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
            assert!(wait(other, 1, u64::MAX));
        };
        launch(stream, (1, 1), 0, meet);
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
        let came = wait(at, 1, 5_000_000_000 * (me + 1));
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
        let wait = move || _ = wait(at, 6, u64::MAX);
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
