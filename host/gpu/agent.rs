//! What works beside the streams of a rank: agents, such as the proxy that serves the ring of commands.

use crate::Error;
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use tokenrail_emulator::Outlook;

/// Works a bit at a time, without blocking.
pub trait Agent: Send {
    /// Does what there is to do. `now_ns` is a clock that all agents in a process share.
    fn step(&mut self, now_ns: u64) -> Outlook;
}

/// An agent that runs, until this is dropped.
pub struct Running {
    _kept: Box<dyn Any + Send + Sync>,
}

impl Running {
    pub fn new(kept: impl Any + Send + Sync) -> Self {
        Self { _kept: Box::new(kept) }
    }
}

/// How a thread runs an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadOptions {
    /// The core that it stays on.
    pub core: Option<usize>,
}

/// How long an agent without work looks again at once.
const EAGER: Duration = Duration::from_millis(2);
/// How long it looks away after that.
const NAP: Duration = Duration::from_micros(20);
/// Steps without work between two looks at the clock, and at whether to stop.
const STEPS_PER_LOOK: u32 = 64;

struct Worker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has said so itself.
            let _ = thread.join();
        }
    }
}

/// Runs an agent on a thread of its own.
///
/// # Errors
/// [`Error::Unavailable`] if the thread cannot be started or put on its core.
pub fn on_thread(name: String, options: ThreadOptions, mut agent: Box<dyn Agent>) -> Result<Running, Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let unavailable = |why: String| Error::Unavailable { what: format!("a thread for {name}"), why };
    let core =
        match options.core {
            None => None,
            Some(index) => {
                let cores = core_affinity::get_core_ids().unwrap_or_default();
                let known = cores.iter().map(|core| core.id).collect::<Vec<_>>();
                let core = cores.into_iter().find(|core| core.id == index);
                Some(core.ok_or_else(|| {
                    unavailable(format!("core {index} is not one of this process's {known:?}"))
                })?)
            }
        };
    let work = move || {
        if let Some(core) = core {
            // It is one that this process may use; without it the agent is slower, and no less right.
            core_affinity::set_for_current(core);
        }
        let mut last_worked = Instant::now();
        let mut idle = 0;
        loop {
            if agent.step(now_ns()) == Outlook::Worked {
                idle = 0;
            } else {
                idle += 1;
                std::hint::spin_loop();
            }
            // Also now and then under load: it never ends by itself.
            if idle == 0 || idle % STEPS_PER_LOOK == 0 {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let now = Instant::now();
                if idle == 0 {
                    last_worked = now;
                } else if now.duration_since(last_worked) > EAGER {
                    std::thread::sleep(NAP);
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
    let thread = thread.map_err(|error| unavailable(error.to_string()))?;
    Ok(Running::new(Worker { stop, thread: Some(thread) }))
}

/// The clock that agents of a process share.
pub fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
