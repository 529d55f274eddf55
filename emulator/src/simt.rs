//! What kernels call. Every function panics outside an emulated thread.

use crate::block::{BARRIERS, Block, SHARED_BASE, State, WARP};
use crate::bulk::{self, Copy};
use crate::collective::{Collective, Kind, Mbarrier};
use crate::scheduler::{CURRENT, Current, FaultMessage, Scheduler, word};
use std::panic::resume_unwind;

fn current() -> Current {
    CURRENT.get().expect("called from an emulated thread")
}

/// The scheduler and the block, for single statements: nothing may be borrowed across [`suspend`].
#[allow(clippy::mut_from_ref)]
fn parts(current: &Current) -> (&mut Scheduler<'static>, &mut Block) {
    // SAFETY: on the engine's thread, while this emulated thread runs; the scheduler's loop holds no references then,
    // and the block is boxed apart from it.
    unsafe { (&mut *current.scheduler, &mut *current.block) }
}

/// Lets others run until this thread is woken; gives what it was woken with.
fn suspend(current: &Current) -> u64 {
    let yielder = parts(current).1.threads[current.thread as usize].yielder;
    // SAFETY: set at this coroutine's start, and alive as long as it runs.
    unsafe { (*yielder).suspend(()) };
    parts(current).1.threads[current.thread as usize].result
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
    let current = current();
    let (scheduler, block) = parts(&current);
    scheduler.grids[block.grid].as_ref().map_or(0, |grid| grid.launch.grid)
}

/// The device this runs on.
pub fn device_ordinal() -> usize {
    let current = current();
    let (scheduler, block) = parts(&current);
    scheduler.grids[block.grid].as_ref().map_or(0, |grid| grid.device)
}

/// The virtual time.
pub fn now_ns() -> u64 {
    parts(&current()).0.now_ns
}

/// Waits for `threads` threads at the block's barrier `id`.
pub fn barrier(id: u32, threads: u32) {
    barrier_or(id, threads, false);
}

/// [`barrier`], and whether any of them passed true.
pub fn barrier_or(id: u32, threads: u32, predicate: bool) -> bool {
    let current = current();
    let block = parts(&current).1;
    if id as usize >= BARRIERS || threads == 0 || !threads.is_multiple_of(WARP) || threads > block.threads.len() as u32 {
        let most = block.threads.len();
        fault(format!("barrier {id} of {threads} threads: ids go to 15, threads are a multiple of 32 up to {most}"));
    }
    let barrier = &mut block.barriers[id as usize];
    if barrier.expected != 0 && barrier.expected != threads {
        let expected = barrier.expected;
        fault(format!("barrier {id} of {threads} threads, while others wait at it as one of {expected}"));
    }
    barrier.expected = threads;
    barrier.any |= predicate;
    barrier.arrived.push(current.thread);
    if barrier.arrived.len() < threads as usize {
        block.park(current.thread, State::Barrier(id));
        return suspend(&current) != 0;
    }
    let any = barrier.any;
    let arrived = std::mem::take(&mut barrier.arrived);
    barrier.expected = 0;
    barrier.any = false;
    for &thread in arrived.iter().filter(|&&thread| thread != current.thread) {
        block.wake(thread, any.into());
    }
    any
}

/// One lane's part of a collective.
fn collective(kind: Kind, mask: u32, value: u64, source: u32) -> u64 {
    let current = current();
    let block = parts(&current).1;
    let (warp, lane) = (current.thread / WARP, current.thread % WARP);
    if mask >> lane & 1 == 0 {
        fault(format!("{kind:?} with lanes {mask:#010x}, called by lane {lane}"));
    }
    let gone = if block.collectives[warp as usize].is_empty() { block.exited(warp) & mask } else { 0 };
    if gone != 0 {
        fault(format!("{kind:?} with lanes {mask:#010x}, of which {gone:#010x} have returned"));
    }
    let open = &mut block.collectives[warp as usize];
    let index = match open.iter().position(|other| other.mask & mask != 0) {
        Some(index) => index,
        None => {
            open.push(Collective::new(kind, mask));
            open.len() - 1
        }
    };
    let joined = &mut open[index];
    if (joined.kind, joined.mask) != (kind, mask) {
        let (other, lanes) = (joined.kind, joined.mask);
        fault(format!("{kind:?} with lanes {mask:#010x}, while lanes of the warp are at {other:?} with {lanes:#010x}"));
    }
    joined.arrive(lane, value, source);
    if !joined.is_complete() {
        block.park(current.thread, State::Collective);
        return suspend(&current);
    }
    let done = open.swap_remove(index);
    for other in (0..WARP).filter(|&other| mask >> other & 1 != 0 && other != lane) {
        block.wake(warp * WARP + other, done.result(other));
    }
    done.result(lane)
}

/// Waits for the lanes in `mask`.
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
        fault(format!("shared memory at {offset}, {bytes} bytes: the block has {limit} from {SHARED_BASE} on"));
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
    if !parts(&current()).0.is_live(address, bytes) {
        fault(format!("{what} at {address:#x}, {bytes} bytes: not in live memory"));
    }
    check_alignment(address, bytes, what);
}

/// A store that others may wait for has happened.
pub fn stored() {
    parts(&current()).0.stores += 1;
}

/// Lets others run, by chance.
pub fn preempt() {
    let current = current();
    let (scheduler, _) = parts(&current);
    let one_in = scheduler.preempt_one_in();
    if scheduler.random.one_in(one_in) {
        suspend(&current);
    }
}

/// Waits until the word at `address` is at least `at_least`; false when the clock passes `deadline_ns` first
/// (`u64::MAX`: never).
pub fn wait_at_least(address: *const u64, at_least: u64, deadline_ns: u64) -> bool {
    let address = address.expose_provenance() as u64;
    check(address, 8, "wait for a word");
    let current = current();
    let (scheduler, block) = parts(&current);
    // SAFETY: checked just now.
    if unsafe { word(address) } >= at_least {
        return true;
    }
    if scheduler.now_ns > deadline_ns {
        return false;
    }
    block.park(current.thread, State::Word { address, at_least, deadline_ns });
    scheduler.polling.push((current.at, current.thread));
    suspend(&current) != 0
}

/// The mbarrier at `offset`, or a fault.
fn with_mbarrier(current: &Current, offset: u32) -> &mut Mbarrier {
    match parts(current).1.mbarriers.get_mut(&offset) {
        Some(mbarrier) => mbarrier,
        None => fault(format!("mbarrier at {offset}: not initialised")),
    }
}

/// Prepares an mbarrier for `arrivals` arrivals a phase.
pub fn mbarrier_init(offset: u32, arrivals: u32) {
    shared_pointer(offset, 8);
    if arrivals == 0 || arrivals >= 1 << 20 {
        fault(format!("mbarrier at {offset}: {arrivals} arrivals, must be 1 to 2^20 - 1"));
    }
    parts(&current()).1.mbarriers.insert(offset, Mbarrier::new(arrivals));
}

/// Arrives.
pub fn mbarrier_arrive(offset: u32) {
    mbarrier_arrive_expect_tx(offset, 0);
}

/// Arrives, and makes the phase wait for `bytes` more bytes.
pub fn mbarrier_arrive_expect_tx(offset: u32, bytes: u32) {
    let current = current();
    let mbarrier = with_mbarrier(&current, offset);
    if mbarrier.pending == 0 {
        fault(format!("mbarrier at {offset}: more arrivals than its {}", mbarrier.arrivals));
    }
    mbarrier.pending -= 1;
    mbarrier.bytes += i64::from(bytes);
    parts(&current).1.complete_phase(offset);
}

/// Waits until the phase of parity `parity` is over.
pub fn mbarrier_wait(offset: u32, parity: u32) {
    let current = current();
    let mbarrier = with_mbarrier(&current, offset);
    if !mbarrier.passed(parity) {
        mbarrier.waiting.push(current.thread);
        parts(&current).1.park(current.thread, State::Mbarrier(offset, parity));
        suspend(&current);
    }
}

/// Both ends of a bulk copy are checked when it is issued.
fn issue(global: u64, shared: u32, bytes: u32, kind: bulk::Kind) {
    if bytes == 0 || !(bytes.is_multiple_of(16) && global.is_multiple_of(16) && shared.is_multiple_of(16)) {
        fault(format!(
            "bulk copy of {bytes} bytes between {global:#x} and shared memory at {shared}: all are multiples of 16"
        ));
    }
    check(global, bytes as usize, "bulk copy");
    shared_pointer(shared, bytes as usize);
    let current = current();
    let (scheduler, block) = parts(&current);
    block.copies += 1;
    scheduler.copies.push(Copy { block: current.at, shared, global, bytes, kind, staged: None });
}

/// Starts a copy from global to shared memory, which completes on the mbarrier at `mbarrier`.
pub fn bulk_load(shared_offset: u32, global: *const u8, bytes: u32, mbarrier: u32) {
    with_mbarrier(&current(), mbarrier);
    issue(global.expose_provenance() as u64, shared_offset, bytes, bulk::Kind::Load { mbarrier });
}

/// Starts a copy from shared to global memory, in this thread's open group.
pub fn bulk_store(global: *mut u8, shared_offset: u32, bytes: u32) {
    let current = current();
    let thread = current.thread;
    let group = parts(&current).1.threads[thread as usize].groups.add();
    issue(global.expose_provenance() as u64, shared_offset, bytes, bulk::Kind::Store { thread, group });
}

/// Closes this thread's open group of stores.
pub fn bulk_commit() {
    let current = current();
    parts(&current).1.threads[current.thread as usize].groups.commit();
}

/// Waits until at most `pending` of this thread's groups are not complete; or, with `read_only`, not read.
pub fn bulk_wait(pending: u32, read_only: bool) {
    let current = current();
    let block = parts(&current).1;
    let pending = pending as usize;
    if !block.threads[current.thread as usize].groups.done(pending, read_only) {
        block.park(current.thread, State::Bulk { pending, read_only });
        suspend(&current);
    }
}
