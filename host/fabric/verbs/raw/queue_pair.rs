//! Reliable connections.

use super::{CompletionQueue, Gid, ProtectionDomain, object, status, unsupported};
use ibverbs_sys as sys;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

/// How much a queue pair holds.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub writes: u32,
    pub receives: u32,
    /// Bytes that a request can carry in itself.
    pub inline: u32,
}

/// A connection to be made.
#[derive(Clone, Debug)]
pub struct Link {
    pub port: u32,
    /// Where it comes from.
    pub source: Gid,
    /// Where it leads to.
    pub gid: [u8; 16],
    pub lid: u16,
    /// Whether packets need a GID to find the way.
    pub routed: bool,
    pub queue_pair: u32,
    /// Number of the first packet that comes.
    pub receive_number: u32,
    /// Number of the first packet that goes.
    pub send_number: u32,
    /// Most bytes of a packet.
    pub mtu: u32,
    pub service_level: u8,
    pub traffic_class: u8,
    pub hop_limit: u8,
    pub ack_timeout: u8,
    pub retry_count: u8,
    pub rnr_retry: u8,
    pub min_rnr_timer: u8,
}

/// One end of a reliable connection.
pub struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    _domain: Arc<ProtectionDomain>,
    _queue: Arc<CompletionQueue>,
}

// SAFETY: libibverbs may be called from any thread, and locks what calls share.
unsafe impl Send for QueuePair {}

impl QueuePair {
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        capacity: Capacity,
    ) -> io::Result<Self> {
        let mut attributes = sys::ibv_qp_init_attr {
            send_cq: queue.as_ptr(),
            recv_cq: queue.as_ptr(),
            cap: sys::ibv_qp_cap {
                max_send_wr: capacity.writes,
                max_recv_wr: capacity.receives,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: capacity.inline,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            ..Default::default()
        };
        // SAFETY: domain and queue are there, and stay as long as the queue pair; `attributes` lives.
        let raw = object(unsafe { sys::ibv_create_qp(domain.as_ptr(), &mut attributes) })?;
        Ok(Self { raw, _domain: domain.clone(), _queue: queue.clone() })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_qp {
        self.raw.as_ptr()
    }

    /// What a peer connects to.
    pub fn number(&self) -> u32 {
        // SAFETY: it is there as long as `self`.
        unsafe { self.raw.as_ref() }.qp_num
    }

    fn modify(&self, mut attributes: sys::ibv_qp_attr, which: sys::ibv_qp_attr_mask) -> io::Result<()> {
        // SAFETY: the queue pair is there and `attributes` lives.
        status(unsafe { sys::ibv_modify_qp(self.as_ptr(), &mut attributes, which.0 as i32) })
    }

    /// Made ready to be connected: receives may be posted.
    pub fn prepare(&self, port: u32) -> io::Result<()> {
        use sys::ibv_qp_attr_mask as mask;
        let attributes = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_INIT,
            port_num: port as u8,
            qp_access_flags: sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0,
            ..Default::default()
        };
        let which =
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
        self.modify(attributes, which)
    }

    /// Connected: it takes what comes, and sends.
    pub fn connect(&self, link: &Link) -> io::Result<()> {
        use sys::ibv_qp_attr_mask as mask;
        let receive = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_RTR,
            path_mtu: link.mtu.ilog2().saturating_sub(7),
            rq_psn: link.receive_number,
            dest_qp_num: link.queue_pair,
            // None are used, but some devices want room for one.
            max_dest_rd_atomic: 1,
            min_rnr_timer: link.min_rnr_timer,
            ah_attr: sys::ibv_ah_attr {
                grh: sys::ibv_global_route {
                    dgid: sys::ibv_gid { raw: link.gid },
                    flow_label: 0,
                    sgid_index: link.source.index as u8,
                    hop_limit: link.hop_limit,
                    traffic_class: link.traffic_class,
                },
                dlid: link.lid,
                sl: link.service_level,
                is_global: link.routed.into(),
                port_num: link.port as u8,
                ..Default::default()
            },
            ..Default::default()
        };
        let which = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(receive, which)?;
        let send = sys::ibv_qp_attr {
            qp_state: sys::ibv_qp_state::IBV_QPS_RTS,
            sq_psn: link.send_number,
            max_rd_atomic: 1,
            timeout: link.ack_timeout,
            retry_cnt: link.retry_count,
            rnr_retry: link.rnr_retry,
            ..Default::default()
        };
        let which = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(send, which)
    }

    /// Ended: what is posted is flushed, and the peer gets no answer.
    pub fn fail(&self) -> io::Result<()> {
        let attributes = sys::ibv_qp_attr { qp_state: sys::ibv_qp_state::IBV_QPS_ERR, ..Default::default() };
        self.modify(attributes, sys::ibv_qp_attr_mask::IBV_QP_STATE)
    }

    /// Makes room for more immediates; each is reported with the number `id`.
    pub fn receive(&self, id: u64, count: u32) -> io::Result<()> {
        // SAFETY: the queue pair is there, and so is its context.
        let post = unsafe { (*(*self.as_ptr()).context).ops.post_recv }.ok_or_else(unsupported)?;
        // The NIC has written the bytes where the peer said: no memory has to be named.
        let mut request = sys::ibv_recv_wr { wr_id: id, ..Default::default() };
        for _ in 0..count {
            let mut refused = null_mut();
            // SAFETY: the function is the driver's of this queue pair, the request leads to no other and to no memory, and
            // both locals live.
            status(unsafe { post(self.as_ptr(), &mut request, &mut refused) })?;
        }
        Ok(())
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: it is given back once.
        unsafe { sys::ibv_destroy_qp(self.as_ptr()) };
    }
}
