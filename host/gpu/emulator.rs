//! The backend that emulates one GPU for each rank.

use super::{Description, Device, Gpu, Handle, Launch};
use crate::Error;
use std::collections::HashMap;
use std::fmt::Display;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokenrail_emulator::{Allocation, Event, Machine, Options, Stream};

/// Blocks of a kernel unless told otherwise: more than one, so that blocks have to meet.
const DEFAULT_SMS: u32 = 2;
/// Warps of a block: more than one, for the same reason.
const WARPS: u32 = 4;

struct EmulatedDevice {
    device: tokenrail_emulator::Device,
    description: Description,
    next_handle: AtomicU64,
    allocations: Mutex<HashMap<u64, Allocation>>,
    streams: Mutex<HashMap<Handle, Arc<Stream>>>,
    events: Mutex<HashMap<Handle, Event>>,
}

/// One machine with a device for each rank.
pub fn open(options: &Options, ranks: u32) -> Result<Vec<Gpu>, Error> {
    let options = Options { devices: ranks as usize, ..options.clone() };
    let machine = Machine::new(options.clone());
    let pairs = (0..ranks as usize).flat_map(|from| (0..ranks as usize).map(move |to| (from, to)));
    for (from, to) in pairs.filter(|(from, to)| from != to) {
        if !machine.can_access_peer(from, to) {
            return Err(Error::NoPeerAccess { from, to });
        }
    }
    (0..ranks as usize)
        .map(|ordinal| {
            let device = machine.device(ordinal).map_err(refused("opening an emulated device"))?;
            let description = Description {
                name: "emulated GPU".into(),
                ordinal,
                capability: 0,
                multiprocessors: options.resident_blocks,
                shared_bytes: options.shared_bytes_per_block as u32,
                bulk_copy: true,
                memory: options.memory_bytes as u64,
                ranks: 1,
                default_sms: DEFAULT_SMS,
                warps: WARPS,
            };
            Ok(Gpu(Arc::new(EmulatedDevice {
                device,
                description,
                next_handle: AtomicU64::new(1),
                allocations: Mutex::default(),
                streams: Mutex::default(),
                events: Mutex::default(),
            })))
        })
        .collect()
}

fn refused<E: Display>(call: &str) -> impl FnOnce(E) -> Error {
    move |reason| Error::Device { call: call.to_owned(), reason: reason.to_string() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change of these tables is a single call, so a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EmulatedDevice {
    fn handle(&self) -> Handle {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn get(&self, stream: Handle) -> Result<Arc<Stream>, Error> {
        let missing = || refused("looking a stream up")("it has been dropped");
        lock(&self.streams).get(&stream).cloned().ok_or_else(missing)
    }
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

    fn stream(&self) -> Result<Handle, Error> {
        let handle = self.handle();
        lock(&self.streams).insert(handle, Arc::new(self.device.stream()));
        Ok(handle)
    }

    fn drop_stream(&self, stream: Handle) {
        lock(&self.streams).remove(&stream);
    }

    fn synchronize(&self, stream: Handle) -> Result<(), Error> {
        self.get(stream)?.synchronize().map_err(refused("an emulated kernel"))
    }

    fn record(&self, stream: Handle) -> Result<Handle, Error> {
        let (handle, event) = (self.handle(), self.get(stream)?.record());
        lock(&self.events).insert(handle, event);
        Ok(handle)
    }

    fn drop_event(&self, event: Handle) {
        lock(&self.events).remove(&event);
    }

    fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f64, Error> {
        let events = lock(&self.events);
        let time = |event| events.get(&event).and_then(Event::time_ns);
        match (time(from), time(to)) {
            (Some(from), Some(to)) => Ok((to as f64 - from as f64) / 1e6),
            _ => Err(refused("measuring between two events")("one of them has not been reached")),
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: callers pass memory they own, as large as this, which no kernel uses yet.
        unsafe {
            with_exposed_provenance_mut::<u8>(to as usize)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        Ok(())
    }

    fn read(&self, stream: Handle, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.synchronize(stream)?;
        // SAFETY: callers pass memory as large as this; the stream has ended writing it.
        unsafe {
            with_exposed_provenance::<u8>(from as usize)
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        };
        Ok(())
    }

    fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<(), Error> {
        let copy = move || {
            let from = with_exposed_provenance::<u8>(from as usize);
            // SAFETY: callers keep both ranges alive until the stream has come this far. They may overlap.
            unsafe { with_exposed_provenance_mut::<u8>(to as usize).copy_from(from, bytes) }
        };
        self.get(stream)?.host_op(Box::new(copy));
        Ok(())
    }

    fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<(), Error> {
        // SAFETY: callers keep the range alive until the stream has come this far.
        let fill = move || unsafe { with_exposed_provenance_mut::<u8>(to as usize).write_bytes(byte, bytes) };
        self.get(stream)?.host_op(Box::new(fill));
        Ok(())
    }

    unsafe fn launch(&self, stream: Handle, launch: &Launch) -> Result<(), Error> {
        // The arguments outlive the call on the stack that they came from: words, so that they stay aligned.
        let mut args = vec![0u64; launch.args_bytes.div_ceil(8)];
        // SAFETY: `args` has room, and `launch.args` is the address of `args_bytes` bytes.
        unsafe { launch.args.copy_to_nonoverlapping(args.as_mut_ptr().cast(), launch.args_bytes) };
        let body = launch.body;
        // SAFETY: the launch's promise, which the caller makes.
        let kernel = move || unsafe { body(args.as_ptr().cast()) };
        let size = tokenrail_emulator::Launch {
            name: launch.name,
            grid: launch.grid.blocks,
            block: launch.grid.threads,
            shared_bytes: launch.grid.shared_bytes as usize,
        };
        self.get(stream)?.launch(size, Box::new(kernel)).map_err(refused(launch.name))
    }

    fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool {
        self.device.machine().block_until(ready, Some(timeout))
    }

    fn notify(&self) {
        self.device.machine().notify();
    }
}
