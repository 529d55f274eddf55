//! A connection between two processes that have proved themselves.

use super::Cause;
use super::frame::{Arrival, Direction, Fault, Receiver, Sender};
use super::mac::Key;
use super::message::{Abort, EXTRA, Message};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

pub(super) struct Link {
    /// The process at the other end.
    peer: u32,
    stream: TcpStream,
    receiver: Receiver,
    sender: Sender,
}

impl Link {
    /// # Errors
    /// [`Cause::Lost`] if the system does not let go of a connection that does not move.
    pub fn new(peer: u32, stream: TcpStream, session: Key, message_bytes: u32) -> Result<Self, Cause> {
        let lost = |error: io::Error| Cause::Lost { process: peer, reason: error.to_string() };
        stream.set_nonblocking(true).map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let (incoming, outgoing) = match peer {
            0 => (Direction::FromProcess0, Direction::ToProcess0),
            _ => (Direction::ToProcess0, Direction::FromProcess0),
        };
        let receiver = Receiver::new(session.clone(), incoming, message_bytes + EXTRA);
        Ok(Self { peer, stream, receiver, sender: Sender::new(session, outgoing) })
    }

    /// Whether everything was sent.
    pub fn is_idle(&self) -> bool {
        self.sender.is_idle()
    }

    /// Begins to send a message; the one before has been sent.
    pub fn put(&mut self, message: Message) {
        let (kind, bytes) = message.into_frame();
        self.put_frame(kind, Arc::new(bytes));
    }

    pub fn put_frame(&mut self, kind: u8, bytes: Arc<Vec<u8>>) {
        self.sender.put(kind, bytes);
    }

    /// Sends what goes; says whether anything went.
    ///
    /// # Errors
    /// Why the connection is useless: in the other end's words, if it has said so before.
    pub fn send(&mut self) -> Result<bool, Cause> {
        self.sender.write(&mut self.stream).map_err(|error| {
            // Nothing of what else may have come counts any more.
            while let Ok((true, message)) = self.receive() {
                if let Some(Message::Abort(abort)) = message {
                    return abort.into_cause(self.peer);
                }
            }
            Cause::Lost { process: self.peer, reason: error.to_string() }
        })
    }

    /// Takes what has come: whether that is anything, and the message if it is whole.
    ///
    /// # Errors
    /// Why the connection is useless.
    pub fn receive(&mut self) -> Result<(bool, Option<Message>), Cause> {
        match self.receiver.read(&mut self.stream).map_err(|fault| self.cause(fault))? {
            Arrival::None => Ok((false, None)),
            Arrival::Some => Ok((true, None)),
            Arrival::Frame(kind, bytes) => match Message::parse(kind, bytes) {
                Some(message) => Ok((true, Some(message))),
                None => Err(self.out_of_step(format!("its message of kind {kind} makes no sense"))),
            },
        }
    }

    pub fn out_of_step(&self, what: impl Into<String>) -> Cause {
        Cause::OutOfStep { process: self.peer, what: what.into() }
    }

    /// Tells the other end why this one gives up, if that goes at once: there may be no time left.
    pub fn abort(&mut self, cause: &Cause) {
        // A message that is only half sent cannot be followed by another. Failures are as good as what is done below.
        let _ = self.sender.write(&mut self.stream);
        if self.sender.is_idle() {
            self.put(Message::Abort(Abort::new(cause)));
            let _ = self.sender.write(&mut self.stream);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn cause(&self, fault: Fault) -> Cause {
        let process = self.peer;
        match fault {
            Fault::Closed => Cause::Lost { process, reason: "it has closed it".to_owned() },
            Fault::Broken(error) => Cause::Lost { process, reason: error.to_string() },
            Fault::Forged => Cause::Forged { process },
            Fault::TooLarge(bytes) => {
                self.out_of_step(format!("it sends {bytes} bytes, which is more than was agreed on"))
            }
        }
    }
}
