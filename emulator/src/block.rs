//! A running block: its threads, their state, and its shared memory.

use crate::bulk::Groups;
use crate::collective::{Barrier, Collective, Mbarrier};
use crate::memory;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};
use std::collections::BTreeMap;

pub const WARP: u32 = 32;
/// Barriers of a block that have numbers.
pub const BARRIERS: usize = 16;
/// Offset of dynamic shared memory: 0 is never valid.
pub const SHARED_BASE: u32 = 1024;

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can run.
    Ready,
    /// At the block's barrier of this number.
    Barrier(u32),
    /// In a warp collective.
    Collective,
    /// Waits for the mbarrier at this offset to complete the phase of this parity.
    Mbarrier(u32, u32),
    /// Waits for its bulk stores: at most `pending` groups left, only their reads if so told.
    Bulk { pending: usize, read_only: bool },
    /// Waits for the word at this address to be at least this, until this time.
    Word { address: u64, at_least: u64, deadline_ns: u64 },
    /// It has returned.
    Done,
}

pub struct Thread {
    pub state: State,
    pub coroutine: Option<Coroutine<(), (), (), DefaultStack>>,
    /// The coroutine's way back to the engine; null before its first step.
    pub yielder: *const Yielder<(), ()>,
    /// What the operation that it waited in gives.
    pub result: u64,
    pub groups: Groups,
}

pub struct Block {
    pub grid: usize,
    pub index: u32,
    pub threads: Vec<Thread>,
    /// By warp: which lanes can run.
    pub ready: Vec<u32>,
    /// By warp: collectives under way, with disjoint masks.
    pub collectives: Vec<Vec<Collective>>,
    pub barriers: [Barrier; BARRIERS],
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    pub shared: memory::Block,
    pub shared_bytes: usize,
    /// Threads that have not returned.
    pub live: u32,
    /// Bulk copies that still use its shared memory.
    pub copies: u32,
    /// Its place in the list of blocks that can run, if it is there.
    pub listed: Option<usize>,
}

impl Block {
    pub fn can_run(&self) -> bool {
        self.ready.iter().any(|&lanes| lanes != 0)
    }

    pub fn wake(&mut self, thread: u32, result: u64) {
        let state = &mut self.threads[thread as usize];
        state.state = State::Ready;
        state.result = result;
        self.ready[(thread / WARP) as usize] |= 1 << (thread % WARP);
    }

    pub fn park(&mut self, thread: u32, state: State) {
        self.threads[thread as usize].state = state;
        self.ready[(thread / WARP) as usize] &= !(1 << (thread % WARP));
    }

    /// Threads of `warp` that have returned.
    pub fn exited(&self, warp: u32) -> u32 {
        let lanes = &self.threads[(warp * WARP) as usize..][..WARP as usize];
        lanes.iter().rev().fold(0, |mask, lane| mask << 1 | u32::from(lane.state == State::Done))
    }
}
