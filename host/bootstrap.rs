//! How the processes that together make one group find each other, on one host or several, and exchange small byte
//! strings on the CPU.
//!
//! A [`Bootstrap`] is one process's end of that. There are three:
//! * [`Alone`], for a group of one process;
//! * [`TcpRendezvous`], where process 0 listens and the others connect, all knowing one secret;
//! * [`Given`], which makes one of an all-gather that the engine has already (MPI's, Gloo's, a store's).
//!
//! ```
//! use std::time::Duration;
//! use tokenrail::bootstrap::{Bootstrap, Rendezvous, Secret, TcpRendezvous};
//!
//! // The system chooses the port here; where it is known beforehand, TcpRendezvous::join does for all processes.
//! let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
//! let address = listener.local_addr().expect("an address").to_string();
//! let settings = |process| Rendezvous::new(&address, process, 2, Secret::new("what only these two processes know"));
//!
//! // Elsewhere:
//! let other = settings(1);
//! let other = std::thread::spawn(move || {
//!     let bootstrap = TcpRendezvous::join(&other)?;
//!     bootstrap.all_gather(b"one", "names", Duration::from_secs(10))
//! });
//!
//! let bootstrap = TcpRendezvous::host(listener, &settings(0))?;
//! let names = bootstrap.all_gather(b"zero", "names", Duration::from_secs(10))?;
//! assert_eq!(names, [&b"zero"[..], b"one"]);
//! assert_eq!(other.join().expect("it does not panic")?, names);
//! # Ok::<(), tokenrail::Error>(())
//! ```

mod address;
mod alone;
mod cause;
mod clock;
mod door;
mod frame;
mod given;
mod handshake;
mod hub;
mod link;
mod mac;
mod message;
mod settings;
mod spoke;
mod tcp;

pub use alone::Alone;
pub use cause::Cause;
pub use given::Given;
pub use settings::{Rendezvous, Secret};
pub use tcp::TcpRendezvous;

use crate::Error;
use std::time::Duration;

/// One process's end of what a group's processes tell each other on the CPU.
pub trait Bootstrap: Send + Sync {
    /// This process's number.
    fn process(&self) -> u32;

    /// Processes in the group.
    fn processes(&self) -> u32;

    /// Gives every process what each has put up: entry p is what process p gave. Blocks until all are there. Every
    /// process calls it, in the same order; `place` says what for, in errors.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] with the [`Cause`]: it names the processes that did not come within `timeout`, or what went
    /// wrong with which process. Every later call fails then, too. [`Error::Argument`] for `bytes` that are too many:
    /// nothing was sent, and the call may be made again.
    fn all_gather(&self, bytes: &[u8], place: &'static str, timeout: Duration)
    -> Result<Vec<Vec<u8>>, Error>;
}

/// Most processes of a group: there are not more ranks.
const MAX_PROCESSES: u32 = 1024;
/// Room for an entry, if nothing else is said.
const MESSAGE_BYTES: u32 = 4 << 20;

/// # Errors
/// [`Error::Argument`] for an entry that is larger than `limit`.
fn check_entry(bytes: &[u8], limit: u32) -> Result<(), Error> {
    if bytes.len() <= limit as usize {
        return Ok(());
    }
    let value = format!("{} bytes", bytes.len());
    Err(Error::Argument { argument: "bytes", value, limit: format!("message_bytes = {limit}") })
}
