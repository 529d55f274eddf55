//! What kernels call. Every function panics outside an emulated thread.

use crate::block::{BARRIERS, Block, SHARED_BASE, State, WARP, WARPS, Warp};
use crate::bulk::{self, Copy};
use crate::check::{At, Scope, Strength, Touch, Watch};
use crate::collective::{Barrier, Collective, Kind, Mbarrier, each_lane};
use crate::scheduler::{CURRENT, Current, FaultMessage, Scheduler, word};
use std::panic::{Location, resume_unwind};

fn current() -> Current {
    CURRENT.get().expect("called from an emulated thread")
}

/// The scheduler and the block, for single statements: nothing may be borrowed across [`suspend`].
#[allow(clippy::mut_from_ref)]
fn parts(current: &Current) -> (&mut Scheduler<'static>, &mut Block) {
    // SAFETY: on the engine's thread, while this emulated thread runs; the scheduler's loop holds no references then,
    // and the block lies apart from it.
    unsafe { (&mut *current.scheduler, &mut *current.block) }
}

/// Lets others run until this thread is woken; gives what it was woken with.
fn suspend(current: &Current) -> u64 {
    let block = parts(current).1;
    let yielder = block.threads[current.thread as usize].yielder;
    block.warps[(current.thread / WARP) as usize].stacks[(current.thread % WARP) as usize] =
        (&raw const yielder).addr();
    // SAFETY: set at this coroutine's start, and alive as long as it runs.
    unsafe { (*yielder).suspend(()) };
    parts(current).1.warps[(current.thread / WARP) as usize].results[(current.thread % WARP) as usize]
}

/// Waits for what `state` says.
fn wait(current: &Current, state: State) -> u64 {
    parts(current).1.park(current.thread, state);
    suspend(current)
}

/// Ends the kernel, and with it all work of the device.
pub fn fault(message: String) -> ! {
    resume_unwind(Box::new(FaultMessage(message)))
}

/// This thread's number in its block.
pub fn thread_index() -> u32 {
    current().thread
}

/// This block's number in the grid.
pub fn block_index() -> u32 {
    parts(&current()).1.index
}

/// Threads of a block.
pub fn block_size() -> u32 {
    parts(&current()).1.threads.len() as u32
}

/// Blocks of the grid.
pub fn grid_size() -> u32 {
    parts(&current()).1.grid_size
}

/// The device this runs on.
pub fn device_ordinal() -> usize {
    parts(&current()).1.device
}

/// The virtual time.
pub fn now_ns() -> u64 {
    parts(&current()).0.now_ns
}

/// Tells the books of a machine that is checked.
fn watch(
    current: &Current,
    operation: &'static str,
    site: &'static Location<'static>,
    tell: impl FnOnce(&mut Watch, At),
) {
    if let Some(watch) = &mut parts(current).0.watch {
        tell(watch, At { at: current.at, thread: current.thread, operation, site });
    }
}

/// Waits for `threads` threads at the block's barrier `id`: 0 to 15. `threads` is a multiple of 32, or the whole block.
#[track_caller]
pub fn barrier(id: u32, threads: u32) {
    barrier_or(id, threads, false);
}

/// [`barrier`], and whether any of them passed true.
#[track_caller]
pub fn barrier_or(id: u32, threads: u32, predicate: bool) -> bool {
    let current = current();
    let block = parts(&current).1;
    let size = block.threads.len() as u32;
    let fits = threads != 0 && threads <= size && (threads.is_multiple_of(WARP) || threads == size);
    if id as usize >= BARRIERS || !fits {
        fault(format!(
            "barrier {id} of {threads} threads: ids go to 15, threads are a multiple of 32 up to {size}"
        ));
    }
    let barrier = &mut block.barriers[id as usize];
    if barrier.expected != 0 && barrier.expected != threads {
        let expected = barrier.expected;
        fault(format!("barrier {id} of {threads} threads, while others wait at it as one of {expected}"));
    }
    let (warp, lane) = ((current.thread / WARP) as usize, current.thread % WARP);
    barrier.expected = threads;
    barrier.any |= predicate;
    barrier.count += 1;
    if barrier.count < threads {
        barrier.arrived[warp] |= 1 << lane;
        return wait(&current, State::Barrier(id)) != 0;
    }
    let Barrier { arrived, any, .. } = std::mem::replace(barrier, Barrier::EMPTY);
    for (warp, &lanes) in arrived.iter().enumerate().filter(|&(_, &lanes)| lanes != 0) {
        let results = &mut block.warps[warp].results;
        each_lane(lanes, |lane| results[lane] = any.into());
        block.wake_lanes(warp, lanes);
    }
    let mut all = arrived;
    all[warp] |= 1 << lane;
    watch(&current, "barrier", Location::caller(), |watch, at| watch.meet(at, &all));
    any
}

/// One lane's part of a collective.
#[track_caller]
fn collective(kind: Kind, mask: u32, value: u64, source: u32) -> u64 {
    let current = current();
    let block = parts(&current).1;
    let (warp, lane) = ((current.thread / WARP) as usize, current.thread % WARP);
    if mask >> lane & 1 == 0 {
        fault(format!("{kind} with lanes {mask:#010x}, called by lane {lane}"));
    }
    let Warp { open, results, returned, .. } = &mut block.warps[warp];
    // Masks may overlap: lanes that are ahead wait for one that still has something to do with others.
    let same = |other: &Collective| (other.kind, other.mask) == (kind, mask);
    if let Some(other) = open.iter().find(|other| !same(other) && other.is_crossed_by(lane, mask)) {
        fault(format!("{kind} with lanes {mask:#010x}, while lanes of the warp are at {other}"));
    }
    let index = match open.iter().position(same) {
        Some(index) => index,
        None if mask & *returned != 0 => fault(format!(
            "{kind} with lanes {mask:#010x}, of which {:#010x} have returned",
            mask & *returned
        )),
        None => {
            open.push(Collective::new(kind, mask));
            open.len() - 1
        }
    };
    let joined = &mut open[index];
    joined.arrive(lane, value, source);
    if !joined.is_complete() {
        return wait(&current, State::Collective);
    }
    joined.complete(results);
    open.swap_remove(index);
    let result = results[lane as usize];
    block.wake_lanes(warp, mask & !(1 << lane));
    if kind == Kind::Barrier {
        let mut lanes = [0; WARPS];
        lanes[warp] = mask;
        watch(&current, "warp_barrier", Location::caller(), |watch, at| watch.meet(at, &lanes));
    }
    result
}

/// Waits for the lanes in `mask`.
#[track_caller]
pub fn warp_barrier(mask: u32) {
    collective(Kind::Barrier, mask, 0, 0);
}

/// The value that lane `source_lane` passed.
pub fn shuffle(mask: u32, value: u64, source_lane: u32) -> u64 {
    collective(Kind::Shuffle, mask, value, source_lane)
}

/// The lanes whose predicate holds.
pub fn ballot(mask: u32, predicate: bool) -> u32 {
    collective(Kind::Ballot, mask, predicate.into(), 0) as u32
}

/// The lanes that passed the same value.
pub fn match_any(mask: u32, value: u64) -> u32 {
    collective(Kind::MatchAny, mask, value, 0) as u32
}

/// Offset of the first byte of dynamic shared memory.
pub fn shared_base() -> u32 {
    SHARED_BASE
}

/// `bytes` bytes of shared memory at `offset`; a fault unless they are the block's.
pub fn shared_pointer(offset: u32, bytes: usize) -> *mut u8 {
    let current = current();
    let block = parts(&current).1;
    let inside = offset.checked_sub(SHARED_BASE).filter(|&at| at as usize + bytes <= block.shared_bytes);
    let Some(at) = inside else {
        let limit = block.shared_bytes;
        fault(format!(
            "shared memory at {offset}, {bytes} bytes: the block has {limit} from {SHARED_BASE} on"
        ));
    };
    check_alignment(offset.into(), bytes, "shared memory");
    // SAFETY: within the block's memory, as just checked.
    unsafe { block.shared.as_ptr().add(at as usize) }
}

fn check_alignment(address: u64, bytes: usize, what: &str) {
    if bytes.is_power_of_two() && !address.is_multiple_of(bytes.min(16) as u64) {
        fault(format!("{what} at {address:#x}: not aligned to its {bytes} bytes"));
    }
}

/// A fault unless `bytes` bytes of global memory at `address` lie in one live allocation, aligned to their size.
pub fn check(address: u64, bytes: usize, what: &'static str) {
    let current = current();
    let (scheduler, block) = parts(&current);
    if let Err(reason) = scheduler.look_up(block.device, address, bytes) {
        fault(format!("{what} at {address:#x}, {bytes} bytes: {reason}"));
    }
    check_alignment(address, bytes, what);
}

/// [`check`], for an access that is about to be made.
#[track_caller]
pub fn access(address: u64, bytes: usize, touch: Touch, strength: Strength, operation: &'static str) {
    check(address, bytes, operation);
    watch(&current(), operation, Location::caller(), |watch, at| {
        watch.access(at, address, bytes, touch, strength);
    });
}

/// [`shared_pointer`], for an access that is about to be made.
#[track_caller]
pub fn shared_access(
    offset: u32,
    bytes: usize,
    touch: Touch,
    strength: Strength,
    operation: &'static str,
) -> *mut u8 {
    let pointer = shared_pointer(offset, bytes);
    watch(&current(), operation, Location::caller(), |watch, at| {
        watch.shared(at, offset, pointer.expose_provenance() as u64, bytes, touch, strength);
    });
    pointer
}

/// A fence that acquires and releases, in the books of a machine that is checked; lets others run, by chance.
#[track_caller]
pub fn fence(scope: Scope) {
    watch(&current(), "fence", Location::caller(), |watch, at| watch.fence(at, scope));
    preempt();
}

/// The same for a fence between ordinary accesses and bulk copies.
#[track_caller]
pub fn fence_proxy() {
    watch(&current(), "fence_proxy", Location::caller(), |watch, at| watch.fence_proxy(at));
    preempt();
}

/// A store that others may wait for has happened.
pub fn stored() {
    parts(&current()).0.stored();
}

/// Lets others run, by chance.
pub fn preempt() {
    let current = current();
    if parts(&current).0.preempts() {
        suspend(&current);
    }
}

/// Waits until the word at `address` is at least `at_least`; false when the clock passes `deadline_ns` first
/// (`u64::MAX`: never).
pub fn wait_at_least(address: *const u64, at_least: u64, deadline_ns: u64) -> bool {
    let address = address.expose_provenance() as u64;
    check(address, 8, "wait for a word");
    let current = current();
    let scheduler = parts(&current).0;
    // SAFETY: checked just now.
    if unsafe { word(address) } >= at_least {
        return true;
    }
    if scheduler.now_ns > deadline_ns {
        return false;
    }
    scheduler.poll_for(current.at, current.thread, deadline_ns);
    wait(&current, State::Word { address, at_least, deadline_ns }) != 0
}

/// For a polling loop written by hand: lets others run until something has been stored, or time has moved.
pub fn spin() {
    let current = current();
    parts(&current).0.spinning.push((current.at, current.thread));
    wait(&current, State::Spin);
}

/// Most bytes that a phase waits for (PTX ISA, "Valid range of tx-count").
const MAX_BYTES: i64 = (1 << 20) - 1;

/// The mbarrier at `offset`, or a fault.
fn with_mbarrier(current: &Current, offset: u32) -> &mut Mbarrier {
    match parts(current).1.mbarriers.get_mut(&offset) {
        Some(mbarrier) => mbarrier,
        None => fault(format!("mbarrier at {offset}: not initialised")),
    }
}

/// Prepares an mbarrier for `arrivals` arrivals a phase.
#[track_caller]
pub fn mbarrier_init(offset: u32, arrivals: u32) {
    shared_access(offset, 8, Touch::Write, Strength::Plain, "mbarrier_init");
    if arrivals == 0 || arrivals >= 1 << 20 {
        fault(format!("mbarrier at {offset}: {arrivals} arrivals, must be 1 to 2^20 - 1"));
    }
    let replaced = parts(&current()).1.mbarriers.insert(offset, Mbarrier::new(arrivals));
    if replaced.is_some() {
        fault(format!("mbarrier at {offset}: initialised twice, without being invalidated in between"));
    }
}

/// Ends the use of its memory as an mbarrier.
pub fn mbarrier_invalidate(offset: u32) {
    let current = current();
    let waiting = with_mbarrier(&current, offset).waiting.len();
    if waiting != 0 {
        fault(format!("mbarrier at {offset}: invalidated while {waiting} threads wait for it"));
    }
    parts(&current).1.mbarriers.remove(&offset);
}

/// Arrives.
#[track_caller]
pub fn mbarrier_arrive(offset: u32) {
    mbarrier_arrive_expect_tx(offset, 0);
}

/// Arrives, and makes the phase wait for `bytes` more bytes.
#[track_caller]
pub fn mbarrier_arrive_expect_tx(offset: u32, bytes: u32) {
    let current = current();
    use_mbarrier(&current, offset, true, "mbarrier_arrive", Location::caller());
    let mbarrier = with_mbarrier(&current, offset);
    if mbarrier.bytes + i64::from(bytes) > MAX_BYTES {
        fault(format!("mbarrier at {offset}: {} + {bytes} bytes, most are {MAX_BYTES}", mbarrier.bytes));
    }
    if mbarrier.pending == 0 {
        fault(format!("mbarrier at {offset}: more arrivals than its {}", mbarrier.arrivals));
    }
    mbarrier.pending -= 1;
    mbarrier.bytes += i64::from(bytes);
    let (scheduler, block) = parts(&current);
    if block.complete_phase(offset) {
        if let Some(watch) = &mut scheduler.watch {
            watch.phase(current.at, offset);
        }
        scheduler.stored();
    }
}

/// A thread arrives at an mbarrier, or has waited for it.
fn use_mbarrier(
    current: &Current,
    offset: u32,
    arrives: bool,
    operation: &'static str,
    site: &'static Location<'static>,
) {
    let pointer = shared_pointer(offset, 8).expose_provenance() as u64;
    watch(current, operation, site, |watch, at| watch.mbarrier(at, offset, pointer, arrives));
}

/// Whether the phase of parity `parity` is over. If not it also is a [`spin`], so that it can be polled.
#[track_caller]
pub fn mbarrier_test(offset: u32, parity: u32) -> bool {
    let passed = with_mbarrier(&current(), offset).passed(parity);
    if passed {
        use_mbarrier(&current(), offset, false, "mbarrier_test", Location::caller());
    } else {
        spin();
    }
    passed
}

/// Waits until the phase of parity `parity` is over.
#[track_caller]
pub fn mbarrier_wait(offset: u32, parity: u32) {
    let current = current();
    let mbarrier = with_mbarrier(&current, offset);
    if !mbarrier.passed(parity) {
        mbarrier.waiting.push(current.thread);
        wait(&current, State::Mbarrier(offset, parity));
    }
    use_mbarrier(&current, offset, false, "mbarrier_wait", Location::caller());
}

/// Both ends of a bulk copy are checked when it is issued.
#[track_caller]
fn issue(global: u64, shared: u32, bytes: u32, kind: bulk::Kind) {
    if bytes == 0 || !(bytes.is_multiple_of(16) && global.is_multiple_of(16) && shared.is_multiple_of(16)) {
        fault(format!(
            "bulk copy of {bytes} bytes between {global:#x} and shared memory at {shared}: all are multiples of 16"
        ));
    }
    check(global, bytes as usize, "bulk copy");
    let pointer = shared_pointer(shared, bytes as usize).expose_provenance() as u64;
    let current = current();
    let mut watched = (0, 0);
    let (operation, mbarrier) = match kind {
        bulk::Kind::Load { mbarrier } => ("bulk_load", Some(mbarrier)),
        bulk::Kind::Store { .. } => ("bulk_store", None),
    };
    let mbarrier = mbarrier.map(|offset| (offset, shared_pointer(offset, 8).expose_provenance() as u64));
    watch(&current, operation, Location::caller(), |watch, at| {
        watched = watch.copy(at, global, (shared, pointer), bytes, mbarrier);
    });
    let (scheduler, block) = parts(&current);
    block.copies += 1;
    block.unwritten += u32::from(matches!(kind, bulk::Kind::Store { .. }));
    scheduler.copies.push(Copy { block: current.at, shared, global, bytes, kind, staged: None, watched });
}

/// Starts a copy from global to shared memory, which completes on the mbarrier at `mbarrier`.
#[track_caller]
pub fn bulk_load(shared_offset: u32, global: *const u8, bytes: u32, mbarrier: u32) {
    with_mbarrier(&current(), mbarrier);
    issue(global.expose_provenance() as u64, shared_offset, bytes, bulk::Kind::Load { mbarrier });
}

/// Starts a copy from shared to global memory, in this thread's open group.
#[track_caller]
pub fn bulk_store(global: *mut u8, shared_offset: u32, bytes: u32) {
    let current = current();
    let thread = current.thread;
    let group = parts(&current).1.groups[thread as usize].add();
    issue(global.expose_provenance() as u64, shared_offset, bytes, bulk::Kind::Store { thread, group });
}

/// Closes this thread's open group of stores.
#[track_caller]
pub fn bulk_commit() {
    let current = current();
    parts(&current).1.groups[current.thread as usize].commit();
    watch(&current, "bulk_commit", Location::caller(), |watch, at| watch.commit(at));
}

/// Waits until at most `pending` of this thread's groups are not complete; or, with `read_only`, not read.
#[track_caller]
pub fn bulk_wait(pending: u32, read_only: bool) {
    let current = current();
    let block = parts(&current).1;
    let pending = pending as usize;
    if !block.groups[current.thread as usize].done(pending, read_only) {
        wait(&current, State::Bulk { pending, read_only });
    }
    let operation = if read_only { "bulk_wait_read" } else { "bulk_wait_written" };
    watch(&current, operation, Location::caller(), |watch, at| watch.wait_stores(at, pending, read_only));
}
