//! What has become of requests.

use super::{Context, object, unsupported};
use crate::fabric::Cause;
use ibverbs_sys as sys;
use std::ffi::CStr;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// How many completions are taken at once.
const BATCH: usize = 64;

/// A request that is done.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The number that the request was given.
    pub id: u64,
    /// What came with it; `None` with a request of this end's.
    pub outcome: Result<Option<u32>, Cause>,
}

/// Where a NIC tells which requests are done.
pub struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs may be called from any thread, and locks what calls share.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// With room for this many completions, at least.
    pub fn new(context: &Arc<Context>, entries: u32) -> io::Result<Self> {
        let entries = i32::try_from(entries).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the context is open; neither a channel nor a pointer of one's own has to be given.
        let raw = unsafe { sys::ibv_create_cq(context.as_ptr(), entries, null_mut(), null_mut(), 0) };
        Ok(Self { raw: object(raw)?, _context: context.clone() })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// Adds some completions to `done` and says whether there may be more.
    pub fn poll(&self, done: &mut Vec<Completion>) -> io::Result<bool> {
        let mut entries = [sys::ibv_wc::default(); BATCH];
        // SAFETY: the queue is there, and so is its context.
        let poll = unsafe { (*(*self.as_ptr()).context).ops.poll_cq }.ok_or_else(unsupported)?;
        // SAFETY: the function is the driver's of this queue, and `entries` has room for what is asked for.
        let count = unsafe { poll(self.as_ptr(), BATCH as i32, entries.as_mut_ptr()) };
        let count =
            usize::try_from(count).map_err(|_| io::Error::other("the completion queue cannot be read"))?;
        done.extend(entries.iter().take(count).map(|entry| Completion {
            id: entry.wr_id(),
            outcome: match entry.error() {
                None => Ok(entry.imm_data().map(u32::from_be)),
                Some((code, vendor)) => Err(cause(code, vendor)),
            },
        }));
        Ok(count == BATCH)
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: it is given back once; queue pairs hold theirs and so are gone.
        unsafe { sys::ibv_destroy_cq(self.as_ptr()) };
    }
}

fn cause(code: sys::ibv_wc_status::Type, vendor: u32) -> Cause {
    use sys::ibv_wc_status::*;
    match code {
        IBV_WC_RETRY_EXC_ERR | IBV_WC_RESP_TIMEOUT_ERR => Cause::Unreachable,
        IBV_WC_REM_INV_REQ_ERR | IBV_WC_REM_ACCESS_ERR | IBV_WC_REM_OP_ERR => Cause::Refused,
        IBV_WC_RNR_RETRY_EXC_ERR => Cause::NotReady,
        IBV_WC_LOC_LEN_ERR | IBV_WC_LOC_QP_OP_ERR | IBV_WC_LOC_PROT_ERR | IBV_WC_LOC_ACCESS_ERR => {
            Cause::Local
        }
        IBV_WC_WR_FLUSH_ERR => Cause::Flushed,
        code => {
            // SAFETY: the call takes any number and gives a string that lasts.
            let words = unsafe { CStr::from_ptr(sys::ibv_wc_status_str(code)) };
            Cause::Other(format!("{} (status {code}, vendor's {vendor})", words.to_string_lossy()))
        }
    }
}
