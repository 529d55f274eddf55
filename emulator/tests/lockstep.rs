//! Host threads and the engine: streams, events, blocking, ownership, and handles that go in any order.

mod common;
use common::*;
use std::ptr::with_exposed_provenance;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tokenrail_emulator::{Launch, Machine, simt};

const ONE: Launch = Launch { name: "one", grid: 1, block: 1, shared_bytes: 0 };

#[test]
fn a_stream_keeps_its_order() {
    let device = device();
    let words = Words::new(&device, 1);
    let at = words.at(0);
    let stream = device.stream();
    for step in 0..6u64 {
        let expect = move |value: u64| assert_eq!(value, step);
        if step % 2 == 0 {
            stream.launch(ONE, Box::new(move || expect(fetch_add(at, 1)))).unwrap();
        } else {
            stream.host_op(Box::new(move || {
                // SAFETY: the allocation outlives the stream's work, and no kernel runs.
                unsafe {
                    let word = std::ptr::with_exposed_provenance_mut::<u64>(at as usize);
                    expect(word.read());
                    word.write(step + 1);
                }
            }));
        }
    }
    stream.synchronize().unwrap();
    assert_eq!(words.read(), [6]);
}

#[test]
fn events_order_streams_and_carry_time() {
    let machine = machine(2, 0);
    let devices = [machine.device(0).unwrap(), machine.device(1).unwrap()];
    let words = Words::new(&devices[0], 1);
    let at = words.at(0);
    let (first, second) = (devices[1].stream(), devices[0].stream());
    let slow = move || {
        assert!(!simt::wait_at_least(with_exposed_provenance(at as usize), 1, 1_000_000));
        store(at, 5);
    };
    let before = first.record();
    first.launch(ONE, Box::new(slow)).unwrap();
    let after = first.record();
    assert_eq!(after.time_ns(), None);
    second.wait(&after);
    second.launch(ONE, Box::new(move || assert_eq!(load(at), 5))).unwrap();
    second.synchronize().unwrap();
    let elapsed_ns = after.time_ns().unwrap() - before.time_ns().unwrap();
    assert!((1_000_000..1_100_000).contains(&elapsed_ns), "{elapsed_ns}");
}

#[test]
fn two_devices_hand_a_flag_to_each_other() {
    // Neither has a deadline that real time could trip: the clock must not jump while a host thread is late.
    for seed in 0..20 {
        let machine = machine(2, seed);
        let devices = [machine.device(0).unwrap(), machine.device(1).unwrap()];
        let words = Words::new(&devices[0], 2);
        let at = [words.at(0), words.at(1)];
        thread::scope(|scope| {
            for (rank, device) in devices.into_iter().enumerate() {
                scope.spawn(move || {
                    for round in 1..=3u64 {
                        run_on(&device, (1, 1), 0, move || {
                            store(at[1 - rank], round);
                            let deadline_ns = simt::now_ns() + 1_000_000;
                            assert!(simt::wait_at_least(
                                with_exposed_provenance(at[rank] as usize),
                                round,
                                deadline_ns
                            ));
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(words.read(), [3, 3]);
    }
}

#[test]
fn host_threads_meet_in_block_until() {
    let machine = machine(4, 0);
    let arrived = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for rank in 0..4 {
            let (machine, arrived) = (machine.clone(), arrived.clone());
            let device = machine.device(rank).unwrap();
            scope.spawn(move || {
                run_on(&device, (1, 32), 0, || simt::warp_barrier(ALL)).unwrap();
                arrived.fetch_add(1, Ordering::SeqCst);
                machine.notify();
                let all = arrived.clone();
                assert!(machine.block_until(Arc::new(move || all.load(Ordering::SeqCst) == 4), None));
                run_on(&device, (1, 32), 0, || simt::warp_barrier(ALL)).unwrap();
            });
        }
    });
    assert_eq!(arrived.load(Ordering::SeqCst), 4);
}

#[test]
fn block_until_gives_up_after_its_timeout() {
    assert!(!machine(1, 0).block_until(Arc::new(|| false), Some(Duration::from_millis(5))));
}

#[test]
fn a_host_thread_serves_a_kernel_that_waits_for_it() {
    // As a proxy does: it sleeps until a word of memory changes, and answers in another.
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let words = Words::new(&device, 2);
    let [asked, answered] = [words.at(0), words.at(1)];
    let word = |at: u64| with_exposed_provenance::<AtomicU64>(at as usize);
    thread::scope(|scope| {
        let (ready, waits) = std::sync::mpsc::channel();
        let proxy = machine.clone();
        scope.spawn(move || {
            let _part = proxy.take_part();
            ready.send(()).unwrap();
            for round in 1..=10u64 {
                // SAFETY: the words outlive this thread, and are only accessed as atomics while it runs.
                let came = move || unsafe { &*word(asked) }.load(Ordering::SeqCst) >= round;
                assert!(proxy.block_until(Arc::new(came), None));
                // SAFETY: as above.
                unsafe { &*word(answered) }.store(round, Ordering::SeqCst);
            }
        });
        waits.recv().unwrap();
        run_on(&device, (1, 1), 0, move || {
            for round in 1..=10 {
                store(asked, round);
                let deadline_ns = simt::now_ns() + 1_000_000;
                assert!(simt::wait_at_least(with_exposed_provenance(answered as usize), round, deadline_ns));
            }
        })
        .unwrap();
    });
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
fn a_thread_that_ends_holds_nobody_up() {
    let machine = machine(2, 0);
    let kept = machine.device(0).unwrap();
    thread::spawn(move || run_on(&kept, (1, 1), 0, || {}).map(|()| kept)).join().unwrap().unwrap();
    let unused = thread::spawn({
        let machine = machine.clone();
        move || machine.device(0).unwrap()
    });
    let _unused = unused.join().unwrap();
    run_on(&machine.device(1).unwrap(), (1, 1), 0, || {}).unwrap();
}

#[test]
fn work_may_hold_handles_of_the_machine() {
    let device = device();
    let stream = device.stream();
    let (inner, words) = (device.clone(), Words::new(&device, 1));
    stream.host_op(Box::new(move || {
        inner.machine().notify();
        drop((inner, words));
    }));
    let (inner, words) = (device.clone(), Words::new(&device, 1));
    stream.launch(ONE, Box::new(move || assert_eq!(inner.ordinal() as u64 + load(words.at(0)), 0))).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn handles_go_in_any_order() {
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let words = Words::new(&device, 1);
    let stream = device.stream();
    let at = words.at(0);
    stream
        .launch(
            ONE,
            Box::new(move || _ = simt::wait_at_least(with_exposed_provenance(at as usize), 1, u64::MAX)),
        )
        .unwrap();
    drop(machine);
    drop(device);
    drop(stream);
    assert_eq!(words.read(), [0]);

    let machine = common::machine(1, 0);
    let device = machine.device(0).unwrap();
    let stream = device.stream();
    let words = Words::new(&device, 1);
    let at = words.at(0);
    stream.launch(ONE, Box::new(move || store(at, 1))).unwrap();
    drop(words);
    assert!(stream.synchronize().unwrap_err().message.contains("not in live memory"));
}

#[test]
fn a_machine_goes_while_a_kernel_runs() {
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    let stream = device.stream();
    let spins = || {
        loop {
            simt::preempt();
        }
    };
    let launch = Launch { name: "endless", grid: 2, block: 64, shared_bytes: 0 };
    stream.launch(launch, Box::new(spins)).unwrap();
    assert!(!machine.block_until(Arc::new(|| false), Some(Duration::from_millis(5))));
    drop((stream, device, machine));
}

#[test]
fn machines_do_not_know_each_other() {
    let machines: Vec<Machine> = (0..3).map(|seed| machine(1, seed)).collect();
    for machine in &machines {
        run_on(&machine.device(0).unwrap(), (1, 64), 0, || simt::barrier(0, 64)).unwrap();
    }
}
