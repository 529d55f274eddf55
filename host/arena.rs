//! Symmetric memory: one allocation a rank, mapped by all.

use crate::gpu::Buffer;
use crate::{Error, Member};
use std::sync::Arc;
use std::time::Duration;

/// Every rank's arena, as this rank's GPU sees them. Holding them keeps them: no rank's memory goes while a peer may
/// still read it.
pub struct Arena {
    arenas: Vec<Arc<Buffer>>,
    rank: usize,
}

impl Arena {
    /// Allocates this rank's arena, zeroed, and learns the others'. All ranks call it together.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory, [`Error::Rendezvous`] if a rank does not come.
    pub fn new(member: &Member, bytes: u64, timeout: Duration) -> Result<Self, Error> {
        let own = Arc::new(member.gpu().alloc_zeroed(bytes as usize)?);
        let arenas = member.all_gather(own, "sharing of the arenas", timeout)?;
        Ok(Self { arenas, rank: member.rank() as usize })
    }

    /// This rank's.
    pub fn own(&self) -> &Arc<Buffer> {
        &self.arenas[self.rank]
    }

    /// Another rank's, or this one's.
    pub fn of(&self, rank: u32) -> &Buffer {
        &self.arenas[rank as usize]
    }

    /// Address of every rank's, in rank order.
    pub fn addresses(&self) -> Vec<u64> {
        self.arenas.iter().map(|arena| arena.address().0).collect()
    }
}
