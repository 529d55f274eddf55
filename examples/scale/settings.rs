//! What is asked of the model: a machine, a shape, and numbers of ranks.

use super::routing::Gating;
use super::time::{Copies, Estimate, Machine, Mode, Payload, Work, estimate};

/// A machine, a shape, and numbers of ranks.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What does the work.
    pub machine: Machine,
    /// Tokens of a rank in throughput mode.
    pub tokens: u32,
    /// Tokens of a rank in low latency.
    pub low_latency_tokens: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Experts of a token.
    pub topk: u32,
    /// Experts, of which there are more where there are more ranks.
    pub experts: u32,
    /// Groups of the gate that is limited by groups.
    pub groups: u32,
    /// Groups, or nodes, that a token may go to.
    pub top_groups: u32,
    /// Numbers of ranks.
    pub ranks: Vec<u32>,
}

impl Default for Settings {
    /// DeepSeek-V3's shape on H100s with a 400 Gb/s NIC each.
    fn default() -> Self {
        Self {
            machine: Machine::H100,
            tokens: 4096,
            low_latency_tokens: 128,
            hidden: 7168,
            topk: 8,
            experts: 256,
            groups: 8,
            top_groups: 4,
            ranks: (4..12).map(|power| 1 << power).collect(),
        }
    }
}

/// The two modes of tokenrail.
pub const MODES: [Mode; 2] = [Mode::Throughput, Mode::LowLatency(Copies::PerRank)];

impl Settings {
    /// Ways to choose experts that are compared, and their names.
    pub fn gatings(&self) -> [(Gating, String); 3] {
        let top = self.top_groups;
        [
            (Gating::Uniform, "any".to_string()),
            (Gating::Groups { groups: self.groups, top }, format!("{top} of {} groups", self.groups)),
            (Gating::Nodes { top }, format!("{top} nodes")),
        ]
    }

    /// Experts among so many ranks: at least one each.
    pub fn experts_of(&self, ranks: u32) -> u32 {
        self.experts.max(ranks)
    }

    /// What there is to do.
    pub fn work(&self, ranks: u32, gating: Gating, payload: Payload, mode: Mode) -> Work {
        let tokens = match mode {
            Mode::Throughput => self.tokens,
            Mode::LowLatency(_) => self.low_latency_tokens,
        };
        let (hidden, topk, experts) = (self.hidden, self.topk, self.experts_of(ranks));
        Work { ranks, tokens, hidden, topk, experts, gating, payload, mode }
    }

    /// The model's answer.
    pub fn estimate(&self, ranks: u32, gating: Gating, payload: Payload, mode: Mode) -> Estimate {
        estimate(&self.work(ranks, gating, payload, mode), &self.machine)
    }

    /// Says what cannot be, in terms of the arguments.
    pub fn check(&self) -> Result<(), String> {
        if self.ranks.is_empty() {
            return Err("--ranks: there must be a number".to_string());
        }
        if !self.hidden.is_multiple_of(16) {
            return Err(format!("--hidden {}: must be a multiple of 16", self.hidden));
        }
        for &ranks in &self.ranks {
            let per_node = self.machine.ranks_per_node.min(ranks);
            if !ranks.is_multiple_of(per_node) {
                return Err(format!(
                    "--ranks {ranks}: must be a multiple of --ranks-per-node {per_node}, or less"
                ));
            }
            for (gating, name) in self.gatings() {
                gating
                    .check(self.experts_of(ranks), self.topk, ranks, ranks / per_node)
                    .map_err(|error| format!("{ranks} ranks, experts from {name}: {error}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_possible() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn errors_name_the_argument() {
        let says = |settings: Settings| settings.check().unwrap_err();
        let odd = Settings { ranks: vec![20], ..Settings::default() };
        assert_eq!(says(odd), "--ranks 20: must be a multiple of --ranks-per-node 8, or less");
        let uneven = Settings { experts: 100, ..Settings::default() };
        assert_eq!(
            says(uneven),
            "16 ranks, experts from any: 100 experts cannot be shared evenly by 16 ranks"
        );
        assert_eq!(
            says(Settings { ranks: vec![], ..Settings::default() }),
            "--ranks: there must be a number"
        );
        let hidden = Settings { hidden: 7, ..Settings::default() };
        assert_eq!(says(hidden), "--hidden 7: must be a multiple of 16");
    }
}
