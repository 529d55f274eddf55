//! From names to addresses.

use super::clock::Deadline;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;

/// Addresses of a name. The system may take longer than there is time, so a thread asks; when nobody waits any more, it
/// ends with the system's answer.
pub(super) fn resolve(address: &str, deadline: &Deadline) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (answer, answers) = mpsc::channel();
    let name = address.to_owned();
    std::thread::Builder::new().name("tokenrail-resolve".to_owned()).spawn(move || {
        let _ = answer.send(name.to_socket_addrs().map(Iterator::collect));
    })?;
    answers.recv_timeout(deadline.left()).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}
