//! What the tests share: machines, launches, words of device memory, and logs.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::{Arc, Mutex, PoisonError};
use tokenrail_emulator::{Allocation, Device, Fault, Launch, Machine, Options, Stream, simt};

pub const ALL: u32 = u32::MAX;

pub fn machine(devices: usize, seed: u64) -> Machine {
    Machine::new(Options { devices, seed, ..Options::default() })
}

pub fn device() -> Device {
    machine(1, 0).device(0).unwrap()
}

/// Both devices of a machine.
pub fn pair(seed: u64) -> [Device; 2] {
    let machine = machine(2, seed);
    [0, 1].map(|ordinal| machine.device(ordinal).unwrap())
}

/// Enqueues a kernel.
pub fn launch(
    stream: &Stream,
    (grid, block): (u32, u32),
    shared_bytes: usize,
    kernel: impl Fn() + Send + Sync + 'static,
) {
    stream.launch(Launch { name: "kernel", grid, block, shared_bytes }, Box::new(kernel)).unwrap();
}

/// Runs one kernel on a device.
pub fn run_on(
    device: &Device,
    size: (u32, u32),
    shared_bytes: usize,
    kernel: impl Fn() + Send + Sync + 'static,
) -> Result<(), Fault> {
    let stream = device.stream();
    launch(&stream, size, shared_bytes, kernel);
    stream.synchronize()
}

/// The message of the fault that a kernel has on a fresh device.
pub fn fault_of(size: (u32, u32), shared_bytes: usize, kernel: impl Fn() + Send + Sync + 'static) -> String {
    let fault = run_on(&device(), size, shared_bytes, kernel).unwrap_err();
    assert_eq!((fault.device, fault.kernel), (0, "kernel"));
    fault.message
}

/// Words of device memory, zero at first.
pub struct Words(Allocation);

impl Words {
    pub fn new(device: &Device, words: usize) -> Self {
        let allocation = device.alloc(8 * words).unwrap();
        allocation.ptr().expose_provenance();
        // SAFETY: as many bytes, just allocated.
        unsafe { allocation.ptr().write_bytes(0, 8 * words) };
        Self(allocation)
    }

    /// The address of a word.
    pub fn at(&self, index: usize) -> u64 {
        assert!(8 * index < self.0.len());
        self.0.ptr() as u64 + 8 * index as u64
    }

    /// All of them; nothing runs meanwhile.
    pub fn read(&self) -> Vec<u64> {
        // SAFETY: initialised, aligned, and as long.
        unsafe { std::slice::from_raw_parts(self.0.ptr().cast::<u64>(), self.0.len() / 8) }.to_vec()
    }

    pub fn write(&self, index: usize, value: u64) {
        // SAFETY: inside, as `at` has checked.
        unsafe { with_exposed_provenance_mut::<u64>(self.at(index) as usize).write(value) };
    }
}

/// What emulated threads have written down, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u64>>>);

impl Log {
    pub fn push(&self, entry: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    pub fn entries(&self) -> Vec<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub fn load(at: u64) -> u64 {
    simt::check(at, 8, "load");
    // SAFETY: checked just now.
    unsafe { with_exposed_provenance::<u64>(at as usize).read() }
}

pub fn store(at: u64, value: u64) {
    simt::check(at, 8, "store");
    // SAFETY: checked just now.
    unsafe { with_exposed_provenance_mut::<u64>(at as usize).write(value) };
    simt::stored();
}

/// [`simt::wait_at_least`] by address.
pub fn wait(at: u64, at_least: u64, deadline_ns: u64) -> bool {
    simt::wait_at_least(with_exposed_provenance(at as usize), at_least, deadline_ns)
}

/// Adds, after a chance for others to run; gives the old value.
pub fn fetch_add(at: u64, value: u64) -> u64 {
    simt::preempt();
    let old = load(at);
    store(at, old + value);
    old
}

pub fn shared_load(at: u32) -> u64 {
    // SAFETY: `shared_pointer` has checked.
    unsafe { simt::shared_pointer(at, 8).cast::<u64>().read() }
}

pub fn shared_store(at: u32, value: u64) {
    // SAFETY: `shared_pointer` has checked.
    unsafe { simt::shared_pointer(at, 8).cast::<u64>().write(value) }
}

pub fn lane() -> u32 {
    simt::thread_index() % 32
}
