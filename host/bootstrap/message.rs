//! What frames say.

use super::{Cause, MAX_PROCESSES};
use std::time::Duration;

/// Most that a frame has beside an entry.
pub(super) const EXTRA: u32 = 1024;
/// Longer names of places are cut.
const PLACE: usize = 256;
/// Longer words about what went wrong are cut.
const WORDS: usize = 512;
/// A bit for each process.
const NUMBERS: usize = MAX_PROCESSES as usize / 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// To process 0: an entry, and what it is for.
    Gather { entry: Vec<u8>, place: String },
    /// From process 0: the next entry.
    Entry(Vec<u8>),
    /// From process 0: who has not come yet.
    Waiting(Vec<u32>),
    /// The sender has given up.
    Abort(Abort),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Abort {
    /// For how long the processes were waited for, and how many connections were turned away, if it is that they are late.
    late: Option<(Duration, u32)>,
    processes: Vec<u32>,
    what: String,
}

pub(super) const ENTRY: u8 = 2;

impl Message {
    /// The kind and the bytes of a frame.
    pub fn into_frame(self) -> (u8, Vec<u8>) {
        match self {
            // The place is behind the entry, so that taking it off moves nothing.
            Self::Gather { mut entry, place } => {
                entry.extend_from_slice(place.as_bytes());
                entry.extend_from_slice(&(place.len() as u16).to_le_bytes());
                (1, entry)
            }
            Self::Entry(entry) => (ENTRY, entry),
            Self::Waiting(processes) => (3, to_bits(&processes).to_vec()),
            Self::Abort(abort) => (4, abort.to_bytes()),
        }
    }

    /// What a frame says, if anything.
    pub fn parse(kind: u8, mut bytes: Vec<u8>) -> Option<Self> {
        match kind {
            1 => {
                let size = bytes.last_chunk().map(|size| usize::from(u16::from_le_bytes(*size)))?;
                let place = bytes.split_off(bytes.len().checked_sub(2 + size)?);
                let place = String::from_utf8_lossy(&place[..size]).into_owned();
                Some(Self::Gather { entry: bytes, place })
            }
            ENTRY => Some(Self::Entry(bytes)),
            3 => Some(Self::Waiting(from_bits(bytes.as_slice().try_into().ok()?))),
            4 => Abort::parse(&bytes).map(Self::Abort),
            _ => None,
        }
    }
}

impl Abort {
    pub fn new(cause: &Cause) -> Self {
        let late = match *cause {
            Cause::Late { waited, refused, .. } => Some((waited, refused)),
            _ => None,
        };
        Self { late, processes: cause.processes(), what: cut(&cause.to_string(), WORDS).to_owned() }
    }

    /// What it means to who is told by process `by`.
    pub fn into_cause(self, by: u32) -> Cause {
        let Self { late, processes, what } = self;
        match late {
            // What process 0 says about who is late, anyone would say.
            Some((waited, refused)) if by == 0 => Cause::Late { processes, waited, refused },
            _ => Cause::Told { by, processes, what },
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let (waited, refused) = self.late.unwrap_or_default();
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let mut bytes = vec![self.late.is_some().into()];
        bytes.extend_from_slice(&micros.to_le_bytes());
        bytes.extend_from_slice(&refused.to_le_bytes());
        bytes.extend_from_slice(&to_bits(&self.processes));
        bytes.extend_from_slice(self.what.as_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (is_late, bytes) = bytes.split_first()?;
        let (micros, bytes) = bytes.split_first_chunk()?;
        let (refused, bytes) = bytes.split_first_chunk()?;
        let (processes, what) = bytes.split_first_chunk()?;
        let waited = Duration::from_micros(u64::from_le_bytes(*micros));
        Some(Self {
            late: (*is_late == 1).then_some((waited, u32::from_le_bytes(*refused))),
            processes: from_bits(processes),
            what: cut(&String::from_utf8_lossy(what), WORDS).to_owned(),
        })
    }
}

/// The name of a place, as it goes over a connection.
pub(super) fn place_name(place: &str) -> &str {
    cut(place, PLACE)
}

/// The first bytes of a text, whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn to_bits(processes: &[u32]) -> [u8; NUMBERS] {
    let mut bits = [0; NUMBERS];
    for &process in processes {
        if let Some(bits) = bits.get_mut(process as usize / 8) {
            *bits |= 1 << (process % 8);
        }
    }
    bits
}

fn from_bits(bits: &[u8; NUMBERS]) -> Vec<u32> {
    (0..MAX_PROCESSES).filter(|process| bits[*process as usize / 8] >> (process % 8) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(kind in 0u8..6, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(message) = Message::parse(kind, bytes) {
                let (kind, bytes) = message.clone().into_frame();
                // Text that is none was replaced, and may have become longer, but once is enough.
                prop_assert!(Message::parse(kind, bytes).is_some());
            }
        }

        #[test]
        fn a_message_is_what_was_sent(
            entry in prop::collection::vec(any::<u8>(), 0..100),
            place in ".{0,60}",
            processes in prop::collection::btree_set(0..MAX_PROCESSES, 0..9),
            micros: u64,
            refused: u32,
        ) {
            let processes: Vec<u32> = processes.into_iter().collect();
            let waited = Duration::from_micros(micros);
            let late = Cause::Late { processes: processes.clone(), waited, refused };
            for message in [
                Message::Gather { entry: entry.clone(), place: place_name(&place).to_owned() },
                Message::Entry(entry),
                Message::Waiting(processes),
                Message::Abort(Abort::new(&late)),
            ] {
                let (kind, bytes) = message.clone().into_frame();
                prop_assert_eq!(Message::parse(kind, bytes), Some(message));
            }
            prop_assert_eq!(Abort::new(&late).into_cause(0), late);
        }
    }
}
