//! Who the ranks are, and how they meet on the host.

mod world;

use crate::bootstrap::{Bootstrap, Cause};
use crate::gpu::{Backend, Gpu};
use crate::{Error, config::Config};
use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use world::World;

pub(crate) use world::{pack, unpack};

/// Makes the ranks of an exchange.
pub struct Group;

/// One rank: its number, its GPU, and its way to the others. Give each to the thread that is to be that rank.
pub struct Member {
    rank: u32,
    ranks: u32,
    ranks_per_node: u32,
    gpu: Gpu,
    board: Arc<Board>,
    /// With ranks in other processes.
    world: Option<Arc<World>>,
}

/// Where the ranks of one process put what they tell each other.
struct Board {
    state: Mutex<State>,
    /// The first of them.
    first: u32,
    ranks: u32,
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
        check(ranks, ranks_per_node)?;
        members(backend, (0, ranks), ranks, ranks_per_node, None)
    }

    /// The ranks of this process, `ranks_of_process` of them as in every other process of the group: process p has those
    /// from p · `ranks_of_process` on. They are a node. For exchanges with [`Config::internode`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tokenrail::bootstrap::Alone;
    /// use tokenrail::{Backend, Group};
    ///
    /// // One process is all there is here; others would come together by `bootstrap::TcpRendezvous`.
    /// let members = Group::spanning(Arc::new(Alone), 2, &Backend::emulator(0))?;
    /// assert_eq!((members.len(), members[1].rank(), members[1].ranks()), (2, 1, 2));
    /// # Ok::<(), tokenrail::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Group::in_process`]; [`Error::Bootstrap`] if the processes do not come together, [`Error::Disagreement`] if
    /// they are given different numbers of ranks.
    pub fn spanning(
        bootstrap: Arc<dyn Bootstrap>,
        ranks_of_process: u32,
        backend: &Backend,
    ) -> Result<Vec<Member>, Error> {
        let (process, processes) = (bootstrap.process(), bootstrap.processes());
        let all = bootstrap.all_gather(&ranks_of_process.to_le_bytes(), "the numbers of ranks", PATIENCE)?;
        for (rank, theirs) in (0..).zip(&all) {
            if theirs[..] != ranks_of_process.to_le_bytes() {
                let theirs = theirs
                    .first_chunk()
                    .map_or("none".into(), |bytes| u32::from_le_bytes(*bytes).to_string());
                let (field, own_rank, ours) = ("ranks of a process", process, ranks_of_process.to_string());
                return Err(Error::Disagreement { field, rank, theirs, own_rank, ours });
            }
        }
        check(ranks_of_process.saturating_mul(processes), ranks_of_process)?;
        let world = World::new(bootstrap, ranks_of_process);
        let (first, ranks) = (world.first_rank(), world.ranks());
        members(backend, (first, ranks_of_process), ranks, ranks_of_process, Some(Arc::new(world)))
    }
}

/// How long processes wait for each other to say how many ranks they have.
const PATIENCE: Duration = Duration::from_secs(30);

/// It is the numbers of ranks that are to be checked before devices are opened: any other settings do.
fn check(ranks: u32, ranks_per_node: u32) -> Result<(), Error> {
    Config { ranks_per_node: Some(ranks_per_node), ..Config::new(1, 1, 16, 1) }.shape(ranks).map(drop)
}

fn members(
    backend: &Backend,
    (first, here): (u32, u32),
    ranks: u32,
    ranks_per_node: u32,
    world: Option<Arc<World>>,
) -> Result<Vec<Member>, Error> {
    let state = State { slots: (0..here).map(|_| None).collect(), ..State::default() };
    let board = Arc::new(Board { state: Mutex::new(state), first, ranks: here });
    let gpus = backend.open(here, ranks_per_node)?;
    let member =
        |(rank, gpu)| Member { rank, ranks, ranks_per_node, gpu, board: board.clone(), world: world.clone() };
    Ok((first..).zip(gpus).map(member).collect())
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

    /// Ranks of each node.
    pub fn ranks_per_node(&self) -> u32 {
        self.ranks_per_node
    }

    /// Whether there are several nodes.
    pub(crate) fn is_on_nodes(&self) -> bool {
        self.ranks_per_node < self.ranks
    }

    /// Whether some ranks are in other processes.
    pub(crate) fn is_spanning(&self) -> bool {
        self.world.as_ref().is_some_and(|world| world.ranks() > self.board.ranks)
    }

    /// This rank's GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Gives every rank what each has put up, in rank order. All ranks must call it, with the same type. Where ranks are
    /// in several processes only bytes can be exchanged: [`Member::all_gather_bytes`].
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when a rank does not come within `timeout`; [`Error::Unavailable`] with ranks in other
    /// processes.
    pub fn all_gather<T>(&self, value: T, place: &'static str, timeout: Duration) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        if self.world.is_some() {
            let what = format!("an exchange of values for {place}");
            let why = "ranks are in several processes: they can exchange bytes, with all_gather_bytes".into();
            return Err(Error::Unavailable { what, why });
        }
        self.gather_here(value, place, timeout)
    }

    /// Gives every rank the bytes that each has put up, in rank order, whichever processes they are in. All ranks must call
    /// it.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when a rank of this process does not come within `timeout`; [`Error::Bootstrap`] if another
    /// process does not, or something is wrong with it; [`Error::Argument`] if there are too many bytes.
    pub fn all_gather_bytes(
        &self,
        bytes: Vec<u8>,
        place: &'static str,
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let here = self.gather_here(bytes, place, timeout)?;
        let Some(world) = &self.world else { return Ok(here) };
        // One rank speaks for the process, and tells the others.
        let speaks = self.rank == self.board.first;
        let told = speaks.then(|| world.all_gather(&here, place, timeout)).transpose();
        let (told, error) = match told {
            Ok(told) => (told.map(|told| Ok(Arc::new(told))), None),
            Err(Error::Bootstrap { process, place, cause }) => {
                (Some(Err((process, cause.clone()))), Some(Error::Bootstrap { process, place, cause }))
            }
            Err(error) => {
                let cause = Cause::Given(error.to_string());
                (Some(Err((self.rank, cause))), Some(error))
            }
        };
        // The others may still wait for the processes when this rank's timeout is over.
        let answers = self.gather_here(told, place, 2 * timeout)?;
        if let Some(error) = error {
            return Err(error);
        }
        match answers.into_iter().flatten().next() {
            Some(Ok(entries)) => Ok(Arc::unwrap_or_clone(entries)),
            Some(Err((process, cause))) => Err(Error::Bootstrap { process, place, cause }),
            None => Err(Error::Rendezvous { rank: self.rank, place, waited: timeout }),
        }
    }

    /// Gives the ranks of a node what each of them has put up, in rank order. All ranks must call it, with the same type.
    pub(crate) fn gather_near<T>(
        &self,
        value: T,
        place: &'static str,
        timeout: Duration,
    ) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        // A process has whole nodes.
        let here = self.gather_here(value, place, timeout)?;
        let first = self.rank - self.rank % self.ranks_per_node - self.board.first;
        Ok(here.into_iter().skip(first as usize).take(self.ranks_per_node as usize).collect())
    }

    /// Among the ranks of this process.
    fn gather_here<T>(&self, value: T, place: &'static str, timeout: Duration) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        let late = || Error::Rendezvous { rank: self.rank, place, waited: timeout };
        self.wait(timeout, |state| !state.full).ok_or_else(late)?;
        self.board.change(|state| {
            state.slots[(self.rank - self.board.first) as usize] = Some(Box::new(value));
            if state.slots.iter().all(Option::is_some) {
                state.full = true;
                state.readers = self.board.ranks as usize;
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
