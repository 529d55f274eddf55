//! Host threads: streams, events, meetings, and handles that go in any order.

mod support;

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Log, Words, assert_says, launch, load, options, run_with, store, wait};
use tokenrail_emulator::{Device, Machine, Options, simt};

/// A machine of two devices, and handles on them.
fn pair(seed: u64) -> (Machine, [Device; 2]) {
    let machine = Machine::new(Options { devices: 2, ..options(seed) });
    let devices = [0, 1].map(|ordinal| machine.device(ordinal).expect("two devices"));
    (machine, devices)
}

/// Runs `rank` on a host thread for each device, and waits for both.
fn on_two_threads(devices: [Device; 2], rank: impl Fn(Device) + Clone + Send + 'static) {
    let threads = devices.map(|device| {
        let rank = rank.clone();
        std::thread::spawn(move || rank(device))
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn a_stream_keeps_its_order() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
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
            stream.launch(launch(2, 32), Box::new(kernel)).expect("a launch within the limits");
        }
    }
    stream.synchronize().expect("no fault");
    // Both blocks of a kernel write.
    let expected: Vec<u64> = (0..20).flat_map(|entry| vec![entry; 1 + entry as usize % 2]).collect();
    assert_eq!(log.entries(), expected);
}

#[test]
fn events_order_streams_and_tell_the_virtual_time() {
    let (_machine, devices) = pair(0);
    let streams = [devices[0].stream(), devices[1].stream()];
    let log = Log::default();
    let kernel = |entry: u64| {
        let log = log.clone();
        Box::new(move || {
            simt::barrier(0, 32);
            if simt::thread_index() == 0 {
                log.push(entry);
            }
        })
    };
    let start = streams[0].record();
    streams[0].launch(launch(1, 32), kernel(0)).expect("a launch within the limits");
    let end = streams[0].record();
    assert_eq!(end.time_ns(), None, "nothing runs before the host blocks");
    streams[1].wait(&end);
    streams[1].launch(launch(1, 32), kernel(1)).expect("a launch within the limits");
    streams[1].synchronize().expect("no fault");
    assert_eq!(log.entries(), [0, 1]);
    assert!(start.time_ns() < end.time_ns());
    assert!(end.time_ns().is_some());
}

#[test]
fn streams_of_a_device_run_at_the_same_time() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let words = Words::new(&device, 2);
    let base = words.address(0);
    let streams = [device.stream(), device.stream()];
    for (mine, stream) in streams.iter().enumerate() {
        let (mine, other) = (base + 8 * mine as u64, base + 8 * (1 - mine as u64));
        let kernel = move || {
            if simt::thread_index() == 0 {
                store(mine, 1);
                assert!(wait(other, 1, u64::MAX));
            }
        };
        stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
    }
    streams.iter().for_each(|stream| stream.synchronize().expect("they meet"));
}

#[test]
fn devices_of_two_host_threads_hand_flags_to_each_other() {
    for seed in 0..16 {
        let (_machine, devices) = pair(seed);
        let words = Words::new(&devices[0], 2);
        let base = words.address(0);
        on_two_threads(devices, move |device| {
            let stream = device.stream();
            let rank = device.ordinal() as u64;
            let (mine, other) = (base + 8 * rank, base + 8 * (1 - rank));
            let kernel = move || {
                if simt::thread_index() == 0 {
                    for round in 1..=20 {
                        store(mine, round);
                        let deadline_ns = simt::now_ns() + 1_000_000_000;
                        assert!(wait(other, round, deadline_ns), "the other is never late");
                    }
                }
            };
            // Several kernels, so that the host threads come and go meanwhile.
            for _ in 0..3 {
                stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
                stream.synchronize().expect("no fault");
                // The flags grow within a kernel only; the next begins at 1 again and finds them large enough.
            }
        });
        assert_eq!((words.get(0), words.get(1)), (20, 20));
    }
}

/// A meeting of `ranks` host threads.
#[derive(Clone, Default)]
struct Meeting(Arc<AtomicUsize>);

impl Meeting {
    fn join(&self, machine: &Machine, ranks: usize, timeout: Option<Duration>) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst);
        machine.notify();
        let arrived = self.0.clone();
        machine.block_until(Arc::new(move || arrived.load(Ordering::SeqCst) >= ranks), timeout)
    }
}

#[test]
fn host_threads_meet_while_a_kernel_of_one_runs() {
    for seed in 0..16 {
        let (_machine, devices) = pair(seed);
        let words = Words::new(&devices[0], 1);
        let at = words.address(0);
        let meeting = Meeting::default();
        on_two_threads(devices, move |device| {
            let stream = device.stream();
            if device.ordinal() == 0 {
                // It needs what the other thread launches after the meeting.
                let kernel = move || {
                    if simt::thread_index() == 0 {
                        assert!(wait(at, 7, u64::MAX));
                    }
                };
                stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
            }
            assert!(meeting.join(device.machine(), 2, None));
            if device.ordinal() == 1 {
                stream
                    .launch(launch(1, 32), Box::new(move || store(at, 7)))
                    .expect("a launch within the limits");
            }
            stream.synchronize().expect("no fault");
        });
    }
}

#[test]
fn block_until_gives_up_after_its_timeout() {
    let machine = Machine::new(options(0));
    assert!(!machine.block_until(Arc::new(|| false), Some(Duration::from_millis(1))));
    assert!(machine.block_until(Arc::new(|| true), Some(Duration::ZERO)));
    assert!(machine.block_until(Arc::new(|| true), Some(Duration::MAX)), "no arithmetic overflow");
}

#[test]
fn notify_wakes_a_blocked_thread() {
    let machine = Machine::new(options(0));
    let flag = Arc::new(AtomicUsize::new(0));
    let waiting = {
        let (machine, flag) = (machine.clone(), flag.clone());
        std::thread::spawn(move || {
            machine.block_until(Arc::new(move || flag.load(Ordering::SeqCst) == 1), None)
        })
    };
    flag.store(1, Ordering::SeqCst);
    machine.notify();
    assert!(waiting.join().expect("no panic"));
}

#[test]
fn a_thread_that_ends_without_taking_part_lets_the_others_deadline_pass() {
    let (_machine, devices) = pair(0);
    let words = Words::new(&devices[0], 1);
    let at = words.address(0);
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
        stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
        stream.synchronize().expect("a timeout is no fault");
    });
    assert_eq!(seen.entries(), [0]);
}

#[test]
fn a_thread_that_ends_while_others_keep_its_handles_does_not_stop_time() {
    let (_machine, devices) = pair(0);
    let kept = Arc::new(Mutex::new(None));
    let words = Words::new(&devices[0], 1);
    let at = words.address(0);
    let handle = kept.clone();
    on_two_threads(devices, move |device| {
        let stream = device.stream();
        if device.ordinal() == 1 {
            stream.launch(launch(1, 32), Box::new(|| ())).expect("a launch within the limits");
            *handle.lock().expect("no panic") = Some((device, stream));
            return;
        }
        let kernel = move || {
            if simt::thread_index() == 0 {
                assert!(!wait(at, 1, simt::now_ns() + 1_000_000_000));
            }
        };
        stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
        stream.synchronize().expect("a timeout is no fault");
    });
    assert!(kept.lock().expect("no panic").is_some());
}

#[test]
fn the_host_writes_between_kernels_what_a_later_one_reads() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let words = Words::new(&device, 2);
    let base = words.address(0);
    let stream = device.stream();
    for round in 1..=10 {
        // SAFETY: a live word; no kernel runs while this thread does.
        unsafe { with_exposed_provenance_mut::<u64>(base as usize).write(round) };
        let kernel = move || {
            if simt::thread_index() == 0 {
                assert!(wait(base, round, simt::now_ns()));
                let value = load(base);
                store(base + 8, value);
            }
        };
        stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
        stream.synchronize().expect("no fault");
        assert_eq!(words.get(1), round);
    }
}

#[test]
fn the_machine_may_be_dropped_first() {
    let machine = Machine::new(options(0));
    let device = machine.device(0).expect("the first device");
    drop(machine);
    let stream = device.stream();
    drop(device);
    let log = Log::default();
    let kernel = {
        let log = log.clone();
        move || log.push(1)
    };
    stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
    stream.synchronize().expect("the stream keeps the machine");
    assert_eq!(log.entries().len(), 32);
}

#[test]
fn allocations_may_outlive_everything_else() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let words = Words::new(&device, 1);
    drop(device);
    assert_eq!(words.get(0), 0);
}

#[test]
fn a_dropped_streams_work_goes_on() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let log = Log::default();
    let stream = device.stream();
    let entry = log.clone();
    stream.launch(launch(1, 32), Box::new(move || entry.push(1))).expect("a launch within the limits");
    let event = stream.record();
    drop(stream);
    let other = device.stream();
    other.wait(&event);
    other.synchronize().expect("no fault");
    assert_eq!(log.entries().len(), 32);
}

#[test]
fn work_that_nobody_waits_for_is_dropped_with_the_machine() {
    let dropped = Arc::new(());
    for order in 0..6 {
        let machine = Machine::new(options(order));
        let device = machine.device(0).expect("the first device");
        let stream = device.stream();
        let memory = device.alloc(64).expect("memory");
        let held = dropped.clone();
        stream.host_op(Box::new(move || drop((held, memory))));
        let (held, memory) = (dropped.clone(), Words::new(&device, 1));
        let at = memory.address(0);
        let kernel = move || {
            let _held = (&held, &memory);
            store(at, 1);
        };
        stream.launch(launch(1, 32), Box::new(kernel)).expect("a launch within the limits");
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
fn memory_freed_while_a_copy_is_queued_stays_until_the_copy_is_done() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let stream = device.stream();
    let bytes = 1 << 20;
    let from = device.alloc(bytes).expect("memory");
    let to = device.alloc(bytes).expect("memory");
    let (source, target) = (from.ptr().expose_provenance(), to.ptr().expose_provenance());
    stream.host_op(Box::new(move || {
        let source = with_exposed_provenance_mut::<u8>(source);
        // SAFETY: the machine keeps freed memory as long as work is queued.
        unsafe { with_exposed_provenance_mut::<u8>(target).copy_from_nonoverlapping(source, bytes) }
    }));
    drop(from);
    stream.synchronize().expect("no fault");
    // SAFETY: the last byte of the allocation.
    assert_eq!(unsafe { to.ptr().add(bytes - 1).read() }, 0xa5);
}

#[test]
fn a_host_operation_that_panics_is_a_fault_of_its_device() {
    let device = Machine::new(options(0)).device(0).expect("the first device");
    let stream = device.stream();
    stream.host_op(Box::new(|| panic!("on purpose")));
    assert_says(&stream.synchronize().expect_err("a fault").to_string(), &["device 0", "on purpose"]);
}

#[test]
fn kernels_and_host_operations_may_own_memory_and_drop_it() {
    let device =
        Machine::new(Options { memory_bytes: 100, ..options(0) }).device(0).expect("the first device");
    let stream = device.stream();
    for _ in 0..3 {
        let memory = device.alloc(100).expect("the last round's is free");
        stream.host_op(Box::new(move || drop(memory)));
        stream.synchronize().expect("no fault");
        let memory = device.alloc(100).expect("the operation's is free");
        stream
            .launch(launch(1, 32), Box::new(move || assert_eq!(memory.len(), 100)))
            .expect("a small launch");
        stream.synchronize().expect("no fault");
    }
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
                run_with(options(seed % 2), launch(2, 64), kernel).expect("no fault");
                log.entries()
            })
        })
        .collect();
    let logs: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
    for seed in 2..8 {
        assert_eq!(logs[seed], logs[seed % 2], "the same seed gives the same run");
    }
}
