//! What every rank must come to, by the CPU reference.

use crate::workload::{Workload, per_rank};
use half::bf16;
use std::convert::Infallible;
use tokenrail::oracle::{self, Layout, Received};

/// Everything that is compared, for each rank.
pub struct Reference {
    /// Who goes where.
    pub layouts: Vec<Layout>,
    /// What dispatch brings.
    pub received: Vec<Received>,
    /// What the experts make of it, `[received, hidden]`.
    pub outputs: Vec<Vec<bf16>>,
    /// What combine brings back, `[tokens, hidden]`.
    pub combined: Vec<Vec<bf16>>,
}

impl Reference {
    /// Computes all of it.
    pub fn new(workload: &Workload) -> Self {
        let (batches, placement) = (&workload.batches, &workload.placement);
        let layouts = batches.iter().map(|batch| oracle::layout(batch, placement)).collect();
        let received = oracle::dispatch(batches, placement);
        let Ok(outputs) =
            per_rank(workload.ranks, |rank| Ok::<_, Infallible>(oracle::experts(&received[rank], placement)));
        let combined = oracle::combine(&outputs, batches, placement);
        Self { layouts, received, outputs, combined }
    }
}
