//! Which rank owns which experts.

use super::OracleError;
use std::ops::Range;

/// Experts in blocks of ceil(experts / ranks), one block a rank; the last ranks may own fewer, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    ranks: usize,
    experts: usize,
}

impl Placement {
    /// `experts` experts on `ranks` ranks.
    ///
    /// # Errors
    /// [`OracleError::Size`] if either is 0, or more than an `i32` can count.
    pub fn new(ranks: usize, experts: usize) -> Result<Self, OracleError> {
        for (field, value) in [("ranks", ranks), ("experts", experts)] {
            if value == 0 || i32::try_from(value).is_err() {
                return Err(OracleError::Size { field, value, limit: "must be 1 to 2147483647" });
            }
        }
        Ok(Self { ranks, experts })
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Number of experts over all ranks.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Experts of every rank that has its full share.
    pub fn experts_per_rank(&self) -> usize {
        self.experts.div_ceil(self.ranks)
    }

    /// The rank that owns `expert`.
    pub fn rank_of(&self, expert: usize) -> usize {
        expert / self.experts_per_rank()
    }

    /// The experts that `rank` owns.
    pub fn experts_of(&self, rank: usize) -> Range<usize> {
        let start = |rank: usize| (rank * self.experts_per_rank()).min(self.experts);
        start(rank)..start(rank + 1)
    }

    /// Whether a token that selected `topk_idx` goes to `rank`.
    pub fn goes_to(&self, topk_idx: &[i32], rank: usize) -> bool {
        topk_idx.iter().any(|&expert| expert >= 0 && self.rank_of(expert as usize) == rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_ranks_own_what_is_left() -> Result<(), OracleError> {
        let placement = Placement::new(4, 5)?;
        let owned: Vec<_> = (0..4).map(|rank| placement.experts_of(rank)).collect();
        assert_eq!(owned, [0..2, 2..4, 4..5, 5..5]);
        for (rank, experts) in owned.into_iter().enumerate() {
            for expert in experts {
                assert_eq!(placement.rank_of(expert), rank);
            }
        }
        Ok(())
    }

    #[test]
    fn a_token_goes_where_its_experts_are() -> Result<(), OracleError> {
        let placement = Placement::new(3, 6)?;
        let goes: Vec<_> = (0..3).map(|rank| placement.goes_to(&[-1, 5, 0, 5], rank)).collect();
        assert_eq!(goes, [true, false, true]);
        assert!(!placement.goes_to(&[-1, -1], 0));
        Ok(())
    }

    #[test]
    fn nothing_is_owned_by_nobody() {
        let error = Placement::new(0, 8).unwrap_err();
        assert_eq!(error.to_string(), "ranks = 0: must be 1 to 2147483647");
        assert!(Placement::new(1, 0).is_err());
    }
}
