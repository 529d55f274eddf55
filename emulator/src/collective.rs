//! Where threads wait for each other: warp collectives, block barriers, mbarriers.

/// What the lanes of a warp do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Barrier,
    Shuffle,
    Ballot,
    MatchAny,
}

/// A warp collective under way.
pub struct Collective {
    pub kind: Kind,
    pub mask: u32,
    pub arrived: u32,
    /// By lane: what it passed.
    pub values: [u64; 32],
    /// By lane: the lane it asked for, in a shuffle.
    pub sources: [u32; 32],
}

impl Collective {
    pub fn new(kind: Kind, mask: u32) -> Self {
        Self { kind, mask, arrived: 0, values: [0; 32], sources: [0; 32] }
    }

    pub fn arrive(&mut self, lane: u32, value: u64, source: u32) {
        self.arrived |= 1 << lane;
        self.values[lane as usize] = value;
        self.sources[lane as usize] = source;
    }

    pub fn is_complete(&self) -> bool {
        self.arrived == self.mask
    }

    /// What `lane` gets.
    pub fn result(&self, lane: u32) -> u64 {
        let lanes = |holds: &dyn Fn(u64) -> bool| {
            (0..32).filter(|&other| self.mask >> other & 1 != 0 && holds(self.values[other])).fold(0, |mask, other| mask | 1 << other)
        };
        match self.kind {
            Kind::Barrier => 0,
            // A lane outside the mask has no defined value; this one is easy to see.
            Kind::Shuffle => {
                let source = self.sources[lane as usize] % 32;
                if self.mask >> source & 1 != 0 { self.values[source as usize] } else { 0xdead_beef_dead_beef }
            }
            Kind::Ballot => lanes(&|value| value != 0),
            Kind::MatchAny => lanes(&|value| value == self.values[lane as usize]),
        }
    }
}

/// A numbered barrier of a block.
pub struct Barrier {
    /// Threads that it waits for; 0 while nobody waits.
    pub expected: u32,
    pub arrived: Vec<u32>,
    /// Whether anyone passed true.
    pub any: bool,
}

impl Barrier {
    pub const EMPTY: Self = Self { expected: 0, arrived: Vec::new(), any: false };
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

    /// Ends the phase if nothing is missing; true if so.
    pub fn try_complete(&mut self) -> bool {
        if self.pending != 0 || self.bytes != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = self.arrivals;
        true
    }
}
