//! The backend that emulates one GPU for each rank.

mod queue;

use super::agent::{self, Agent, Running, ThreadOptions};
use super::device::{Carrier, Device, Queue};
use super::{Description, Gpu};
use crate::Error;
use crate::fabric::HostMemory;
use queue::EmulatedQueue;
use std::collections::HashMap;
use std::fmt::Display;
use std::ptr::with_exposed_provenance_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokenrail_emulator::{Actor, Allocation, Machine, Options, Outlook};

/// Blocks of a kernel unless told otherwise: more than one, so that blocks have to meet.
const DEFAULT_SMS: u32 = 2;
/// Warps of a block: more than one, for the same reason.
const WARPS: u32 = 4;

struct EmulatedDevice {
    device: tokenrail_emulator::Device,
    description: Description,
    allocations: Mutex<HashMap<u64, Allocation>>,
}

/// One machine with a device for each rank, of which those of a node, `near` of them, can access each other.
pub fn open(options: &Options, ranks: u32, near: u32) -> Result<Vec<Gpu>, Error> {
    let mut options = Options { devices: ranks as usize, ..options.clone() };
    let near = near.max(1) as usize;
    let pairs = (0..ranks as usize).flat_map(|from| (0..ranks as usize).map(move |to| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| from < to) {
        if from / near != to / near {
            // So that what tries all the same is found.
            options.no_peer_access.push((from, to));
        } else if options.no_peer_access.iter().any(|&pair| pair == (from, to) || pair == (to, from)) {
            return Err(Error::NoPeerAccess { from, to });
        }
    }
    let machine = Machine::new(options.clone());
    (0..ranks as usize)
        .map(|ordinal| {
            let device = machine.device(ordinal).map_err(refused("opening an emulated device"))?;
            let description = Description {
                name: "emulated GPU".into(),
                ordinal,
                pci: None,
                dma_buf: false,
                capability: 0,
                multiprocessors: options.resident_blocks,
                shared_bytes: options.shared_bytes_per_block as u32,
                bulk_copy: true,
                memory: options.memory_bytes as u64,
                ranks: 1,
                default_sms: DEFAULT_SMS,
                warps: WARPS,
            };
            Ok(Gpu::new(EmulatedDevice { device, description, allocations: Mutex::default() }))
        })
        .collect()
}

fn refused<E: Display>(call: &str) -> impl FnOnce(E) -> Error {
    move |reason| Error::Device { call: call.to_owned(), reason: reason.to_string() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change behind these mutexes is a single call, so a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for EmulatedDevice {
    fn description(&self) -> &Description {
        &self.description
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        let allocation = self.device.alloc(bytes.max(1)).map_err(refused("allocating emulated memory"))?;
        let address = allocation.ptr().expose_provenance() as u64;
        lock(&self.allocations).insert(address, allocation);
        Ok(address)
    }

    fn free(&self, address: u64) {
        lock(&self.allocations).remove(&address);
    }

    fn alloc_host(&self, bytes: usize) -> Result<u64, Error> {
        let address = self.alloc(bytes)?;
        // SAFETY: just allocated, and nobody else's yet.
        unsafe { with_exposed_provenance_mut::<u8>(address as usize).write_bytes(0, bytes) };
        Ok(address)
    }

    fn free_host(&self, address: u64) {
        self.free(address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: callers pass memory they own, as large as this, which no kernel uses yet.
        unsafe {
            with_exposed_provenance_mut::<u8>(to as usize)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        Ok(())
    }

    fn queue(&self) -> Result<Box<dyn Queue>, Error> {
        Ok(Box::new(EmulatedQueue::new(self.device.clone())))
    }

    unsafe fn foreign_queue(&self, _raw: u64) -> Result<Box<dyn Queue>, Error> {
        Err(Error::Unavailable {
            what: "a stream made elsewhere".into(),
            why: "the emulator has no foreign streams; make one with `Gpu::stream`".into(),
        })
    }

    fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool {
        self.device.machine().block_until(ready, Some(timeout))
    }

    fn notify(&self) {
        self.device.machine().notify();
    }

    fn run(&self, agent: Box<dyn Agent>, open: bool, thread: ThreadOptions) -> Result<Running, Error> {
        let machine = self.device.machine();
        if !open {
            return Ok(Running::new(machine.attach(Box::new(Emulated(agent)))));
        }
        let name = format!("agent of emulated GPU {}", self.description.ordinal);
        Ok(Running::new((agent::on_thread(name, thread, agent)?, machine.attach(Box::new(Outside)))))
    }

    fn carrier(&self) -> Result<Box<dyn Carrier>, Error> {
        // Emulated memory is the host's.
        Ok(Box::new(HostMemory))
    }
}

/// An agent in emulated time.
struct Emulated(Box<dyn Agent>);

impl Actor for Emulated {
    fn step(&mut self, now_ns: u64) -> Outlook {
        self.0.step(now_ns)
    }
}

/// Says that memory may change at any time.
struct Outside;

impl Actor for Outside {
    fn step(&mut self, _now_ns: u64) -> Outlook {
        Outlook::Open
    }
}
