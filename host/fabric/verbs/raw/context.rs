//! Devices, and what one tells of itself.

use super::{object, status};
use ibverbs_sys as sys;
use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::ptr::NonNull;

/// The devices that libibverbs knows.
struct DeviceList {
    first: NonNull<*mut sys::ibv_device>,
    count: usize,
}

impl DeviceList {
    fn new() -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: `count` is written by the call, and lives.
        let first = object(unsafe { sys::ibv_get_device_list(&mut count) })?;
        Ok(Self { first, count: usize::try_from(count).unwrap_or(0) })
    }

    fn devices(&self) -> &[*mut sys::ibv_device] {
        // SAFETY: the list has `count` entries and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_get_device_list and is freed once.
        unsafe { sys::ibv_free_device_list(self.first.as_ptr()) }
    }
}

fn name(device: *mut sys::ibv_device) -> String {
    // SAFETY: callers pass a device of a list that is not freed yet; its name is a C string inside it.
    let name = unsafe { CStr::from_ptr(sys::ibv_get_device_name(device)) };
    name.to_string_lossy().into_owned()
}

/// Names of all devices.
pub fn device_names() -> io::Result<Vec<String>> {
    Ok(DeviceList::new()?.devices().iter().map(|&device| name(device)).collect())
}

/// What a port's packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    InfiniBand,
    Ethernet,
}

/// The state of a port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// In the words of `ibv_devinfo`, less their prefix.
    pub state: &'static str,
    pub active: bool,
    pub link: LinkLayer,
    /// The local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Most bytes of a packet.
    pub mtu: u32,
    /// Most bytes of a write.
    pub message_bytes: u32,
    /// Entries of its table of GIDs.
    pub gids: u32,
}

/// What a GID stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    InfiniBand,
    RoceV1,
    RoceV2,
}

/// An entry of the table of GIDs.
#[derive(Clone, Copy, Debug)]
pub struct Gid {
    pub index: u32,
    pub bytes: [u8; 16],
    pub kind: GidKind,
}

/// What a device says unasked.
#[derive(Debug)]
pub enum AsyncEvent {
    PortDown(u32),
    PortUp(u32),
    /// A queue pair, by number, is not usable any more.
    QueuePair(u32, &'static str),
    /// Nothing on the device works any more.
    Fatal(&'static str),
    Other,
}

/// An open device.
pub struct Context(NonNull<sys::ibv_context>);

// SAFETY: libibverbs may be called from any thread, and locks what calls share.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(device: &str) -> io::Result<Self> {
        let list = DeviceList::new()?;
        let found = list.devices().iter().find(|&&entry| name(entry) == device);
        let &found = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        // SAFETY: the device is of a list that is not freed yet.
        let context = Self(object(unsafe { sys::ibv_open_device(found) })?);
        // SAFETY: the context is open.
        let events = unsafe { context.0.as_ref() }.async_fd;
        // SAFETY: F_GETFL takes no pointer; the descriptor is the context's.
        let flags = unsafe { libc::fcntl(events, libc::F_GETFL) };
        // SAFETY: F_SETFL takes no pointer; the descriptor is the context's.
        if flags < 0 || unsafe { libc::fcntl(events, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(context)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_context {
        self.0.as_ptr()
    }

    /// Most entries of a completion queue.
    pub fn completion_limit(&self) -> io::Result<u32> {
        let mut attributes = sys::ibv_device_attr::default();
        // SAFETY: the context is open, `attributes` is written by the call, and lives.
        status(unsafe { sys::ibv_query_device(self.as_ptr(), &mut attributes) })?;
        Ok(u32::try_from(attributes.max_cqe).unwrap_or(0))
    }

    pub fn port(&self, port: u32) -> io::Result<Port> {
        let number = u8::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut attributes = sys::ibv_port_attr::default();
        // SAFETY: the context is open. The call takes what older versions of the struct are; it writes no more than those
        // had, which begin like `attributes`.
        status(unsafe { sys::ibv_query_port(self.as_ptr(), number, (&raw mut attributes).cast()) })?;
        use sys::ibv_port_state::*;
        Ok(Port {
            state: match attributes.state {
                IBV_PORT_DOWN => "down",
                IBV_PORT_INIT => "initialised",
                IBV_PORT_ARMED => "armed",
                IBV_PORT_ACTIVE => "active",
                IBV_PORT_ACTIVE_DEFER => "deferred",
                _ => "unknown",
            },
            active: attributes.state == IBV_PORT_ACTIVE,
            link: match u32::from(attributes.link_layer) {
                sys::IBV_LINK_LAYER_ETHERNET => LinkLayer::Ethernet,
                // Drivers from before there was a choice say nothing.
                _ => LinkLayer::InfiniBand,
            },
            lid: attributes.lid,
            mtu: 128 << attributes.active_mtu.clamp(sys::IBV_MTU_256, sys::IBV_MTU_4096),
            message_bytes: attributes.max_msg_sz,
            gids: u32::try_from(attributes.gid_tbl_len).unwrap_or(0),
        })
    }

    /// An entry of a port's table of GIDs; `None` if it is empty.
    pub fn gid(&self, port: u32, index: u32) -> Option<Gid> {
        let mut entry = sys::ibv_gid_entry::default();
        let size = size_of::<sys::ibv_gid_entry>();
        // SAFETY: the context is open, `entry` has the size that is told, is written by the call, and lives.
        status(unsafe { sys::_ibv_query_gid_ex(self.as_ptr(), port, index, &mut entry, 0, size) }).ok()?;
        // SAFETY: all 16 bytes are initialised, whichever of the union's forms they are read in.
        let bytes = unsafe { entry.gid.raw };
        let kind = match entry.gid_type {
            0 => GidKind::InfiniBand,
            1 => GidKind::RoceV1,
            2 => GidKind::RoceV2,
            _ => return None,
        };
        (bytes != [0; 16]).then_some(Gid { index, bytes, kind })
    }

    /// What has happened; `None` if nothing. Does not block.
    pub fn event(&self) -> io::Result<Option<AsyncEvent>> {
        // SAFETY: all zeros are a null pointer and a number.
        let mut event: sys::ibv_async_event = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, `event` is written by the call, and lives.
        if let Err(error) = status(unsafe { sys::ibv_get_async_event(self.as_ptr(), &mut event) }) {
            let none = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if none { Ok(None) } else { Err(error) };
        }
        let queue_pair = |what| {
            // SAFETY: an event of this kind names a queue pair, which cannot be destroyed before the event is acknowledged.
            AsyncEvent::QueuePair(unsafe { (*event.element.qp).qp_num }, what)
        };
        let port = || {
            // SAFETY: an event of this kind has a port's number.
            u32::try_from(unsafe { event.element.port_num }).unwrap_or(0)
        };
        let told = match event.event_type {
            sys::IBV_EVENT_PORT_ERR => AsyncEvent::PortDown(port()),
            sys::IBV_EVENT_PORT_ACTIVE => AsyncEvent::PortUp(port()),
            sys::IBV_EVENT_QP_FATAL => queue_pair("the queue pair has failed"),
            sys::IBV_EVENT_QP_REQ_ERR => queue_pair("the peer sent a request that makes no sense"),
            sys::IBV_EVENT_QP_ACCESS_ERR => queue_pair("the peer wrote where it may not"),
            sys::IBV_EVENT_DEVICE_FATAL => AsyncEvent::Fatal("the device has failed"),
            sys::IBV_EVENT_CQ_ERR => AsyncEvent::Fatal("the completion queue has overrun"),
            _ => AsyncEvent::Other,
        };
        // SAFETY: the event came from ibv_get_async_event and is acknowledged once.
        unsafe { sys::ibv_ack_async_event(&mut event) };
        Ok(Some(told))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed once; what was made from it holds it and so is gone. If it fails there is nothing
        // to be done.
        unsafe { sys::ibv_close_device(self.as_ptr()) };
    }
}
