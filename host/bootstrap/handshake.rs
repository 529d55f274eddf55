//! How a process that connects and process 0 prove to each other that they know the secret.
//!
//! Four messages of fixed size, numbers in little-endian order; K is the secret, and the transcript is the hello followed
//! by the challenge without its tag:
//!
//! | from | message | bytes |
//! |---|---|---|
//! | process | hello: magic 8, version 4, processes 4, message bytes 4, process 4, nonce 32 | 56 |
//! | process 0 | challenge: magic 8, version 4, processes 4, message bytes 4, nonce 32, HMAC(K, 1 ‖ transcript) | 84 |
//! | process | proof: HMAC(K, 2 ‖ transcript) | 32 |
//! | process 0 | verdict: 0 or why not 4, HMAC(K, 3 ‖ verdict ‖ transcript) | 36 |
//!
//! The key of the session is HMAC(K, 4 ‖ transcript). The numbers in front keep a message from passing for another, and
//! the nonces keep one of another connection from passing here. These four messages are the same in all versions, so
//! that processes of different versions can tell each other.

use super::Cause;
use super::mac::{Key, Nonce, TAG, Tag};

pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"tokenrdv";

pub(super) const HELLO: usize = 56;
const OPEN_CHALLENGE: usize = 52;
pub(super) const CHALLENGE: usize = OPEN_CHALLENGE + TAG;
pub(super) const PROOF: usize = TAG;
pub(super) const VERDICT: usize = 4 + TAG;

/// What both ends must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub version: u32,
    pub processes: u32,
    pub message_bytes: u32,
}

impl Terms {
    /// # Errors
    /// [`Cause::Disagreement`] with the first that `process` has otherwise.
    pub fn agree(&self, theirs: &Self, process: u32) -> Result<(), Cause> {
        for (field, theirs, ours) in [
            ("protocol version", theirs.version, self.version),
            ("rendezvous.processes", theirs.processes, self.processes),
            ("rendezvous.message_bytes", theirs.message_bytes, self.message_bytes),
        ] {
            if theirs != ours {
                return Err(Cause::Disagreement { field, process, theirs, ours });
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&MAGIC);
        for (index, word) in [self.version, self.processes, self.message_bytes].into_iter().enumerate() {
            bytes[8 + 4 * index..12 + 4 * index].copy_from_slice(&word.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let found = bytes.starts_with(&MAGIC);
        Some(Self { version: word(bytes, 8)?, processes: word(bytes, 12)?, message_bytes: word(bytes, 16)? })
            .filter(|_| found)
    }
}

/// The four bytes at `at`, as a number.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// What a process says that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub terms: Terms,
    pub process: u32,
    pub nonce: Nonce,
}

impl Hello {
    pub fn to_bytes(self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        self.terms.write(&mut bytes);
        bytes[20..24].copy_from_slice(&self.process.to_le_bytes());
        bytes[24..].copy_from_slice(&self.nonce);
        bytes
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let nonce = bytes.get(24..)?.try_into().ok()?;
        Some(Self { terms: Terms::read(bytes)?, process: word(bytes, 20)?, nonce })
    }
}

/// Why process 0 does not take a process, or that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Welcome,
    OtherTerms,
    NoSuchNumber,
    Duplicate,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Welcome, Self::OtherTerms, Self::NoSuchNumber, Self::Duplicate];
}

/// What both ends have said, as far as it is not a proof.
pub(super) struct Transcript([u8; HELLO + OPEN_CHALLENGE]);

impl Transcript {
    /// What process 0 sees when it answers a hello.
    pub fn new(hello: &Hello, terms: &Terms, nonce: &Nonce) -> Self {
        let mut bytes = [0; HELLO + OPEN_CHALLENGE];
        bytes[..HELLO].copy_from_slice(&hello.to_bytes());
        terms.write(&mut bytes[HELLO..]);
        bytes[HELLO + 20..].copy_from_slice(nonce);
        Self(bytes)
    }

    /// What a process sees when it has a challenge, and the terms of process 0. Nothing if it is no challenge; whether it
    /// is process 0's, [`Self::is_challenge`] says.
    pub fn of_challenge(hello: &Hello, challenge: &[u8; CHALLENGE]) -> Option<(Self, Terms)> {
        let terms = Terms::read(challenge)?;
        let nonce = challenge.get(20..OPEN_CHALLENGE)?.try_into().ok()?;
        Some((Self::new(hello, &terms, nonce), terms))
    }

    pub fn challenge(&self, key: &Key) -> [u8; CHALLENGE] {
        let mut bytes = [0; CHALLENGE];
        bytes[..OPEN_CHALLENGE].copy_from_slice(&self.0[HELLO..]);
        bytes[OPEN_CHALLENGE..].copy_from_slice(&key.tag(&[&[1], &self.0]));
        bytes
    }

    pub fn is_challenge(&self, key: &Key, challenge: &[u8; CHALLENGE]) -> bool {
        key.verifies(&[&[1], &self.0], &challenge[OPEN_CHALLENGE..])
    }

    pub fn proof(&self, key: &Key) -> Tag {
        key.tag(&[&[2], &self.0])
    }

    pub fn is_proof(&self, key: &Key, proof: &[u8]) -> bool {
        key.verifies(&[&[2], &self.0], proof)
    }

    pub fn verdict(&self, key: &Key, verdict: Verdict) -> [u8; VERDICT] {
        let mut bytes = [0; VERDICT];
        bytes[0] = verdict as u8;
        let tag = key.tag(&[&[3], &bytes[..4], &self.0]);
        bytes[4..].copy_from_slice(&tag);
        bytes
    }

    /// What process 0 has decided, if these bytes are from it.
    pub fn read_verdict(&self, key: &Key, bytes: &[u8; VERDICT]) -> Option<Verdict> {
        let (code, tag) = bytes.split_at(4);
        let verdict = Verdict::ALL.into_iter().find(|verdict| word(code, 0) == Some(*verdict as u32))?;
        key.verifies(&[&[3], code, &self.0], tag).then_some(verdict)
    }

    pub fn session(&self, key: &Key) -> Key {
        Key::new(&key.tag(&[&[4], &self.0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: Terms = Terms { version: VERSION, processes: 4, message_bytes: 100 };

    fn pair() -> (Hello, Transcript, Key) {
        let hello = Hello { terms: TERMS, process: 3, nonce: [7; 32] };
        (hello, Transcript::new(&hello, &TERMS, &[9; 32]), Key::new(b"sixteen bytes or more"))
    }

    #[test]
    fn no_message_passes_for_another() {
        let (hello, transcript, key) = pair();
        let challenge = transcript.challenge(&key);
        assert!(transcript.is_challenge(&key, &challenge));
        assert!(transcript.is_proof(&key, &transcript.proof(&key)));
        assert!(!transcript.is_proof(&key, &challenge[OPEN_CHALLENGE..]));
        let welcome = transcript.verdict(&key, Verdict::Welcome);
        assert_eq!(transcript.read_verdict(&key, &welcome), Some(Verdict::Welcome));
        assert!(!transcript.is_proof(&key, &welcome[4..]));
        // Another number is another transcript.
        let other = Transcript::new(&Hello { process: 2, ..hello }, &TERMS, &[9; 32]);
        assert!(!other.is_proof(&key, &transcript.proof(&key)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80), magic: bool) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&MAGIC);
            }
            if let Some(hello) = Hello::parse(&bytes) {
                prop_assert_eq!(&hello.to_bytes()[..], &bytes[..]);
            }
        }

        #[test]
        fn any_other_bit_breaks_a_message(bit in 0..8 * CHALLENGE, verdict_bit in 0..8 * VERDICT) {
            let (hello, transcript, key) = pair();
            let mut challenge = transcript.challenge(&key);
            challenge[bit / 8] ^= 1 << (bit % 8);
            if let Some((transcript, _)) = Transcript::of_challenge(&hello, &challenge) {
                prop_assert!(!transcript.is_challenge(&key, &challenge));
            }
            let mut verdict = transcript.verdict(&key, Verdict::Duplicate);
            verdict[verdict_bit / 8] ^= 1 << (verdict_bit % 8);
            prop_assert_eq!(transcript.read_verdict(&key, &verdict), None);
        }
    }
}
