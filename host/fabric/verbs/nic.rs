//! A NIC in use.

use super::address::NicAddress;
use super::device::{Chosen, choose};
use super::raw::{
    Capacity, CompletionQueue, Context, Gid, Link, LinkLayer, Port, ProtectionDomain, QueuePair,
};
use super::{VerbsOptions, failed, refused};
use crate::Error;
use std::sync::Arc;

pub struct Nic {
    pub name: String,
    pub context: Arc<Context>,
    pub domain: Arc<ProtectionDomain>,
    pub completions: Arc<CompletionQueue>,
    port: Port,
    gid: Gid,
    /// Entries of the completion queue that no queue pair has claimed.
    unclaimed: u32,
}

impl Nic {
    /// Those that the options ask for, each with room for the lanes to so many peers.
    pub fn open_all(options: &VerbsOptions, peers: u32) -> Result<Vec<Self>, Error> {
        let chosen = choose(options)?;
        let lanes = options.lanes.div_ceil(chosen.len().max(1) as u32);
        let wanted = peers.saturating_mul(lanes).saturating_mul(claim(options));
        chosen.into_iter().map(|nic| Self::open(nic, wanted)).collect()
    }

    /// With as large a completion queue as was wanted, or as there can be.
    fn open(nic: Chosen, wanted: u32) -> Result<Self, Error> {
        let Chosen { name, context, port, gid } = nic;
        let limit = context.completion_limit().map_err(failed(format!("asking {name} for its limits")))?;
        let entries = wanted.clamp(1, limit.max(1));
        let context = Arc::new(context);
        let domain =
            ProtectionDomain::new(&context).map_err(failed(format!("a protection domain on {name}")))?;
        let completions = CompletionQueue::new(&context, entries)
            .map_err(failed(format!("a completion queue of {entries} on {name}")))?;
        Ok(Self {
            name,
            context,
            domain: Arc::new(domain),
            completions: Arc::new(completions),
            port,
            gid,
            unclaimed: entries,
        })
    }

    pub fn address(&self) -> NicAddress {
        NicAddress { link: self.port.link, mtu: self.port.mtu, lid: self.port.lid, gid: self.gid.bytes }
    }

    /// Most bytes of a write.
    pub fn message_bytes(&self) -> u32 {
        self.port.message_bytes
    }

    /// A queue pair that is ready to be connected.
    pub fn queue_pair(&mut self, options: &VerbsOptions) -> Result<QueuePair, Error> {
        let VerbsOptions { send_depth, receive_depth, inline_bytes, .. } = *options;
        let call = || {
            let holding =
                format!("{send_depth} writes of {inline_bytes} inline bytes and {receive_depth} receives");
            format!("a queue pair on {} for {holding}", self.name)
        };
        let Some(unclaimed) = self.unclaimed.checked_sub(claim(options)) else {
            let why = "its completion queue has no room: lower verbs.lanes, send_depth or receive_depth";
            return Err(refused(call(), why));
        };
        let capacity = Capacity { writes: send_depth, receives: receive_depth, inline: inline_bytes };
        let queue_pair = QueuePair::new(&self.domain, &self.completions, capacity).map_err(failed(call()))?;
        queue_pair.prepare(options.port).map_err(failed(format!("preparing {}", call())))?;
        self.unclaimed = unclaimed;
        Ok(queue_pair)
    }

    /// The way to a peer's NIC; `Err` says why there is none. What depends on the lane is left 0.
    pub fn link(&self, peer: &NicAddress, options: &VerbsOptions) -> Result<Link, String> {
        if peer.link != self.port.link {
            return Err(format!("{} is on {:?}, and its NIC on {:?}", self.name, self.port.link, peer.link));
        }
        let subnet = |gid: &[u8; 16]| gid[..8].to_vec();
        let routed = self.port.link == LinkLayer::Ethernet
            || options.gid_index.is_some()
            || subnet(&peer.gid) != subnet(&self.gid.bytes);
        Ok(Link {
            port: options.port,
            source: self.gid,
            gid: peer.gid,
            lid: peer.lid,
            routed,
            queue_pair: 0,
            receive_number: 0,
            send_number: 0,
            mtu: self.port.mtu.min(peer.mtu).min(options.mtu.unwrap_or(u32::MAX)),
            service_level: options.service_level as u8,
            traffic_class: options.traffic_class as u8,
            hop_limit: options.hop_limit as u8,
            ack_timeout: options.ack_timeout as u8,
            retry_count: options.retry_count as u8,
            rnr_retry: options.rnr_retry as u8,
            min_rnr_timer: options.min_rnr_timer as u8,
        })
    }
}

/// Completions of a queue pair that may have to wait in the queue: all, once it fails.
fn claim(options: &VerbsOptions) -> u32 {
    options.send_depth + options.receive_depth
}
