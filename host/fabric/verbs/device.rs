//! Which NICs there are, and which of them to use.

use super::options::refuse;
use super::raw::{Context, Gid, GidKind, LinkLayer, Port, device_names};
use super::{VerbsOptions, failed};
use crate::Error;
use std::cmp::Reverse;
use std::fmt;
use std::fs;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// A NIC, as the system describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicDescription {
    /// What [`VerbsOptions::devices`] names it by.
    pub name: String,
    /// Its PCI address, if it is a PCI device.
    pub pci: Option<String>,
    /// The NUMA node it is at, if there are several.
    pub numa: Option<u32>,
    /// Its ports, from number 1 on.
    pub ports: Vec<PortDescription>,
}

/// A port of a NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortDescription {
    /// `active` if it can be used.
    pub state: &'static str,
    /// `InfiniBand` or `Ethernet`.
    pub link: &'static str,
    /// Most bytes of a packet.
    pub mtu: u32,
    /// GIDs that connections can come from, by index: those of RoCE v2, or of InfiniBand.
    pub gids: Vec<(u32, Ipv6Addr)>,
}

impl fmt::Display for NicDescription {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(pci) = &self.pci {
            write!(f, ", PCI {pci}")?;
        }
        if let Some(numa) = self.numa {
            write!(f, ", NUMA node {numa}")?;
        }
        for (port, number) in self.ports.iter().zip(1..) {
            write!(f, "; port {number} {}, {}, packets of {}", port.state, port.link, port.mtu)?;
            for (index, gid) in &port.gids {
                write!(f, ", GID {index} {gid}")?;
            }
        }
        Ok(())
    }
}

/// All NICs.
///
/// # Errors
/// [`Error::Unavailable`] if there is none; [`Error::Fabric`] if one does not say what it is.
pub fn describe() -> Result<Vec<NicDescription>, Error> {
    let sysfs = Path::new(SYSFS);
    let describe = |name: String| {
        let context = Context::open(&name).map_err(failed(format!("opening {name}")))?;
        let place = Place::of_nic(sysfs, &name);
        // Ports are numbered without gaps.
        let ports = (1..=255).map_while(|port| context.port(port).ok().map(|found| (port, found)));
        let ports = ports.map(|(number, port)| PortDescription {
            state: port.state,
            link: match port.link {
                LinkLayer::InfiniBand => "InfiniBand",
                LinkLayer::Ethernet => "Ethernet",
            },
            mtu: port.mtu,
            gids: usable_gids(&context, number, &port).map(|gid| (gid.index, gid.bytes.into())).collect(),
        });
        Ok(NicDescription { name, pci: place.pci(), numa: place.numa, ports: ports.collect() })
    };
    names()?.into_iter().map(describe).collect()
}

/// A NIC that is to be used.
pub(super) struct Chosen {
    pub name: String,
    pub context: Context,
    pub port: Port,
    pub gid: Gid,
}

/// The NICs that the options ask for.
pub(super) fn choose(options: &VerbsOptions) -> Result<Vec<Chosen>, Error> {
    let known = names()?;
    if let Some(unknown) = options.devices.iter().find(|name| !known.contains(name)) {
        return Err(refuse("verbs.devices", unknown, format!("must be among {}", known.join(", "))));
    }
    if !options.devices.is_empty() {
        return options.devices.iter().map(|name| open(name, options)).collect();
    }
    let sysfs = Path::new(SYSFS);
    let target = options.near.as_ref().map(|address| Place::of_pci(sysfs, address)).transpose()?;
    let mut ranked = known;
    ranked.sort_by_cached_key(|name| {
        let distance = target.as_ref().map(|target| target.distance(&Place::of_nic(sysfs, name)));
        (distance, name.clone())
    });
    let mut chosen = Vec::new();
    let mut refused = None;
    for name in ranked {
        if chosen.len() == options.nics as usize {
            break;
        }
        match open(&name, options) {
            Ok(nic) => chosen.push(nic),
            // Perhaps the next can be used. The nearest tells why not.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) if chosen.is_empty() => Err(error),
        _ => Ok(chosen),
    }
}

fn names() -> Result<Vec<String>, Error> {
    let none = |why: String| Error::Unavailable { what: "RDMA".into(), why };
    let names = device_names().map_err(|error| none(format!("libibverbs finds no devices: {error}")))?;
    if names.is_empty() {
        let why = "libibverbs finds no device: is there a NIC with RDMA, and its kernel driver and user-space provider?";
        return Err(none(why.into()));
    }
    Ok(names)
}

fn open(name: &str, options: &VerbsOptions) -> Result<Chosen, Error> {
    let context = Context::open(name).map_err(failed(format!("opening {name}")))?;
    let number = options.port;
    let port = context.port(number).map_err(failed(format!("asking {name} for port {number}")))?;
    let unavailable = |why| Error::Unavailable { what: format!("port {number} of {name}"), why };
    if !port.active {
        return Err(unavailable(format!(
            "it is {}: see to its cable, or to its network interface",
            port.state
        )));
    }
    let gid = choose_gid(&context, &port, options);
    let gid = gid.ok_or_else(|| match options.gid_index {
        Some(index) => {
            refuse("verbs.gid_index", index, format!("{name} has no such GID of RoCE v2 or InfiniBand"))
        }
        None => {
            unavailable("it has no GID of RoCE v2 or InfiniBand: give its interface an IP address".into())
        }
    })?;
    Ok(Chosen { name: name.into(), context, port, gid })
}

fn usable_gids<'a>(context: &'a Context, number: u32, port: &Port) -> impl Iterator<Item = Gid> + use<'a> {
    let kind = if port.link == LinkLayer::Ethernet { GidKind::RoceV2 } else { GidKind::InfiniBand };
    // An index is a byte in a connection's attributes.
    let all = (0..port.gids.min(256)).filter_map(move |index| context.gid(number, index));
    all.filter(move |gid| gid.kind == kind)
}

fn choose_gid(context: &Context, port: &Port, options: &VerbsOptions) -> Option<Gid> {
    let mut usable = usable_gids(context, options.port, port);
    match options.gid_index {
        Some(index) => usable.find(|gid| gid.index == index),
        None => usable.max_by_key(|gid| (preference(gid), Reverse(gid.index))),
    }
}

/// What reaches farther is better.
fn preference(gid: &Gid) -> u32 {
    let address = Ipv6Addr::from(gid.bytes);
    match address.to_ipv4_mapped() {
        Some(_) => 2,
        None if address.is_unicast_link_local() => 0,
        None => 1,
    }
}

const SYSFS: &str = "/sys";

/// Where a device is attached.
#[derive(Debug, Default)]
struct Place {
    /// From the root complex down, ends with the device.
    bridges: Vec<String>,
    numa: Option<u32>,
}

impl Place {
    fn of_nic(sysfs: &Path, name: &str) -> Self {
        Self::read(&sysfs.join("class/infiniband").join(name).join("device")).unwrap_or_default()
    }

    fn of_pci(sysfs: &Path, address: &str) -> Result<Self, Error> {
        // CUDA writes addresses in capitals.
        let address = address.to_lowercase();
        let well_formed = address.chars().all(|c| c.is_ascii_hexdigit() || ":.".contains(c));
        let place = well_formed.then(|| Self::read(&sysfs.join("bus/pci/devices").join(&address))).flatten();
        place.ok_or_else(|| refuse("verbs.near", address, "must be a PCI device: 0000:17:00.0, say".into()))
    }

    fn read(device: &Path) -> Option<Self> {
        let path: PathBuf = fs::canonicalize(device).ok()?;
        let numa = fs::read_to_string(path.join("numa_node")).ok();
        let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
        Some(Self {
            bridges: parts.skip_while(|part| !part.starts_with("pci")).collect(),
            // −1 for none.
            numa: numa.and_then(|number| number.trim().parse().ok()),
        })
    }

    fn pci(&self) -> Option<String> {
        self.bridges.last().cloned()
    }

    /// Bridges in between; more than any number of those for different root complexes, and more yet for different NUMA
    /// nodes.
    fn distance(&self, other: &Self) -> usize {
        let common = self.bridges.iter().zip(&other.bridges).take_while(|(a, b)| a == b).count();
        let hops = self.bridges.len() + other.bridges.len() - 2 * common;
        match common {
            0 if self.numa.is_none() || self.numa != other.numa => hops + 2000,
            0 => hops + 1000,
            _ => hops,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, numa: u32) -> Place {
        Place { bridges: path.split('/').map(Into::into).collect(), numa: Some(numa) }
    }

    #[test]
    fn the_same_switch_is_nearer_than_the_same_socket() {
        let gpu = place("pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0", 0);
        let same_switch = place("pci0000:00/0000:00:01.0/0000:01:00.0/0000:03:00.0", 0);
        let same_root = place("pci0000:00/0000:00:02.0/0000:09:00.0", 0);
        let same_socket = place("pci0000:40/0000:40:01.0", 0);
        let other_socket = place("pci0000:80/0000:80:01.0", 1);
        let nowhere = Place::default();
        let distances = [&same_switch, &same_root, &same_socket, &other_socket].map(|nic| gpu.distance(nic));
        assert!(distances.is_sorted_by(|a, b| a < b), "{distances:?}");
        assert!(gpu.distance(&nowhere) > gpu.distance(&same_socket));
    }

    #[test]
    fn what_is_near_has_to_be_a_pci_device() {
        for address in ["../../etc", "", "0000:ff:1f.7"] {
            assert!(matches!(
                Place::of_pci(Path::new("/nonexistent"), address),
                Err(Error::Config { field: "verbs.near", .. })
            ));
        }
    }
}
