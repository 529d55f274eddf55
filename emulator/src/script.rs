//! Schedules without chance, to go through them one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A schedule in which threads run until they wait, in a fixed order, but for a few preemptions. Ordered memory operations
/// are its points: the first of a run is number 0. At each point named here the thread that has come to it stops, and the
/// machine turns to the next block and warp.
///
/// Runs that differ in nothing but the script are the same up to the first point that they do not share, so that all schedules
/// with a given number of preemptions can be gone through. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    preempt_at: Vec<u64>,
    points: AtomicU64,
}

impl Script {
    /// One for a single run.
    pub fn new(preempt_at: &[u64]) -> Self {
        Self(Arc::new(Inner { preempt_at: preempt_at.to_vec(), points: AtomicU64::new(0) }))
    }

    /// How many points the run has passed so far.
    pub fn points(&self) -> u64 {
        self.0.points.load(Ordering::Relaxed)
    }

    /// Passes a point: whether the thread is preempted there.
    pub(crate) fn pass(&self) -> bool {
        self.0.preempt_at.contains(&self.0.points.fetch_add(1, Ordering::Relaxed))
    }
}
