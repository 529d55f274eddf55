//! The rules of a capture, the same on every backend: which streams are part of it, and whether all of them are joined
//! back when it ends.
//!
//! The driver has these rules too, but answers a mistake by spoiling the capture; and the emulator has no driver.

use super::device::Replay;
use super::stream::Line;
use crate::Error;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A capture: under way, or ended.
#[derive(Default)]
pub struct Capture(Mutex<State>);

#[derive(Default)]
struct State {
    ended: bool,
    /// The streams that are part of it, the one that began it first. Kept alive until it ends: the driver may not
    /// destroy them before.
    members: Vec<Member>,
}

struct Member {
    line: Arc<Line>,
    clock: Clock,
}

/// By member: how many pieces of its work come before. Members that came later are missing, and count as 0.
#[derive(Clone, Default)]
struct Clock(Vec<u64>);

/// What an event that was recorded in a capture stands for.
pub struct Stamp {
    capture: Arc<Capture>,
    clock: Clock,
}

/// A capture that is under way. Ends it when dropped, as a panic may do.
pub struct Under {
    capture: Option<Arc<Capture>>,
}

thread_local! {
    /// Captures that the thread is in.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// An error while the calling thread is in a capture.
pub fn outside(call: &'static str) -> Result<(), Error> {
    let why = "it would happen now, and not when the graph is launched";
    if DEPTH.get() == 0 { Ok(()) } else { Err(Error::Capture { call, why }) }
}

/// Begins a capture on `line`.
pub fn begin(line: &Arc<Line>) -> Result<Under, Error> {
    line.runs("a capture")?;
    line.queue.begin_capture()?;
    let capture = Arc::new(Capture::default());
    capture.state().members.push(Member { line: line.clone(), clock: Clock(vec![0]) });
    line.set_capture(Some(capture.clone()));
    DEPTH.set(DEPTH.get() + 1);
    Ok(Under { capture: Some(capture) })
}

impl Under {
    /// Ends it, whatever it gives.
    pub fn end(mut self) -> Result<Box<dyn Replay>, Error> {
        self.finish().unwrap_or_else(|| Err(Error::Capture { call: "a capture", why: "it has ended" }))
    }

    fn finish(&mut self) -> Option<Result<Box<dyn Replay>, Error>> {
        let capture = self.capture.take()?;
        DEPTH.set(DEPTH.get() - 1);
        Some(capture.end())
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = self.finish();
    }
}

impl Clock {
    fn at(&self, member: usize) -> u64 {
        self.0.get(member).copied().unwrap_or(0)
    }

    fn add_one(&mut self, member: usize) {
        self.0.resize(self.0.len().max(member + 1), 0);
        self.0[member] += 1;
    }

    /// What comes after both.
    fn merge(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(own, &other)| *own = (*own).max(other));
    }
}

impl State {
    fn place(&self, line: &Line) -> Option<usize> {
        self.members.iter().position(|member| std::ptr::eq(&*member.line, line))
    }

    /// Whether the first member comes after all work.
    fn is_joined(&self) -> bool {
        let last =
            |(place, member): (usize, &Member)| member.clock.at(place) <= self.members[0].clock.at(place);
        self.members.iter().enumerate().all(last)
    }
}

impl Capture {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member was given a piece of work.
    pub fn issued(&self, line: &Line) {
        let mut state = self.state();
        if let Some(place) = state.place(line) {
            state.members[place].clock.add_one(place);
        }
    }

    /// What an event that a member records now stands for.
    pub fn stamp(self: &Arc<Self>, line: &Line) -> Stamp {
        let state = self.state();
        let clock = state.place(line).map(|place| state.members[place].clock.clone()).unwrap_or_default();
        Stamp { capture: self.clone(), clock }
    }

    /// A member is to wait for an event with `stamp`, by means of `wait`.
    pub fn wait(
        self: &Arc<Self>,
        line: &Line,
        stamp: Option<&Stamp>,
        wait: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(stamp) = stamp.filter(|stamp| Arc::ptr_eq(&stamp.capture, self)) else {
            let why = "the stream is being captured, and the event was recorded outside this capture";
            return Err(Error::Capture { call: "waiting for an event", why });
        };
        wait()?;
        let mut state = self.state();
        if let Some(place) = state.place(line) {
            state.members[place].clock.merge(&stamp.clock);
        }
        Ok(())
    }

    fn end(&self) -> Result<Box<dyn Replay>, Error> {
        let mut state = self.state();
        state.ended = true;
        let joined = state.is_joined();
        let replay = state.members[0].line.queue.end_capture();
        let members = std::mem::take(&mut state.members);
        // Streams go without the lock.
        drop(state);
        for Member { line, .. } in members {
            line.queue.leave_capture();
            line.set_capture(None);
        }
        if joined {
            return replay;
        }
        let why = "a stream that has joined it was not joined back: record an event there, and wait for it on the \
                   stream that is captured";
        Err(Error::Capture { call: "a capture", why })
    }
}

impl Stamp {
    /// A stream outside is to wait for the event, by means of `wait`, and becomes part of the capture.
    pub fn join(&self, line: &Arc<Line>, wait: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let refuse = |why| Err(Error::Capture { call: "waiting for an event", why });
        let mut state = self.capture.state();
        if state.ended {
            return refuse("it was recorded in a capture that has ended, and never comes by itself");
        }
        let origin = &state.members[0].line;
        if !Arc::ptr_eq(&origin.core, &line.core) {
            return refuse("it was recorded in a capture of another GPU, and a graph is of one GPU");
        }
        line.queue.join_capture(&*origin.queue);
        wait().inspect_err(|_| line.queue.leave_capture())?;
        let place = state.members.len();
        let mut clock = self.clock.clone();
        // Having joined has to be joined back, too.
        clock.add_one(place);
        state.members.push(Member { line: line.clone(), clock });
        line.set_capture(Some(self.capture.clone()));
        Ok(())
    }
}
