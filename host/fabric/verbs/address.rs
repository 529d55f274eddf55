//! What an end tells a peer, as bytes: numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `trvb` |
//! | 2, 1, 1, 4 | version, number of NICs, of lanes, of regions |
//! | 4, 4 | the rank that tells, the rank that is told |
//! | 1, 1, 2, 16 of each NIC | link layer, log2 of its packets' bytes, LID, GID |
//! | 4, 4 of each lane | number of its queue pair, and of the first packet that it sends |
//! | 8, 8 of each region, and 4 a NIC | address, bytes, keys |

use super::options::{MAX_LANES, MAX_NICS};
use super::raw::LinkLayer;
use crate::fabric::MAX_ADDRESS_BYTES;

/// Queue pairs' and packets' numbers have 24 bits.
pub const NUMBER_BITS: u32 = 24;

const MAGIC: [u8; 4] = *b"trvb";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;
const NIC_BYTES: usize = 20;
const LANE_BYTES: usize = 8;

/// What an end tells a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub from: u32,
    pub to: u32,
    pub nics: Vec<NicAddress>,
    /// Lane l is on NIC l mod NICs.
    pub lanes: Vec<LaneAddress>,
    pub regions: Vec<RemoteRegion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicAddress {
    pub link: LinkLayer,
    pub mtu: u32,
    pub lid: u16,
    pub gid: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneAddress {
    pub queue_pair: u32,
    pub first_packet: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRegion {
    pub address: u64,
    pub bytes: u64,
    /// One a NIC.
    pub keys: Vec<u32>,
}

const fn bytes_for(nics: usize, lanes: usize, regions: usize) -> usize {
    HEADER_BYTES + nics * NIC_BYTES + lanes * LANE_BYTES + regions * (16 + 4 * nics)
}

impl Address {
    /// # Errors
    /// That it would be too long, in words.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let total = bytes_for(self.nics.len(), self.lanes.len(), self.regions.len());
        if total > MAX_ADDRESS_BYTES {
            return Err(format!(
                "{} regions take more than {MAX_ADDRESS_BYTES} bytes to tell",
                self.regions.len()
            ));
        }
        let mut out = Vec::with_capacity(total);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([self.nics.len() as u8, self.lanes.len() as u8]);
        for number in [self.regions.len() as u32, self.from, self.to] {
            out.extend(number.to_le_bytes());
        }
        for nic in &self.nics {
            out.extend([link_code(nic.link), nic.mtu.ilog2() as u8]);
            out.extend(nic.lid.to_le_bytes());
            out.extend(nic.gid);
        }
        for lane in &self.lanes {
            out.extend(lane.queue_pair.to_le_bytes());
            out.extend(lane.first_packet.to_le_bytes());
        }
        for region in &self.regions {
            out.extend(region.address.to_le_bytes());
            out.extend(region.bytes.to_le_bytes());
            region.keys.iter().for_each(|key| out.extend(key.to_le_bytes()));
        }
        Ok(out)
    }

    /// Of any bytes.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_ADDRESS_BYTES {
            return Err(format!("it has {} bytes, more than {MAX_ADDRESS_BYTES}", bytes.len()));
        }
        let mut reader = Reader(bytes);
        if reader.take() != Some(MAGIC) {
            return Err("it is no address of a verbs fabric".into());
        }
        let version = reader.take().map(u16::from_le_bytes);
        if version != Some(VERSION) {
            return Err(format!("it is of version {}, and this is {VERSION}", version.unwrap_or(0)));
        }
        reader.body().ok_or_else(|| "it is damaged".into())
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// What follows the version.
    fn body(&mut self) -> Option<Address> {
        let [nics, lanes] = self.take()?;
        let (nics, lanes) = (usize::from(nics), usize::from(lanes));
        let [regions, from, to] = [self.u32()?, self.u32()?, self.u32()?];
        let plausible = (1..=MAX_NICS as usize).contains(&nics) && (1..=MAX_LANES as usize).contains(&lanes);
        // Nothing is allocated for what is not there.
        let total = bytes_for(nics, lanes, (regions as usize).min(MAX_ADDRESS_BYTES));
        if !plausible || self.0.len() + HEADER_BYTES != total {
            return None;
        }
        Some(Address {
            from,
            to,
            nics: (0..nics).map(|_| self.nic()).collect::<Option<_>>()?,
            lanes: (0..lanes).map(|_| self.lane()).collect::<Option<_>>()?,
            regions: (0..regions).map(|_| self.region(nics)).collect::<Option<_>>()?,
        })
    }

    fn nic(&mut self) -> Option<NicAddress> {
        let [link, mtu] = self.take()?;
        let nic = NicAddress {
            link: link_of(link)?,
            mtu: (8..=12).contains(&mtu).then(|| 1 << mtu)?,
            lid: self.take().map(u16::from_le_bytes)?,
            gid: self.take()?,
        };
        Some(nic)
    }

    fn lane(&mut self) -> Option<LaneAddress> {
        let lane = LaneAddress { queue_pair: self.u32()?, first_packet: self.u32()? };
        let fits = (lane.queue_pair | lane.first_packet) >> NUMBER_BITS == 0;
        fits.then_some(lane)
    }

    fn region(&mut self, nics: usize) -> Option<RemoteRegion> {
        let region = RemoteRegion {
            address: self.u64()?,
            bytes: self.u64()?,
            keys: (0..nics).map(|_| self.u32()).collect::<Option<_>>()?,
        };
        region.address.checked_add(region.bytes).is_some().then_some(region)
    }
}

fn link_code(link: LinkLayer) -> u8 {
    match link {
        LinkLayer::InfiniBand => 1,
        LinkLayer::Ethernet => 2,
    }
}

fn link_of(code: u8) -> Option<LinkLayer> {
    [LinkLayer::InfiniBand, LinkLayer::Ethernet].into_iter().find(|&link| link_code(link) == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Address {
        let nic = |mtu| NicAddress { link: LinkLayer::Ethernet, mtu, lid: 7, gid: [9; 16] };
        let lane = |number| LaneAddress { queue_pair: number, first_packet: (1 << NUMBER_BITS) - 1 };
        let region = |address, bytes| RemoteRegion { address, bytes, keys: vec![1, u32::MAX] };
        Address {
            from: 3,
            to: 4,
            nics: vec![nic(256), nic(4096)],
            lanes: (17..20).map(lane).collect(),
            regions: vec![region(1 << 40, 1 << 30), region(u64::MAX - 8, 8)],
        }
    }

    #[test]
    fn what_was_told_is_understood() {
        let bytes = example().encode().unwrap();
        assert_eq!(Address::decode(&bytes), Ok(example()));
    }

    #[test]
    fn no_part_can_be_missing_and_nothing_added() {
        let bytes = example().encode().unwrap();
        for end in 0..bytes.len() {
            Address::decode(&bytes[..end]).unwrap_err();
        }
        let longer = [bytes, vec![0]].concat();
        Address::decode(&longer).unwrap_err();
        Address::decode(&vec![0; MAX_ADDRESS_BYTES + 1]).unwrap_err();
    }

    #[test]
    fn too_many_regions_are_refused() {
        let mut address = example();
        address.regions = vec![address.regions[0].clone(); MAX_ADDRESS_BYTES / 24];
        assert!(address.encode().unwrap_err().contains("regions"));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Address::decode(&bytes);
        }

        #[test]
        fn any_change_is_an_error_or_another_address(at in 0usize..200, to in any::<u8>()) {
            let mut bytes = example().encode().unwrap();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            if let Ok(address) = Address::decode(&bytes) {
                prop_assert_ne!(address, example());
            }
        }
    }
}
