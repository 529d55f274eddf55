//! What `faults.rs`, `host.rs` and `model.rs` share.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::{Arc, Mutex, PoisonError};
use tokenrail_emulator::{Allocation, Device, Fault, Launch, Machine, Options, simt};

/// One device with this seed, on which threads are often interrupted.
pub fn options(seed: u64) -> Options {
    Options { seed, preempt_one_in: 4, ..Options::default() }
}

/// `grid` blocks of `block` threads with 4 KiB of shared memory.
pub fn launch(grid: u32, block: u32) -> Launch {
    Launch { name: "kernel", grid, block, shared_bytes: 4096 }
}

/// Runs one kernel on a fresh machine.
pub fn run_with(
    options: Options,
    launch: Launch,
    kernel: impl Fn() + Send + Sync + 'static,
) -> Result<(), Fault> {
    let stream = Machine::new(options).device(0).expect("the first device").stream();
    stream.launch(launch, Box::new(kernel)).expect("a launch within the limits");
    stream.synchronize()
}

/// [`run_with`] seed 0.
pub fn run(launch: Launch, kernel: impl Fn() + Send + Sync + 'static) -> Result<(), Fault> {
    run_with(options(0), launch, kernel)
}

/// The text of the fault that a kernel of this size has.
pub fn fault_of(launch: Launch, kernel: impl Fn() + Send + Sync + 'static) -> String {
    run(launch, kernel).expect_err("the kernel has a fault").to_string()
}

/// Asserts that `text` has all of `parts`.
#[track_caller]
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
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

/// Device memory as words, zeroed.
pub struct Words(Allocation);

impl Words {
    pub fn new(device: &Device, words: usize) -> Self {
        let allocation = device.alloc(8 * words).expect("memory");
        // SAFETY: all of a fresh allocation, which no kernel knows yet.
        unsafe { allocation.ptr().write_bytes(0, 8 * words) };
        Self(allocation)
    }

    pub fn address(&self, word: usize) -> u64 {
        self.0.ptr().expose_provenance() as u64 + 8 * word as u64
    }

    /// For the host, while no kernel runs.
    pub fn get(&self, word: usize) -> u64 {
        assert!(8 * word < self.0.len());
        // SAFETY: within the allocation, aligned.
        unsafe { self.0.ptr().cast::<u64>().add(word).read() }
    }
}

/// An interruptible load, for kernels.
pub fn load(address: u64) -> u64 {
    simt::preempt();
    simt::check(address, 8, "load");
    // SAFETY: checked just now.
    unsafe { with_exposed_provenance::<u64>(address as usize).read() }
}

/// An interruptible store, for kernels.
pub fn store(address: u64, value: u64) {
    simt::preempt();
    simt::check(address, 8, "store");
    // SAFETY: checked just now.
    unsafe { with_exposed_provenance_mut::<u64>(address as usize).write(value) };
    simt::stored();
}

/// [`simt::wait_at_least`] by address.
pub fn wait(address: u64, at_least: u64, deadline_ns: u64) -> bool {
    simt::wait_at_least(with_exposed_provenance(address as usize), at_least, deadline_ns)
}
