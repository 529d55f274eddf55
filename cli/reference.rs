//! What every rank must come to, by the CPU reference.

use crate::workload::{Workload, per_rank};
use std::convert::Infallible;
use tokenrail::oracle::{self, Layout, Received};

/// Everything that is compared, for each rank.
pub struct Reference {
    /// Who goes where.
    pub layouts: Vec<Layout>,
    /// What dispatch brings.
    pub received: Vec<Received>,
    /// What the experts make of it, as bits: `[received, hidden]`.
    pub outputs: Vec<Vec<u16>>,
    /// What combine brings back, as bits: `[tokens, hidden]`.
    pub combined: Vec<Vec<u16>>,
}

impl Reference {
    /// Computes all of it.
    pub fn new(workload: &Workload) -> Self {
        let (batches, placement) = (&workload.batches, &workload.placement);
        let (ranks, half) = (placement.ranks(), workload.config.combined);
        let layouts = batches.iter().map(|batch| oracle::layout(batch, placement, ranks)).collect();
        let received = oracle::dispatch(batches, placement, None);
        let Ok(outputs) = per_rank(workload.ranks, |rank| {
            Ok::<_, Infallible>(oracle::experts(&received[rank], placement, half))
        });
        let combined = oracle::combine(&outputs, batches, placement, half, &[], None);
        Self { layouts, received, outputs, combined }
    }
}
