//! One GPU as a rank sees it: memory, streams, events and launches, on either backend.

pub(crate) mod agent;
mod capture;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod device;
#[cfg(feature = "cuda")]
mod driver;
mod emulator;
mod graph;
#[cfg(feature = "cuda")]
pub mod images;
mod stream;

use crate::Error;
use agent::{Agent, Running, ThreadOptions};
use device::{Carrier, Core, Device, Launch};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::kernel::Kernel;

pub use graph::Graph;
pub use stream::{Event, Stream};
pub use tokenrail_emulator::Options as EmulatorOptions;
pub use tokenrail_emulator::Script as EmulatorScript;
pub use tokenrail_emulator::check as emulator_check;

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
    /// The compiler lane whose kernels are loaded: `nvvm`, `llvm`, or `nvcc` in builds with feature `reference`. `None`: the
    /// one the build prefers.
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

    /// A GPU for each rank. Those of a node, `near` of them, reach each other's memory.
    pub(crate) fn open(&self, ranks: u32, near: u32) -> Result<Vec<Gpu>, Error> {
        match self {
            Self::Emulator(options) => emulator::open(options, ranks, near),
            #[cfg(feature = "cuda")]
            Self::Cuda(options) => cuda::open(options, ranks, near),
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
        Self::cuda().open(0, 0).map(|_| Vec::new())
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// Its number among the backend's devices.
    pub ordinal: usize,
    /// Where it is on the PCI bus, such as `0000:17:00.0`; `None` for the emulator.
    pub pci: Option<String>,
    /// Whether the driver hands its memory to NICs as a dma-buf.
    pub dma_buf: bool,
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

/// A handle on one GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Core>);

/// Memory of one GPU, or of the host where the GPU reaches it. Freed when dropped.
pub struct Buffer {
    core: Arc<Core>,
    address: u64,
    bytes: usize,
    on_host: bool,
}

/// Memory that the host and a GPU share. Freed when dropped.
pub(crate) struct HostBuffer {
    core: Arc<Core>,
    address: u64,
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
    fn new(device: impl Device + 'static) -> Self {
        Self(Arc::new(Core { device: Box::new(device), allocated: AtomicU64::new(0) }))
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        self.0.device.description()
    }

    /// Memory with unknown contents.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, Error> {
        let address = self.0.device.alloc(bytes)?;
        self.0.allocated.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Buffer { core: self.0.clone(), address, bytes, on_host: false })
    }

    /// Pinned memory of the host, full of zeros, that all GPUs of this process reach.
    pub(crate) fn alloc_on_host(&self, bytes: usize) -> Result<Buffer, Error> {
        let address = self.0.device.alloc_host(bytes)?;
        Ok(Buffer { core: self.0.clone(), address, bytes, on_host: true })
    }

    /// Device memory that this rank has now: the sum of the sizes that its live buffers were asked for, an exchange's
    /// included. The driver may round each up.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.allocated.load(Ordering::Relaxed)
    }

    /// Memory full of zeros.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn alloc_zeroed(&self, bytes: usize) -> Result<Buffer, Error> {
        let buffer = self.alloc(bytes)?;
        let stream = self.stream()?;
        self.fill(&stream, buffer.view(), 0)?;
        stream.synchronize()?;
        Ok(buffer)
    }

    pub(crate) fn alloc_host(&self, bytes: usize) -> Result<HostBuffer, Error> {
        Ok(HostBuffer { core: self.0.clone(), address: self.0.device.alloc_host(bytes)? })
    }

    /// Memory with these contents.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer, Error> {
        let buffer = self.alloc(size_of_val(values))?;
        self.0.device.write(buffer.address, bytes_of(values))?;
        Ok(buffer)
    }

    /// Copies values to the device and waits for the copy, not for any stream.
    ///
    /// # Errors
    /// [`Error::Argument`] if they do not fit; [`Error::Capture`] within [`Stream::capture`].
    pub fn write<T: Plain>(&self, to: View, values: &[T]) -> Result<(), Error> {
        capture::outside("a write")?;
        to.holds("destination of a write", size_of_val(values))?;
        self.0.device.write(to.address.0, bytes_of(values))
    }

    /// `count` values from `from` on, once the stream has done what it was given before. Waits.
    ///
    /// # Errors
    /// [`Error::Argument`] if they are not all there or the stream is another rank's, [`Error::Device`] if earlier
    /// work failed, [`Error::Capture`] while the stream is captured.
    pub fn download<T: Plain>(&self, stream: &Stream, from: View, count: usize) -> Result<Vec<T>, Error> {
        from.holds("download", count * size_of::<T>())?;
        let mut values = vec![T::default(); count];
        let line = stream.0.of(&self.0)?;
        line.runs("a download")?;
        line.queue.read(from.address.0, bytes_of_mut(&mut values))?;
        Ok(values)
    }

    /// Copies within this GPU's reach, in stream order.
    ///
    /// # Errors
    /// [`Error::Argument`] if either side is shorter, or the stream is another rank's.
    pub fn copy(&self, stream: &Stream, from: View, to: View, bytes: usize) -> Result<(), Error> {
        from.holds("source of a copy", bytes)?;
        to.holds("destination of a copy", bytes)?;
        let line = stream.0.of(&self.0)?;
        // Graphs may not have empty nodes.
        if bytes == 0 {
            return Ok(());
        }
        line.issue(|queue| queue.copy(from.address.0, to.address.0, bytes))
    }

    /// Sets every byte, in stream order.
    ///
    /// # Errors
    /// [`Error::Device`] if earlier work failed, [`Error::Argument`] if the stream is another rank's.
    pub fn fill(&self, stream: &Stream, to: View, byte: u8) -> Result<(), Error> {
        let line = stream.0.of(&self.0)?;
        if to.bytes == 0 {
            return Ok(());
        }
        line.issue(|queue| queue.fill(to.address.0, byte, to.bytes))
    }

    /// A new stream, independent of all others.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver refuses.
    pub fn stream(&self) -> Result<Stream, Error> {
        Ok(Stream::new(self.0.clone(), self.0.device.queue()?))
    }

    /// A stream that someone else has made, such as the framework around this library: `raw` is a `CUstream`. It is
    /// not destroyed with the last clone.
    ///
    /// # Safety
    /// `raw` is a stream of this GPU's primary context, or one of the driver's special handles such as 0, the default
    /// stream. It stays alive until the last clone has been dropped.
    ///
    /// # Errors
    /// [`Error::Unavailable`] on the emulator, which has no foreign streams; [`Error::Argument`] for a stream of
    /// another context.
    pub unsafe fn stream_from_raw(&self, raw: u64) -> Result<Stream, Error> {
        // SAFETY: the caller's promise, passed on.
        let queue = unsafe { self.0.device.foreign_queue(raw)? };
        Ok(Stream::new(self.0.clone(), queue))
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// `args` meets the contract of the kernel's argument struct until the kernel has ended; in a capture, until it has
    /// ended in the last launch of the graph.
    ///
    /// # Errors
    /// [`Error::Device`] if the launch is refused, [`Error::Argument`] if the stream is another rank's.
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
        stream.0.of(&self.0)?.issue(|queue| unsafe { queue.launch(&launch) })
    }

    pub(crate) fn wait_host(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Duration) -> bool {
        self.0.device.wait_host(ready, timeout)
    }

    pub(crate) fn notify(&self) {
        self.0.device.notify();
    }

    /// See [`Device::run`].
    pub(crate) fn run(
        &self,
        agent: Box<dyn Agent>,
        open: bool,
        thread: ThreadOptions,
    ) -> Result<Running, Error> {
        self.0.device.run(agent, open, thread)
    }

    /// What gives a NIC's driver the GPU's memory.
    #[cfg(feature = "rdma")]
    pub(crate) fn dma_buf_export(&self) -> crate::fabric::verbs::DmaBufExport {
        use crate::fabric::{Memory, verbs::DmaBuf};
        let core = self.0.clone();
        Box::new(move |Memory { address, bytes, .. }| {
            let (fd, offset) = core.device.dma_buf(address, bytes)?;
            Some(DmaBuf { fd, offset })
        })
    }

    /// See [`Device::carrier`].
    pub(crate) fn carrier(&self) -> Result<Box<dyn Carrier>, Error> {
        self.0.device.carrier()
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

    /// `bytes` of it from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Argument`] if it ends before.
    pub fn part(self, offset: usize, bytes: usize) -> Result<Self, Error> {
        self.holds("part of a view", offset.saturating_add(bytes))?;
        Ok(Self { address: self.address.offset(offset as u64), bytes })
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

    /// Whether it is the host's.
    pub(crate) fn is_on_host(&self) -> bool {
        self.on_host
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
        if self.on_host {
            return self.core.device.free_host(self.address);
        }
        self.core.device.free(self.address);
        self.core.allocated.fetch_sub(self.bytes as u64, Ordering::Relaxed);
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
        self.core.device.free_host(self.address);
    }
}
