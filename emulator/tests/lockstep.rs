//! Host threads: meetings, ownership of devices, and when time moves.

mod common;
use common::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokenrail_emulator::{Device, simt};

/// Runs `rank` on a host thread for each device, and waits for both.
fn on_two_threads(devices: [Device; 2], rank: impl Fn(Device) + Clone + Send + 'static) {
    let threads = devices.map(|device| {
        let rank = rank.clone();
        thread::spawn(move || rank(device))
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn two_devices_hand_a_flag_to_each_other() {
    // Neither has a deadline that real time could trip: the clock must not jump while a host thread is late.
    for seed in 0..20 {
        let devices = pair(seed);
        let words = Words::new(&devices[0], 2);
        let at = [words.at(0), words.at(1)];
        on_two_threads(devices, move |device| {
            let rank = device.ordinal();
            for round in 1..=3 {
                let kernel = move || {
                    store(at[1 - rank], round);
                    assert!(wait(at[rank], round, simt::now_ns() + 1_000_000));
                };
                run_on(&device, (1, 1), 0, kernel).unwrap();
            }
        });
        assert_eq!(words.read(), [3, 3]);
    }
}

#[test]
fn host_threads_meet_while_a_kernel_of_one_runs() {
    for seed in 0..16 {
        let devices = pair(seed);
        let words = Words::new(&devices[0], 1);
        let at = words.at(0);
        let arrived = Arc::new(AtomicUsize::new(0));
        on_two_threads(devices, move |device| {
            let stream = device.stream();
            if device.ordinal() == 0 {
                // It needs what the other thread launches after the meeting.
                let kernel = move || {
                    if simt::thread_index() == 0 {
                        assert!(wait(at, 7, u64::MAX));
                    }
                };
                launch(&stream, (1, 32), 0, kernel);
            }
            arrived.fetch_add(1, Ordering::SeqCst);
            device.machine().notify();
            let arrived = arrived.clone();
            let met = move || arrived.load(Ordering::SeqCst) == 2;
            assert!(device.machine().block_until(Arc::new(met), None));
            if device.ordinal() == 1 {
                launch(&stream, (1, 32), 0, move || store(at, 7));
            }
            stream.synchronize().unwrap();
        });
    }
}

#[test]
fn block_until_gives_up_after_its_timeout() {
    let machine = machine(1, 0);
    assert!(!machine.block_until(Arc::new(|| false), Some(Duration::from_millis(1))));
    assert!(machine.block_until(Arc::new(|| true), Some(Duration::ZERO)));
    assert!(machine.block_until(Arc::new(|| true), Some(Duration::MAX)), "no arithmetic overflow");
}

#[test]
fn notify_wakes_a_blocked_thread() {
    let machine = machine(1, 0);
    let flag = Arc::new(AtomicUsize::new(0));
    let waiting = {
        let (machine, flag) = (machine.clone(), flag.clone());
        thread::spawn(move || machine.block_until(Arc::new(move || flag.load(Ordering::SeqCst) == 1), None))
    };
    flag.store(1, Ordering::SeqCst);
    machine.notify();
    assert!(waiting.join().unwrap());
}

#[test]
fn using_a_device_from_another_thread_passes_it_on() {
    // This thread blocks outside the machine, which must not hold up the one that uses the device after it.
    let device = device();
    run_on(&device, (1, 1), 0, || {}).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| run_on(&device, (1, 1), 0, || {}).unwrap()).join().unwrap();
    });
}

#[test]
fn a_thread_that_ends_without_taking_part_lets_the_others_deadline_pass() {
    let devices = pair(0);
    let words = Words::new(&devices[0], 1);
    let at = words.at(0);
    let came = Log::default();
    let seen = came.clone();
    on_two_threads(devices, move |device| {
        if device.ordinal() == 1 {
            // It uses its device, so that time waits for it, and is gone.
            drop(device.alloc(16));
            return;
        }
        let (stream, came) = (device.stream(), came.clone());
        let kernel = move || {
            if simt::thread_index() == 0 {
                came.push(wait(at, 1, simt::now_ns() + 1_000_000_000).into());
            }
        };
        launch(&stream, (1, 32), 0, kernel);
        stream.synchronize().unwrap();
    });
    assert_eq!(seen.entries(), [0]);
}

#[test]
fn a_thread_that_ends_while_others_keep_its_handles_does_not_stop_time() {
    let devices = pair(0);
    let kept = Arc::new(Mutex::new(None));
    let words = Words::new(&devices[0], 1);
    let at = words.at(0);
    let handle = kept.clone();
    on_two_threads(devices, move |device| {
        let stream = device.stream();
        if device.ordinal() == 1 {
            launch(&stream, (1, 32), 0, || ());
            *handle.lock().unwrap() = Some((device, stream));
            return;
        }
        let kernel = move || {
            if simt::thread_index() == 0 {
                assert!(!wait(at, 1, simt::now_ns() + 1_000_000_000));
            }
        };
        launch(&stream, (1, 32), 0, kernel);
        stream.synchronize().unwrap();
    });
    assert!(kept.lock().unwrap().is_some());
}
