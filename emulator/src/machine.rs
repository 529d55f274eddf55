//! The host's side: machines, devices, and the lockstep between host threads and the engine.

use crate::actor::{Actor, Actors, Attached};
use crate::memory::{Allocation, Block, Registry};
use crate::stream::{Event, Launch, Operation, Stream};
use crate::{Error, Fault, Options, engine};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
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
        // A host operation may have held the last handle: the engine ends by itself then.
        let elsewhere = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(elsewhere) {
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
    pub actors: Actors,
    host: Mutex<Host>,
}

/// What is behind the lock.
pub struct Host {
    /// Which of the process's machines this is.
    machine: usize,
    pub devices: Vec<DeviceState>,
    waiters: Vec<Waiter>,
    engine: Option<HostThread>,
    next_waiter: u64,
    next_stream: u64,
    pub now_ns: u64,
    /// How much of what the streams were given has ended, of a machine that is checked.
    pub watched_ends: usize,
    pub shutdown: bool,
    /// It has said what emulated time stands still for.
    told: bool,
    /// Freed memory that work under way may still name.
    retired: Vec<Block>,
}

/// A device's queues and who uses it.
#[derive(Default)]
pub struct DeviceState {
    /// By number, so that iteration has an order.
    pub streams: BTreeMap<u64, StreamState>,
    pub fault: Option<Fault>,
    /// The host thread that last used it, while there are handles on it.
    owner: Option<HostThread>,
    handles: usize,
    used_bytes: usize,
}

#[derive(Default)]
pub struct StreamState {
    /// Each with how much had ended when it was queued.
    pub queue: VecDeque<(usize, Operation)>,
    /// Its first operation has begun, and is not in the queue any more.
    running: bool,
    enqueued: u64,
    completed: u64,
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
    ready: Ready,
}

/// A host thread's name; gone when the thread is.
type HostThread = Weak<str>;

thread_local! {
    static NAME: Arc<str> = std::thread::current().name().unwrap_or("without a name").into();
}

fn this_thread() -> HostThread {
    NAME.with(Arc::downgrade)
}

/// The threads that wait, with the machines that they wait in: one may use several.
static WAITING: Mutex<Vec<(usize, HostThread)>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<(usize, HostThread)>> {
    // Every change is a single call, so a panic elsewhere leaves it whole.
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most threads of a block.
const MAX_THREADS: u32 = 1024;
/// How long emulated time stands still, in real time, before the machine says why.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the engine looks whether a thread that it waits for has ended: threads do not tell.
const GLANCE: Duration = Duration::from_millis(10);

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
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut host = self.lock();
        if let Some(device) = device {
            host.own(device);
        }
        let id = host.next_waiter;
        host.next_waiter += 1;
        host.waiters.push(Waiter { id, ready: ready.clone() });
        waiting().push((host.machine, this_thread()));
        // The engine may have waited for this thread to block.
        self.changed.notify_all();
        let came = loop {
            match catch_unwind(AssertUnwindSafe(|| host.holds(&ready))) {
                Ok(false) => {}
                outcome => break outcome,
            }
            host = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.park(host),
                Some(Duration::ZERO) => break Ok(false),
                Some(left) => self.changed.wait_timeout(host, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        };
        host.waiters.retain(|waiter| waiter.id != id);
        let own = (host.machine, this_thread());
        let mut waiting = waiting();
        if let Some(place) = waiting.iter().position(|other| other.0 == own.0 && other.1.ptr_eq(&own.1)) {
            waiting.swap_remove(place);
        }
        drop(waiting);
        drop(host);
        came.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Waits a moment, or until something has changed.
    pub fn pause<'a>(&self, host: MutexGuard<'a, Host>) -> MutexGuard<'a, Host> {
        self.changed.wait_timeout(host, GLANCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for a change of what the host threads do. If that takes long while some of them wait, it says once for
    /// whom: otherwise nothing shows why a program that has, say, joined a thread instead of synchronising hangs.
    pub fn stand_still<'a>(&self, mut host: MutexGuard<'a, Host>) -> MutexGuard<'a, Host> {
        let since = Instant::now();
        loop {
            let waited = self.changed.wait_timeout(host, GLANCE).unwrap_or_else(PoisonError::into_inner);
            host = waited.0;
            let running = host.running();
            if !waited.1.timed_out() || running.is_empty() {
                return host;
            }
            if since.elapsed() > PATIENCE
                && !host.waiters.is_empty()
                && !std::mem::replace(&mut host.told, true)
            {
                let running = running.join(", ");
                eprintln!(
                    "tokenrail-emulator: time stands still for {PATIENCE:?}, until {running} blocks in the machine or ends"
                );
            }
        }
    }
}

impl Host {
    /// Whether every host thread that takes part is blocked, and rightly.
    pub fn all_blocked(&self) -> bool {
        // A predicate that panics does so again in its own thread.
        let blocked =
            |waiter: &Waiter| !catch_unwind(AssertUnwindSafe(|| self.holds(&waiter.ready))).unwrap_or(true);
        self.running().is_empty() && self.waiters.iter().all(blocked)
    }

    /// The calling thread is the engine.
    pub fn run_by_this_thread(&mut self) {
        self.engine = Some(this_thread());
    }

    /// The devices' users that do not wait; a thread that has ended holds nobody up.
    fn running(&self) -> Vec<String> {
        let waiting = waiting();
        let waits = |thread: &HostThread| waiting.iter().any(|(_, other)| other.ptr_eq(thread));
        let threads = self.users().filter(|thread| !waits(thread));
        threads.filter_map(|thread| Some(format!("host thread {:?}", thread.upgrade()?))).collect()
    }

    fn users(&self) -> impl Iterator<Item = &HostThread> {
        self.devices.iter().filter_map(|device| device.owner.as_ref())
    }

    /// Whether a thread that takes part is blocked in another machine: it will go on here, so that time has to stand
    /// still if nothing else can happen.
    pub fn waits_elsewhere(&self) -> bool {
        let waiting = waiting();
        let elsewhere = |thread: &HostThread| {
            waiting.iter().any(|(machine, other)| *machine != self.machine && other.ptr_eq(thread))
        };
        self.users().any(elsewhere)
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

    /// The calling thread is the device's user from now on; not the engine, whose host operations may hold handles.
    pub fn own(&mut self, device: usize) {
        let caller = this_thread();
        if !self.engine.as_ref().is_some_and(|engine| engine.ptr_eq(&caller)) {
            self.devices[device].owner = Some(caller);
        }
    }

    fn hold(&mut self, device: usize) {
        self.devices[device].handles += 1;
        self.own(device);
    }

    fn let_go(&mut self, device: usize) {
        let device = &mut self.devices[device];
        device.handles -= 1;
        if device.handles == 0 {
            device.owner = None;
        }
    }

    pub fn open_stream(&mut self, device: usize) -> u64 {
        self.own(device);
        let id = self.next_stream;
        self.next_stream += 1;
        self.devices[device].streams.insert(id, StreamState::default());
        id
    }

    pub fn close_stream(&mut self, device: usize, stream: u64) {
        if let Some(state) = self.devices[device].streams.get_mut(&stream) {
            state.closed = true;
        }
        self.tidy();
    }

    /// Queues an operation; gives it back if the device has failed.
    pub fn enqueue(&mut self, device: usize, stream: u64, operation: Operation) -> Option<Operation> {
        self.own(device);
        let ended = self.watched_ends;
        let device = &mut self.devices[device];
        match device.streams.get_mut(&stream) {
            Some(state) if device.fault.is_none() => {
                state.enqueued += 1;
                state.queue.push_back((ended, operation));
                None
            }
            _ => Some(operation),
        }
    }

    /// Takes the first operation that can begin, in the order of devices and streams, with how much had ended when it was
    /// queued.
    pub fn next_operation(&mut self) -> Option<(usize, u64, usize, Operation)> {
        for (device, state) in self.devices.iter_mut().enumerate() {
            for (&id, stream) in &mut state.streams {
                if !stream.running && stream.queue.front().is_some_and(|(_, operation)| operation.can_begin())
                {
                    stream.running = true;
                    return stream.queue.pop_front().map(|(ended, operation)| (device, id, ended, operation));
                }
            }
        }
        None
    }

    /// The stream's first operation is done.
    pub fn complete(&mut self, device: usize, stream: u64) {
        if let Some(state) = self.devices[device].streams.get_mut(&stream) {
            state.running = false;
            state.completed += 1;
        }
        self.tidy();
    }

    /// What to wait for so that all that is queued now is done.
    pub fn drained(&self, device: usize, stream: u64) -> Ready {
        let operations = self.devices[device].streams.get(&stream).map_or(0, |state| state.enqueued);
        Ready::Stream { device, stream, operations }
    }

    pub fn fault(&self, device: usize) -> Option<&Fault> {
        self.devices[device].fault.as_ref()
    }

    /// Ends all work of a device with `fault`; gives what was queued.
    pub fn fail(&mut self, fault: Fault) -> Vec<Operation> {
        let state = &mut self.devices[fault.device];
        let mut dropped = Vec::new();
        for stream in state.streams.values_mut() {
            dropped.extend(stream.queue.drain(..).map(|(_, operation)| operation));
            stream.running = false;
            stream.completed = stream.enqueued;
        }
        state.fault.get_or_insert(fault);
        self.tidy();
        dropped
    }

    /// Gives all that is queued, as the machine goes.
    pub fn abandon(&mut self) -> Vec<Operation> {
        let streams = self.devices.iter_mut().flat_map(|device| device.streams.values_mut());
        streams.flat_map(|stream| stream.queue.drain(..)).map(|(_, operation)| operation).collect()
    }

    /// Forgets closed streams that are done, and frees what nothing can name any more.
    fn tidy(&mut self) {
        let busy = |stream: &StreamState| stream.running || !stream.queue.is_empty();
        for device in &mut self.devices {
            device.streams.retain(|_, stream| !stream.closed || busy(stream));
        }
        if !self.devices.iter().any(|device| device.streams.values().any(busy)) {
            self.retired.clear();
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

    pub fn retire(&mut self, block: Block) {
        self.retired.push(block);
        self.tidy();
    }
}

impl Machine {
    /// A machine with fresh devices.
    pub fn new(options: Options) -> Self {
        static MACHINES: AtomicUsize = AtomicUsize::new(0);
        let host = Host {
            machine: MACHINES.fetch_add(1, Ordering::Relaxed),
            devices: (0..options.devices).map(|_| DeviceState::default()).collect(),
            waiters: Vec::new(),
            engine: None,
            next_waiter: 0,
            next_stream: 0,
            now_ns: 0,
            watched_ends: 0,
            shutdown: false,
            told: false,
            retired: Vec::new(),
        };
        let registry = Registry::default();
        let shared = Arc::new(Shared {
            options,
            registry,
            changed: Condvar::new(),
            actors: Actors::default(),
            host: Mutex::new(host),
        });
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

    /// Whether both are handles on one machine.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether `from` can access `to`'s memory.
    pub fn can_access_peer(&self, from: usize, to: usize) -> bool {
        self.0.shared.options.can_access_peer(from, to)
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

    /// Has `actor` move with emulated time, until what this gives is dropped.
    pub fn attach(&self, actor: Box<dyn Actor>) -> Attached {
        Attached::new(self.clone(), actor)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
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
/// The host thread that last used a device (opened it, allocated, made a stream, queued work, synchronised) is its user:
/// emulated time stands still while that thread runs, or blocks outside the machine. Using the device from another
/// thread passes it on. A device without handles (devices and streams) has no user, nor has one whose user has ended.
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
        self.shared().lock().own(self.ordinal);
        Allocation::new(self.shared().clone(), self.ordinal, bytes)
    }

    /// A new stream.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }

    /// Whether a kernel of this size can run here: at least one block, of 1 to 1024 threads and at most
    /// [`Options::shared_bytes_per_block`] of shared memory.
    ///
    /// # Errors
    /// [`Error::Launch`] if not.
    pub fn allows(&self, launch: &Launch) -> Result<(), Error> {
        let refuse =
            |field, value, limit: String| Err(Error::Launch { name: launch.name, field, value, limit });
        if launch.grid == 0 {
            return refuse("grid", 0, "at least 1".into());
        }
        if launch.block == 0 || launch.block > MAX_THREADS {
            return refuse("block", launch.block as usize, format!("1 to {MAX_THREADS}"));
        }
        let limit = self.shared().options.shared_bytes_per_block;
        if launch.shared_bytes > limit {
            return refuse("shared_bytes", launch.shared_bytes, format!("at most {limit}"));
        }
        Ok(())
    }

    /// Blocks until `event` is reached; false when `timeout`, in real time, passes first. Emulated threads may run
    /// meanwhile.
    ///
    /// # Errors
    /// The device's [`Fault`], if it has had one.
    pub fn wait(&self, event: &Event, timeout: Option<Duration>) -> Result<bool, Fault> {
        let awaited = event.clone();
        let ready = Ready::Other(Arc::new(move || awaited.time_ns().is_some()));
        let reached = self.shared().wait(Some(self.ordinal), ready, timeout);
        match self.shared().lock().fault(self.ordinal) {
            Some(fault) => Err(fault.clone()),
            None => Ok(reached),
        }
    }
}
