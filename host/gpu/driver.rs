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
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
pub const SHARED_BYTES: c_int = 97;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub const FUNCTION_SHARED_BYTES: c_int = 8;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`.
pub const HOST_ALLOC_MAPPED: c_uint = 1 | 2;
/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
pub const PEER_ACCESS_ALREADY_ENABLED: Status = 704;

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
    pub fn cuMemcpyAsync(to: DevicePointer, from: DevicePointer, bytes: usize, stream: *mut c_void)
    -> Status;
    pub fn cuMemsetD8Async(to: DevicePointer, byte: u8, bytes: usize, stream: *mut c_void) -> Status;
    pub fn cuStreamSynchronize(stream: *mut c_void) -> Status;
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
