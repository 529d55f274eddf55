//! Streams, events, memory, and handles that go in any order.

mod common;
use common::*;
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokenrail_emulator::{Machine, Options, simt};

#[test]
fn a_stream_keeps_its_order() {
    let device = device();
    let stream = device.stream();
    let log = Log::default();
    for entry in 0..20 {
        let log = log.clone();
        if entry % 2 == 0 {
            stream.host_op(Box::new(move || log.push(entry)));
        } else {
            let kernel = move || {
                simt::preempt();
                if simt::thread_index() == 0 {
                    log.push(entry);
                }
            };
            launch(&stream, (2, 32), 0, kernel);
        }
    }
    stream.synchronize().unwrap();
    // Both blocks of a kernel write.
    let expected: Vec<u64> = (0..20).flat_map(|entry| vec![entry; 1 + entry as usize % 2]).collect();
    assert_eq!(log.entries(), expected);
}

#[test]
fn events_order_streams_and_carry_time() {
    let devices = pair(0);
    let words = Words::new(&devices[0], 1);
    let at = words.at(0);
    let (first, second) = (devices[1].stream(), devices[0].stream());
    let slow = move || {
        assert!(!wait(at, 1, 1_000_000));
        store(at, 5);
    };
    let before = first.record();
    launch(&first, (1, 1), 0, slow);
    let after = first.record();
    assert_eq!(after.time_ns(), None);
    second.wait(&after);
    launch(&second, (1, 1), 0, move || assert_eq!(load(at), 5));
    second.synchronize().unwrap();
    let elapsed_ns = after.time_ns().unwrap() - before.time_ns().unwrap();
    assert!((1_000_000..1_100_000).contains(&elapsed_ns), "{elapsed_ns}");
}

#[test]
fn the_host_waits_for_an_event_as_long_as_it_likes() {
    let [first, second] = pair(0);
    assert!(first.machine().is_same(second.machine()) && !first.machine().is_same(&machine(1, 0)));
    let words = Words::new(&first, 1);
    let at = words.at(0);
    let (ready, came) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    // Time stands still as long as this thread uses the other device and is not blocked in the machine.
    let user = std::thread::spawn(move || {
        let stream = second.stream();
        ready.send(()).unwrap();
        gone.recv().unwrap();
        drop(stream);
    });
    came.recv().unwrap();
    let stream = first.stream();
    launch(&stream, (1, 1), 0, move || store(at, 1));
    let event = stream.record();
    assert_eq!(first.wait(&event, Some(Duration::from_millis(1))), Ok(false));
    go.send(()).unwrap();
    assert_eq!(first.wait(&event, None), Ok(true));
    assert_eq!(words.read(), [1]);
    user.join().unwrap();
}

#[test]
fn the_host_writes_between_kernels_what_a_later_one_reads() {
    let device = device();
    let words = Words::new(&device, 2);
    let base = words.at(0);
    let stream = device.stream();
    for round in 1..=10 {
        words.write(0, round);
        let kernel = move || {
            if simt::thread_index() == 0 {
                assert!(wait(base, round, simt::now_ns()));
                let value = load(base);
                store(base + 8, value);
            }
        };
        launch(&stream, (1, 32), 0, kernel);
        stream.synchronize().unwrap();
        assert_eq!(words.read()[1], round);
    }
}

#[test]
fn the_machine_may_be_dropped_first() {
    let machine = machine(1, 0);
    let device = machine.device(0).unwrap();
    drop(machine);
    let stream = device.stream();
    drop(device);
    let log = Log::default();
    let kernel = {
        let log = log.clone();
        move || log.push(1)
    };
    launch(&stream, (1, 32), 0, kernel);
    stream.synchronize().unwrap();
    assert_eq!(log.entries().len(), 32);
}

#[test]
fn allocations_may_outlive_everything_else() {
    let device = device();
    let words = Words::new(&device, 1);
    drop(device);
    assert_eq!(words.read()[0], 0);
}

#[test]
fn a_dropped_streams_work_goes_on() {
    let device = device();
    let log = Log::default();
    let stream = device.stream();
    let entry = log.clone();
    launch(&stream, (1, 32), 0, move || entry.push(1));
    let event = stream.record();
    drop(stream);
    let other = device.stream();
    other.wait(&event);
    other.synchronize().unwrap();
    assert_eq!(log.entries().len(), 32);
}

#[test]
fn work_that_nobody_waits_for_is_dropped_with_the_machine() {
    let dropped = Arc::new(());
    for order in 0..6 {
        let machine = machine(1, order);
        let device = machine.device(0).unwrap();
        let stream = device.stream();
        let memory = device.alloc(64).unwrap();
        let held = dropped.clone();
        stream.host_op(Box::new(move || drop((held, memory))));
        let (held, memory) = (dropped.clone(), Words::new(&device, 1));
        let at = memory.at(0);
        let kernel = move || {
            let _held = (&held, &memory);
            store(at, 1);
        };
        launch(&stream, (1, 32), 0, kernel);
        match order {
            0 => drop((machine, device, stream)),
            1 => drop((stream, device, machine)),
            2 => drop((device, machine, stream)),
            3 => drop((stream, machine, device)),
            4 => drop((device, stream, machine)),
            _ => drop((machine, stream, device)),
        }
    }
    // The last handle waits for its engine, which drops what is left.
    assert_eq!(Arc::strong_count(&dropped), 1);
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
    launch(&stream, (2, 64), 0, spins);
    assert!(!machine.block_until(Arc::new(|| false), Some(Duration::from_millis(5))));
    drop((stream, device, machine));
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
    launch(&stream, (1, 1), 0, move || assert_eq!(inner.ordinal() as u64 + load(words.at(0)), 0));
    stream.synchronize().unwrap();
}

#[test]
fn kernels_and_host_operations_may_own_memory_and_drop_it() {
    let device = Machine::new(Options { memory_bytes: 100, ..Options::default() }).device(0).unwrap();
    let stream = device.stream();
    for _ in 0..3 {
        let memory = device.alloc(100).unwrap();
        stream.host_op(Box::new(move || drop(memory)));
        stream.synchronize().unwrap();
        let memory = device.alloc(100).unwrap();
        launch(&stream, (1, 32), 0, move || assert_eq!(memory.len(), 100));
        stream.synchronize().unwrap();
    }
}

#[test]
fn memory_freed_while_a_copy_is_queued_stays_until_the_copy_is_done() {
    let device = device();
    let stream = device.stream();
    let bytes = 1 << 20;
    let from = device.alloc(bytes).unwrap();
    let to = device.alloc(bytes).unwrap();
    let (source, target) = (from.ptr().expose_provenance(), to.ptr().expose_provenance());
    stream.host_op(Box::new(move || {
        let source = with_exposed_provenance_mut::<u8>(source);
        // SAFETY: the machine keeps freed memory as long as work is queued.
        unsafe { with_exposed_provenance_mut::<u8>(target).copy_from_nonoverlapping(source, bytes) }
    }));
    drop(from);
    stream.synchronize().unwrap();
    // SAFETY: the last byte of the allocation.
    assert_eq!(unsafe { to.ptr().add(bytes - 1).read() }, 0xa5);
}

#[test]
fn memory_freed_before_a_kernel_runs_is_not_live() {
    let device = device();
    let stream = device.stream();
    let words = Words::new(&device, 1);
    let at = words.at(0);
    launch(&stream, (1, 1), 0, move || store(at, 1));
    drop(words);
    assert!(stream.synchronize().unwrap_err().message.contains("not in live memory"));
}

#[test]
fn many_machines_at_once_do_not_disturb_each_other() {
    let threads: Vec<_> = (0..8)
        .map(|seed| {
            std::thread::spawn(move || {
                let log = Log::default();
                let kernel = {
                    let log = log.clone();
                    move || {
                        simt::barrier(0, 64);
                        log.push(simt::now_ns());
                    }
                };
                run_on(&machine(1, seed % 2).device(0).unwrap(), (2, 64), 0, kernel).unwrap();
                log.entries()
            })
        })
        .collect();
    let logs: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for seed in 2..8 {
        assert_eq!(logs[seed], logs[seed % 2], "the same seed gives the same run");
    }
}

/// Each of two threads uses a device of either machine, and waits first in the one, then in the other.
#[test]
fn two_machines_of_the_same_threads() {
    let machines = [pair(0), pair(1)];
    let words = machines.each_ref().map(|devices| Words::new(&devices[0], 2));
    let at = [0, 1].map(|machine: usize| [0, 1].map(|word| words[machine].at(word)));
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let machines = &machines;
            scope.spawn(move || {
                let streams = [&machines[0][rank], &machines[1][rank]].map(|device| device.stream());
                for (stream, at) in streams.iter().zip(at) {
                    // Each kernel needs the other's, which the other thread may yet have to launch.
                    let kernel = move || {
                        store(at[rank], 1);
                        assert!(wait(at[1 - rank], 1, 1_000_000), "the other did not come in time");
                    };
                    launch(stream, (1, 1), 0, kernel);
                    if rank == 0 {
                        stream.synchronize().unwrap();
                    }
                }
                // The second machine first on rank 1, where rank 0 launches only after the first.
                for stream in streams.iter().rev() {
                    stream.synchronize().unwrap();
                }
            });
        }
    });
    assert_eq!(words.map(|words| words.read()), [[1, 1], [1, 1]]);
}
