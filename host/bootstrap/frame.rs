//! Frames: what goes over a connection once both ends have proved themselves.
//!
//! kind 1, size 4 (little-endian), HMAC(S, direction ‖ 1 ‖ sequence number 8 ‖ kind ‖ size), as many bytes as size says,
//! HMAC(S, direction ‖ 2 ‖ sequence number ‖ kind ‖ size ‖ the bytes); S is the key of the session, the direction 1 to
//! process 0 and 2 from it. The first tag is checked before room is made for the bytes.

use super::mac::{Key, TAG};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;

const OPEN_HEAD: usize = 5;
const HEAD: usize = OPEN_HEAD + TAG;

/// Which way frames go.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    ToProcess0 = 1,
    FromProcess0 = 2,
}

/// One way of a connection: what tags are made with.
struct Way {
    key: Key,
    direction: Direction,
    /// Of the next frame.
    sequence: u64,
}

impl Way {
    /// The parts that the tag of a head is over, and, with the frame's bytes behind them, that of the bytes.
    fn parts<R>(&self, part: u8, head: &[u8], bytes: &[u8], with: impl FnOnce(&Key, &[&[u8]]) -> R) -> R {
        with(&self.key, &[&[self.direction as u8, part], &self.sequence.to_le_bytes(), head, bytes])
    }
}

/// What makes a connection useless.
#[derive(Debug)]
pub(super) enum Fault {
    /// The other end has closed it.
    Closed,
    /// The system's words.
    Broken(io::Error),
    /// Bytes that the other end did not send.
    Forged,
    /// The other end sends more than was agreed on.
    TooLarge(u32),
}

/// What there is to read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// A frame: its kind and its bytes.
    Frame(u8, Vec<u8>),
    /// A part of one.
    Some,
    /// Nothing.
    None,
}

/// Puts frames together from what arrives.
pub(super) struct Receiver {
    way: Way,
    limit: u32,
    head: [u8; HEAD],
    /// The bytes and their tag, once the head is known to be true.
    body: Option<Vec<u8>>,
    /// How much there is of what is read at present.
    filled: usize,
}

impl Receiver {
    pub fn new(key: Key, direction: Direction, limit: u32) -> Self {
        let way = Way { key, direction, sequence: 0 };
        Self { way, limit, head: [0; HEAD], body: None, filled: 0 }
    }

    /// Reads what is there, up to the end of a frame.
    ///
    /// # Errors
    /// A [`Fault`], after which there is nothing more to read.
    pub fn read(&mut self, from: &mut impl Read) -> Result<Arrival, Fault> {
        let mut has_moved = false;
        loop {
            let space = match &mut self.body {
                None => &mut self.head[self.filled..],
                Some(body) => &mut body[self.filled..],
            };
            match from.read(space) {
                Ok(0) => return Err(Fault::Closed),
                Ok(bytes) => self.filled += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(if has_moved { Arrival::Some } else { Arrival::None });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Broken(error)),
            }
            has_moved = true;
            match &self.body {
                None if self.filled == HEAD => self.begin_body()?,
                Some(body) if self.filled == body.len() => return self.finish(),
                _ => {}
            }
        }
    }

    fn begin_body(&mut self) -> Result<(), Fault> {
        let (head, tag) = self.head.split_at(OPEN_HEAD);
        if !self.way.parts(1, head, &[], |key, parts| key.verifies(parts, tag)) {
            return Err(Fault::Forged);
        }
        let bytes = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        if bytes > self.limit {
            return Err(Fault::TooLarge(bytes));
        }
        self.body = Some(vec![0; bytes as usize + TAG]);
        self.filled = 0;
        Ok(())
    }

    fn finish(&mut self) -> Result<Arrival, Fault> {
        let mut body = self.body.take().unwrap_or_default();
        self.filled = 0;
        let (bytes, tag) = body.split_at(body.len() - TAG);
        if !self.way.parts(2, &self.head[..OPEN_HEAD], bytes, |key, parts| key.verifies(parts, tag)) {
            return Err(Fault::Forged);
        }
        self.way.sequence += 1;
        body.truncate(body.len() - TAG);
        Ok(Arrival::Frame(self.head[0], body))
    }
}

/// Sends frames, one at a time, as far as the connection takes them.
pub(super) struct Sender {
    way: Way,
    frame: Option<Frame>,
}

struct Frame {
    head: [u8; HEAD],
    bytes: Arc<Vec<u8>>,
    tag: [u8; TAG],
    sent: usize,
}

impl Sender {
    pub fn new(key: Key, direction: Direction) -> Self {
        Self { way: Way { key, direction, sequence: 0 }, frame: None }
    }

    /// Whether there is room for a frame.
    pub fn is_idle(&self) -> bool {
        self.frame.is_none()
    }

    /// Takes a frame, if there is none on its way; its size has been checked.
    pub fn put(&mut self, kind: u8, bytes: Arc<Vec<u8>>) {
        debug_assert!(self.is_idle(), "one at a time");
        let mut head = [0; HEAD];
        head[0] = kind;
        head[1..OPEN_HEAD].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        let open = &head[..OPEN_HEAD];
        let tag = self.way.parts(2, open, &bytes, |key, parts| key.tag(parts));
        let head_tag = self.way.parts(1, open, &[], |key, parts| key.tag(parts));
        head[OPEN_HEAD..].copy_from_slice(&head_tag);
        self.way.sequence += 1;
        self.frame = Some(Frame { head, bytes, tag, sent: 0 });
    }

    /// Sends what the connection takes; says whether that was anything.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, to: &mut impl Write) -> io::Result<bool> {
        let mut has_moved = false;
        while let Some(frame) = &mut self.frame {
            let mut skip = frame.sent;
            let parts = [&frame.head[..], &frame.bytes, &frame.tag].map(|part| {
                let rest = &part[skip.min(part.len())..];
                skip = skip.saturating_sub(part.len());
                IoSlice::new(rest)
            });
            match to.write_vectored(&parts) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(bytes) => frame.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(has_moved),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            has_moved = true;
            if frame.sent == HEAD + frame.bytes.len() + TAG {
                self.frame = None;
            }
        }
        Ok(has_moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> Key {
        Key::new(b"of a session")
    }

    fn receiver(direction: Direction) -> Receiver {
        Receiver::new(key(), direction, 64)
    }

    /// The bytes of frames with these bytes.
    fn frames(direction: Direction, payloads: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut sender = Sender::new(key(), direction);
        let send = |bytes: &Vec<u8>| {
            let mut sent = Vec::new();
            sender.put(3, Arc::new(bytes.clone()));
            sender.write(&mut sent).expect("a Vec takes all");
            sent
        };
        payloads.iter().map(send).collect()
    }

    /// A connection over which so many bytes come at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
            let bytes = self.1.min(space.len());
            self.0.read(&mut space[..bytes])
        }
    }

    #[test]
    fn a_frame_of_another_way_or_of_another_place_in_the_order_is_forged() {
        let sent = frames(Direction::FromProcess0, &[vec![1; 5], vec![2; 5]]);
        let read = |direction, bytes: &[u8]| receiver(direction).read(&mut &*bytes);
        assert!(matches!(read(Direction::FromProcess0, &sent[0]), Ok(Arrival::Frame(3, _))));
        assert!(matches!(read(Direction::ToProcess0, &sent[0]), Err(Fault::Forged)));
        assert!(matches!(read(Direction::FromProcess0, &sent[1]), Err(Fault::Forged)));
        let mut twice = receiver(Direction::FromProcess0);
        assert!(twice.read(&mut &*sent[0]).is_ok());
        assert!(matches!(twice.read(&mut &*sent[0]), Err(Fault::Forged)));
    }

    #[test]
    fn the_size_is_checked_before_there_is_room_for_it() {
        let sent = frames(Direction::ToProcess0, &[vec![0; 65]]);
        let mut receiver = receiver(Direction::ToProcess0);
        assert!(matches!(receiver.read(&mut &*sent[0]), Err(Fault::TooLarge(65))));
        assert!(receiver.body.is_none());
    }

    proptest! {
        #[test]
        fn frames_arrive_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=64), 0..4),
            step in 1usize..50,
        ) {
            let sent = frames(Direction::ToProcess0, &payloads).concat();
            let mut receiver = receiver(Direction::ToProcess0);
            let mut from = Trickle(&sent, step);
            for payload in payloads {
                prop_assert_eq!(receiver.read(&mut from).expect("as sent"), Arrival::Frame(3, payload));
            }
            prop_assert!(matches!(receiver.read(&mut from), Err(Fault::Closed)));
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let fault = receiver(Direction::ToProcess0).read(&mut &*bytes);
            prop_assert!(matches!(fault, Err(Fault::Forged | Fault::Closed)));
        }

        #[test]
        fn any_other_bit_is_seen(payload in prop::collection::vec(any::<u8>(), 0..=64), bit: prop::sample::Index) {
            let mut sent = frames(Direction::ToProcess0, &[payload]).concat();
            let bit = bit.index(8 * sent.len());
            sent[bit / 8] ^= 1 << (bit % 8);
            let fault = receiver(Direction::ToProcess0).read(&mut &*sent);
            prop_assert!(matches!(fault, Err(Fault::Forged)));
        }
    }
}
