//! What can be wrong with a workload.

/// A batch of tokens or a placement that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// A size is not possible.
    #[error("{field} = {value}: {limit}")]
    Size {
        /// What it is the size of.
        field: &'static str,
        /// The size.
        value: usize,
        /// What it has to be.
        limit: &'static str,
    },
    /// An array does not have the length that the sizes ask for.
    #[error("{field} has {value} elements, but must have {expected}")]
    Length {
        /// The array.
        field: &'static str,
        /// Its length.
        value: usize,
        /// The length it must have.
        expected: usize,
    },
    /// A slot names an expert that does not exist.
    #[error("topk_idx[{token}, {slot}] = {value}: an expert id is −1 or below {experts}")]
    ExpertOutOfRange {
        /// The token.
        token: usize,
        /// Its slot.
        slot: usize,
        /// The id.
        value: i32,
        /// The number of experts.
        experts: usize,
    },
    /// The gate is not possible.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Settings of a [`Gate`](super::Gate) that contradict each other.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// A number is too small or too large.
    #[error("{field} = {value}: must be {least} to {most} ({why})")]
    OutOfRange {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The least it can be.
        least: usize,
        /// The most it can be.
        most: usize,
        /// What sets the limits.
        why: &'static str,
    },
    /// The experts cannot be divided into groups of equal size.
    #[error("experts = {experts}: must be a multiple of groups = {groups}")]
    Groups {
        /// The number of experts.
        experts: usize,
        /// The number of groups.
        groups: usize,
    },
    /// The factor of the weights is no positive number.
    #[error("scale = {value}: must be finite and above 0")]
    Scale {
        /// The factor.
        value: f32,
    },
}
