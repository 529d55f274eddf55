//! How many multiprocessors an operation needs, from what it moves and what was measured.

use super::Bandwidths;
use crate::Config;

/// What is modelled and tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Dispatch into rank-major rows.
    Dispatch,
    /// Dispatch that also lays rows out by expert.
    DispatchByExpert,
    /// Combine.
    Combine,
}

/// Work that is planned for on top of what the bytes ask for: rows do not divide evenly among multiprocessors, and the
/// one with the most of them ends last.
pub const HEADROOM: f64 = 1.05;

/// Ranks that a token is expected to go to, if its `topk` distinct experts are equally likely:
///
/// ```text
/// Σ over ranks r of 1 − C(E − e_r, k) / C(E, k)
/// ```
///
/// with E experts, of which rank r owns e_r, and top-k k.
pub fn destinations(experts: u32, topk: u32, ranks: u32) -> f64 {
    let (ranks, experts) = (ranks.max(1), f64::from(experts));
    let share = (experts / f64::from(ranks)).ceil();
    let owned = |rank: u32| (experts - f64::from(rank) * share).clamp(0.0, share);
    // C(E − e, k) / C(E, k), factor by factor.
    let missed = |owned: f64| -> f64 {
        let factor = |slot: u32| {
            let left = experts - f64::from(slot);
            if left > 0.0 { ((left - owned) / left).max(0.0) } else { 0.0 }
        };
        (0..topk).map(factor).product()
    };
    (0..ranks).map(|rank| 1.0 - missed(owned(rank))).sum()
}

/// Bytes of a token's row, one way: for dispatch the elements, scales and sides, the expert and weight of each slot, and
/// the source; for combine the output.
pub fn row_bytes(operation: Operation, config: &Config) -> u64 {
    match operation {
        Operation::Combine => 2 * u64::from(config.hidden),
        Operation::Dispatch | Operation::DispatchByExpert => {
            let sides: u64 = config.sides.iter().map(|&bytes| u64::from(bytes)).sum();
            let element = u64::from(config.element.row_bytes(config.hidden))
                + 4 * u64::from(config.element.scale_words(config.hidden));
            element + sides + 8 * u64::from(config.topk) + 8
        }
    }
}

impl Bandwidths {
    /// The fewest multiprocessors of a rank with which they do not limit the link.
    ///
    /// Of the D ranks that a token is expected to go to ([`destinations`]), D · (1 − 1/R) are others, and D/R is the
    /// token's own rank. With rows of B bytes ([`row_bytes`]), a token takes
    ///
    /// ```text
    /// on the link      t = D · (1 − 1/R) · B / ceiling
    /// of the SMs       s = D · (1 − 1/R) · B / per_sm  +  D/R · B / local_per_sm  +  k · B / local_per_sm
    /// ```
    ///
    /// of which the last term, the copies for each expert, is [`Operation::DispatchByExpert`]'s alone. The ceiling and
    /// `per_sm` are those of pushes for dispatch and of pulls for combine. s is the time that one multiprocessor would
    /// take, so that ⌈[`HEADROOM`] · s / t⌉ of them are no slower than the link; at least 1, at most
    /// [`Config::max_sms`]. B cancels: the number depends on where tokens go, not on how long they are.
    ///
    /// Without other ranks, the ceiling is that of the GPU's own memory. A rate that is no positive number gives
    /// `max_sms`.
    pub fn sms(&self, operation: Operation, config: &Config, ranks: u32) -> u32 {
        let most = config.max_sms.max(1);
        let (per_sm, ceiling) = match operation {
            Operation::Dispatch | Operation::DispatchByExpert => (self.push_per_sm, self.push_ceiling),
            Operation::Combine => (self.pull_per_sm, self.pull_ceiling),
        };
        if [per_sm, ceiling, self.local_per_sm].iter().any(|rate| !(rate.is_finite() && *rate > 0.0)) {
            return most;
        }
        let bytes = row_bytes(operation, config) as f64;
        let all = destinations(config.experts, config.topk, ranks);
        let own = all / f64::from(ranks.max(1));
        let other = all - own;
        let expanded = if operation == Operation::DispatchByExpert { f64::from(config.topk) } else { 0.0 };
        let work = other * bytes / per_sm + (own + expanded) * bytes / self.local_per_sm;
        let link = if ranks > 1 { other } else { own } * bytes / ceiling;
        // A float that is too large for a u32 becomes the largest.
        ((HEADROOM * work / link).ceil() as u32).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Element;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    const MADE_UP: Bandwidths = Bandwidths {
        push_per_sm: 44.0,
        push_ceiling: 350.0,
        pull_per_sm: 50.0,
        pull_ceiling: 335.0,
        local_per_sm: 48.0,
    };

    fn config() -> Config {
        Config::new(256, 8, 7168, 4096)
    }

    #[test]
    fn destinations_by_hand() {
        // One expert: one rank, however many there are.
        assert_relative_eq!(destinations(256, 1, 8), 1.0, max_relative = 1e-12);
        // All experts: all ranks.
        assert_relative_eq!(destinations(8, 8, 4), 4.0, max_relative = 1e-12);
        // Two of four experts, two on each rank: 1 of 6 pairs misses a given rank.
        assert_relative_eq!(destinations(4, 2, 2), 2.0 * 5.0 / 6.0, max_relative = 1e-12);
        // Three ranks share 4 experts as 2, 2, 0.
        assert_relative_eq!(destinations(4, 2, 3), 2.0 * 5.0 / 6.0, max_relative = 1e-12);
        assert_eq!(destinations(0, 0, 0), 0.0);
    }

    #[test]
    fn rows_are_counted_whole() {
        let fp8 = Config { element: Element::Fp8E4m3, sides: vec![4, 12], ..config() };
        assert_eq!(row_bytes(Operation::Dispatch, &fp8), 7168 + 4 * 56 + 16 + 64 + 8);
        assert_eq!(row_bytes(Operation::DispatchByExpert, &config()), 2 * 7168 + 64 + 8);
        assert_eq!(row_bytes(Operation::Combine, &fp8), 2 * 7168);
    }

    #[test]
    fn among_many_ranks_the_link_sets_the_number() {
        // Next to nothing stays on a rank of 64: what is left is ceiling / per_sm, 8 and 6.7, and the headroom.
        for (operation, least, most) in [(Operation::Dispatch, 8, 10), (Operation::Combine, 7, 9)] {
            let sms = MADE_UP.sms(operation, &config(), 64);
            assert!((least..=most).contains(&sms), "{operation:?}: {sms}");
        }
        // Of two ranks a token goes to both: each multiprocessor writes as much at home as abroad.
        assert!((15..=17).contains(&MADE_UP.sms(Operation::Dispatch, &config(), 2)));
        assert!((13..=15).contains(&MADE_UP.sms(Operation::Combine, &config(), 2)));
    }

    #[test]
    fn limits_are_kept() {
        let slow = Bandwidths { push_per_sm: 1e-9, ..MADE_UP };
        assert_eq!(slow.sms(Operation::Dispatch, &config(), 2), config().max_sms);
        let quick = Bandwidths { push_per_sm: 1e9, local_per_sm: 1e9, ..MADE_UP };
        assert_eq!(quick.sms(Operation::Dispatch, &config(), 2), 1);
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let broken = Bandwidths { push_ceiling: rate, ..MADE_UP };
            assert_eq!(broken.sms(Operation::Dispatch, &config(), 2), config().max_sms);
        }
    }

    proptest! {
        #[test]
        fn more_work_never_takes_fewer(
            experts in 1u32..300, topk in 0u32..32, ranks in 1u32..80,
            per_sm in 1.0f64..200.0, ceiling in 1.0f64..2000.0, local in 1.0f64..200.0,
        ) {
            let config = Config { max_sms: 1024, ..Config::new(experts, topk.min(experts), 512, 64) };
            let rates = Bandwidths {
                push_per_sm: per_sm, push_ceiling: ceiling, pull_per_sm: per_sm, pull_ceiling: ceiling,
                local_per_sm: local,
            };
            let sms = |rates: Bandwidths, operation| rates.sms(operation, &config, ranks);
            for operation in [Operation::Dispatch, Operation::DispatchByExpert, Operation::Combine] {
                let here = sms(rates, operation);
                prop_assert!((1..=1024).contains(&here));
                let faster_link = Bandwidths { push_ceiling: 2.0 * ceiling, pull_ceiling: 2.0 * ceiling, ..rates };
                prop_assert!(sms(faster_link, operation) >= here);
                let faster_sms = Bandwidths { push_per_sm: 2.0 * per_sm, pull_per_sm: 2.0 * per_sm, ..rates };
                prop_assert!(sms(faster_sms, operation) <= here);
            }
            prop_assert!(sms(rates, Operation::DispatchByExpert) >= sms(rates, Operation::Dispatch));
            let all = destinations(experts, topk.min(experts), ranks);
            prop_assert!(all <= f64::from(topk.min(ranks)) + 1e-9);
        }
    }
}
