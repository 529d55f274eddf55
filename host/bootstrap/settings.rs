//! What a process has to know to find the others.

use super::clock::DAY;
use super::{MAX_PROCESSES, MESSAGE_BYTES};
use crate::Error;
use std::fmt;
use std::time::Duration;

/// Fewer bytes can be found by trying.
const MIN_SECRET: usize = 16;
/// So that sizes of frames fit 32 bits, with room to spare.
const MAX_MESSAGE: u32 = 1 << 30;

/// What the processes of a group know and nobody else. It is what keeps others out, so it should be random, and new for
/// each group: 32 bytes of `/dev/urandom`, say. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// These bytes; at least 16, which is checked when they are used.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// The settings of a [`TcpRendezvous`](super::TcpRendezvous). All but `process` and `timeout` are the same in all
/// processes.
///
/// ```
/// use tokenrail::bootstrap::{Rendezvous, Secret};
/// let settings = Rendezvous::new("node0:29400", 3, 16, Secret::new("no longer a secret, as it is in a manual"));
/// settings.check()?;
/// let unsafe_one = Rendezvous { secret: Secret::new(""), ..settings };
/// assert_eq!(unsafe_one.check().unwrap_err().to_string(), "rendezvous.secret = 0 bytes: must be at least 16 bytes");
/// # Ok::<(), tokenrail::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rendezvous {
    /// Where process 0 listens, and the others find it: `host:port`, an IPv6 address in brackets.
    pub address: String,
    /// This process's number.
    pub process: u32,
    /// Processes in the group, at most 1024.
    pub processes: u32,
    /// What all of them know and nobody else.
    pub secret: Secret,
    /// For how long to wait until all have come. Later calls have timeouts of their own.
    pub timeout: Duration,
    /// The largest entry of an all-gather. Room for it is made only for who knows the secret.
    pub message_bytes: u32,
}

fn refuse(field: &'static str, value: impl fmt::Display, limit: impl Into<String>) -> Error {
    Error::Config { field, value: value.to_string(), limit: limit.into() }
}

impl Rendezvous {
    /// Two minutes for all to come, entries of at most 4 MiB.
    pub fn new(address: impl Into<String>, process: u32, processes: u32, secret: Secret) -> Self {
        Self {
            address: address.into(),
            process,
            processes,
            secret,
            timeout: Duration::from_secs(120),
            message_bytes: MESSAGE_BYTES,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Config`] with the first that is not possible.
    pub fn check(&self) -> Result<(), Error> {
        self.check_all_but_address()?;
        let port = self.address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        match port.and_then(|(_, port)| port.parse::<u16>().ok()) {
            None => Err(refuse("rendezvous.address", &self.address, "must be host:port")),
            Some(0) => {
                let limit = "must name a port that the others know; to have the system choose it, see TcpRendezvous::host";
                Err(refuse("rendezvous.address", &self.address, limit))
            }
            Some(_) => Ok(()),
        }
    }

    /// What is left to check where there is a listener already.
    pub(super) fn check_all_but_address(&self) -> Result<(), Error> {
        check_process(self.process, self.processes, ["rendezvous.process", "rendezvous.processes"])?;
        let secret = self.secret.bytes().len();
        if secret < MIN_SECRET {
            let limit = format!("must be at least {MIN_SECRET} bytes");
            return Err(refuse("rendezvous.secret", format_args!("{secret} bytes"), limit));
        }
        if self.timeout.is_zero() || self.timeout > DAY {
            let value = format!("{:?}", self.timeout);
            return Err(refuse("rendezvous.timeout", value, "must be above 0 and at most a day"));
        }
        check_message_bytes("rendezvous.message_bytes", self.message_bytes)
    }
}

pub(super) fn check_process(process: u32, processes: u32, fields: [&'static str; 2]) -> Result<(), Error> {
    if processes == 0 || processes > MAX_PROCESSES {
        return Err(refuse(fields[1], processes, format!("must be 1 to {MAX_PROCESSES}")));
    }
    if process >= processes {
        return Err(refuse(fields[0], process, format!("must be below processes = {processes}")));
    }
    Ok(())
}

pub(super) fn check_message_bytes(field: &'static str, bytes: u32) -> Result<(), Error> {
    if bytes == 0 || bytes > MAX_MESSAGE {
        return Err(refuse(field, bytes, format!("must be 1 to {MAX_MESSAGE}")));
    }
    Ok(())
}
