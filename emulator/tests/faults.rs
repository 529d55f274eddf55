//! What kernels must not do, and what happens when they do.

mod common;
use common::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokenrail_emulator::{Error, Launch, Machine, Options, simt};

#[test]
fn accesses_outside_live_memory_are_faults() {
    let device = device();
    let words = Words::new(&device, 4);
    let at = words.at(0);
    run_on(&device, (1, 1), 0, move || store(at + 24, 1)).unwrap();
    let fault = run_on(&device, (1, 1), 0, move || store(at + 32, 1)).unwrap_err();
    assert_eq!(fault.thread, Some((0, 0)));
    assert_eq!(fault.message, format!("store at {:#x}, 8 bytes: not in live memory", at + 32));

    assert!(fault_of((1, 1), 0, || _ = load(0)).contains("not in live memory"));
    assert!(fault_of((1, 1), 0, || _ = load(u64::MAX - 7)).contains("not in live memory"));
    let device = self::device();
    let words = Words::new(&device, 4);
    let at = words.at(0) + 4;
    assert!(run_on(&device, (1, 1), 0, move || _ = load(at)).unwrap_err().message.contains("not aligned"));
}

#[test]
fn freed_memory_is_not_live() {
    let device = device();
    let words = Words::new(&device, 4);
    let at = words.at(0);
    run_on(&device, (1, 1), 0, move || store(at, 1)).unwrap();
    drop(words);
    assert!(run_on(&device, (1, 1), 0, move || store(at, 1)).is_err());
}

#[test]
fn shared_memory_is_poisoned_and_has_bounds() {
    let poisoned = || assert_eq!(shared_load(simt::shared_base() + 56), 0xa5a5_a5a5_a5a5_a5a5);
    run_on(&device(), (1, 1), 64, poisoned).unwrap();
    for offset in [0, 1016, 1024 + 64] {
        let message = fault_of((1, 1), 64, move || _ = shared_load(offset));
        assert!(message.contains("the block has 64 from 1024 on"), "{message}");
    }
    assert!(fault_of((1, 1), 64, || _ = shared_load(1028)).contains("not aligned"));
}

#[test]
fn memory_that_is_not_mapped_is_out_of_reach() {
    let machine = Machine::new(Options { devices: 3, no_peer_access: vec![(0, 2)], ..Options::default() });
    assert!(
        machine.can_access_peer(0, 1) && !machine.can_access_peer(0, 2) && !machine.can_access_peer(2, 0)
    );
    let words = Words::new(&machine.device(2).unwrap(), 1);
    let at = words.at(0);
    run_on(&machine.device(1).unwrap(), (1, 1), 0, move || store(at, 1)).unwrap();
    let fault = run_on(&machine.device(0).unwrap(), (1, 1), 0, move || store(at, 2)).unwrap_err();
    assert!(fault.message.contains("memory of device 2, which is not mapped"), "{fault}");
    assert_eq!(words.read(), [1]);
}

#[test]
fn a_fault_stays_and_concerns_one_device() {
    let [bad, good] = pair(0);
    let stream = bad.stream();
    let launch = Launch { name: "bad", grid: 3, block: 64, shared_bytes: 0 };
    let later = Arc::new(AtomicUsize::new(0));
    let fails = || {
        simt::preempt();
        if (simt::block_index(), simt::thread_index()) == (1, 37) {
            simt::fault("as planned".into());
        }
        simt::barrier(0, 64);
    };
    stream.launch(launch, Box::new(fails)).unwrap();
    let count = later.clone();
    stream.host_op(Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
    let event = stream.record();
    let other = good.stream();
    other.wait(&event);
    let fault = stream.synchronize().unwrap_err();
    assert_eq!(fault.to_string(), "kernel bad on device 0, block 1, thread 37: as planned");
    assert_eq!(bad.wait(&event, None).as_ref(), Err(&fault));
    // Later work does not run, and its closures are dropped.
    let count = later.clone();
    bad.stream().launch(launch, Box::new(move || _ = count.fetch_add(1, Ordering::Relaxed))).unwrap();
    assert_eq!(bad.stream().synchronize().unwrap_err(), fault);
    assert_eq!((later.load(Ordering::Relaxed), Arc::strong_count(&later)), (0, 1));
    // Who waits for an event of the failed device goes on.
    other.synchronize().unwrap();
    run_on(&good, (1, 32), 0, || simt::warp_barrier(ALL)).unwrap();
}

#[test]
fn a_panic_in_a_kernel_is_a_fault() {
    let fault = run_on(&device(), (1, 32), 0, || assert!(simt::thread_index() != 9, "nine")).unwrap_err();
    assert_eq!((fault.thread, fault.message.as_str()), (Some((0, 9)), "panic: nine"));
}

#[test]
fn what_suspended_threads_own_is_dropped_with_them() {
    let owned = Arc::new(());
    let held = owned.clone();
    let device = device();
    run_on(&device, (2, 64), 0, move || {
        let _mine = held.clone();
        if simt::thread_index() == 63 && simt::block_index() == 1 {
            simt::preempt();
            simt::fault("as planned".into());
        }
        simt::barrier(0, 64);
    })
    .unwrap_err();
    assert_eq!(Arc::strong_count(&owned), 1);
}

#[test]
fn a_panic_in_a_host_operation_is_a_fault() {
    let stream = device().stream();
    stream.host_op(Box::new(|| panic!("no copy")));
    let fault = stream.synchronize().unwrap_err();
    assert_eq!((fault.kernel, fault.message.as_str()), ("host operation", "panic: no copy"));
}

#[test]
fn simt_calls_need_an_emulated_thread() {
    assert!(std::panic::catch_unwind(simt::thread_index).is_err());
}

#[test]
fn launches_and_allocations_are_checked() {
    let machine =
        Machine::new(Options { memory_bytes: 1 << 20, shared_bytes_per_block: 4096, ..Options::default() });
    let device = machine.device(0).unwrap();
    let stream = device.stream();
    let good = Launch { name: "sized", grid: 1, block: 1024, shared_bytes: 4096 };
    stream.launch(good, Box::new(|| {})).unwrap();
    for bad in [
        Launch { grid: 0, ..good },
        Launch { block: 0, ..good },
        Launch { block: 1025, ..good },
        Launch { shared_bytes: 4097, ..good },
    ] {
        assert!(matches!(stream.launch(bad, Box::new(|| {})), Err(Error::Launch { .. })), "{bad:?}");
    }
    stream.synchronize().unwrap();
    assert_eq!(machine.device(1).err(), Some(Error::NoDevice { ordinal: 1, devices: 1 }));

    let first = device.alloc(1 << 19).unwrap();
    assert_eq!((first.ptr() as usize % 256, first.len()), (0, 1 << 19));
    // SAFETY: inside, and filled when it was allocated.
    assert_eq!(unsafe { first.ptr().add(77).read() }, 0xa5);
    let (bytes, free, limit) = ((1 << 19) + 1, 1 << 19, 1 << 20);
    assert_eq!(device.alloc(bytes).err(), Some(Error::OutOfMemory { device: 0, bytes, free, limit }));
    drop(first);
    device.alloc(bytes).unwrap();
}
