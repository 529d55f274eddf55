//! How ranks of several processes meet.

use crate::Error;
use crate::bootstrap::{Bootstrap, Cause};
use std::sync::Arc;
use std::time::Duration;

/// What ranks tell each other, as bytes: each entry with its size before it, 4 bytes, little-endian.
pub fn pack(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.iter().map(|entry| 4 + entry.len()).sum());
    for entry in entries {
        bytes.extend((entry.len() as u32).to_le_bytes());
        bytes.extend(entry);
    }
    bytes
}

/// What [`pack`] has packed; `None` if it is something else.
pub fn unpack(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (size, rest) = bytes.split_first_chunk::<4>()?;
        let (entry, rest) = rest.split_at_checked(u32::from_le_bytes(*size) as usize)?;
        entries.push(entry.to_vec());
        bytes = rest;
    }
    Some(entries)
}

/// The processes of a group, each with as many ranks.
pub struct World {
    bootstrap: Arc<dyn Bootstrap>,
    ranks_of_process: u32,
}

impl World {
    pub fn new(bootstrap: Arc<dyn Bootstrap>, ranks_of_process: u32) -> Self {
        Self { bootstrap, ranks_of_process }
    }

    /// The first rank of this process.
    pub fn first_rank(&self) -> u32 {
        self.bootstrap.process() * self.ranks_of_process
    }

    /// Ranks of all processes.
    pub fn ranks(&self) -> u32 {
        self.bootstrap.processes() * self.ranks_of_process
    }

    /// What all ranks of all processes have put up, of which `own` is this process's. By one of its ranks, for all.
    pub fn all_gather(
        &self,
        own: &[Vec<u8>],
        place: &'static str,
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let packed = self.bootstrap.all_gather(&pack(own), place, timeout)?;
        let mut entries = Vec::with_capacity(self.ranks() as usize);
        for (process, packed) in (0..).zip(&packed) {
            let theirs = unpack(packed).filter(|theirs| theirs.len() == self.ranks_of_process as usize);
            let Some(theirs) = theirs else {
                let what = format!("it does not speak for {} ranks", self.ranks_of_process);
                let cause = Cause::OutOfStep { process, what };
                return Err(Error::Bootstrap { process: self.bootstrap.process(), place, cause });
            };
            entries.extend(theirs);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9)) {
            prop_assert_eq!(unpack(&pack(&entries)), Some(entries));
        }

        #[test]
        fn any_bytes_are_entries_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(entries) = unpack(&bytes) {
                prop_assert_eq!(pack(&entries), bytes);
            }
        }
    }
}
