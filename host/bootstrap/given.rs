//! An all-gather that the engine has already.

use super::settings::{check_message_bytes, check_process};
use super::{Bootstrap, Cause, MESSAGE_BYTES, check_entry};
use crate::Error;
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A bootstrap of a caller's own all-gather. What it brings is checked: the number of entries, their sizes, and that
/// this process's own is what it gave.
///
/// The timeout of a call is handed on; that it is kept, and that only the group's processes take part, is up to what was
/// given.
///
/// ```
/// use tokenrail::bootstrap::{Bootstrap, Given};
/// // In earnest this asks MPI, Gloo or a store.
/// let given = Given::new(0, 1, |bytes, _place, _timeout| Ok(vec![bytes.to_vec()]))?;
/// assert_eq!(given.all_gather(b"me", "names", std::time::Duration::from_secs(1))?, [b"me"]);
/// # Ok::<(), tokenrail::Error>(())
/// ```
pub struct Given<F> {
    process: u32,
    processes: u32,
    message_bytes: u32,
    state: Mutex<State<F>>,
}

struct State<F> {
    gather: F,
    failed: Option<String>,
}

impl<F> Given<F>
where
    F: FnMut(&[u8], &'static str, Duration) -> Result<Vec<Vec<u8>>, Failure> + Send,
{
    /// Process `process` of `processes`, with entries of at most 4 MiB.
    ///
    /// # Errors
    /// [`Error::Config`] for numbers that are not possible.
    pub fn new(process: u32, processes: u32, gather: F) -> Result<Self, Error> {
        check_process(process, processes, ["process", "processes"])?;
        let state = Mutex::new(State { gather, failed: None });
        Ok(Self { process, processes, message_bytes: MESSAGE_BYTES, state })
    }

    /// With entries of at most so many bytes.
    ///
    /// # Errors
    /// [`Error::Config`] for 0, and for more than 1 GiB.
    pub fn with_message_bytes(mut self, message_bytes: u32) -> Result<Self, Error> {
        check_message_bytes("message_bytes", message_bytes)?;
        self.message_bytes = message_bytes;
        Ok(self)
    }

    fn check(&self, entries: &[Vec<u8>], own: &[u8]) -> Result<(), String> {
        if entries.len() != self.processes as usize {
            return Err(format!("it brought {} entries of {} processes", entries.len(), self.processes));
        }
        let limit = self.message_bytes as usize;
        if let Some((process, entry)) = entries.iter().enumerate().find(|(_, entry)| entry.len() > limit) {
            let bytes = entry.len();
            return Err(format!("entry {process} has {bytes} bytes, but message_bytes = {limit}"));
        }
        if entries[self.process as usize] != own {
            return Err(format!("entry {} is not what this process gave", self.process));
        }
        Ok(())
    }
}

impl<F> Bootstrap for Given<F>
where
    F: FnMut(&[u8], &'static str, Duration) -> Result<Vec<Vec<u8>>, Failure> + Send,
{
    fn process(&self) -> u32 {
        self.process
    }

    fn processes(&self) -> u32 {
        self.processes
    }

    fn all_gather(
        &self,
        bytes: &[u8],
        place: &'static str,
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        check_entry(bytes, self.message_bytes)?;
        let fail = |cause| Error::Bootstrap { process: self.process, place, cause };
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(fail(Cause::Busy)),
        };
        if let Some(failed) = &state.failed {
            return Err(fail(Cause::Earlier(failed.clone())));
        }
        // Stays so if the closure panics.
        state.failed = Some("it did not return".to_owned());
        let entries = (state.gather)(bytes, place, timeout).map_err(|failure| failure.to_string());
        match entries.and_then(|entries| self.check(&entries, bytes).map(|()| entries)) {
            Ok(entries) => {
                state.failed = None;
                Ok(entries)
            }
            Err(what) => {
                let cause = Cause::Given(what);
                state.failed = Some(cause.to_string());
                Err(fail(cause))
            }
        }
    }
}
