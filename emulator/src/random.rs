//! The numbers that scheduling is drawn from.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): one addition and three
/// mixing steps a number, as every scheduling step draws some.
pub struct Random {
    state: u64,
    /// What is given instead of chance, if there is to be none.
    turn: Option<usize>,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed, turn: None }
    }

    /// No chance: always the same choice, until [`Random::turn`].
    pub fn fixed() -> Self {
        Self { state: 0, turn: Some(0) }
    }

    /// From now on the next of each choice.
    pub fn turn(&mut self) {
        self.turn = self.turn.map(|turn| turn.wrapping_add(1));
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`, which is not 0. The bias for small n does not matter here.
    pub fn below(&mut self, n: usize) -> usize {
        if let Some(turn) = self.turn {
            return turn % n;
        }
        ((self.next() >> 32).wrapping_mul(n as u64) >> 32) as usize
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        n != 0 && self.turn.is_none() && self.below(n as usize) == 0
    }
}
