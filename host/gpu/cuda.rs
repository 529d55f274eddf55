//! The backend of NVIDIA GPUs, through `cust`.
//!
//! Ranks that share a GPU share its primary context and the loaded module. A kernel of one such rank may wait for
//! another's that is yet to be launched, so nothing here waits for the whole device; `cuMemFree` does, which is why
//! buffers are not to be dropped between the launches of one operation on the ranks of a GPU.

mod carrier;
mod graph;
mod queue;

use super::agent::{self, Agent, Running, ThreadOptions};
use super::device::{Carrier, Device, Queue};
use super::driver::{self, DevicePointer, Handle, check};
use super::images::{self, KERNEL_IMAGES};
use super::{CudaOptions, Description, Gpu};
use crate::Error;
use carrier::CudaCarrier;
use cust::context::{Context, ContextHandle, CurrentContext};
use cust::error::CudaError;
use cust::module::Module;
use queue::CudaQueue;
use std::collections::{HashMap, HashSet};
use std::ffi::c_int;
#[cfg(feature = "rdma")]
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Multiprocessors of a kernel unless told otherwise: of 8 to 32 the quickest on H100 (docs/performance.md).
const DEFAULT_SMS: u32 = 16;
/// Warps of a block: each moves rows of its own; more do not fit their buffers into shared memory.
const WARPS: u32 = 16;

/// A GPU with the kernels loaded. The module goes before its context.
struct Card {
    functions: HashMap<&'static str, Handle>,
    _module: Module,
    context: Context,
    ordinal: usize,
}

/// Where ranks' threads wait for each other.
#[derive(Default)]
struct Meeting {
    changed: Condvar,
    mutex: Mutex<()>,
}

/// One rank's use of a card.
struct CudaDevice {
    /// For uploads, which must not wait for any kernel.
    uploads: CudaQueue,
    description: Description,
    meeting: Arc<Meeting>,
    card: Arc<Card>,
}

// SAFETY: contexts and modules are driver handles, usable from any thread once the context is current there, which every
// method sees to.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

fn refused(call: &str) -> impl FnOnce(CudaError) -> Error {
    move |error| Error::Device { call: call.to_owned(), reason: format!("{error} ({error:?})") }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change behind these mutexes is a single call, so a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the driver and counts its devices.
fn start() -> Result<usize, Error> {
    let unavailable = |why: String| Error::Unavailable { what: "a CUDA GPU".into(), why };
    // SAFETY: may be called any number of times.
    let status = unsafe { driver::cuInit(0) };
    if status != 0 {
        let name = driver::status_name(status);
        return Err(unavailable(format!(
            "the driver does not start: {name}; is the NVIDIA driver installed and loaded?"
        )));
    }
    match cust::device::Device::num_devices() {
        Ok(0) => Err(unavailable("the driver sees no device".into())),
        Ok(count) => Ok(count as usize),
        Err(error) => Err(unavailable(error.to_string())),
    }
}

fn attribute(ordinal: usize, attribute: c_int) -> Result<u32, Error> {
    let mut value = 0;
    // SAFETY: writes one integer. The driver's device handles are the ordinals.
    check("cuDeviceGetAttribute", unsafe {
        driver::cuDeviceGetAttribute(&mut value, attribute, ordinal as c_int)
    })?;
    Ok(value as u32)
}

/// Where a device is on the PCI bus, as Linux writes it.
fn pci(ordinal: usize) -> Result<String, Error> {
    let part = |attribute_of| attribute(ordinal, attribute_of);
    let (domain, bus, device) =
        (part(driver::PCI_DOMAIN)?, part(driver::PCI_BUS)?, part(driver::PCI_DEVICE)?);
    Ok(format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
}

fn describe(ordinal: usize, ranks: u32) -> Result<Description, Error> {
    let device = cust::device::Device::get_device(ordinal as u32).map_err(refused("cuDeviceGet"))?;
    let capability =
        10 * attribute(ordinal, driver::CAPABILITY_MAJOR)? + attribute(ordinal, driver::CAPABILITY_MINOR)?;
    Ok(Description {
        name: device.name().map_err(refused("cuDeviceGetName"))?,
        ordinal,
        pci: Some(pci(ordinal)?),
        dma_buf: attribute(ordinal, driver::DMA_BUF_SUPPORTED)? != 0,
        capability,
        multiprocessors: attribute(ordinal, driver::MULTIPROCESSORS)?,
        shared_bytes: attribute(ordinal, driver::SHARED_BYTES)?,
        bulk_copy: capability >= 90,
        memory: device.total_memory().map_err(refused("cuDeviceTotalMem"))? as u64,
        ranks,
        default_sms: DEFAULT_SMS,
        warps: WARPS,
    })
}

/// All devices of the driver.
pub fn describe_all() -> Result<Vec<Description>, Error> {
    (0..start()?).map(|ordinal| describe(ordinal, 1)).collect()
}

/// Spreads `ranks` ranks over the devices in turn. Those of a node, `near` of them, have to reach each other's memory.
pub fn open(options: &CudaOptions, ranks: u32, near: u32) -> Result<Vec<Gpu>, Error> {
    let present = start()?;
    let devices = if options.devices.is_empty() { (0..present).collect() } else { options.devices.clone() };
    if let Some(&device) = devices.iter().find(|&&device| device >= present) {
        let limit = format!("the driver sees {present} devices, numbered from 0");
        return Err(Error::Config { field: "devices", value: device.to_string(), limit });
    }
    let used = &devices[..devices.len().min(ranks as usize)];
    let lane = options.lane.as_deref();
    let cards =
        used.iter().map(|&ordinal| Card::new(ordinal, lane).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let count = cards.len();
    let mut mapped = HashSet::new();
    for (from, to) in (0..ranks as usize).flat_map(|from| (0..ranks as usize).map(move |to| (from, to))) {
        let share_a_node = from / near.max(1) as usize == to / near.max(1) as usize;
        let (from, to) = (from % count, to % count);
        if share_a_node && from != to && mapped.insert((from, to)) {
            cards[from].map_peer(&cards[to])?;
        }
    }
    let meeting = Arc::new(Meeting::default());
    (0..ranks as usize)
        .map(|rank| {
            let card = cards[rank % cards.len()].clone();
            // As many ranks as come round to this card.
            let sharers = (ranks as usize - rank % cards.len()).div_ceil(cards.len());
            let description = describe(card.ordinal, sharers as u32)?;
            let uploads = CudaQueue::new(card.clone())?;
            Ok(Gpu::new(CudaDevice { uploads, description, meeting: meeting.clone(), card }))
        })
        .collect()
}

impl Card {
    fn new(ordinal: usize, lane: Option<&str>) -> Result<Self, Error> {
        let device = cust::device::Device::get_device(ordinal as u32).map_err(refused("cuDeviceGet"))?;
        let context = Context::new(device).map_err(refused("cuDevicePrimaryCtxRetain"))?;
        CurrentContext::set_current(&context).map_err(refused("cuCtxSetCurrent"))?;
        let description = describe(ordinal, 1)?;
        let code = images::select(KERNEL_IMAGES, &description, lane)?;
        // A driver older than ptxas refuses the machine code, and compiles the PTX.
        let module = match code.cubin.map(|cubin| Module::from_cubin(cubin, &[])) {
            Some(Ok(module)) => module,
            _ => Module::from_ptx(code.ptx, &[]).map_err(refused("loading the kernels"))?,
        };
        let mut functions = HashMap::new();
        for &name in tokenrail_device::KERNELS {
            let function = match module.get_function(name) {
                // Left out of modules for GPUs that cannot run it.
                Err(CudaError::NotFound) => continue,
                function => Handle(function.map_err(refused(name))?.to_raw().cast()),
            };
            let bytes = description.shared_bytes as c_int;
            // Also makes the driver load the kernel now: a lazy load at launch waits for the whole device.
            // SAFETY: the function is of a loaded module of the current context.
            let status =
                unsafe { driver::cuFuncSetAttribute(function.0, driver::FUNCTION_SHARED_BYTES, bytes) };
            check("cuFuncSetAttribute", status)?;
            functions.insert(name, function);
        }
        Ok(Self { functions, _module: module, context, ordinal })
    }

    /// Makes the card's context the thread's.
    fn enter(&self) -> Result<(), Error> {
        CurrentContext::set_current(&self.context).map_err(refused("cuCtxSetCurrent"))
    }

    /// Makes `peer`'s memory accessible to this card's kernels.
    fn map_peer(&self, peer: &Self) -> Result<(), Error> {
        let mut can = 0;
        let (from, to) = (self.ordinal, peer.ordinal);
        // SAFETY: writes one integer.
        let status = unsafe { driver::cuDeviceCanAccessPeer(&mut can, from as c_int, to as c_int) };
        check("cuDeviceCanAccessPeer", status)?;
        if can == 0 {
            return Err(Error::NoPeerAccess { from, to });
        }
        self.enter()?;
        // SAFETY: both contexts are alive.
        match unsafe { driver::cuCtxEnablePeerAccess(peer.context.get_inner().cast(), 0) } {
            driver::PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            status => check("cuCtxEnablePeerAccess", status),
        }
    }
}

impl Device for CudaDevice {
    fn description(&self) -> &Description {
        &self.description
    }

    fn alloc(&self, bytes: usize) -> Result<u64, Error> {
        self.card.enter()?;
        let mut address = 0;
        // SAFETY: writes one address. Size 0 is an error to the driver.
        check("cuMemAlloc", unsafe { driver::cuMemAlloc_v2(&mut address, bytes.max(1)) })?;
        Ok(address)
    }

    fn free(&self, address: u64) {
        if self.card.enter().is_ok() {
            // SAFETY: from `alloc`, freed once. A failure means the context is lost, and the memory with it.
            unsafe { driver::cuMemFree_v2(address) };
        }
    }

    fn alloc_host(&self, bytes: usize) -> Result<u64, Error> {
        self.card.enter()?;
        let mut address = ptr::null_mut();
        // SAFETY: writes one address, which unified addressing makes the device's too.
        let status = unsafe { driver::cuMemHostAlloc(&mut address, bytes, driver::HOST_ALLOC_MAPPED) };
        check("cuMemHostAlloc", status)?;
        // SAFETY: just allocated with this size.
        unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        Ok(address.expose_provenance() as u64)
    }

    fn free_host(&self, address: u64) {
        if self.card.enter().is_ok() {
            // SAFETY: from `alloc_host`, freed once.
            unsafe { driver::cuMemFreeHost(ptr::with_exposed_provenance_mut(address as usize)) };
        }
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Error> {
        let uploads = self.uploads.enter()?;
        // SAFETY: callers pass memory they own, as large as this; the source outlives the synchronisation.
        unsafe {
            let from = bytes.as_ptr().expose_provenance() as DevicePointer;
            check("cuMemcpyAsync", driver::cuMemcpyAsync(to, from, bytes.len(), uploads))?;
            check("cuMemcpyAsync", driver::cuStreamSynchronize(uploads))
        }
    }

    fn queue(&self) -> Result<Box<dyn Queue>, Error> {
        Ok(Box::new(CudaQueue::new(self.card.clone())?))
    }

    unsafe fn foreign_queue(&self, raw: u64) -> Result<Box<dyn Queue>, Error> {
        // SAFETY: the caller's promise, passed on.
        Ok(Box::new(unsafe { CudaQueue::foreign(self.card.clone(), raw)? }))
    }

    fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut guard = lock(&self.meeting.mutex);
        while !ready() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let wait = self.meeting.changed.wait_timeout(guard, left);
            guard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn notify(&self) {
        // Taken so that nobody is between looking and waiting.
        drop(lock(&self.meeting.mutex));
        self.meeting.changed.notify_all();
    }

    fn run(&self, agent: Box<dyn Agent>, _open: bool, thread: ThreadOptions) -> Result<Running, Error> {
        agent::on_thread(format!("agent of GPU {}", self.card.ordinal), thread, agent)
    }

    #[cfg(feature = "rdma")]
    fn dma_buf(&self, address: u64, bytes: u64) -> Option<(OwnedFd, u64)> {
        /// The driver gives whole pages of the host.
        const PAGE: u64 = 1 << 16;
        self.card.enter().ok()?;
        let from = address - address % PAGE;
        let size = (address + bytes).next_multiple_of(PAGE) - from;
        let mut fd: c_int = -1;
        // SAFETY: writes one file descriptor, if it succeeds.
        let status = unsafe {
            let fd = (&raw mut fd).cast();
            driver::cuMemGetHandleForAddressRange(fd, from, size as usize, driver::DMA_BUF_FD, 0)
        };
        if status != 0 || fd < 0 {
            return None;
        }
        // SAFETY: just opened, and nobody else's.
        Some((unsafe { OwnedFd::from_raw_fd(fd) }, address - from))
    }

    fn carrier(&self) -> Result<Box<dyn Carrier>, Error> {
        Ok(Box::new(CudaCarrier(CudaQueue::new(self.card.clone())?)))
    }
}
