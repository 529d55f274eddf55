//! Symmetric memory: one allocation a rank, mapped by all.

use crate::gpu::Buffer;
use crate::{Error, Member};
use std::sync::Arc;
use std::time::Duration;

/// The arenas of a node's ranks, as this rank's GPU sees them. Holding them keeps them: no rank's memory goes while a peer
/// may still read it.
pub struct Arena {
    near: Vec<Arc<Buffer>>,
    /// Whose is the first.
    first: u32,
    rank: u32,
    ranks: u32,
}

impl Arena {
    /// Shares this rank's arena, zeroed, and learns the others'. All ranks call it together.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] if a rank does not come.
    pub fn new(member: &Member, own: Buffer, timeout: Duration) -> Result<Self, Error> {
        let own = Arc::new(own);
        let near = member.gather_near(own, "sharing of the arenas", timeout)?;
        let (rank, ranks) = (member.rank(), member.ranks());
        Ok(Self { near, first: rank - rank % member.ranks_per_node(), rank, ranks })
    }

    /// This rank's.
    pub fn own(&self) -> &Arc<Buffer> {
        &self.near[(self.rank - self.first) as usize]
    }

    /// Another rank's of the node, or this one's.
    pub fn of(&self, rank: u32) -> Option<&Buffer> {
        Some(self.near.get(rank.checked_sub(self.first)? as usize)?)
    }

    /// Where in every rank's arena byte `offset` is, in rank order; 0 for ranks of other nodes.
    pub fn addresses(&self, offset: u64) -> Vec<u64> {
        let address = |rank| self.of(rank).map_or(0, |arena| arena.address().0 + offset);
        (0..self.ranks).map(address).collect()
    }
}
