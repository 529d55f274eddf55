//! The rendezvous over TCP.

use super::address::resolve;
use super::clock::Deadline;
use super::door::Door;
use super::handshake::{Terms, VERSION};
use super::hub::Hub;
use super::mac::Key;
use super::spoke::Spoke;
use super::{Bootstrap, Cause, Rendezvous, check_entry};
use crate::Error;
use std::io;
use std::net::TcpListener;
use std::sync::{Mutex, TryLockError};
use std::time::Duration;

/// What the first meeting is for.
const PLACE: &str = "the rendezvous";

/// A bootstrap over TCP: process 0 listens, the others connect to it, and all that they exchange goes through it.
///
/// **Who may take part.** Both ends of a connection prove that they know the [`Secret`](super::Secret), by challenge and
/// response with HMAC-SHA256 over nonces of both, their version, settings and numbers; every frame after that has a MAC
/// with a key of this connection, over its direction and place in the order. Who does not know the secret can neither
/// join nor pass for a member, nor change, repeat, leave out, insert or reorder anything unnoticed. Process 0 gives such a
/// connection a few hundred bytes of memory and a few seconds, and has at most 128 of them at a time; when there are more,
/// the oldest goes.
///
/// **What is not protected.** Contents are *not encrypted*: who sees the network can read them. Who can drop packets, or
/// flood process 0's port, can keep the group from forming. Who records a handshake can try secrets on it, so a secret has
/// to be random and not a word.
///
/// **Deadlines** are for whole calls. A process that does not come, or dies, gives every other process that waits an
/// error that names it: process 0 tells them. It goes on to look after connections only while it is in a call, and starts
/// no threads; only where an address is a name, a thread asks for it, and ends when the system has answered.
///
/// The module has an example.
pub struct TcpRendezvous {
    process: u32,
    processes: u32,
    message_bytes: u32,
    state: Mutex<State>,
}

enum State {
    Hub(Hub),
    Spoke(Box<Spoke>),
    /// Why. The connections stay as they are, so that what was said last still arrives.
    Failed(String, #[expect(dead_code, reason = "for its drop")] Option<Box<State>>),
}

impl TcpRendezvous {
    /// Meets the other processes; all call it. Process 0 listens at the settings' address. Who comes and goes again before
    /// all have come ends it for all.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that are not possible, [`Error::Bootstrap`] if the processes do not all come
    /// together within the settings' timeout; [`Cause`] says why.
    pub fn join(settings: &Rendezvous) -> Result<Self, Error> {
        settings.check()?;
        if settings.process != 0 {
            return Self::join_as_spoke(settings);
        }
        let deadline = Deadline::after(settings.timeout);
        let listener = resolve(&settings.address, &deadline)
            .and_then(|addresses| TcpListener::bind(addresses.as_slice()))
            .map_err(|error| unreachable(settings, &error))?;
        Self::join_as_hub(listener, settings, &deadline)
    }

    /// Meets the other processes as process 0, on a listener that there is already, such as one whose port the system has
    /// chosen. The settings' address is not looked at.
    ///
    /// # Errors
    /// Those of [`TcpRendezvous::join`]; [`Error::Config`] if the settings are not those of process 0.
    pub fn host(listener: TcpListener, settings: &Rendezvous) -> Result<Self, Error> {
        settings.check_all_but_address()?;
        if settings.process != 0 {
            let (value, limit) = (settings.process.to_string(), "must be 0: it listens".to_owned());
            return Err(Error::Config { field: "rendezvous.process", value, limit });
        }
        Self::join_as_hub(listener, settings, &Deadline::after(settings.timeout))
    }

    fn join_as_hub(listener: TcpListener, settings: &Rendezvous, deadline: &Deadline) -> Result<Self, Error> {
        let key = Key::new(settings.secret.bytes());
        let door =
            Door::new(listener, key, terms(settings)).map_err(|error| unreachable(settings, &error))?;
        let mut hub = Hub::new(settings.processes, settings.message_bytes);
        hub.gather(Some(door), &[], PLACE, deadline).map_err(|cause| failed(0, PLACE, cause))?;
        Ok(Self::new(settings, State::Hub(hub)))
    }

    fn join_as_spoke(settings: &Rendezvous) -> Result<Self, Error> {
        let deadline = Deadline::after(settings.timeout);
        let key = Key::new(settings.secret.bytes());
        let process = settings.process;
        let spoke = Spoke::connect(&settings.address, process, &terms(settings), &key, &deadline)
            .and_then(|mut spoke| spoke.gather(&[], PLACE, &deadline).map(|_| spoke))
            .map_err(|cause| failed(process, PLACE, cause))?;
        Ok(Self::new(settings, State::Spoke(Box::new(spoke))))
    }

    fn new(settings: &Rendezvous, state: State) -> Self {
        let Rendezvous { process, processes, message_bytes, .. } = *settings;
        Self { process, processes, message_bytes, state: Mutex::new(state) }
    }
}

fn terms(settings: &Rendezvous) -> Terms {
    let Rendezvous { processes, message_bytes, .. } = *settings;
    Terms { version: VERSION, processes, message_bytes }
}

fn failed(process: u32, place: &'static str, cause: Cause) -> Error {
    Error::Bootstrap { process, place, cause }
}

fn unreachable(settings: &Rendezvous, error: &io::Error) -> Error {
    let (address, reason) = (settings.address.clone(), error.to_string());
    failed(0, PLACE, Cause::Unreachable { address, reason })
}

impl Bootstrap for TcpRendezvous {
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
        let deadline = Deadline::after(timeout);
        let fail = |cause| failed(self.process, place, cause);
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(fail(Cause::Busy)),
        };
        // Stays so if this panics: nothing half done is used again.
        let mut used = std::mem::replace(&mut *state, State::Failed("it did not return".to_owned(), None));
        let entries = match &mut used {
            State::Hub(hub) => hub.gather(None, bytes, place, &deadline),
            State::Spoke(spoke) => spoke.gather(bytes, place, &deadline),
            State::Failed(what, _) => {
                let cause = Cause::Earlier(what.clone());
                *state = used;
                return Err(fail(cause));
            }
        };
        *state = match &entries {
            Ok(_) => used,
            Err(cause) => State::Failed(cause.to_string(), Some(Box::new(used))),
        };
        entries.map_err(fail)
    }
}
