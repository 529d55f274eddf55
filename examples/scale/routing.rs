//! Where a token's experts lie: how many different ranks, or nodes, it is expected to go to.

use tokenrail::tuning;

/// How a token's experts are spread. Experts lie on ranks, and ranks on nodes, in order and in equal numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gating {
    /// All sets of top-k experts are equally likely.
    Uniform,
    /// Experts in so many groups; the top-k lie in `top` of them. All such choices are equally likely.
    Groups {
        /// Groups of neighbouring experts.
        groups: u32,
        /// Groups that a token's experts may lie in.
        top: u32,
    },
    /// A group is what a node holds.
    Nodes {
        /// Nodes that a token's experts may lie on.
        top: u32,
    },
}

impl Gating {
    /// The units (ranks or nodes) that a token is expected to go to, of `units` that share the experts evenly, where all
    /// experts are on `nodes` nodes.
    ///
    /// Units and groups hold whole numbers of each other; [`check`](Self::check) sees to it.
    pub fn destinations(self, experts: u32, topk: u32, units: u32, nodes: u32) -> f64 {
        let Some((groups, top)) = self.limit(nodes) else {
            return tuning::destinations(experts, topk, units);
        };
        let group = f64::from(experts / groups);
        let open = group * f64::from(top);
        let owned = f64::from(experts / units);
        // A unit is a part of a group, or holds several of them. Its experts can be chosen if its groups are kept.
        let groups_of_unit = (groups / units).max(1);
        let missed: f64 = (0..=groups_of_unit.min(top))
            .map(|kept| {
                let reachable = owned.min(group) * f64::from(kept);
                drawn(groups, groups_of_unit, top, kept) * none_of(open, reachable, topk)
            })
            .sum();
        f64::from(units) * (1.0 - missed)
    }

    /// Says what cannot be, in terms of the arguments.
    pub fn check(self, experts: u32, topk: u32, ranks: u32, nodes: u32) -> Result<(), String> {
        if !experts.is_multiple_of(ranks) {
            return Err(format!("{experts} experts cannot be shared evenly by {ranks} ranks"));
        }
        if topk == 0 || topk > experts {
            return Err(format!("--topk {topk}: must be 1 to {experts}, the number of experts"));
        }
        let Some((groups, top)) = self.limit(nodes) else { return Ok(()) };
        if groups == 0 || !experts.is_multiple_of(groups) {
            return Err(format!("{experts} experts cannot be shared evenly by {groups} groups"));
        }
        if top == 0 || top > groups {
            return Err(format!("--top-groups {top}: must be 1 to {groups}, the number of groups"));
        }
        for (units, what) in [(ranks, "ranks"), (nodes, "nodes")] {
            if !groups.is_multiple_of(units) && !units.is_multiple_of(groups) {
                return Err(format!(
                    "{groups} groups and {units} {what}: one must be a multiple of the other"
                ));
            }
        }
        if topk > top * (experts / groups) {
            return Err(format!(
                "--topk {topk}: {top} groups of {} experts do not hold so many",
                experts / groups
            ));
        }
        Ok(())
    }

    /// Number of groups, and of those that are kept.
    fn limit(self, nodes: u32) -> Option<(u32, u32)> {
        match self {
            Self::Uniform => None,
            Self::Groups { groups, top } => Some((groups, top)),
            Self::Nodes { top } => Some((nodes, top.min(nodes))),
        }
    }
}

/// Probability that `draws` different ones of `pool` are none of `owned` that are among them.
fn none_of(pool: f64, owned: f64, draws: u32) -> f64 {
    (0..draws).map(f64::from).map(|before| ((pool - owned - before) / (pool - before)).max(0.0)).product()
}

/// Probability that exactly `hits` of `marked` are among `draws` different ones of `pool` (hypergeometric).
fn drawn(pool: u32, marked: u32, draws: u32, hits: u32) -> f64 {
    if hits > draws || draws - hits > pool - marked {
        return 0.0;
    }
    choose(marked, hits) * choose(pool - marked, draws - hits) / choose(pool, draws)
}

fn choose(n: u32, k: u32) -> f64 {
    (0..k).map(|i| f64::from(n - i) / f64::from(k - i)).product()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use std::collections::BTreeSet;
    use tokenrail::oracle::{Gate, Router, hidden_states};

    const DRAWS: usize = 40_000;

    /// SplitMix64, as far as a simulation needs it.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits ^ bits >> 31) % limit as u64) as usize
        }
    }

    /// Moves `count` random elements to the front.
    fn shuffle(items: &mut [u32], count: usize, random: &mut Random) {
        for at in 0..count {
            let other = at + random.below(items.len() - at);
            items.swap(at, other);
        }
    }

    /// The mean number of different units, by drawing groups and then experts.
    fn simulated(experts: u32, topk: u32, groups: u32, top: u32, units: u32) -> f64 {
        let mut random = Random(u64::from(experts + 31 * units + 1009 * groups));
        let size = experts / groups;
        let mut all: Vec<u32> = (0..groups).collect();
        let mut hits = 0;
        for _ in 0..DRAWS {
            shuffle(&mut all, top as usize, &mut random);
            let mut open: Vec<u32> =
                all[..top as usize].iter().flat_map(|group| group * size..(group + 1) * size).collect();
            shuffle(&mut open, topk as usize, &mut random);
            let units: BTreeSet<u32> =
                open[..topk as usize].iter().map(|expert| expert / (experts / units)).collect();
            hits += units.len();
        }
        hits as f64 / DRAWS as f64
    }

    #[test]
    fn by_hand() {
        // One of two groups of two experts each, both of its experts: one node of two, or two ranks of four.
        let gating = Gating::Groups { groups: 2, top: 1 };
        assert_relative_eq!(gating.destinations(4, 2, 2, 2), 1.0, max_relative = 1e-12);
        assert_relative_eq!(gating.destinations(4, 2, 4, 2), 2.0, max_relative = 1e-12);
        // Two of four groups of one expert on two nodes: both on one node in 2 of 6 cases.
        let gating = Gating::Groups { groups: 4, top: 2 };
        assert_relative_eq!(gating.destinations(4, 2, 2, 2), 1.0 + 4.0 / 6.0, max_relative = 1e-12);
        // All groups are no limit.
        let all = Gating::Nodes { top: 9 }.destinations(64, 6, 32, 4);
        assert_relative_eq!(all, Gating::Uniform.destinations(64, 6, 32, 4), max_relative = 1e-12);
    }

    #[test]
    fn as_simulated() {
        for (experts, topk, groups, top, units) in [
            (256, 8, 8, 4, 64), // ranks of DeepSeek-V3 on 64 ranks
            (256, 8, 8, 4, 8),  // its nodes
            (256, 8, 8, 4, 2),  // several groups a node
            (256, 8, 8, 4, 32), // several nodes a group
            (256, 8, 8, 8, 16), // no limit
            (64, 6, 8, 1, 16),
            (2048, 8, 256, 4, 256),
        ] {
            let gating = Gating::Groups { groups, top };
            let exact = gating.destinations(experts, topk, units, 1);
            // A draw gives at most top-k, so that the mean's deviation is below topk / 2 / √DRAWS: three of them.
            let tolerance = 1.5 * f64::from(topk) / (DRAWS as f64).sqrt();
            let seen = simulated(experts, topk, groups, top, units);
            assert!(
                (exact - seen).abs() < tolerance,
                "{experts} {topk} {groups} {top} {units}: {exact} {seen}"
            );
        }
    }

    /// A gate that keeps the groups with the best scores leaves no group that is kept without experts as often as drawing
    /// does. docs/scale.md states the gap.
    #[test]
    fn the_real_gate_reaches_slightly_more() {
        const TOKENS: usize = 4000;
        const HIDDEN: usize = 64;
        let router = Router::new(Gate::DEEPSEEK_V3, HIDDEN, 7).unwrap();
        let routing = router.route(&hidden_states(7, TOKENS, HIDDEN)).unwrap();
        let units = |experts_of_unit: i32| -> usize {
            let different = |token: &[i32]| {
                token.iter().map(|expert| expert / experts_of_unit).collect::<BTreeSet<_>>().len()
            };
            routing.topk_idx.chunks(8).map(different).sum()
        };
        let (nodes, ranks) = (units(32), units(4));
        let gating = Gating::Groups { groups: 8, top: 4 };
        for (seen, units) in [(nodes, 8), (ranks, 64)] {
            let ratio = seen as f64 / TOKENS as f64 / gating.destinations(256, 8, units, 8);
            println!("{units} units: {ratio}");
            assert!((0.99..1.12).contains(&ratio), "{units} units: {ratio}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let says = |gating: Gating, experts, topk, ranks, nodes| gating.check(experts, topk, ranks, nodes);
        assert_eq!(says(Gating::Uniform, 256, 8, 64, 8), Ok(()));
        let error = |message: &str| Err(message.to_string());
        assert_eq!(
            says(Gating::Uniform, 256, 8, 48, 6),
            error("256 experts cannot be shared evenly by 48 ranks")
        );
        assert_eq!(
            says(Gating::Uniform, 256, 0, 64, 8),
            error("--topk 0: must be 1 to 256, the number of experts")
        );
        let groups = |groups, top| Gating::Groups { groups, top };
        assert_eq!(
            says(groups(7, 4), 256, 8, 64, 8),
            error("256 experts cannot be shared evenly by 7 groups")
        );
        assert_eq!(
            says(groups(8, 9), 256, 8, 64, 8),
            error("--top-groups 9: must be 1 to 8, the number of groups")
        );
        assert_eq!(
            says(groups(12, 4), 240, 8, 40, 5),
            error("12 groups and 40 ranks: one must be a multiple of the other")
        );
        assert_eq!(
            says(groups(128, 3), 256, 8, 64, 8),
            error("--topk 8: 3 groups of 2 experts do not hold so many")
        );
    }
}
