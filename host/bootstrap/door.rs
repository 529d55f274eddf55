//! Where processes come in: process 0's side of handshakes, many at a time, on one thread.

use super::Cause;
use super::handshake::{HELLO, Hello, PROOF, Terms, Transcript, Verdict};
use super::mac::{Key, nonce};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Who does not prove itself within this time has to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that have not proved themselves, at once.
const ROOM: usize = 128;
/// When there is no room, the oldest goes after this time: who only comes to be silent keeps nobody out for longer.
const PATIENCE_IF_FULL: Duration = Duration::from_millis(200);

pub(super) struct Door {
    listener: TcpListener,
    key: Key,
    terms: Terms,
    /// The oldest first.
    visitors: VecDeque<Visitor>,
    /// Connections that said something other than they should have.
    refused: u32,
}

/// A connection that has not proved itself. It takes this much memory and no more.
struct Visitor {
    stream: TcpStream,
    since: Instant,
    bytes: [u8; HELLO],
    filled: usize,
    /// What it said and was answered, when it has said hello.
    said: Option<(Hello, Transcript)>,
}

/// A process that has proved itself.
pub(super) struct Guest {
    pub process: u32,
    pub stream: TcpStream,
    pub session: Key,
}

/// What became of a visitor.
enum Visit {
    Goes(bool),
    Ends,
    Refused,
    Proved,
}

impl Door {
    pub fn new(listener: TcpListener, key: Key, terms: Terms) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, key, terms, visitors: VecDeque::new(), refused: 0 })
    }

    pub fn refused(&self) -> u32 {
        self.refused
    }

    /// Goes on with all handshakes; says whether anything has moved, and brings the next process that has proved itself.
    ///
    /// # Errors
    /// Why a process that knows the secret cannot be taken. Whatever others do is no error.
    pub fn look(&mut self, is_taken: impl Fn(u32) -> bool) -> Result<(bool, Option<Guest>), Cause> {
        let mut has_moved = self.let_in();
        let mut index = 0;
        while let Some(visitor) = self.visitors.get_mut(index) {
            match visitor.go_on(&self.key, &self.terms)? {
                Visit::Goes(moved) => {
                    has_moved |= moved;
                    index += 1;
                    continue;
                }
                Visit::Ends => drop(self.visitors.remove(index)),
                Visit::Refused => {
                    self.refused = self.refused.saturating_add(1);
                    self.visitors.remove(index);
                }
                Visit::Proved => {
                    let Some(visitor) = self.visitors.remove(index) else { break };
                    if let Some(guest) = self.judge(visitor, &is_taken)? {
                        return Ok((true, Some(guest)));
                    }
                }
            }
            has_moved = true;
        }
        Ok((has_moved, None))
    }

    fn let_in(&mut self) -> bool {
        let mut has_moved = false;
        loop {
            let oldest = self.visitors.front().map_or(Duration::ZERO, |visitor| visitor.since.elapsed());
            if self.visitors.len() >= ROOM && oldest < PATIENCE_IF_FULL {
                return has_moved;
            }
            // Failures are those of a single connection, or end when others do.
            let Ok((stream, _)) = self.listener.accept() else { return has_moved };
            if self.visitors.len() >= ROOM {
                self.visitors.pop_front();
            }
            has_moved = true;
            if stream.set_nonblocking(true).is_ok() && stream.set_nodelay(true).is_ok() {
                let (since, bytes) = (Instant::now(), [0; HELLO]);
                self.visitors.push_back(Visitor { stream, since, bytes, filled: 0, said: None });
            }
        }
    }

    /// Tells a process that has proved itself whether it is taken. None if it is gone already.
    fn judge(&self, visitor: Visitor, is_taken: impl Fn(u32) -> bool) -> Result<Option<Guest>, Cause> {
        let Visitor { mut stream, said: Some((hello, transcript)), .. } = visitor else { return Ok(None) };
        let process = hello.process;
        let (verdict, cause) = if let Err(cause) = self.terms.agree(&hello.terms, process) {
            (Verdict::OtherTerms, Some(cause))
        } else if process == 0 || process >= self.terms.processes {
            let what = format!("there are {} processes, and process 0 is here", self.terms.processes);
            (Verdict::NoSuchNumber, Some(Cause::OutOfStep { process, what }))
        } else if is_taken(process) {
            (Verdict::Duplicate, Some(Cause::Duplicate { process }))
        } else {
            (Verdict::Welcome, None)
        };
        let is_told = send(&mut stream, &transcript.verdict(&self.key, verdict));
        match cause {
            Some(cause) => Err(cause),
            // It tries again if it is there at all.
            None if !is_told => Ok(None),
            None => Ok(Some(Guest { process, stream, session: transcript.session(&self.key) })),
        }
    }
}

impl Visitor {
    fn go_on(&mut self, key: &Key, terms: &Terms) -> Result<Visit, Cause> {
        let mut has_moved = false;
        loop {
            let needed = if self.said.is_some() { PROOF } else { HELLO };
            match self.stream.read(&mut self.bytes[self.filled..needed]) {
                Ok(0) => return Ok(Visit::Ends),
                Ok(bytes) => self.filled += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let is_late = self.since.elapsed() >= PATIENCE;
                    return Ok(if is_late { Visit::Ends } else { Visit::Goes(has_moved) });
                }
                Err(_) => return Ok(Visit::Ends),
            }
            has_moved = true;
            if self.filled < needed {
                continue;
            }
            self.filled = 0;
            if let Some((_, transcript)) = &self.said {
                let is_proof = transcript.is_proof(key, &self.bytes[..PROOF]);
                return Ok(if is_proof { Visit::Proved } else { Visit::Refused });
            }
            let Some(hello) = Hello::parse(&self.bytes) else { return Ok(Visit::Refused) };
            let transcript = Transcript::new(&hello, terms, &nonce()?);
            if !send(&mut self.stream, &transcript.challenge(key)) {
                return Ok(Visit::Ends);
            }
            self.said = Some((hello, transcript));
        }
    }
}

/// Sends a few bytes at once: a connection that has no room for them has been made for something else.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    matches!(stream.write(bytes), Ok(sent) if sent == bytes.len())
}
