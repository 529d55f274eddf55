//! Where lanes may differ in what they must agree on, and why.

use serde::Serialize;

/// Lanes that may have more of a class of instructions than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Allowance {
    /// The kernel; of several, what their names begin with and `*`.
    pub kernels: &'static str,
    /// The class, by its name.
    pub class: &'static str,
    /// The lanes.
    pub lanes: &'static [&'static str],
    /// How much more.
    pub extent: Extent,
    /// Why.
    pub reason: &'static str,
}

/// How much more of it a lane may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The compiler wrote out more often what every lane has.
    Copies,
    /// The source says it more often: other lanes may be without.
    Additions,
}

impl Allowance {
    /// Whether it is about this class in this kernel.
    pub fn covers(&self, kernel: &str, class: &str) -> bool {
        let named = match self.kernels.strip_suffix('*') {
            Some(beginning) => kernel.starts_with(beginning),
            None => kernel == self.kernels,
        };
        named && self.class == class
    }
}

/// Classes.
const INIT: &str = "mbarrier.init.shared.b64";
const EXPECT: &str = "mbarrier.arrive.expect_tx.shared.b64";
const LOAD: &str = "cp.async.bulk global to shared::cluster";

/// Reasons.
const INITIALISED: &str = "the loop over a warp's mbarriers is unrolled, by nvcc the least";
const AHEAD: &str = "the loop that loads ahead of what is read is unrolled";

/// Every allowance. One that nothing needs is an error.
pub const ALLOWED: &[Allowance] = &[
    copies("tokenrail_dispatch*", INIT, &["nvvm", "llvm"], INITIALISED),
    copies("tokenrail_combine*", INIT, &["nvvm", "llvm"], INITIALISED),
    copies("tokenrail_dispatch*", LOAD, &["nvvm", "nvcc"], AHEAD),
    copies("tokenrail_dispatch*", EXPECT, &["nvvm", "nvcc"], AHEAD),
    copies("tokenrail_combine", LOAD, &["nvvm", "nvcc"], AHEAD),
    copies("tokenrail_combine", EXPECT, &["nvvm", "nvcc"], AHEAD),
    copies("tokenrail_combine", "bar.warp.sync", &["nvvm", "nvcc"], AHEAD),
    copies(
        "tokenrail_layout",
        "red.relaxed.cta.shared.add.u32",
        &["nvvm", "nvcc"],
        "the loops over slots and ranks are unrolled, by LLVM the least",
    ),
    copies(
        "tokenrail_low_latency_dispatch*",
        "st.relaxed.sys.global 16 B",
        &["nvvm"],
        "libNVVM unrolls the loop over the packets of a summary",
    ),
    copies(
        "tokenrail_low_latency_combine*",
        "st.relaxed.sys.global 16 B",
        &["nvvm"],
        "libNVVM unrolls the loop that makes packets void",
    ),
];

const fn copies(
    kernels: &'static str,
    class: &'static str,
    lanes: &'static [&'static str],
    reason: &'static str,
) -> Allowance {
    Allowance { kernels, class, lanes, extent: Extent::Copies, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_whole_or_by_their_beginning() {
        let with = |kernels| Allowance {
            kernels,
            class: "fence.acq_rel.sys",
            lanes: &["nvvm"],
            extent: Extent::Copies,
            reason: "",
        };
        let covers = |kernels, kernel| with(kernels).covers(kernel, "fence.acq_rel.sys");
        assert!(
            covers("tokenrail_copy", "tokenrail_copy") && !covers("tokenrail_copy", "tokenrail_copy_all")
        );
        assert!(covers("tokenrail_c*", "tokenrail_copy") && !covers("tokenrail_c*", "tokenrail_stream"));
        assert!(covers("*", "anything") && !with("*").covers("anything", "fence.acq_rel.gpu"));
    }

    #[test]
    fn every_allowance_has_a_reason_and_lanes() {
        let lanes = ["nvvm", "llvm", "nvcc"];
        for allowance in ALLOWED {
            assert!(!allowance.reason.is_empty(), "{allowance:?}");
            // Of the lane with the fewest there is always one.
            assert!((1..lanes.len()).contains(&allowance.lanes.len()), "{allowance:?}");
            assert!(allowance.lanes.iter().all(|lane| lanes.contains(lane)), "{allowance:?}");
        }
    }
}
