//! The settings of a [`Verbs`](super::Verbs).

use crate::Error;
use std::time::Duration;

/// Settings of a rank's NICs and of its connections. All ranks have the same number of lanes; the rest is each rank's own,
/// though fabrics expect one service level and traffic class of what belongs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbsOptions {
    /// Names of the NICs to use, all of them, as `tokenrail info` tells them. Empty: `nics` of those whose port is active,
    /// nearest to `near` first.
    pub devices: Vec<String>,
    /// How many NICs to use if `devices` names none, 1 to 8; fewer if there are fewer. Lane l is on NIC l mod NICs.
    pub nics: u32,
    /// The PCI address of what the NICs are to be near, the rank's GPU: `0000:17:00.0`. `None`: by name alone.
    pub near: Option<String>,
    /// The port of each NIC, 1 to 255.
    pub port: u32,
    /// Index of the GID that connections come from, 0 to 255. `None`: on InfiniBand 0; on Ethernet one of RoCE v2, with an
    /// IPv4 address if there is one.
    pub gid_index: Option<u32>,
    /// Lanes to each peer, each a queue pair: 1 to 64, and no fewer than there are NICs.
    pub lanes: u32,
    /// Service level, 0 to 15. On Ethernet, the priority.
    pub service_level: u32,
    /// Traffic class, 0 to 255. With RoCE v2, the byte in the IP header that has the DSCP in its upper six bits.
    pub traffic_class: u32,
    /// Most routers on the way to a peer, 1 to 255.
    pub hop_limit: u32,
    /// Most bytes of a packet: 256, 512, 1024, 2048 or 4096. `None`: what the ports of both ends allow.
    pub mtu: Option<u32>,
    /// How long an acknowledgement is waited for, 4.096 µs · 2^this: 1 to 31.
    pub ack_timeout: u32,
    /// How often a write that nobody acknowledges is sent again, 0 to 6. With 7 some devices never give up.
    pub retry_count: u32,
    /// How often an immediate that the peer had no room for is sent again, 0 to 6; 7 for ever.
    pub rnr_retry: u32,
    /// How long a peer waits before it sends such an immediate again, 0 to 31, in the code of InfiniBand: 1 is 10 µs, 12 is
    /// 640 µs, twice as long with every second step up to 31, 491 ms; 0 is 655 ms.
    pub min_rnr_timer: u32,
    /// How long a lane may have writes under way of which none gets done, whatever the NIC says of it: above 0, at most a
    /// day. Some devices lose what they had to send when their port goes down.
    pub deadline: Duration,
    /// Writes that may be under way on a lane, 1 to 16384.
    pub send_depth: u32,
    /// Immediates that a lane takes in between two polls, 1 to 16384.
    pub receive_depth: u32,
    /// Writes that are handed to the NIC together, and of which only the last is reported: 1 to `send_depth`.
    pub signal_every: u32,
    /// Most bytes of host memory that are copied into the request itself, 8 to 1024.
    pub inline_bytes: u32,
}

/// Most NICs of a rank.
pub(super) const MAX_NICS: u32 = 8;
/// Most lanes to a peer.
pub(super) const MAX_LANES: u32 = 64;
const MAX_DEPTH: u32 = 16384;
const MTUS: [u32; 5] = [256, 512, 1024, 2048, 4096];

impl Default for VerbsOptions {
    /// One NIC and four lanes. A peer that does not answer is given up after about 2 s, one that takes no immediates in
    /// after 0.5 s.
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            nics: 1,
            near: None,
            port: 1,
            gid_index: None,
            lanes: 4,
            service_level: 0,
            traffic_class: 0,
            hop_limit: 64,
            mtu: None,
            ack_timeout: 16,
            retry_count: 6,
            rnr_retry: 6,
            min_rnr_timer: 26,
            deadline: Duration::from_secs(10),
            send_depth: 256,
            receive_depth: 256,
            signal_every: 16,
            inline_bytes: 64,
        }
    }
}

impl VerbsOptions {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Config`] with the first that is not possible.
    pub fn check(&self) -> Result<(), Error> {
        let ranges = [
            ("verbs.nics", self.nics, 1, MAX_NICS),
            ("verbs.port", self.port, 1, 255),
            ("verbs.gid_index", self.gid_index.unwrap_or(0), 0, 255),
            ("verbs.lanes", self.lanes, 1, MAX_LANES),
            ("verbs.service_level", self.service_level, 0, 15),
            ("verbs.traffic_class", self.traffic_class, 0, 255),
            ("verbs.hop_limit", self.hop_limit, 1, 255),
            ("verbs.ack_timeout", self.ack_timeout, 1, 31),
            ("verbs.retry_count", self.retry_count, 0, 6),
            ("verbs.rnr_retry", self.rnr_retry, 0, 7),
            ("verbs.min_rnr_timer", self.min_rnr_timer, 0, 31),
            ("verbs.send_depth", self.send_depth, 1, MAX_DEPTH),
            ("verbs.receive_depth", self.receive_depth, 1, MAX_DEPTH),
            ("verbs.signal_every", self.signal_every, 1, self.send_depth),
            ("verbs.inline_bytes", self.inline_bytes, 8, 1024),
        ];
        for (field, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(refuse(field, value, format!("must be {least} to {most}")));
            }
        }
        if self.deadline.is_zero() || self.deadline > Duration::from_secs(86400) {
            let limit = "must be above 0 and at most a day".into();
            return Err(refuse("verbs.deadline", format!("{:?}", self.deadline), limit));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return Err(refuse("verbs.mtu", mtu, "must be 256, 512, 1024, 2048 or 4096".into()));
        }
        if self.devices.len() > MAX_NICS as usize {
            return Err(refuse("verbs.devices", self.devices.len(), format!("there can be {MAX_NICS}")));
        }
        let repeated = (1..self.devices.len()).find(|&i| self.devices[..i].contains(&self.devices[i]));
        if let Some(i) = repeated {
            return Err(refuse("verbs.devices", &self.devices[i], "is named twice".into()));
        }
        let nics = if self.devices.is_empty() { self.nics } else { self.devices.len() as u32 };
        if self.lanes < nics {
            return Err(refuse(
                "verbs.lanes",
                self.lanes,
                format!("must be at least 1 for each of {nics} NICs"),
            ));
        }
        Ok(())
    }
}

pub(super) fn refuse(field: &'static str, value: impl ToString, limit: String) -> Error {
    Error::Config { field, value: value.to_string(), limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(options: VerbsOptions) -> &'static str {
        match options.check() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn errors_name_the_setting() {
        let good = VerbsOptions::default();
        good.check().unwrap();
        assert_eq!(field(VerbsOptions { retry_count: 7, ..good.clone() }), "verbs.retry_count");
        assert_eq!(field(VerbsOptions { mtu: Some(1500), ..good.clone() }), "verbs.mtu");
        assert_eq!(field(VerbsOptions { signal_every: 257, ..good.clone() }), "verbs.signal_every");
        assert_eq!(field(VerbsOptions { service_level: 16, ..good.clone() }), "verbs.service_level");
        assert_eq!(field(VerbsOptions { lanes: 2, nics: 3, ..good.clone() }), "verbs.lanes");
        assert_eq!(field(VerbsOptions { deadline: Duration::ZERO, ..good.clone() }), "verbs.deadline");
        let devices = vec!["a".into(), "a".into()];
        assert_eq!(field(VerbsOptions { devices, ..good }), "verbs.devices");
    }
}
