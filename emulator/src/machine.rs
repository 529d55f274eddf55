//! The host's side: machines, devices, and the lockstep between host threads and the engine.

use crate::memory::{Allocation, Block, Registry};
use crate::stream::{Operation, Stream};
use crate::{Error, Fault, Options, engine};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Several devices, and the engine thread that runs their kernels. Cheap to clone.
#[derive(Clone)]
pub struct Machine(Arc<Engine>);

/// Ends the engine thread when the last handle goes.
struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().shutdown = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The engine catches what kernels do; should it have died all the same, there is nobody to tell.
            let _ = thread.join();
        }
    }
}

/// What host threads and the engine share.
pub struct Shared {
    pub options: Options,
    pub registry: Registry,
    pub changed: Condvar,
    host: Mutex<Host>,
}

/// What is behind the lock.
pub struct Host {
    pub devices: Vec<DeviceState>,
    waiters: Vec<Waiter>,
    next_waiter: u64,
    next_stream: u64,
    pub now_ns: u64,
    pub shutdown: bool,
}

/// A device's queues and who uses it.
#[derive(Default)]
pub struct DeviceState {
    /// By number, so that iteration has an order.
    pub streams: BTreeMap<u64, StreamState>,
    pub fault: Option<Fault>,
    /// The host thread that last used it, while there are handles on it.
    owner: Option<Weak<()>>,
    handles: usize,
    used_bytes: usize,
    /// Freed memory that queued work may still name.
    retired: Vec<Block>,
}

#[derive(Default)]
pub struct StreamState {
    pub queue: VecDeque<Operation>,
    /// A kernel of this stream is running.
    pub running: bool,
    enqueued: u64,
    pub completed: u64,
    closed: bool,
}

/// What a blocked host thread waits for.
#[derive(Clone)]
pub enum Ready {
    /// A stream has done as many operations.
    Stream { device: usize, stream: u64, operations: u64 },
    /// Something outside the machine.
    Other(Arc<dyn Fn() -> bool + Send + Sync>),
}

struct Waiter {
    id: u64,
    thread: Weak<()>,
    ready: Ready,
}

thread_local! {
    /// Alive as long as its thread.
    static ALIVE: Arc<()> = Arc::new(());
}

fn this_thread() -> Weak<()> {
    ALIVE.with(Arc::downgrade)
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Host> {
        // Nothing that runs under the lock panics half way through a change.
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn park<'a>(&self, host: MutexGuard<'a, Host>) -> MutexGuard<'a, Host> {
        self.changed.wait(host).unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks the calling thread, which uses `device`, until `ready` holds; false when `timeout` passes first.
    pub fn wait(&self, device: Option<usize>, ready: Ready, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut host = self.lock();
        if let Some(device) = device {
            host.own(device);
        }
        let id = host.next_waiter;
        host.next_waiter += 1;
        host.waiters.push(Waiter { id, thread: this_thread(), ready: ready.clone() });
        // The engine may have waited for this thread to block.
        self.changed.notify_all();
        let came = loop {
            if host.holds(&ready) {
                break true;
            }
            host = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.park(host),
                Some(Duration::ZERO) => break false,
                Some(left) => self.changed.wait_timeout(host, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        };
        host.waiters.retain(|waiter| waiter.id != id);
        came
    }
}

impl Host {
    /// Whether every host thread that uses a device is blocked, and rightly.
    pub fn all_blocked(&self) -> bool {
        let blocked = |owner: &Weak<()>| {
            // A thread that has ended blocks nobody.
            owner.strong_count() == 0
                || self.waiters.iter().any(|waiter| waiter.thread.ptr_eq(owner) && !self.holds(&waiter.ready))
        };
        self.devices.iter().filter_map(|device| device.owner.as_ref()).all(blocked)
    }

    fn holds(&self, ready: &Ready) -> bool {
        match ready {
            Ready::Stream { device, stream, operations } => {
                let device = &self.devices[*device];
                device.fault.is_some()
                    || device.streams.get(stream).is_none_or(|stream| stream.completed >= *operations)
            }
            Ready::Other(ready) => ready(),
        }
    }

    /// The calling thread is the device's user from now on.
    fn own(&mut self, device: usize) {
        self.devices[device].owner = Some(this_thread());
    }

    fn hold(&mut self, device: usize) {
        self.devices[device].handles += 1;
    }

    fn let_go(&mut self, device: usize) {
        let device = &mut self.devices[device];
        device.handles -= 1;
        if device.handles == 0 {
            device.owner = None;
        }
    }

    pub fn open_stream(&mut self, device: usize) -> u64 {
        let id = self.next_stream;
        self.next_stream += 1;
        self.devices[device].streams.insert(id, StreamState::default());
        id
    }

    pub fn close_stream(&mut self, device: usize, stream: u64) {
        if let Some(state) = self.devices[device].streams.get_mut(&stream) {
            state.closed = true;
        }
        self.tidy(device);
    }

    pub fn enqueue(&mut self, device: usize, stream: u64, operation: Operation) {
        self.own(device);
        let device = &mut self.devices[device];
        if let Some(state) = device.streams.get_mut(&stream) {
            state.enqueued += 1;
            if device.fault.is_some() {
                state.completed += 1;
            } else {
                state.queue.push_back(operation);
            }
        }
    }

    /// What to wait for so that all that is queued now is done.
    pub fn drained(&self, device: usize, stream: u64) -> Ready {
        let operations = self.devices[device].streams.get(&stream).map_or(0, |state| state.enqueued);
        Ready::Stream { device, stream, operations }
    }

    pub fn fault(&self, device: usize) -> Option<&Fault> {
        self.devices[device].fault.as_ref()
    }

    /// Ends all work of a device with `fault`.
    pub fn fail(&mut self, fault: Fault) {
        let device = fault.device;
        let state = &mut self.devices[device];
        for stream in state.streams.values_mut() {
            stream.queue.clear();
            stream.running = false;
            stream.completed = stream.enqueued;
        }
        state.fault.get_or_insert(fault);
        self.tidy(device);
    }

    /// Forgets closed streams that are done, and frees what nothing can name any more.
    pub fn tidy(&mut self, device: usize) {
        let device = &mut self.devices[device];
        let busy = |stream: &StreamState| stream.running || !stream.queue.is_empty();
        device.streams.retain(|_, stream| !stream.closed || busy(stream));
        if !device.streams.values().any(busy) {
            device.retired.clear();
        }
    }

    pub fn reserve(&mut self, device: usize, bytes: usize, limit: usize) -> Result<(), usize> {
        let used = &mut self.devices[device].used_bytes;
        if bytes > limit - *used {
            return Err(*used);
        }
        *used += bytes;
        Ok(())
    }

    pub fn release(&mut self, device: usize, bytes: usize) {
        self.devices[device].used_bytes -= bytes;
    }

    pub fn retire(&mut self, device: usize, block: Block) {
        self.devices[device].retired.push(block);
        self.tidy(device);
    }
}

impl Machine {
    /// A machine with fresh devices.
    pub fn new(options: Options) -> Self {
        let host = Host {
            devices: (0..options.devices).map(|_| DeviceState::default()).collect(),
            waiters: Vec::new(),
            next_waiter: 0,
            next_stream: 0,
            now_ns: 0,
            shutdown: false,
        };
        let registry = Registry::default();
        let shared = Arc::new(Shared { options, registry, changed: Condvar::new(), host: Mutex::new(host) });
        let engine = shared.clone();
        let thread = std::thread::Builder::new().name("emulator".into()).spawn(move || engine::run(&engine));
        // Without an engine nothing runs: calls wait until their timeouts. Hosts that cannot start a thread are rare
        // enough that a panic here is the clearest word.
        let thread = Some(thread.expect("the host can start a thread"));
        Self(Arc::new(Engine { shared, thread }))
    }

    /// A handle on one device.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if there are fewer.
    pub fn device(&self, ordinal: usize) -> Result<Device, Error> {
        let devices = self.0.shared.options.devices;
        if ordinal >= devices {
            return Err(Error::NoDevice { ordinal, devices });
        }
        self.0.shared.lock().hold(ordinal);
        Ok(Device { machine: self.clone(), ordinal })
    }

    /// Whether `from` can access `to`'s memory.
    pub fn can_access_peer(&self, from: usize, to: usize) -> bool {
        !self.0.shared.options.no_peer_access.contains(&(from, to))
    }

    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.0.shared.lock().now_ns
    }

    /// Blocks the calling thread until `ready` holds; false when `timeout`, in real time, passes first. While it blocks
    /// the thread counts as waiting, and emulated threads may run. `ready` is called under the machine's lock: it may
    /// take locks of its own, but must not call the machine.
    pub fn block_until(&self, ready: Arc<dyn Fn() -> bool + Send + Sync>, timeout: Option<Duration>) -> bool {
        self.0.shared.wait(None, Ready::Other(ready), timeout)
    }

    /// Makes blocked threads look again. Call it after changing what their `ready` reads.
    pub fn notify(&self) {
        // Taken so that nobody is between looking and waiting.
        drop(self.0.shared.lock());
        self.0.shared.changed.notify_all();
    }
}

/// A handle on one device of a machine.
///
/// The host thread that last queued work on a device is its user: emulated time stands still while that thread runs.
/// A device without handles (devices and streams) has no user.
pub struct Device {
    machine: Machine,
    ordinal: usize,
}

impl Clone for Device {
    fn clone(&self) -> Self {
        self.shared().lock().hold(self.ordinal);
        Self { machine: self.machine.clone(), ordinal: self.ordinal }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared().lock().let_go(self.ordinal);
        self.shared().changed.notify_all();
    }
}

impl Device {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.machine.0.shared
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The machine it belongs to.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Memory of this device, filled with 0xa5.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the device, or the host, has not enough.
    pub fn alloc(&self, bytes: usize) -> Result<Allocation, Error> {
        Allocation::new(self.shared().clone(), self.ordinal, bytes)
    }

    /// A new stream.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }
}
