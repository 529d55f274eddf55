//! What every rank must come to, by the CPU reference.

use crate::workload::{Workload, per_rank};
use std::convert::Infallible;
use tokenrail::oracle::{self, ExpertMajor, Layout, Placement, Received};
use tokenrail::{Config, Half};

/// Everything that is compared, for each rank.
pub struct Reference {
    /// Who goes where.
    pub layouts: Vec<Layout>,
    /// What dispatch brings.
    pub received: Vec<Received>,
    /// The same by expert, if that is asked for.
    pub by_expert: Vec<Option<ByExpert>>,
    /// What the experts make of it, summed over a rank's, as bits: `[received, hidden]`.
    pub outputs: Vec<Vec<u16>>,
    /// What combine brings back, as bits: `[tokens, hidden]`.
    pub combined: Vec<Vec<u16>>,
}

/// A rank's rows by expert.
pub struct ByExpert {
    /// They, and where they lie.
    pub rows: ExpertMajor,
    /// What the experts make of them, as bits of `half`.
    pub outputs: Vec<u16>,
    /// What the outputs are.
    pub half: Half,
}

impl Reference {
    /// Computes all of it.
    pub fn new(workload: &Workload) -> Self {
        let (batches, placement) = (&workload.batches, &workload.placement);
        let (ranks, config) = (placement.ranks(), &workload.config);
        let layouts = batches.iter().map(|batch| oracle::layout(batch, placement, ranks)).collect();
        let received = oracle::dispatch(batches, placement, None);
        let Ok(worked) =
            per_rank(workload.ranks, |rank| Ok::<_, Infallible>(work(&received[rank], placement, config)));
        let (by_expert, outputs): (Vec<_>, Vec<_>) = worked.into_iter().unzip();
        let combined = oracle::combine(&outputs, batches, placement, config.combined, &[], None);
        Self { layouts, received, by_expert, outputs, combined }
    }
}

/// What a rank's experts make of what it received: rows by expert if the config has them, and a sum for each row.
pub fn work(received: &Received, placement: &Placement, config: &Config) -> (Option<ByExpert>, Vec<u16>) {
    let half = config.combined;
    let Some(form) = config.expert_major else {
        return (None, oracle::experts(received, placement, half));
    };
    let own = placement.experts_of(received.rank).len();
    let rows = oracle::expert_major(received, own, form.alignment as usize, None);
    let outputs = oracle::experts_by_expert(&rows, received.rank, placement, half);
    let weights = Some(&received.topk_weights[..]);
    let sums = oracle::reduce(&outputs, &rows.positions, weights, received.topk, received.hidden, half);
    (Some(ByExpert { rows, outputs, half }), sums)
}
