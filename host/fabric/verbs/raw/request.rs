//! Writes that are handed to a NIC together.

use super::{QueuePair, status, unsupported};
use ibverbs_sys as sys;
use std::io;
use std::ptr::null_mut;

/// Where a write's bytes are.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// In registered memory, which the NIC reads.
    Registered {
        address: u64,
        bytes: u32,
        key: u32,
    },
    /// The same, but the CPU reads them when the request is posted.
    Copied {
        address: u64,
        bytes: u32,
    },
    /// Here.
    Word(u64),
    Nothing,
}

/// A write.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub source: Source,
    pub remote_address: u64,
    pub remote_key: u32,
    pub immediate: Option<u32>,
}

/// Writes for one queue pair. Only the last of them is reported.
pub struct Requests {
    id: u64,
    sources: Vec<Source>,
    /// Of each request, its only piece of memory.
    pieces: Vec<sys::ibv_sge>,
    requests: Vec<sys::ibv_send_wr>,
}

// SAFETY: the pointers inside requests are set when they are posted, and not used afterwards.
unsafe impl Send for Requests {}

impl Requests {
    /// For about `capacity` at once, reported with the number `id`.
    pub fn new(id: u64, capacity: usize) -> Self {
        Self {
            id,
            sources: Vec::with_capacity(capacity),
            pieces: Vec::with_capacity(capacity),
            requests: Vec::with_capacity(capacity),
        }
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// # Safety
    /// What [`Source::Copied`] names can be read until it is posted or dropped.
    pub unsafe fn push(&mut self, request: &Request) {
        let inline = sys::ibv_send_flags::IBV_SEND_INLINE.0;
        let (addr, length, lkey, send_flags) = match request.source {
            Source::Registered { address, bytes, key } => (address, bytes, key, 0),
            Source::Copied { address, bytes } => (address, bytes, 0, inline),
            // Where it is will be known when it is posted.
            Source::Word(_) => (0, size_of::<u64>() as u32, 0, inline),
            Source::Nothing => (0, 0, 0, 0),
        };
        self.sources.push(request.source);
        self.pieces.push(sys::ibv_sge { addr, length, lkey });
        self.requests.push(sys::ibv_send_wr {
            wr_id: self.id,
            num_sge: i32::from(length > 0),
            opcode: match request.immediate {
                None => sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE,
                Some(_) => sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM,
            },
            send_flags,
            __bindgen_anon_1: sys::ibv_send_wr__bindgen_ty_1 {
                imm_data: request.immediate.unwrap_or(0).to_be(),
            },
            wr: sys::ibv_send_wr__bindgen_ty_2 {
                rdma: sys::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 {
                    remote_addr: request.remote_address,
                    rkey: request.remote_key,
                },
            },
            ..Default::default()
        });
    }

    /// Hands all of them to the NIC. After an error some may be under way.
    pub fn post(&mut self, queue_pair: &QueuePair) -> io::Result<()> {
        let Some(last) = self.requests.last_mut() else { return Ok(()) };
        last.send_flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        let mut next = null_mut();
        let parts = self.requests.iter_mut().zip(&mut self.pieces).zip(&self.sources);
        for ((request, piece), source) in parts.rev() {
            if let Source::Word(word) = source {
                piece.addr = std::ptr::from_ref(word).addr() as u64;
            }
            request.sg_list = piece;
            request.next = next;
            next = request;
        }
        // SAFETY: from `next` on, requests lead to each other and to their pieces, and words are in `sources`: nothing of
        // it moves before the call returns, which copies it all. What was given to `push` can be read.
        let result = unsafe { post(queue_pair, next) };
        self.sources.clear();
        self.pieces.clear();
        self.requests.clear();
        result
    }
}

/// # Safety
/// All that the requests point to can be read.
unsafe fn post(queue_pair: &QueuePair, first: *mut sys::ibv_send_wr) -> io::Result<()> {
    let raw = queue_pair.as_ptr();
    // SAFETY: the queue pair is there, and so is its context.
    let post = unsafe { (*(*raw).context).ops.post_send }.ok_or_else(unsupported)?;
    let mut refused = null_mut();
    // SAFETY: the function is the driver's of this queue pair; for the requests the caller answers; `refused` lives.
    status(unsafe { post(raw, first, &mut refused) })
}
