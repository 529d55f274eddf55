//! What a kernel has its rank's proxy do: 16 bytes, which are written and read at once.

use crate::gpu::mem::Quad;

/// A command. Offsets are in arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of this rank's arena go to a peer's.
    Put {
        /// Whose.
        to: Target,
        /// Of which channel they are.
        channel: u32,
        /// Where they are: a multiple of 16 below [`MAX_OFFSET`].
        from: u64,
        /// Where they go: the same.
        at: u64,
        /// How many: a multiple of 16, at most [`MAX_BYTES`].
        bytes: u32,
    },
    /// A number goes to a peer's arena.
    Word {
        /// Whose.
        to: Target,
        /// Where it goes: a multiple of 8 below [`MAX_OFFSET`] / 2.
        at: u64,
        /// The number, at most [`MAX_VALUE`].
        value: u64,
    },
    /// All of the channel's bytes that were put on this lane since the last such command have been.
    Signal {
        /// Who is to know, and on which lane.
        to: Target,
        /// The channel.
        channel: u32,
        /// What its flag becomes: one more than by the last, at most [`MAX_VALUE`].
        value: u64,
    },
}

/// A rank, and a lane to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The rank, below 2^16.
    pub peer: u32,
    /// The lane, below 2^8.
    pub lane: u32,
}

/// Arenas of other nodes' ranks are no larger, nor is one's own that is sent from.
pub const MAX_OFFSET: u64 = 16 << 32;
/// Most bytes of one command.
pub const MAX_BYTES: u32 = 16 * ((1 << 20) - 1);
/// The largest number.
pub const MAX_VALUE: u64 = (1 << 52) - 1;
/// Channels.
pub const MAX_CHANNELS: u32 = 1 << 8;
/// Lanes to a rank.
pub const MAX_LANES: u32 = 1 << 8;

const PUT: u32 = 1;
const WORD: u32 = 2;
const SIGNAL: u32 = 3;

impl Command {
    /// As it lies in a ring: 32 bits each of where from and where to, both in units, 20 of the size, 8 of the lane, 2 of
    /// the kind (two are free); 16 of the rank, 8 of the channel, 8 of `generation`. Numbers take the place of where from
    /// and of the size.
    #[inline(always)]
    pub fn encode(self, generation: u32) -> Quad {
        let pack = |kind: u32, from: u32, at: u32, size: u32, to: Target, channel: u32| {
            Quad([
                from,
                at,
                size | (to.lane & 0xff) << 20 | kind << 28,
                (to.peer & 0xffff) | (channel & 0xff) << 16 | generation << 24,
            ])
        };
        match self {
            Self::Put { to, channel, from, at, bytes } => {
                pack(PUT, (from / 16) as u32, (at / 16) as u32, bytes / 16, to, channel)
            }
            Self::Word { to, at, value } => {
                pack(WORD, value as u32, (at / 8) as u32, (value >> 32) as u32, to, 0)
            }
            Self::Signal { to, channel, value } => {
                pack(SIGNAL, value as u32, 0, (value >> 32) as u32, to, channel)
            }
        }
    }

    /// What lies in a ring; `None` if it is no command.
    pub fn decode(quad: Quad) -> Option<Self> {
        let Quad([from, at, mixed, last]) = quad;
        let (size, lane, kind) = (mixed & 0xf_ffff, mixed >> 20 & 0xff, mixed >> 28);
        let to = Target { peer: last & 0xffff, lane };
        let channel = last >> 16 & 0xff;
        let value = (size as u64) << 32 | from as u64;
        match kind {
            PUT => {
                Some(Self::Put { to, channel, from: 16 * from as u64, at: 16 * at as u64, bytes: 16 * size })
            }
            WORD => Some(Self::Word { to, at: 8 * at as u64, value }),
            SIGNAL => Some(Self::Signal { to, channel, value }),
            _ => None,
        }
    }

    /// The generation of what lies in a ring.
    pub fn generation(quad: Quad) -> u32 {
        quad.0[3] >> 24
    }
}
