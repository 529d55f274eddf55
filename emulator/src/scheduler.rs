//! Runs the threads of all live blocks, one at a time, in a seeded order.
//!
//! Everything here happens on the engine's thread. A running kernel reaches the scheduler through [`CURRENT`], so while
//! a coroutine runs nothing here may be borrowed: the loop works on a raw pointer and borrows for single statements.

use crate::block::{self, BARRIERS, Block, SHARED_BASE, State, Thread, WARP};
use crate::bulk::{Copy, Groups, Kind};
use crate::collective::Barrier;
use crate::machine::Shared;
use crate::random::Random;
use crate::stream::{Kernel, Launch};
use crate::{Fault, memory, report};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

/// Bytes of a thread's stack: kernels are small, and code built without optimisation needs most of it.
const STACK_BYTES: usize = 128 << 10;
/// Steps between two looks at the words that threads wait for.
const STEPS_PER_POLL: u32 = 8;

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
    /// Some kernel has ended.
    Ended,
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
    pub stores: u64,
    pub grids: Vec<Option<Grid>>,
    pub blocks: Vec<Option<Box<Block>>>,
    runnable: Vec<usize>,
    /// (block, thread) of those in [`State::Word`].
    pub polling: Vec<(usize, u32)>,
    polled_stores: u64,
    pub copies: Vec<Copy>,
    /// By device: blocks running, and grids with blocks yet to start.
    resident: Vec<u32>,
    waiting: Vec<VecDeque<usize>>,
    stacks: Vec<DefaultStack>,
    ended: Vec<Ended>,
    /// The allocation found last, and the registry's version then.
    found: (u64, u64),
    found_version: u64,
}

impl<'m> Scheduler<'m> {
    pub fn new(shared: &'m Shared) -> Self {
        let devices = shared.options.devices;
        Self {
            shared,
            random: Random::new(shared.options.seed),
            now_ns: 0,
            stores: 0,
            grids: Vec::new(),
            blocks: Vec::new(),
            runnable: Vec::new(),
            polling: Vec::new(),
            polled_stores: 0,
            copies: Vec::new(),
            resident: vec![0; devices],
            waiting: vec![VecDeque::new(); devices],
            stacks: Vec::new(),
            ended: Vec::new(),
            found: (0, 0),
            found_version: u64::MAX,
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub fn preempt_one_in(&self) -> u32 {
        self.shared.options.preempt_one_in
    }

    pub fn is_idle(&self) -> bool {
        self.grids.iter().all(Option::is_none) && self.ended.is_empty()
    }

    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Drops everything that has not ended.
    pub fn abandon(&mut self) {
        self.blocks.clear();
        self.grids.clear();
    }

    /// Takes a kernel in; its blocks start as there is room.
    pub fn launch(&mut self, device: usize, stream: u64, launch: Launch, kernel: Kernel) {
        let grid = Grid { device, stream, launch, kernel: Arc::new(kernel), next_block: 0, finished: 0 };
        let index = insert(&mut self.grids, grid);
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
            if let Err(message) = self.start_block(index, block_index, launch, &kernel) {
                let kernel = launch.name;
                self.fail(Fault { device, kernel, thread: None, message });
                return;
            }
        }
    }

    fn start_block(&mut self, grid: usize, index: u32, launch: Launch, kernel: &Arc<Kernel>) -> Result<(), String> {
        let no_memory = || "the host has no memory for a block".to_owned();
        let shared = memory::Block::new(launch.shared_bytes, SHARED_BASE as usize).ok_or_else(no_memory)?;
        let mut threads = Vec::with_capacity(launch.block as usize);
        for _ in 0..launch.block {
            let stack = match self.stacks.pop() {
                Some(stack) => stack,
                None => DefaultStack::new(STACK_BYTES).map_err(|error| format!("no stack for a thread: {error}"))?,
            };
            let kernel = kernel.clone();
            let coroutine = Coroutine::with_stack(stack, move |yielder, ()| {
                if let Some(Current { block, thread, .. }) = CURRENT.get() {
                    // SAFETY: the running thread's block is alive and not borrowed.
                    unsafe { (&mut (*block).threads)[thread as usize].yielder = yielder };
                }
                kernel();
            });
            threads.push(Thread {
                state: State::Ready,
                coroutine: Some(coroutine),
                yielder: ptr::null(),
                result: 0,
                groups: Groups::default(),
            });
        }
        let warps = (launch.block / WARP) as usize;
        let block = Box::new(Block {
            grid,
            index,
            threads,
            ready: vec![u32::MAX; warps],
            collectives: (0..warps).map(|_| Vec::new()).collect(),
            barriers: [const { Barrier::EMPTY }; BARRIERS],
            mbarriers: BTreeMap::new(),
            shared,
            shared_bytes: launch.shared_bytes,
            live: launch.block,
            copies: 0,
            listed: None,
        });
        let at = insert(&mut self.blocks, block);
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

    /// Runs until a kernel ends or nothing can happen at this time. With `past`, time jumps to the next deadline first;
    /// where there is none, what waits is at fault.
    pub fn run(&mut self, past: bool) -> Step {
        if past {
            self.pass_deadline();
        }
        let this: *mut Self = self;
        let mut steps = 0;
        loop {
            // SAFETY: `this` is this scheduler; no reference to it is alive while a coroutine runs.
            unsafe {
                if !(*this).ended.is_empty() {
                    return Step::Ended;
                }
                steps += 1;
                let due = steps % STEPS_PER_POLL == 0 || (*this).runnable.is_empty();
                if due && (*this).polled_stores != (*this).stores {
                    (*this).poll();
                }
                let copies = (*this).copies.len();
                if copies != 0 && ((*this).runnable.is_empty() || (*this).random.one_in(4)) {
                    let chosen = (*this).random.below(copies);
                    (*this).advance_copy(chosen);
                    continue;
                }
                let runnable = (*this).runnable.len();
                if runnable == 0 {
                    return if (*this).ended.is_empty() { Step::Stuck } else { Step::Ended };
                }
                let chosen = (*this).random.below(runnable);
                let at = (&(*this).runnable)[chosen];
                Self::step_warp(this, at);
            }
        }
    }

    /// Runs each ready lane of one warp of a block until it waits.
    ///
    /// # Safety
    /// `this` is valid and nothing of it is borrowed.
    unsafe fn step_warp(this: *mut Self, at: usize) {
        // SAFETY: as the caller says; the block is boxed, so that it stays where it is until it is removed here.
        unsafe {
            let Some(block) = (&mut (*this).blocks)[at].as_mut().map(|block| &raw mut **block) else { return };
            let warps = (*block).ready.len();
            let first = (*this).random.below(warps);
            let Some(warp) = (0..warps).map(|n| (first + n) % warps).find(|&warp| (&(*block).ready)[warp] != 0) else {
                (*this).unlist(at);
                return;
            };
            // Lanes start anywhere, so that no order among them can be relied on.
            let turn = (*this).random.below(WARP as usize) as u32;
            let mut lanes = (&(*block).ready)[warp].rotate_right(turn);
            while lanes != 0 {
                let lane = (lanes.trailing_zeros() + turn) % WARP;
                lanes &= lanes - 1;
                let thread = warp as u32 * WARP + lane;
                (*this).now_ns += 1;
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
                    (*block).park(thread, State::Done);
                    (*block).live -= 1;
                }
                Err(payload) => return Err(message_of(payload)),
            }
        }
        Ok(())
    }

    fn end_block(&mut self, at: usize) {
        if self.blocks[at].as_ref().is_some_and(|block| block.copies != 0) {
            let message = "the block ended while bulk copies still used its shared memory".to_owned();
            let fault = self.fault_of(at, None, message);
            return self.fail(fault);
        }
        // Its stores have been read; what is left of them is done by the end of the kernel.
        while let Some(copy) = self.copies.iter().position(|copy| copy.block == at) {
            self.advance_copy(copy);
        }
        self.unlist(at);
        let Some(block) = self.blocks[at].take() else { return };
        let index = block.grid;
        let Some(grid) = self.grids[index].as_mut() else { return };
        grid.finished += 1;
        let device = grid.device;
        self.resident[device] -= 1;
        if grid.finished == grid.launch.grid {
            self.ended.push(Ended { device, stream: grid.stream, fault: None });
            self.grids[index] = None;
        }
        self.start_blocks(device);
    }

    pub fn fault_of(&self, at: usize, thread: Option<u32>, message: String) -> Fault {
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
    fn fail(&mut self, fault: Fault) {
        let device = fault.device;
        let of_device = |grids: &[Option<Grid>], grid: usize| grids[grid].as_ref().is_some_and(|grid| grid.device == device);
        for at in 0..self.blocks.len() {
            if self.blocks[at].as_ref().is_some_and(|block| of_device(&self.grids, block.grid)) {
                self.unlist(at);
                self.copies.retain(|copy| copy.block != at);
                self.blocks[at] = None;
            }
        }
        self.grids.iter_mut().for_each(|grid| drop(grid.take_if(|grid| grid.device == device)));
        self.waiting[device].clear();
        self.resident[device] = 0;
        self.ended.push(Ended { device, stream: 0, fault: Some(fault) });
    }

    /// Wakes the threads whose word has become large enough, or whose time is up.
    fn poll(&mut self) {
        self.polled_stores = self.stores;
        let mut index = 0;
        while let Some(&(at, thread)) = self.polling.get(index) {
            let state = self.blocks[at].as_ref().map(|block| block.threads[thread as usize].state);
            let Some(State::Word { address, at_least, deadline_ns }) = state else {
                self.polling.swap_remove(index);
                continue;
            };
            let alive = self.is_live(address, 8);
            // SAFETY: just looked up.
            if !alive || unsafe { word(address) } >= at_least || self.now_ns > deadline_ns {
                self.polling.swap_remove(index);
                // Memory that has gone reads as late; the kernel's next access to it is a fault.
                // SAFETY: as above.
                let came = alive && unsafe { word(address) } >= at_least;
                self.wake(at, thread, came.into());
            } else {
                index += 1;
            }
        }
    }

    /// Moves the clock past the earliest deadline, or declares a deadlock.
    fn pass_deadline(&mut self) {
        let deadline = |&(at, thread): &(usize, u32)| match self.blocks[at].as_ref()?.threads[thread as usize].state {
            State::Word { deadline_ns, .. } if deadline_ns != u64::MAX => Some(deadline_ns),
            _ => None,
        };
        match self.polling.iter().filter_map(deadline).min() {
            Some(deadline_ns) => {
                self.now_ns = self.now_ns.max(deadline_ns + 1);
                self.poll();
            }
            None => {
                let devices: Vec<usize> = self.grids.iter().flatten().map(|grid| grid.device).collect();
                let message = report::deadlock(self);
                for device in devices {
                    if let Some(grid) = self.grids.iter().flatten().find(|grid| grid.device == device) {
                        let kernel = grid.launch.name;
                        self.fail(Fault { device, kernel, thread: None, message: message.clone() });
                    }
                }
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
        if !self.is_live(global, bytes as usize) {
            let message = format!("bulk copy of {bytes} bytes at {global:#x}: no longer in live memory");
            let fault = self.fault_of(at, None, message);
            return self.fail(fault);
        }
        let Some(block) = self.blocks[at].as_mut() else { return };
        let global = ptr::with_exposed_provenance_mut::<u8>(global as usize);
        // SAFETY: the range was checked when the copy was issued, and the block is alive.
        let shared = unsafe { block.shared.as_ptr().add((shared - SHARED_BASE) as usize) };
        let size = bytes as usize;
        match (kind, self.copies[index].staged.take()) {
            (Kind::Load { .. }, None) => {
                // SAFETY: live, as just checked.
                self.copies[index].staged = Some(unsafe { std::slice::from_raw_parts(global, size) }.to_vec());
            }
            (Kind::Store { thread, group }, None) => {
                // SAFETY: as above.
                self.copies[index].staged = Some(unsafe { std::slice::from_raw_parts(shared, size) }.to_vec());
                block.copies -= 1;
                block.threads[thread as usize].groups.read(group);
                self.wake_if_stored(at, thread);
            }
            (Kind::Load { mbarrier }, Some(staged)) => {
                // SAFETY: as above.
                unsafe { shared.copy_from_nonoverlapping(staged.as_ptr(), size) };
                block.copies -= 1;
                self.copies.swap_remove(index);
                self.complete_bytes(at, mbarrier, bytes);
            }
            (Kind::Store { thread, group }, Some(staged)) => {
                // SAFETY: as above.
                unsafe { global.copy_from_nonoverlapping(staged.as_ptr(), size) };
                block.threads[thread as usize].groups.written(group);
                self.copies.swap_remove(index);
                self.stores += 1;
                self.wake_if_stored(at, thread);
            }
        }
    }

    fn wake_if_stored(&mut self, at: usize, thread: u32) {
        let Some(block) = self.blocks[at].as_ref() else { return };
        let waiting = &block.threads[thread as usize];
        if let State::Bulk { pending, read_only } = waiting.state
            && waiting.groups.done(pending, read_only)
        {
            self.wake(at, thread, 0);
        }
    }

    fn complete_bytes(&mut self, at: usize, offset: u32, bytes: u32) {
        let Some(block) = self.blocks[at].as_mut() else { return };
        if let Some(mbarrier) = block.mbarriers.get_mut(&offset) {
            mbarrier.bytes -= i64::from(bytes);
            block.complete_phase(offset);
            self.list(at);
        }
    }

    /// Whether all of the range lies in one live allocation.
    pub fn is_live(&mut self, address: u64, bytes: usize) -> bool {
        let version = self.shared.registry.version();
        let inside = |(start, end): (u64, u64)| start <= address && address + bytes as u64 <= end;
        if self.found_version == version && inside(self.found) {
            return true;
        }
        match self.shared.registry.find(address) {
            Some(range) => {
                (self.found, self.found_version) = (range, version);
                inside(range)
            }
            None => false,
        }
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
    unsafe { ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

/// What a panic in a kernel says.
fn message_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<FaultMessage>() {
        Ok(message) => message.0,
        Err(payload) => match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => format!("panic: {text}"),
            (_, Some(text)) => format!("panic: {text}"),
            _ => "panic".to_owned(),
        },
    }
}

impl block::Block {
    /// Ends the mbarrier's phase if nothing is missing, and wakes who waits for it.
    pub fn complete_phase(&mut self, offset: u32) {
        let Some(mbarrier) = self.mbarriers.get_mut(&offset) else { return };
        if mbarrier.try_complete() {
            for thread in std::mem::take(&mut mbarrier.waiting) {
                self.wake(thread, 0);
            }
        }
    }
}
