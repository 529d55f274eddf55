//! Runs the threads of all live blocks, one at a time, in a seeded order.
//!
//! Everything here happens on the engine's thread. A running kernel reaches the scheduler through [`CURRENT`], so while
//! a coroutine runs nothing here may be borrowed: the loop works on a raw pointer and borrows for single statements.

use crate::actor::Outlook;
use crate::block::{BARRIERS, Block, Resident, SHARED_BASE, State, Thread, WARP};
use crate::bulk::{Copy, Groups, Kind};
use crate::check::Watch;
use crate::collective::Barrier;
use crate::machine::Shared;
use crate::memory::View;
use crate::random::Random;
use crate::stack::{ColouredStack, prefetch};
use crate::stream::{Kernel, Launch};
use crate::{Fault, memory, report};
use corosensei::{Coroutine, CoroutineResult};
use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many lanes before its turn a lane's stack is fetched: about as many as memory serves at a time.
const LANES_AHEAD: usize = 4;
/// Fewest steps between two looks at the words that threads wait for.
const STEPS_PER_POLL: usize = 8;
/// Steps until the engine looks whether a host thread's wait is over.
const STEPS_PER_SLICE: usize = 256;
/// An actor has its turn about once in as many steps.
const STEPS_PER_ACTOR: u32 = 16;
/// How long to look away, in real time, when something outside the machine is waited for.
const GLANCE: Duration = Duration::from_micros(50);
/// How far the clock moves when all that is left is hand-written polling loops; doubles until something is stored.
const IDLE_NS: u64 = 1_000;
/// Most such moves, of a virtual second each in the end, before the loops count as endless.
const MAX_IDLE_MOVES: u32 = 1_000;

thread_local! {
    /// The emulated thread that runs now.
    pub static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

/// The emulated thread that runs now.
#[derive(Clone, Copy)]
pub struct Current {
    pub scheduler: *mut Scheduler<'static>,
    pub block: *mut Block,
    /// The block's place.
    pub at: usize,
    pub thread: u32,
}

/// What a fault in a kernel unwinds with, so that the panic hook stays silent.
pub struct FaultMessage(pub String);

/// Why [`Scheduler::run`] returned.
pub enum Step {
    /// Some kernel has ended, or enough steps have been made.
    Paused,
    /// Nothing can happen before the next deadline.
    Stuck,
}

/// A kernel that has ended.
pub struct Ended {
    pub device: usize,
    pub stream: u64,
    pub fault: Option<Fault>,
}

/// A kernel with blocks yet to end.
pub struct Grid {
    pub device: usize,
    stream: u64,
    pub launch: Launch,
    kernel: Arc<Kernel>,
    next_block: u32,
    finished: u32,
}

pub struct Scheduler<'m> {
    shared: &'m Shared,
    pub random: Random,
    pub now_ns: u64,
    /// Counts stores that others may wait for.
    stores: u64,
    pub grids: Vec<Option<Grid>>,
    pub blocks: Vec<Option<Resident>>,
    runnable: Vec<usize>,
    /// (block, thread) of those in [`State::Word`].
    pub polling: Vec<(usize, u32)>,
    /// (block, thread) of those in [`State::Spin`].
    pub spinning: Vec<(usize, u32)>,
    polled_stores: u64,
    steps_to_poll: usize,
    /// The earliest deadline of those in `polling`.
    next_deadline_ns: u64,
    idle_moves: u32,
    /// Of the actors: when the next of them does something by itself, and whether memory may change from outside.
    next_act_ns: u64,
    is_open: bool,
    /// When it was last looked whether something has come from outside, if nothing has run since.
    glanced: Option<Instant>,
    pub copies: Vec<Copy>,
    /// Buffers of copies that are done.
    spare: Vec<Vec<u8>>,
    /// By device: blocks running, and grids with blocks yet to start.
    resident: Vec<u32>,
    waiting: Vec<VecDeque<usize>>,
    stacks: Vec<ColouredStack>,
    stacks_made: usize,
    pub ended: Vec<Ended>,
    memory: View,
    /// The books, if the machine is checked.
    pub watch: Option<Watch>,
}

impl<'m> Scheduler<'m> {
    pub fn new(shared: &'m Shared) -> Self {
        let devices = shared.options.devices;
        Self {
            shared,
            random: match shared.options.script {
                Some(_) => Random::fixed(),
                None => Random::new(shared.options.seed),
            },
            now_ns: 0,
            stores: 0,
            grids: Vec::new(),
            blocks: Vec::new(),
            runnable: Vec::new(),
            polling: Vec::new(),
            spinning: Vec::new(),
            polled_stores: 0,
            steps_to_poll: STEPS_PER_POLL,
            next_deadline_ns: u64::MAX,
            idle_moves: 0,
            next_act_ns: u64::MAX,
            is_open: false,
            glanced: None,
            copies: Vec::new(),
            spare: Vec::new(),
            resident: vec![0; devices],
            waiting: vec![VecDeque::new(); devices],
            stacks: Vec::new(),
            stacks_made: 0,
            ended: Vec::new(),
            memory: View::new(),
            watch: shared.options.checker.clone().map(Watch::new),
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Whether a thread that is at an ordered operation lets others run there.
    pub fn preempts(&mut self) -> bool {
        let options = &self.shared.options;
        match &options.script {
            None => self.random.one_in(options.preempt_one_in),
            Some(script) => {
                let preempts = script.pass();
                if preempts {
                    self.random.turn();
                }
                preempts
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.grids.iter().all(Option::is_none)
    }

    /// Memory has changed: who waits for a word may look again.
    pub fn stored(&mut self) {
        self.stores += 1;
    }

    /// Drops everything that has not ended.
    pub fn abandon(&mut self) {
        self.blocks.clear();
        self.grids.clear();
    }

    /// What streams have ended, of a machine that is checked.
    pub fn watched_ends(&self) -> usize {
        self.watch.as_ref().map_or(0, Watch::ended)
    }

    /// Takes a kernel in that was queued when `ended` had ended; its blocks start as there is room.
    pub fn launch(&mut self, device: usize, stream: u64, launch: Launch, kernel: Kernel, ended: usize) {
        let grid = Grid { device, stream, launch, kernel: Arc::new(kernel), next_block: 0, finished: 0 };
        let index = insert(&mut self.grids, grid);
        if let Some(watch) = &mut self.watch {
            watch.begin_grid(index, device, stream, launch.name, ended);
        }
        self.waiting[device].push_back(index);
        self.start_blocks(device);
    }

    fn start_blocks(&mut self, device: usize) {
        while self.resident[device] < self.shared.options.resident_blocks {
            let Some(&index) = self.waiting[device].front() else { return };
            let Some(grid) = self.grids[index].as_mut() else {
                self.waiting[device].pop_front();
                continue;
            };
            let block_index = grid.next_block;
            grid.next_block += 1;
            let (launch, kernel) = (grid.launch, grid.kernel.clone());
            if grid.next_block == launch.grid {
                self.waiting[device].pop_front();
            }
            self.resident[device] += 1;
            if let Err(message) = self.start_block(device, index, block_index, launch, &kernel) {
                let kernel = launch.name;
                self.fail(Fault { device, kernel, thread: None, message });
                return;
            }
        }
    }

    fn start_block(
        &mut self,
        device: usize,
        grid: usize,
        index: u32,
        launch: Launch,
        kernel: &Arc<Kernel>,
    ) -> Result<(), String> {
        let no_memory = || "the host has no memory for a block".to_owned();
        let shared = memory::Block::new(launch.shared_bytes, SHARED_BASE as usize).ok_or_else(no_memory)?;
        let mut threads = Vec::with_capacity(launch.block as usize);
        for _ in 0..launch.block {
            let stack = match self.stacks.pop() {
                Some(stack) => stack,
                None => {
                    self.stacks_made += 1;
                    let made = ColouredStack::new(self.stacks_made);
                    made.map_err(|error| format!("no stack for a thread: {error}"))?
                }
            };
            let kernel = kernel.clone();
            let coroutine = Coroutine::with_stack(stack, move |yielder, ()| {
                if let Some(Current { block, thread, .. }) = CURRENT.get() {
                    // SAFETY: the running thread's block is alive and not borrowed.
                    unsafe { (&mut (*block).threads)[thread as usize].yielder = yielder };
                }
                kernel();
            });
            threads.push(Thread { state: State::Ready, coroutine: Some(coroutine), yielder: ptr::null() });
        }
        let warps = Block::warps(launch.block);
        let block = Resident::new(Block {
            grid,
            device,
            index,
            grid_size: launch.grid,
            threads,
            groups: (0..launch.block).map(|_| Groups::default()).collect(),
            ready_warps: u32::MAX >> (u32::BITS - warps.len() as u32),
            warps,
            barriers: [Barrier::EMPTY; BARRIERS],
            mbarriers: BTreeMap::new(),
            shared,
            shared_bytes: launch.shared_bytes,
            live: launch.block,
            copies: 0,
            unwritten: 0,
            listed: None,
        });
        let at = insert(&mut self.blocks, block);
        if let Some(watch) = &mut self.watch {
            watch.begin_block(at, grid, index, launch.block);
        }
        self.list(at);
        Ok(())
    }

    /// Puts a block on the list of those that can run.
    fn list(&mut self, at: usize) {
        let Some(block) = self.blocks[at].as_mut() else { return };
        if block.listed.is_none() && block.can_run() {
            block.listed = Some(self.runnable.len());
            self.runnable.push(at);
        }
    }

    fn unlist(&mut self, at: usize) {
        let Some(place) = self.blocks[at].as_mut().and_then(|block| block.listed.take()) else { return };
        self.runnable.swap_remove(place);
        if let Some(&moved) = self.runnable.get(place)
            && let Some(block) = self.blocks[moved].as_mut()
        {
            block.listed = Some(place);
        }
    }

    /// Runs until a kernel ends, enough steps have been made, or nothing can happen at this time. With `past`, time jumps
    /// to the next deadline first; where there is none, what waits is at fault.
    pub fn run(&mut self, past: bool) -> Step {
        if past {
            self.pass_deadline();
        }
        let this: *mut Self = self;
        for _ in 0..STEPS_PER_SLICE {
            // SAFETY: `this` is this scheduler; no reference to it is alive while a coroutine runs.
            unsafe {
                if !(*this).ended.is_empty() {
                    break;
                }
                (*this).poll_if_due();
                let copies = (*this).copies.len();
                let runnable = (*this).runnable.len();
                if copies != 0 && (runnable == 0 || (*this).random.one_in(4)) {
                    let chosen = (*this).random.below(copies);
                    (*this).advance_copy(chosen);
                    continue;
                }
                let actors = (*this).shared.actors.count();
                if actors != 0 && (*this).random.one_in(STEPS_PER_ACTOR) {
                    let chosen = (*this).random.below(actors);
                    (*this).step_actors(Some(chosen));
                    continue;
                }
                if runnable == 0 {
                    if actors != 0 && (*this).step_actors(None) {
                        continue;
                    }
                    return Step::Stuck;
                }
                (*this).glanced = None;
                let chosen = (*this).random.below(runnable);
                let at = (&(*this).runnable)[chosen];
                Self::step_warp(this, at);
            }
        }
        Step::Paused
    }

    /// Runs each ready lane of one warp of a block until it waits.
    ///
    /// # Safety
    /// `this` is valid and nothing of it is borrowed.
    unsafe fn step_warp(this: *mut Self, at: usize) {
        // SAFETY: as the caller says; the block stays where it is until it is removed here.
        unsafe {
            let Some(block) = (&(*this).blocks)[at].as_ref().map(Resident::as_ptr) else { return };
            let warps = &(*block).warps;
            let turn = (*this).random.below(warps.len()) as u32;
            let warp = ((*block).ready_warps.rotate_right(turn).trailing_zeros() + turn) % WARP;
            // Lanes start anywhere, so that no order among them can be relied on.
            let turn = (*this).random.below(WARP as usize) as u32;
            let lanes = Lanes { left: (&(*block).warps)[warp as usize].ready.rotate_right(turn), turn };
            let fetch = |lane: u32| prefetch((&(*block).warps)[warp as usize].stacks[lane as usize]);
            let mut ahead = lanes;
            ahead.by_ref().take(LANES_AHEAD).for_each(fetch);
            for lane in lanes {
                ahead.next().into_iter().for_each(fetch);
                (*this).now_ns += 1;
                let thread = warp * WARP + lane;
                if let Err(message) = Self::resume(this, block, at, thread) {
                    let fault = (*this).fault_of(at, Some(thread), message);
                    (*this).fail(fault);
                    return;
                }
            }
            if (*block).live == 0 {
                (*this).end_block(at);
            } else if !(*block).can_run() {
                (*this).unlist(at);
            }
        }
    }

    /// Runs one thread until it waits or returns; the message of its fault, if it had one.
    ///
    /// # Safety
    /// As for `step_warp`; `block` is a live block.
    unsafe fn resume(this: *mut Self, block: *mut Block, at: usize, thread: u32) -> Result<(), String> {
        // SAFETY: as the caller says. The coroutine is taken out while it runs, and reaches the rest through CURRENT.
        unsafe {
            let slot = &raw mut (&mut (*block).threads)[thread as usize].coroutine;
            let Some(mut coroutine) = (*slot).take() else { return Ok(()) };
            CURRENT.set(Some(Current { scheduler: this.cast(), block, at, thread }));
            let outcome = catch_unwind(AssertUnwindSafe(|| coroutine.resume(())));
            CURRENT.set(None);
            match outcome {
                Ok(CoroutineResult::Yield(())) => *slot = Some(coroutine),
                Ok(CoroutineResult::Return(())) => {
                    (*this).stacks.push(coroutine.into_stack());
                    return (*block).retire(thread);
                }
                Err(payload) => return Err(message_of(payload)),
            }
        }
        Ok(())
    }

    /// Ends a block whose threads have returned, unless stores of it are still on their way.
    fn end_block(&mut self, at: usize) {
        self.unlist(at);
        let left = self.blocks[at].as_ref().map_or((0, 0), |block| (block.copies, block.unwritten));
        if left.0 != 0 {
            let message = "the block ended while bulk copies still used its shared memory".to_owned();
            let fault = self.fault_of(at, None, message);
            return self.fail(fault);
        }
        if left.1 != 0 {
            return;
        }
        let Some(block) = self.blocks[at].take() else { return };
        let index = block.grid;
        if let Some(watch) = &mut self.watch {
            watch.end_block(at);
        }
        let Some(grid) = self.grids[index].as_mut() else { return };
        grid.finished += 1;
        let device = grid.device;
        self.resident[device] -= 1;
        if grid.finished == grid.launch.grid {
            self.ended.push(Ended { device, stream: grid.stream, fault: None });
            self.grids[index] = None;
            if let Some(watch) = &mut self.watch {
                watch.end_grid(index);
            }
        }
        self.start_blocks(device);
    }

    fn fault_of(&self, at: usize, thread: Option<u32>, message: String) -> Fault {
        let block = self.blocks[at].as_ref();
        let grid = block.and_then(|block| self.grids[block.grid].as_ref());
        Fault {
            device: grid.map_or(0, |grid| grid.device),
            kernel: grid.map_or("", |grid| grid.launch.name),
            thread: thread.zip(block).map(|(thread, block)| (block.index, thread)),
            message,
        }
    }

    /// Ends every kernel of the fault's device.
    pub fn fail(&mut self, fault: Fault) {
        let device = fault.device;
        for at in 0..self.blocks.len() {
            if self.blocks[at].as_ref().is_some_and(|block| block.device == device) {
                self.unlist(at);
                self.copies.retain(|copy| copy.block != at);
                self.polling.retain(|&(block, _)| block != at);
                self.spinning.retain(|&(block, _)| block != at);
                self.blocks[at] = None;
                if let Some(watch) = &mut self.watch {
                    watch.drop_block(at);
                }
            }
        }
        self.grids.iter_mut().for_each(|grid| drop(grid.take_if(|grid| grid.device == device)));
        self.waiting[device].clear();
        self.resident[device] = 0;
        self.ended.push(Ended { device, stream: 0, fault: Some(fault) });
    }

    /// Makes a thread wait for a word, from now on.
    pub fn poll_for(&mut self, at: usize, thread: u32, deadline_ns: u64) {
        self.polling.push((at, thread));
        self.next_deadline_ns = self.next_deadline_ns.min(deadline_ns);
    }

    /// Looks at what threads wait for, if it can have come; the more there are, the rarer.
    fn poll_if_due(&mut self) {
        self.steps_to_poll = self.steps_to_poll.saturating_sub(1);
        let due = self.steps_to_poll == 0 || self.runnable.is_empty();
        if due && (self.polled_stores != self.stores || self.now_ns > self.next_deadline_ns) {
            self.poll();
        }
    }

    /// Wakes the threads whose word has become large enough, or whose time is up, and those that look for themselves.
    fn poll(&mut self) {
        if self.polled_stores != self.stores {
            self.idle_moves = 0;
        }
        self.polled_stores = self.stores;
        self.next_deadline_ns = u64::MAX;
        for (at, thread) in std::mem::take(&mut self.spinning) {
            self.wake(at, thread, 0);
        }
        let mut index = 0;
        while let Some(&(at, thread)) = self.polling.get(index) {
            let state = self.blocks[at].as_ref().map(|block| (block.device, block.state(thread)));
            let Some((device, State::Word { address, at_least, deadline_ns })) = state else {
                self.polling.swap_remove(index);
                continue;
            };
            // Memory that has gone reads as late; the kernel's next access to it is a fault.
            // SAFETY: looked up just now.
            let came = self.look_up(device, address, 8).is_ok() && unsafe { word(address) } >= at_least;
            if came || self.now_ns > deadline_ns {
                self.polling.swap_remove(index);
                self.wake(at, thread, came.into());
            } else {
                self.next_deadline_ns = self.next_deadline_ns.min(deadline_ns);
                index += 1;
            }
        }
        self.steps_to_poll = STEPS_PER_POLL.max(self.polling.len() / 4);
    }

    /// Has one actor, or all, do a bit; true if one has.
    fn step_actors(&mut self, which: Option<usize>) -> bool {
        let outlooks = self.shared.actors.step(which, self.now_ns);
        let worked = outlooks.contains(&Outlook::Worked);
        if worked {
            self.stored();
        }
        if which.is_none() {
            self.is_open = outlooks.contains(&Outlook::Open);
            let moments = outlooks.into_iter().filter_map(|outlook| match outlook {
                Outlook::At(ns) => Some(ns),
                _ => None,
            });
            self.next_act_ns = moments.min().unwrap_or(u64::MAX);
        }
        worked
    }

    /// Has actors do all that they can while there is no kernel, however far that takes the clock; true if there was
    /// anything.
    pub fn run_actors(&mut self) -> bool {
        if self.shared.actors.count() == 0 {
            return false;
        }
        let worked = self.step_actors(None);
        if !worked && self.next_act_ns != u64::MAX && !self.is_open {
            self.now_ns = self.now_ns.max(self.next_act_ns);
            return true;
        }
        worked
    }

    /// Moves the clock past the earliest deadline, or declares a deadlock. If something may come from outside, it moves
    /// with real time; if an actor has something to do before, that far.
    fn pass_deadline(&mut self) {
        if self.shared.actors.count() != 0 {
            if self.is_open {
                // Also for how long it has taken to look, if nothing has run since.
                let since = self.glanced.take().unwrap_or_else(Instant::now);
                std::thread::sleep(GLANCE);
                let now = Instant::now();
                self.now_ns += now.duration_since(since).as_nanos() as u64;
                self.glanced = Some(now);
                self.stored();
                return self.poll();
            }
            if self.next_act_ns <= self.next_deadline_ns && self.next_act_ns != u64::MAX {
                self.now_ns = self.now_ns.max(self.next_act_ns);
                self.step_actors(None);
                return self.poll();
            }
        }
        if !self.spinning.is_empty() && self.idle_moves < MAX_IDLE_MOVES {
            // They may have deadlines that only they know.
            let move_ns = (IDLE_NS << self.idle_moves.min(20)).min(1_000_000_000);
            self.now_ns =
                (self.now_ns + move_ns).min(self.next_deadline_ns.saturating_add(1)).max(self.now_ns + 1);
            self.idle_moves += 1;
            return self.poll();
        }
        if self.next_deadline_ns != u64::MAX {
            self.now_ns = self.now_ns.max(self.next_deadline_ns + 1);
            return self.poll();
        }
        let message = report::deadlock(self);
        for device in 0..self.resident.len() {
            if let Some(grid) = self.grids.iter().flatten().find(|grid| grid.device == device) {
                let kernel = grid.launch.name;
                self.fail(Fault { device, kernel, thread: None, message: message.clone() });
            }
        }
    }

    pub fn wake(&mut self, at: usize, thread: u32, result: u64) {
        if let Some(block) = self.blocks[at].as_mut() {
            block.wake(thread, result);
        }
        self.list(at);
    }

    /// Takes a copy one phase further: reads its source, or writes its destination.
    fn advance_copy(&mut self, index: usize) {
        let Copy { block: at, shared, global, bytes, kind, .. } = self.copies[index];
        let Some(device) = self.blocks[at].as_ref().map(|block| block.device) else { return };
        if self.look_up(device, global, bytes as usize).is_err() {
            let message = format!("bulk copy of {bytes} bytes at {global:#x}: no longer in live memory");
            let fault = self.fault_of(at, None, message);
            return self.fail(fault);
        }
        let spare = self.spare.pop().unwrap_or_default();
        let Some(block) = self.blocks[at].as_mut() else { return };
        let global = ptr::with_exposed_provenance_mut::<u8>(global as usize);
        // SAFETY: the range was checked when the copy was issued, and the block is alive.
        let shared = unsafe { block.shared.as_ptr().add((shared - SHARED_BASE) as usize) };
        let size = bytes as usize;
        match (kind, self.copies[index].staged.take()) {
            (Kind::Load { .. }, None) => {
                // SAFETY: live, as just checked; nothing else runs while it is read.
                self.copies[index].staged =
                    Some(filled(spare, unsafe { std::slice::from_raw_parts(global, size) }));
            }
            (Kind::Store { thread, group }, None) => {
                // SAFETY: as above.
                self.copies[index].staged =
                    Some(filled(spare, unsafe { std::slice::from_raw_parts(shared, size) }));
                block.copies -= 1;
                block.groups[thread as usize].read(group);
                self.wake_if_stored(at, thread);
            }
            (Kind::Load { mbarrier }, Some(staged)) => {
                // SAFETY: as above.
                unsafe { shared.copy_from_nonoverlapping(staged.as_ptr(), size) };
                block.copies -= 1;
                let done = self.copies.swap_remove(index);
                self.spare.extend([staged, spare]);
                if let Some(watch) = &mut self.watch {
                    watch.loaded(at, mbarrier, done.watched);
                }
                self.complete_bytes(at, mbarrier, bytes);
            }
            (Kind::Store { thread, group }, Some(staged)) => {
                // SAFETY: as above.
                unsafe { global.copy_from_nonoverlapping(staged.as_ptr(), size) };
                block.groups[thread as usize].written(group);
                block.unwritten -= 1;
                let last = block.live == 0 && block.unwritten == 0;
                self.copies.swap_remove(index);
                self.spare.extend([staged, spare]);
                self.stored();
                self.wake_if_stored(at, thread);
                if last {
                    self.end_block(at);
                }
            }
        }
    }

    fn wake_if_stored(&mut self, at: usize, thread: u32) {
        let Some(block) = self.blocks[at].as_ref() else { return };
        if let State::Bulk { pending, read_only } = block.state(thread)
            && block.groups[thread as usize].done(pending, read_only)
        {
            self.wake(at, thread, 0);
        }
    }

    fn complete_bytes(&mut self, at: usize, offset: u32, bytes: u32) {
        let Some(block) = self.blocks[at].as_mut() else { return };
        match block.mbarriers.get_mut(&offset) {
            Some(mbarrier) => {
                mbarrier.bytes -= i64::from(bytes);
                if block.complete_phase(offset) {
                    if let Some(watch) = &mut self.watch {
                        watch.phase(at, offset);
                    }
                    self.list(at);
                    self.stored();
                }
            }
            None => {
                let message =
                    format!("bulk load of {bytes} bytes: its mbarrier at {offset} has been invalidated");
                let fault = self.fault_of(at, None, message);
                self.fail(fault);
            }
        }
    }

    /// Whether a kernel of `device` may access the range; if not, why.
    pub fn look_up(&mut self, device: usize, address: u64, bytes: usize) -> Result<(), String> {
        match self.memory.find(&self.shared.registry, address, bytes) {
            None => Err("not in live memory".to_owned()),
            Some(range)
                if range.device == device || self.shared.options.can_access_peer(device, range.device) =>
            {
                Ok(())
            }
            Some(range) => Err(format!("memory of device {}, which is not mapped", range.device)),
        }
    }
}

/// The buffer with this in it.
fn filled(mut buffer: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    buffer
}

/// Lanes in turn, beginning somewhere.
#[derive(Clone, Copy)]
struct Lanes {
    /// Rotated right by `turn`.
    left: u32,
    turn: u32,
}

impl Iterator for Lanes {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let place = self.left.trailing_zeros();
        (self.left != 0).then(|| {
            self.left &= self.left - 1;
            (place + self.turn) % WARP
        })
    }
}

/// Puts a value into the first free place.
fn insert<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    match places.iter().position(Option::is_none) {
        Some(place) => {
            places[place] = Some(value);
            place
        }
        None => {
            places.push(Some(value));
            places.len() - 1
        }
    }
}

/// A word of device memory.
///
/// # Safety
/// It lies in live memory, aligned.
pub unsafe fn word(address: u64) -> u64 {
    // SAFETY: as the caller says; allocations expose their provenance.
    unsafe { AtomicU64::from_ptr(ptr::with_exposed_provenance_mut(address as usize)) }.load(Ordering::Acquire)
}

/// What a panic in a kernel says.
pub fn message_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<FaultMessage>() {
        Ok(message) => message.0,
        Err(payload) => match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => format!("panic: {text}"),
            (_, Some(text)) => format!("panic: {text}"),
            _ => "panic".to_owned(),
        },
    }
}
