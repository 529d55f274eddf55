//! What a benchmark leaves, and a report of it.

pub mod report;
pub mod results;
