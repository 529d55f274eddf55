//! Who the ranks are, and how they meet on the host.

use crate::gpu::{Backend, Gpu};
use crate::{Error, config::Config};
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Makes the ranks of an exchange.
pub struct Group;

/// One rank: its number, its GPU, and its way to the others. Give each to the thread that is to be that rank.
pub struct Member {
    rank: u32,
    ranks: u32,
    gpu: Gpu,
    board: Arc<Board>,
}

/// Where the ranks of one process put what they tell each other.
struct Board {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each rank has put up for the meeting in progress.
    slots: Vec<Option<Box<dyn Any + Send>>>,
    /// Ranks that have not taken the result yet; a new meeting begins when all have.
    readers: usize,
    full: bool,
}

impl Group {
    /// `ranks` ranks in this process, each to be run by a thread of its own, spread over the backend's devices in
    /// turn. Devices may be shared by several ranks.
    ///
    /// # Errors
    /// [`Error::Config`] for a number of ranks that is not possible; [`Error::Unavailable`] or [`Error::NoPeerAccess`]
    /// for what the machine does not have.
    pub fn in_process(ranks: u32, backend: &Backend) -> Result<Vec<Member>, Error> {
        Self::on_nodes(ranks, ranks, backend)
    }

    /// The same, with the first `ranks_per_node` ranks on one node, the next on another, and so on: only ranks of a node
    /// have to reach each other's memory. For exchanges with [`Config::internode`].
    ///
    /// # Errors
    /// As [`Group::in_process`]; [`Error::Config`] for a number of ranks of a node that is not possible.
    pub fn on_nodes(ranks: u32, ranks_per_node: u32, backend: &Backend) -> Result<Vec<Member>, Error> {
        // Any other settings do: it is the number of ranks that is to be checked before devices are opened.
        Config { ranks_per_node: Some(ranks_per_node), ..Config::new(1, 1, 16, 1) }.shape(ranks)?;
        let state = State { slots: (0..ranks).map(|_| None).collect(), ..State::default() };
        let board = Arc::new(Board { state: Mutex::new(state) });
        let gpus = backend.open(ranks, ranks_per_node)?;
        Ok((0..ranks)
            .zip(gpus)
            .map(|(rank, gpu)| Member { rank, ranks, gpu, board: board.clone() })
            .collect())
    }
}

impl Member {
    /// This rank's number.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks in the group.
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// This rank's GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Gives every rank what each has put up, in rank order. All ranks must call it, with the same type.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when a rank does not come within `timeout`.
    pub fn all_gather<T>(&self, value: T, place: &'static str, timeout: Duration) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        let late = || Error::Rendezvous { rank: self.rank, place, waited: timeout };
        self.wait(timeout, |state| !state.full).ok_or_else(late)?;
        self.board.change(|state| {
            state.slots[self.rank as usize] = Some(Box::new(value));
            if state.slots.iter().all(Option::is_some) {
                state.full = true;
                state.readers = self.ranks as usize;
            }
        });
        self.gpu.notify();
        self.wait(timeout, |state| state.full).ok_or_else(late)?;
        let values = self.board.change(|state| {
            let values =
                state.slots.iter().flatten().filter_map(|slot| slot.downcast_ref::<T>().cloned()).collect();
            state.readers -= 1;
            if state.readers == 0 {
                state.full = false;
                state.slots.iter_mut().for_each(|slot| *slot = None);
            }
            values
        });
        self.gpu.notify();
        Ok(values)
    }

    /// Waits on the host, in the way that the backend needs, until `ready` holds.
    fn wait(&self, timeout: Duration, ready: impl Fn(&State) -> bool + Send + Sync + 'static) -> Option<()> {
        let board = self.board.clone();
        let ready = Arc::new(move || ready(&board.state.lock().unwrap_or_else(PoisonError::into_inner)));
        self.gpu.wait_host(ready, timeout).then_some(())
    }
}

impl Board {
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        // A rank that panicked elsewhere has left the state whole: every change is one call of this.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
