//! What moves beside the devices: NICs, and threads that serve kernels.

use crate::machine::Machine;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something beside the devices that reads and writes their memory. The engine calls it between steps of emulated threads,
/// in an order that is drawn from the seed, so that what it does repeats, too.
pub trait Actor: Send {
    /// Does a bit of its work. It must neither block nor call the machine; it may take locks of its own.
    fn step(&mut self, now_ns: u64) -> Outlook;
}

/// What to expect of an [`Actor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It has done something: memory may have changed, and there may be more to do.
    Worked,
    /// It does nothing before memory changes.
    Quiet,
    /// It does nothing before memory changes or emulated time comes to this.
    At(u64),
    /// Memory may change at any moment of real time. While nothing else can happen, emulated time goes with real time,
    /// and does not jump.
    Open,
}

/// A machine's actors.
#[derive(Default)]
pub struct Actors {
    list: Mutex<Vec<(usize, Box<dyn Actor>)>>,
    /// How many there are, to be looked at without a lock.
    count: AtomicUsize,
    next: AtomicUsize,
}

impl Actors {
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Has one of them, or all, do a bit.
    pub fn step(&self, which: Option<usize>, now_ns: u64) -> Vec<Outlook> {
        let mut list = self.list();
        let all = list.len();
        let chosen = which.map_or(0..all, |one| one % all.max(1)..(one % all.max(1) + 1).min(all));
        list[chosen].iter_mut().map(|(_, actor)| actor.step(now_ns)).collect()
    }

    fn list(&self) -> MutexGuard<'_, Vec<(usize, Box<dyn Actor>)>> {
        // An actor that panicked has left the list whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<(usize, Box<dyn Actor>)>) -> R) -> R {
        let mut list = self.list();
        let result = change(&mut list);
        self.count.store(list.len(), Ordering::Release);
        result
    }
}

/// Keeps an [`Actor`] in its machine.
pub struct Attached {
    machine: Machine,
    id: usize,
}

impl Attached {
    pub(crate) fn new(machine: Machine, actor: Box<dyn Actor>) -> Self {
        let actors = &machine.shared().actors;
        let id = actors.next.fetch_add(1, Ordering::Relaxed);
        actors.change(|list| list.push((id, actor)));
        machine.notify();
        Self { machine, id }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Dropped without the lock: it may hold handles of the machine.
        let _gone = self.machine.shared().actors.change(|list| {
            let place = list.iter().position(|(id, _)| *id == self.id);
            place.map(|place| list.remove(place))
        });
    }
}
