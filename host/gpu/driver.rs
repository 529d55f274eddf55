//! Driver functions that `cust` does not wrap, or wraps in enums frozen at CUDA 11.4: declared with plain integers, so
//! that a younger driver's values cannot become an invalid Rust enum.

use crate::Error;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;

/// `CUresult`.
pub type Status = c_int;
/// `CUdeviceptr`.
pub type DevicePointer = u64;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub const MULTIPROCESSORS: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub const CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_PCI_BUS_ID`.
pub const PCI_BUS: c_int = 33;
/// `CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID`.
pub const PCI_DEVICE: c_int = 34;
/// `CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID`.
pub const PCI_DOMAIN: c_int = 50;
/// `CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED`.
pub const DMA_BUF_SUPPORTED: c_int = 124;
/// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`.
#[cfg(feature = "rdma")]
pub const DMA_BUF_FD: c_int = 1;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub const SHARED_BYTES: c_int = 97;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub const FUNCTION_SHARED_BYTES: c_int = 8;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
pub const HOST_ALLOC_MAPPED: c_uint = 1 | 2;
/// `CU_STREAM_NON_BLOCKING`: the default stream does not wait for it, nor it for the default stream.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DEFAULT`.
pub const EVENT_DEFAULT: c_uint = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: other threads may go on, and this one may allocate.
pub const CAPTURE_RELAXED: c_int = 2;
/// `CU_STREAM_CAPTURE_STATUS_NONE`.
pub const CAPTURE_NONE: c_int = 0;
/// `CUDA_ERROR_NOT_READY`.
pub const NOT_READY: Status = 600;
/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
pub const PEER_ACCESS_ALREADY_ENABLED: Status = 704;

/// Something of the driver's: a function, a stream, an event or a graph.
#[derive(Clone, Copy)]
pub struct Handle(pub *mut c_void);
// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

unsafe extern "C" {
    pub fn cuInit(flags: c_uint) -> Status;
    pub fn cuGetErrorName(status: Status, name: *mut *const c_char) -> Status;
    pub fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> Status;
    pub fn cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) -> Status;
    pub fn cuCtxEnablePeerAccess(peer: *mut c_void, flags: c_uint) -> Status;
    pub fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> Status;
    pub fn cuMemAlloc_v2(address: *mut DevicePointer, bytes: usize) -> Status;
    pub fn cuMemFree_v2(address: DevicePointer) -> Status;
    pub fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) -> Status;
    pub fn cuMemFreeHost(address: *mut c_void) -> Status;
    #[cfg(feature = "rdma")]
    pub fn cuMemGetHandleForAddressRange(
        handle: *mut c_void,
        address: DevicePointer,
        bytes: usize,
        kind: c_int,
        flags: u64,
    ) -> Status;
    pub fn cuMemcpyAsync(to: DevicePointer, from: DevicePointer, bytes: usize, stream: *mut c_void)
    -> Status;
    pub fn cuMemsetD8Async(to: DevicePointer, byte: u8, bytes: usize, stream: *mut c_void) -> Status;
    pub fn cuStreamCreate(stream: *mut *mut c_void, flags: c_uint) -> Status;
    pub fn cuStreamDestroy_v2(stream: *mut c_void) -> Status;
    pub fn cuStreamGetCtx(stream: *mut c_void, context: *mut *mut c_void) -> Status;
    pub fn cuStreamSynchronize(stream: *mut c_void) -> Status;
    pub fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, flags: c_uint) -> Status;
    pub fn cuStreamBeginCapture_v2(stream: *mut c_void, mode: c_int) -> Status;
    pub fn cuStreamEndCapture(stream: *mut c_void, graph: *mut *mut c_void) -> Status;
    pub fn cuStreamIsCapturing(stream: *mut c_void, status: *mut c_int) -> Status;
    pub fn cuEventCreate(event: *mut *mut c_void, flags: c_uint) -> Status;
    pub fn cuEventDestroy_v2(event: *mut c_void) -> Status;
    pub fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> Status;
    pub fn cuEventQuery(event: *mut c_void) -> Status;
    pub fn cuEventSynchronize(event: *mut c_void) -> Status;
    pub fn cuEventElapsedTime(milliseconds: *mut f32, from: *mut c_void, to: *mut c_void) -> Status;
    pub fn cuGraphInstantiateWithFlags(
        executable: *mut *mut c_void,
        graph: *mut c_void,
        flags: u64,
    ) -> Status;
    pub fn cuGraphUpload(executable: *mut c_void, stream: *mut c_void) -> Status;
    pub fn cuGraphLaunch(executable: *mut c_void, stream: *mut c_void) -> Status;
    pub fn cuGraphExecDestroy(executable: *mut c_void) -> Status;
    pub fn cuGraphDestroy(graph: *mut c_void) -> Status;
    pub fn cuLaunchKernel(
        function: *mut c_void,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: *mut c_void,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> Status;
}

/// The driver's name of a status, and its number.
pub fn status_name(status: Status) -> String {
    let mut name = ptr::null();
    // SAFETY: writes a pointer to a constant string, or leaves it null.
    let known = unsafe { cuGetErrorName(status, &mut name) } == 0 && !name.is_null();
    // SAFETY: as above.
    let name = if known { unsafe { CStr::from_ptr(name) }.to_string_lossy() } else { "unknown".into() };
    format!("{name} ({status})")
}

/// An error unless the status is success.
pub fn check(call: &str, status: Status) -> Result<(), Error> {
    if status == 0 {
        return Ok(());
    }
    Err(Error::Device { call: call.to_owned(), reason: status_name(status) })
}
