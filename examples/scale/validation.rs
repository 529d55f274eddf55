//! The model beside what was measured.

use super::published::{Measured, Row, Source, rows};
use super::time::{Estimate, estimate};

/// A figure and the model's.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// The figure.
    pub row: Row,
    /// The model.
    pub estimate: Estimate,
    /// µs that were measured, if need be worked out from a bandwidth as its publisher counts it.
    pub measured: f64,
}

impl Check {
    fn new(row: Row) -> Self {
        let estimate = estimate(&row.work, &row.machine);
        let bytes = f64::from(row.work.tokens) * row.work.logical_row();
        let measured = match row.measured {
            Measured::Us(us) => us,
            Measured::NicGbs(gbs) => bytes * estimate.token_nodes / 1e3 / gbs,
            Measured::NvlinkGbs(gbs) => bytes * estimate.token_ranks / 1e3 / gbs,
        };
        Self { row, estimate, measured }
    }

    /// Predicted time over measured time, less 1.
    pub fn error(&self) -> f64 {
        self.estimate.total() / self.measured - 1.0
    }
}

/// All checks, in the order of the figures.
pub fn checks() -> Vec<Check> {
    rows().into_iter().map(Check::new).collect()
}

/// Errors of some checks: how many, the mean of their sizes, and the largest in size.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Checks.
    pub count: usize,
    /// Mean size.
    pub mean: f64,
    /// The largest, with its sign.
    pub worst: f64,
}

/// Sums up the checks that are wanted.
pub fn summary(checks: &[Check], wanted: impl Fn(&Row) -> bool) -> Summary {
    let errors: Vec<f64> = checks.iter().filter(|check| wanted(&check.row)).map(Check::error).collect();
    let mean = errors.iter().map(|error| error.abs()).sum::<f64>() / errors.len() as f64;
    let worst = errors.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(f64::NAN);
    Summary { count: errors.len(), mean, worst }
}

/// The two fitted constants as the fitted rows give them: GB/s of an H800's NVLink, GB/s of a 400 Gb/s NIC. Each is the
/// mean of what its two rows ask for.
pub fn fitted(checks: &[Check]) -> (f64, f64) {
    let implied = |ranks: u32, bytes: fn(&Estimate) -> f64| {
        let rates: Vec<f64> = checks
            .iter()
            .filter(|check| check.row.source == Source::Throughput && check.row.work.ranks == ranks)
            .map(|check| bytes(&check.estimate) / 1e3 / (check.measured - check.estimate.fixed))
            .collect();
        rates.iter().sum::<f64>() / rates.len() as f64
    };
    (implied(8, |estimate| estimate.nvlink_bytes), implied(64, |estimate| estimate.nic_bytes))
}

#[cfg(test)]
mod tests {
    use super::super::constants as c;
    use super::super::time::Resource;
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn constants_are_what_the_fitted_rows_ask_for() {
        let (nvlink, nic) = fitted(&checks());
        assert_relative_eq!(c::H800_NVLINK_GBS, nvlink, max_relative = 0.001);
        assert_relative_eq!(c::NIC_EFFICIENCY, nic / (c::NIC_GBITS / 8.0), max_relative = 0.001);
    }

    /// Four figures fit two constants; all others are predicted.
    #[test]
    fn held_out_rows_are_predicted() {
        let checks = checks();
        assert_eq!(summary(&checks, |row| row.fitted).count, 4);
        for source in Source::ALL {
            let Summary { mean, worst, .. } = summary(&checks, |row| row.source == source && !row.fitted);
            println!("{}: {mean:.3} {worst:+.3}", source.name());
            assert!(mean < 0.12, "{}: {mean}", source.name());
            assert!(worst.abs() < 0.20, "{}: {worst}", source.name());
        }
    }

    /// Two nodes are published as limited by RDMA; the model says NVLink.
    #[test]
    fn sixteen_h800s_are_limited_by_nvlink() {
        for check in checks() {
            if check.row.source == Source::Throughput {
                let expected = if check.row.work.ranks <= 16 { Resource::Nvlink } else { Resource::Nic };
                assert_eq!(check.estimate.bottleneck(), expected, "EP{}", check.row.work.ranks);
            }
        }
    }

    /// A wrong byte count or a forgotten factor of the nodes would show here.
    #[test]
    fn published_bandwidth_counts_the_own_node() {
        let checks = checks();
        let row = checks.iter().find(|check| matches!(check.row.measured, Measured::NicGbs(43.0))).unwrap();
        // 4096 rows of 7392 bytes to 2 · (1 − C(128,8)/C(256,8)) = 1.993 nodes at 43 GB/s.
        assert_relative_eq!(row.measured, 4096.0 * 7392.0 * 1.993 / 43e3, max_relative = 1e-3);
    }
}
