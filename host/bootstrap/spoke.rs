//! Any other process: it finds process 0, gives it an entry, and gets all.

use super::Cause;
use super::address::resolve;
use super::clock::{Deadline, Pace};
use super::handshake::{CHALLENGE, Hello, PROOF, Terms, Transcript, VERDICT, Verdict};
use super::link::Link;
use super::mac::{Key, nonce};
use super::message::{Message, place_name};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The longest rest between two attempts to connect.
const REST: Duration = Duration::from_millis(100);
/// The longest wait for one of several addresses of a name.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Spoke {
    process: u32,
    processes: u32,
    message_bytes: u32,
    link: Link,
}

/// Why an attempt to connect came to nothing.
enum Failure {
    /// Another may work.
    Again(String),
    /// None will.
    Final(Cause),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Again(error.to_string())
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::Final(cause)
    }
}

impl Spoke {
    /// Connects to process 0, again and again until it is there.
    ///
    /// # Errors
    /// That it does not come, or why it does not take this process.
    pub fn connect(
        address: &str,
        process: u32,
        terms: &Terms,
        key: &Key,
        deadline: &Deadline,
    ) -> Result<Self, Cause> {
        let mut rest = Duration::from_millis(1);
        loop {
            let attempt = open(address, deadline)
                .map_err(Failure::from)
                .and_then(|stream| shake_hands(stream, process, terms, key, deadline));
            let reason = match attempt {
                Ok(link) => {
                    let Terms { processes, message_bytes, .. } = *terms;
                    return Ok(Self { process, processes, message_bytes, link });
                }
                Err(Failure::Final(cause)) => return Err(cause),
                Err(Failure::Again(reason)) => reason,
            };
            if deadline.has_passed() {
                let reason = format!("{reason}; tried for {:?}", deadline.waited());
                return Err(Cause::Unreachable { address: address.to_owned(), reason });
            }
            std::thread::sleep(rest.min(deadline.left()));
            rest = (2 * rest).min(REST);
        }
    }

    /// Gives process 0 an entry and waits for all. If that fails, it is told.
    ///
    /// # Errors
    /// Who is late, or what went wrong with whom.
    pub fn gather(&mut self, bytes: &[u8], place: &str, deadline: &Deadline) -> Result<Vec<Vec<u8>>, Cause> {
        let message = Message::Gather { entry: bytes.to_vec(), place: place_name(place).to_owned() };
        self.link.put(message);
        self.collect(bytes, deadline).inspect_err(|cause| self.link.abort(cause))
    }

    fn collect(&mut self, own: &[u8], deadline: &Deadline) -> Result<Vec<Vec<u8>>, Cause> {
        let mut entries: Vec<Vec<u8>> = Vec::new();
        // As long as process 0 says nothing, it is missing itself.
        let mut missing = vec![0];
        let mut pace = Pace::default();
        loop {
            let (moved, message) = self.link.receive()?;
            let has_moved = moved | self.link.send()?;
            match message {
                None => {}
                Some(Message::Entry(entry)) if entry.len() <= self.message_bytes as usize => {
                    entries.push(entry);
                }
                Some(Message::Waiting(processes)) => {
                    // It may not have seen this one's entry yet.
                    missing = processes.into_iter().filter(|&process| process != self.process).collect();
                }
                Some(Message::Abort(abort)) => return Err(abort.into_cause(0)),
                Some(_) => return Err(self.link.out_of_step("it sends what is not expected")),
            }
            if entries.len() == self.processes as usize {
                // Entries come when all have given theirs, so this one's was sent.
                return match entries[self.process as usize] == own {
                    true => Ok(entries),
                    false => Err(self.link.out_of_step("it gives back another entry than this process gave")),
                };
            }
            if deadline.has_passed() {
                // If nobody else is missing, or entries have begun to come, it is process 0 that is slow.
                let processes = if missing.is_empty() || !entries.is_empty() { vec![0] } else { missing };
                return Err(Cause::Late { processes, waited: deadline.waited(), refused: 0 });
            }
            pace.rest(has_moved, deadline);
        }
    }
}

/// A connection to one of the addresses of a name.
fn open(address: &str, deadline: &Deadline) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "it has no address");
    for address in resolve(address, deadline)? {
        let wait = ADDRESS_WAIT.min(deadline.left());
        if wait.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, wait) {
            // Where nobody listens, TCP may connect a port of this host with itself, which would then be taken.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                failure = ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn shake_hands(
    mut stream: TcpStream,
    process: u32,
    terms: &Terms,
    key: &Key,
    deadline: &Deadline,
) -> Result<Link, Failure> {
    stream.set_nodelay(true)?;
    let hello = Hello { terms: *terms, process, nonce: nonce()? };
    send(&mut stream, &hello.to_bytes(), deadline)?;
    let challenge: [u8; CHALLENGE] = receive(&mut stream, deadline)?;
    let Some((transcript, theirs)) = Transcript::of_challenge(&hello, &challenge) else {
        return Err(
            Cause::OutOfStep { process: 0, what: "who answers is of another program".to_owned() }.into()
        );
    };
    if !transcript.is_challenge(key, &challenge) {
        // Proves nothing, but process 0 can tell its user that somebody came with another secret.
        let _ = send(&mut stream, &[0; PROOF], deadline);
        return Err(Cause::Secret { process: 0 }.into());
    }
    send(&mut stream, &transcript.proof(key), deadline)?;
    // Only now, so that process 0 knows that it was told by a process that may.
    terms.agree(&theirs, 0)?;
    let verdict: [u8; VERDICT] = receive(&mut stream, deadline)?;
    match transcript.read_verdict(key, &verdict) {
        Some(Verdict::Welcome) => Ok(Link::new(0, stream, transcript.session(key), terms.message_bytes)?),
        Some(Verdict::Duplicate) => Err(Cause::Duplicate { process }.into()),
        Some(Verdict::OtherTerms | Verdict::NoSuchNumber) => {
            Err(Cause::OutOfStep { process: 0, what: "it does not take us".to_owned() }.into())
        }
        None => Err(Cause::Forged { process: 0 }.into()),
    }
}

fn late(deadline: &Deadline) -> Failure {
    Cause::Late { processes: vec![0], waited: deadline.waited(), refused: 0 }.into()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn send(stream: &mut TcpStream, mut bytes: &[u8], deadline: &Deadline) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let left = deadline.left();
        if left.is_zero() {
            return Err(late(deadline));
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive<const N: usize>(stream: &mut TcpStream, deadline: &Deadline) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let left = deadline.left();
        if left.is_zero() {
            return Err(late(deadline));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(Failure::Again("process 0 has closed the connection".to_owned())),
            Ok(more) => filled += more,
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}
