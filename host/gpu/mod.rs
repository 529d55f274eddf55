//! One GPU as a rank sees it: memory, streams, events and launches, on either backend.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod driver;
mod emulator;
#[cfg(feature = "cuda")]
pub mod images;

use crate::Error;
use std::sync::Arc;
use std::time::Duration;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::kernel::Kernel;

pub use tokenrail_emulator::Options as EmulatorOptions;

/// What ranks run on.
#[derive(Clone, Debug)]
pub enum Backend {
    /// The CPU, emulating one GPU a rank. The default: it runs anywhere.
    Emulator(EmulatorOptions),
    /// NVIDIA GPUs.
    Cuda(CudaOptions),
}

/// How to use the GPUs.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// The devices to spread the ranks over, by the driver's numbers. Empty: all of them.
    pub devices: Vec<usize>,
    /// The lane whose PTX is loaded, `nvvm` or `llvm`. `None`: the one the build prefers.
    pub lane: Option<String>,
}

impl Backend {
    /// The emulator, with thread interleavings that follow from `seed`.
    pub fn emulator(seed: u64) -> Self {
        Self::Emulator(EmulatorOptions { seed, preempt_one_in: 16, ..EmulatorOptions::default() })
    }

    /// All GPUs of this machine.
    pub fn cuda() -> Self {
        Self::Cuda(CudaOptions::default())
    }

    /// A GPU for each rank.
    pub(crate) fn open(&self, ranks: u32) -> Result<Vec<Gpu>, Error> {
        match self {
            Self::Emulator(options) => emulator::open(options, ranks),
            #[cfg(feature = "cuda")]
            Self::Cuda(options) => cuda::open(options, ranks),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(Error::Unavailable {
                what: "the CUDA backend".into(),
                why: "this build is without it; build with `--features cuda`".into(),
            }),
        }
    }

    /// The devices that [`Backend::Cuda`] would find here.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver or a device, or in a build without feature `cuda`.
    pub fn cuda_devices() -> Result<Vec<Description>, Error> {
        #[cfg(feature = "cuda")]
        return cuda::describe_all();
        #[cfg(not(feature = "cuda"))]
        Self::cuda().open(0).map(|_| Vec::new())
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its number among the backend's devices.
    pub ordinal: usize,
    /// Compute capability: 90 for sm_90. 0 for the emulator, which has every instruction.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Whether it has bulk copies.
    pub bulk_copy: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// Ranks that share it.
    pub ranks: u32,
    /// Multiprocessors that a kernel takes unless told otherwise.
    pub default_sms: u32,
    /// Warps of a block.
    pub warps: u32,
}

/// A launch's size: blocks, threads of a block, dynamic shared memory of a block in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// A launch as backends see it.
struct Launch {
    name: &'static str,
    grid: Grid,
    /// The kernel's body for one emulated thread; takes the arguments' address.
    body: unsafe fn(*const u8),
    args: *const u8,
    args_bytes: usize,
}

/// A stream or an event, in the backend's own numbering.
type Handle = u64;

/// What a backend does. Addresses and handles are its own; callers keep them alive and in bounds.
trait Device: Send + Sync {
    fn description(&self) -> &Description;
    /// Uninitialised memory, aligned to at least 256 bytes. Zero bytes are possible.
    fn alloc(&self, bytes: usize) -> Result<u64, Error>;
    fn free(&self, address: u64);
    /// Zeroed memory that host and device can both reach at the same address.
    fn alloc_host(&self, bytes: usize) -> Result<u64, Error>;
    fn free_host(&self, address: u64);
    fn stream(&self) -> Result<Handle, Error>;
    fn drop_stream(&self, stream: Handle);
    fn synchronize(&self, stream: Handle) -> Result<(), Error>;
    fn record(&self, stream: Handle) -> Result<Handle, Error>;
    fn drop_event(&self, event: Handle);
    /// Milliseconds between two completed events.
    fn elapsed_ms(&self, from: Handle, to: Handle) -> Result<f64, Error>;
    /// Copies to the device and waits.
    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Error>;
    /// Copies from the device, after all that the stream was given before, and waits.
    fn read(&self, stream: Handle, from: u64, bytes: &mut [u8]) -> Result<(), Error>;
    fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<(), Error>;
    fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<(), Error>;
    /// # Safety
    /// The arguments meet the kernel's contract until it has ended.
    unsafe fn launch(&self, stream: Handle, launch: &Launch) -> Result<(), Error>;
    /// Blocks the calling thread until `ready` holds; false when `timeout` passes first.
    fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool;
    /// Wakes those who wait on the host.
    fn notify(&self);
}

/// A handle on one GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<dyn Device>);

/// Memory of one GPU. Freed when dropped.
pub struct Buffer {
    device: Arc<dyn Device>,
    address: u64,
    bytes: usize,
}

/// Memory that the host and a GPU share. Freed when dropped.
pub(crate) struct HostBuffer {
    device: Arc<dyn Device>,
    address: u64,
}

/// An in-order queue of work for one GPU. Destroyed when dropped.
pub struct Stream {
    device: Arc<dyn Device>,
    handle: Handle,
}

/// A moment in a stream.
pub struct Event {
    device: Arc<dyn Device>,
    handle: Handle,
}

/// Something of which a device can hold many: plain numbers.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Plain: Copy + Default + Send + 'static {}
macro_rules! plain {
    ($($ty:ty)*) => {$(
        // SAFETY: a number of fixed width, or a bf16, which is one.
        unsafe impl Plain for $ty {}
    )*};
}
plain! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 half::bf16 half::f16 }

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; any bytes make a `Plain`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

impl Gpu {
    /// What it is.
    pub fn description(&self) -> &Description {
        self.0.description()
    }

    /// Memory with unknown contents.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, Error> {
        Ok(Buffer { device: self.0.clone(), address: self.0.alloc(bytes)?, bytes })
    }

    /// Memory full of zeros.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn alloc_zeroed(&self, bytes: usize) -> Result<Buffer, Error> {
        let buffer = self.alloc(bytes)?;
        let stream = self.stream()?;
        self.0.fill(stream.handle, buffer.address, 0, bytes)?;
        stream.synchronize()?;
        Ok(buffer)
    }

    pub(crate) fn alloc_host(&self, bytes: usize) -> Result<HostBuffer, Error> {
        Ok(HostBuffer { device: self.0.clone(), address: self.0.alloc_host(bytes)? })
    }

    /// Memory with these contents.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer, Error> {
        let buffer = self.alloc(size_of_val(values))?;
        self.0.write(buffer.address, bytes_of(values))?;
        Ok(buffer)
    }

    /// Copies values to the device and waits for the copy, not for any stream.
    ///
    /// # Errors
    /// [`Error::Argument`] if they do not fit.
    pub fn write<T: Plain>(&self, to: View, values: &[T]) -> Result<(), Error> {
        to.holds("destination of a write", size_of_val(values))?;
        self.0.write(to.address.0, bytes_of(values))
    }

    /// `count` values from `from` on, once the stream has done what it was given before. Waits.
    ///
    /// # Errors
    /// [`Error::Argument`] if they are not all there, [`Error::Device`] if earlier work failed.
    pub fn download<T: Plain>(&self, stream: &Stream, from: View, count: usize) -> Result<Vec<T>, Error> {
        from.holds("download", count * size_of::<T>())?;
        let mut values = vec![T::default(); count];
        self.0.read(stream.handle, from.address.0, bytes_of_mut(&mut values))?;
        Ok(values)
    }

    /// Copies within this GPU's reach, in stream order.
    ///
    /// # Errors
    /// [`Error::Argument`] if either side is shorter.
    pub fn copy(&self, stream: &Stream, from: View, to: View, bytes: usize) -> Result<(), Error> {
        from.holds("source of a copy", bytes)?;
        to.holds("destination of a copy", bytes)?;
        self.0.copy(stream.handle, from.address.0, to.address.0, bytes)
    }

    /// Sets every byte, in stream order.
    ///
    /// # Errors
    /// [`Error::Device`] if earlier work failed.
    pub fn fill(&self, stream: &Stream, to: View, byte: u8) -> Result<(), Error> {
        self.0.fill(stream.handle, to.address.0, byte, to.bytes)
    }

    /// A new stream, independent of all others.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn stream(&self) -> Result<Stream, Error> {
        Ok(Stream { device: self.0.clone(), handle: self.0.stream()? })
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// `args` meets the contract of the kernel's argument struct until the kernel has ended.
    ///
    /// # Errors
    /// [`Error::Device`] if the launch is refused.
    pub unsafe fn launch<K: Kernel>(&self, stream: &Stream, grid: Grid, args: &K::Args) -> Result<(), Error> {
        unsafe fn body<K: Kernel>(args: *const u8) {
            // SAFETY: `Launch::args` is the address of a `K::Args`; the launch's promise is the kernel's.
            unsafe { K::run(args.cast::<K::Args>().read()) }
        }
        let launch = Launch {
            name: K::NAME,
            grid,
            body: body::<K>,
            args: (&raw const *args).cast(),
            args_bytes: size_of::<K::Args>(),
        };
        // SAFETY: the caller's promise, passed on.
        unsafe { self.0.launch(stream.handle, &launch) }
    }

    pub(crate) fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool {
        self.0.wait_host(ready, timeout)
    }

    pub(crate) fn notify(&self) {
        self.0.notify();
    }
}

/// A range of some GPU's memory: what kernels and copies are pointed at. It does not keep the memory alive.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub(crate) address: Address,
    bytes: usize,
}

impl View {
    /// Bytes that someone else owns.
    ///
    /// # Safety
    /// The range is memory of the GPU that it is used with, and stays so while work that was given it is in flight.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        Self { address: Address(address), bytes }
    }

    /// No memory.
    pub(crate) const fn null() -> Self {
        Self { address: Address::NULL, bytes: 0 }
    }

    /// Address on the device.
    pub fn address(self) -> u64 {
        self.address.0
    }

    /// Size in bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// Whether `bytes` bytes are there.
    pub(crate) fn holds(self, argument: &'static str, bytes: usize) -> Result<(), Error> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let value = format!("{} bytes", self.bytes);
        Err(Error::Argument { argument, value, limit: format!("{bytes} bytes are needed") })
    }
}

impl Buffer {
    /// Address on the device.
    pub(crate) fn address(&self) -> Address {
        Address(self.address)
    }

    /// The whole of it.
    pub fn view(&self) -> View {
        View { address: self.address(), bytes: self.bytes }
    }

    /// The part from byte `offset` on.
    pub(crate) fn part(&self, offset: u64, bytes: u64) -> View {
        View { address: self.address().offset(offset), bytes: bytes as usize }
    }
}

impl From<&Buffer> for View {
    fn from(buffer: &Buffer) -> Self {
        buffer.view()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

impl HostBuffer {
    pub(crate) fn address(&self) -> Address {
        Address(self.address)
    }

    /// Reads `N` words. For after the device has been synchronised with.
    pub(crate) fn read<const N: usize>(&self) -> [u64; N] {
        // SAFETY: every use allocates as many words as it reads; the device has ended writing.
        unsafe { std::ptr::with_exposed_provenance::<[u64; N]>(self.address as usize).read_volatile() }
    }

    /// Zeroes `N` words. For while the device does not use them.
    pub(crate) fn clear<const N: usize>(&self) {
        // SAFETY: as in `read`.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<[u64; N]>(self.address as usize).write_volatile([0; N])
        }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.device.free_host(self.address);
    }
}

impl Stream {
    /// Waits for all work given so far.
    ///
    /// # Errors
    /// [`Error::Device`] if some of it failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.device.synchronize(self.handle)
    }

    /// Marks this moment in the stream.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn record(&self) -> Result<Event, Error> {
        Ok(Event { device: self.device.clone(), handle: self.device.record(self.handle)? })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.device.drop_stream(self.handle);
    }
}

impl Event {
    /// Milliseconds from `self` to `later`; both must have been reached. Virtual time on the emulator.
    ///
    /// # Errors
    /// [`Error::Device`] if one has not been reached.
    pub fn elapsed_ms(&self, later: &Self) -> Result<f64, Error> {
        self.device.elapsed_ms(self.handle, later.handle)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.drop_event(self.handle);
    }
}
