//! A running block: its threads, their state, and its shared memory.

use crate::bulk::Groups;
use crate::collective::{Barrier, Collective, Mbarrier};
use crate::memory;
use crate::stack::ColouredStack;
use corosensei::{Coroutine, Yielder};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

pub const WARP: u32 = 32;
/// Most warps of a block.
pub const WARPS: usize = 32;
/// Barriers of a block that have numbers.
pub const BARRIERS: usize = 16;
/// Offset of dynamic shared memory: 0 is never valid.
pub const SHARED_BASE: u32 = 1024;

/// What a thread that cannot run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can run.
    Ready,
    /// The block's barrier of this number.
    Barrier(u32),
    /// A warp collective.
    Collective,
    /// The mbarrier at this offset, to complete the phase of this parity.
    Mbarrier(u32, u32),
    /// Its bulk stores: at most `pending` groups left, only their reads if so told.
    Bulk { pending: usize, read_only: bool },
    /// The word at this address, to be at least this, until this time.
    Word { address: u64, at_least: u64, deadline_ns: u64 },
    /// Any store, or time to move.
    Spin,
    /// It has returned.
    Done,
}

pub struct Thread {
    pub state: State,
    pub coroutine: Option<Coroutine<(), (), (), ColouredStack>>,
    /// The coroutine's way back to the engine; null before its first step.
    pub yielder: *const Yielder<(), ()>,
}

/// What is kept for 32 threads at once.
pub struct Warp {
    /// Lanes that can run.
    pub ready: u32,
    /// Lanes that have returned, or never were in a block that ends within the warp.
    pub returned: u32,
    /// Collectives under way.
    pub open: Vec<Collective>,
    /// By lane: what the operation that it last waited in gave.
    pub results: [u64; WARP as usize],
    /// By lane: where its stack ended when it last waited, for [`prefetch`].
    pub stacks: [usize; WARP as usize],
}

pub struct Block {
    pub grid: usize,
    pub device: usize,
    pub index: u32,
    pub grid_size: u32,
    pub threads: Vec<Thread>,
    /// By thread.
    pub groups: Vec<Groups>,
    pub warps: Vec<Warp>,
    /// Warps with ready lanes.
    pub ready_warps: u32,
    pub barriers: [Barrier; BARRIERS],
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    pub shared: memory::Block,
    pub shared_bytes: usize,
    /// Threads that have not returned.
    pub live: u32,
    /// Bulk copies that still use its shared memory.
    pub copies: u32,
    /// Bulk stores that have not been written.
    pub unwritten: u32,
    /// Its place in the list of blocks that can run, if it is there.
    pub listed: Option<usize>,
}

/// A block, owned as a `Box` would, but without a claim to be the only pointer to it: while its threads run they reach
/// it through [`Self::as_ptr`].
pub struct Resident(NonNull<Block>);

impl Resident {
    pub fn new(block: Block) -> Self {
        Self(NonNull::from(Box::leak(Box::new(block))))
    }

    pub fn as_ptr(&self) -> *mut Block {
        self.0.as_ptr()
    }
}

impl Deref for Resident {
    type Target = Block;

    fn deref(&self) -> &Block {
        // SAFETY: alive until dropped; no thread of it holds a reference while the scheduler uses one.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for Resident {
    fn deref_mut(&mut self) -> &mut Block {
        // SAFETY: as above.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // SAFETY: from a box, which nothing else frees; its threads do not run any more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Block {
    /// The warps of a block of this many threads, all ready.
    pub fn warps(threads: u32) -> Vec<Warp> {
        let lanes =
            |first: u32| if threads - first >= WARP { u32::MAX } else { (1 << (threads - first)) - 1 };
        (0..threads)
            .step_by(WARP as usize)
            .map(|first| Warp {
                ready: lanes(first),
                returned: !lanes(first),
                open: Vec::new(),
                results: [0; WARP as usize],
                stacks: [0; WARP as usize],
            })
            .collect()
    }

    pub fn can_run(&self) -> bool {
        self.ready_warps != 0
    }

    pub fn wake(&mut self, thread: u32, result: u64) {
        self.warps[(thread / WARP) as usize].results[(thread % WARP) as usize] = result;
        self.wake_lanes((thread / WARP) as usize, 1 << (thread % WARP));
    }

    /// Wakes lanes whose results are in place.
    pub fn wake_lanes(&mut self, warp: usize, lanes: u32) {
        self.warps[warp].ready |= lanes;
        if lanes != 0 {
            self.ready_warps |= 1 << warp;
        }
    }

    pub fn park(&mut self, thread: u32, state: State) {
        self.threads[thread as usize].state = state;
        let warp = (thread / WARP) as usize;
        self.warps[warp].ready &= !(1 << (thread % WARP));
        if self.warps[warp].ready == 0 {
            self.ready_warps &= !(1 << warp);
        }
    }

    /// What a thread waits for now.
    pub fn state(&self, thread: u32) -> State {
        if self.warps[(thread / WARP) as usize].ready >> (thread % WARP) & 1 != 0 {
            return State::Ready;
        }
        self.threads[thread as usize].state
    }

    /// Takes a thread that has returned off; an error if its warp waits for it.
    pub fn retire(&mut self, thread: u32) -> Result<(), String> {
        self.park(thread, State::Done);
        self.live -= 1;
        let warp = &mut self.warps[(thread / WARP) as usize];
        let lane = thread % WARP;
        warp.returned |= 1 << lane;
        match warp.open.iter().find(|open| open.mask >> lane & 1 != 0) {
            None => Ok(()),
            Some(open) => Err(format!("lane {lane} has returned, while its warp is at {open}")),
        }
    }

    /// Ends the mbarrier's phase if nothing is missing, and wakes who waits for it; true if so.
    pub fn complete_phase(&mut self, offset: u32) -> bool {
        let Some(mbarrier) = self.mbarriers.get_mut(&offset).filter(|mbarrier| mbarrier.is_complete()) else {
            return false;
        };
        for thread in mbarrier.next_phase() {
            self.wake(thread, 0);
        }
        true
    }
}
