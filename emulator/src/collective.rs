//! Where threads wait for each other: warp collectives, block barriers, mbarriers.

use crate::block::WARPS;
use std::fmt;

/// What the lanes of a warp do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Barrier,
    Shuffle,
    Ballot,
    MatchAny,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "warp_barrier",
            Self::Shuffle => "shuffle",
            Self::Ballot => "ballot",
            Self::MatchAny => "match_any",
        })
    }
}

/// A warp collective under way.
pub struct Collective {
    pub kind: Kind,
    pub mask: u32,
    arrived: u32,
    /// By lane: what it passed.
    values: [u64; 32],
    /// By lane: the lane it asked for, in a shuffle.
    sources: [u8; 32],
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of lanes {:#010x}, arrived {:#010x}", self.kind, self.mask, self.arrived)
    }
}

impl Collective {
    pub fn new(kind: Kind, mask: u32) -> Self {
        Self { kind, mask, arrived: 0, values: [0; 32], sources: [0; 32] }
    }

    pub fn arrive(&mut self, lane: u32, value: u64, source: u32) {
        self.arrived |= 1 << lane;
        self.values[lane as usize] = value;
        self.sources[lane as usize] = (source % 32) as u8;
    }

    /// Whether this could never complete once `lane` waits elsewhere for the lanes of `mask`: it waits for `lane`, and
    /// one of those waits in it.
    pub fn is_crossed_by(&self, lane: u32, mask: u32) -> bool {
        self.mask >> lane & 1 != 0 && self.arrived & mask != 0
    }

    pub fn is_complete(&self) -> bool {
        self.arrived == self.mask
    }

    /// The lanes among `lanes` whose value is this.
    fn lanes_with(&self, lanes: u32, value: u64) -> u32 {
        let equal = |mask, lane: usize| mask | u32::from(self.values[lane] == value) << lane;
        (0..32).fold(0, equal) & lanes
    }

    /// Writes what each lane of the mask gets.
    pub fn complete(&self, results: &mut [u64; 32]) {
        match self.kind {
            Kind::Barrier => {}
            // A lane outside the mask has no defined value; this one is easy to see.
            Kind::Shuffle => each_lane(self.mask, |lane| {
                let source = self.sources[lane] as usize;
                let defined = self.mask >> source & 1 != 0;
                results[lane] = if defined { self.values[source] } else { 0xdead_beef_dead_beef };
            }),
            Kind::Ballot => {
                let lanes = self.mask & !self.lanes_with(self.mask, 0);
                each_lane(self.mask, |lane| results[lane] = lanes.into());
            }
            Kind::MatchAny => {
                let mut left = self.mask;
                while left != 0 {
                    let equal = self.lanes_with(left, self.values[left.trailing_zeros() as usize]);
                    each_lane(equal, |lane| results[lane] = equal.into());
                    left &= !equal;
                }
            }
        }
    }
}

/// Calls `each` with every lane of `lanes`.
pub fn each_lane(mut lanes: u32, mut each: impl FnMut(usize)) {
    while lanes != 0 {
        each(lanes.trailing_zeros() as usize);
        lanes &= lanes - 1;
    }
}

/// A numbered barrier of a block.
#[derive(Clone, Copy)]
pub struct Barrier {
    /// Threads that it waits for; 0 while nobody waits.
    pub expected: u32,
    pub count: u32,
    /// By warp: lanes that have arrived.
    pub arrived: [u32; WARPS],
    /// Whether anyone passed true.
    pub any: bool,
}

impl Barrier {
    pub const EMPTY: Self = Self { expected: 0, count: 0, arrived: [0; WARPS], any: false };
}

/// An mbarrier: completes a phase when all arrivals and bytes that it waits for have come.
pub struct Mbarrier {
    pub arrivals: u32,
    pub pending: u32,
    /// Bytes announced less bytes come; negative while bytes come before they are announced.
    pub bytes: i64,
    pub phase: u64,
    pub waiting: Vec<u32>,
}

impl Mbarrier {
    pub fn new(arrivals: u32) -> Self {
        Self { arrivals, pending: arrivals, bytes: 0, phase: 0, waiting: Vec::new() }
    }

    /// Whether the phase of this parity is over.
    pub fn passed(&self, parity: u32) -> bool {
        self.phase % 2 != u64::from(parity)
    }

    pub fn is_complete(&self) -> bool {
        self.pending == 0 && self.bytes == 0
    }

    /// Begins the next phase; gives the threads that waited for this one.
    pub fn next_phase(&mut self) -> Vec<u32> {
        self.phase += 1;
        self.pending = self.arrivals;
        std::mem::take(&mut self.waiting)
    }
}
