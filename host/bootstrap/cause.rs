//! What goes wrong between processes.

use std::fmt;
use std::time::Duration;

/// Why processes did not come together, or why what they gave did not come over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// Processes did not come in time.
    #[error("{} did not come within {waited:?}{}", Named(.processes), Refused(*.refused))]
    Late {
        /// Their numbers.
        processes: Vec<u32>,
        /// For how long they were waited for.
        waited: Duration,
        /// Connections that process 0 has turned away meanwhile, as they did not prove that they know the secret: a
        /// process with another one may be among them.
        refused: u32,
    },
    /// The connection to a process is gone, and probably the process.
    #[error("the connection to process {process} is gone: {reason}")]
    Lost {
        /// Its number.
        process: u32,
        /// What was seen.
        reason: String,
    },
    /// Another process has given up, and has told this one why.
    #[error("process {by} says: {what}")]
    Told {
        /// Who says so.
        by: u32,
        /// Whom it blames.
        processes: Vec<u32>,
        /// In its words.
        what: String,
    },
    /// What came on the connection to a process is not what it sent: changed, repeated, left out or in another order.
    #[error("what came from process {process} is not what it sent: it was changed on the way")]
    Forged {
        /// Its number.
        process: u32,
    },
    /// A process does not do what it should at this point, such as meeting for something else.
    #[error("process {process} is out of step: {what}")]
    OutOfStep {
        /// Its number.
        process: u32,
        /// What it did.
        what: String,
    },
    /// Who answers at the address does not know this process's secret.
    #[error("who answers as process {process} does not know our secret")]
    Secret {
        /// Who should have answered.
        process: u32,
    },
    /// Two processes were given different settings, or are of different versions.
    #[error("{field} of process {process} is {theirs}, ours is {ours}")]
    Disagreement {
        /// The setting.
        field: &'static str,
        /// The other process.
        process: u32,
        /// Its value.
        theirs: u32,
        /// This process's.
        ours: u32,
    },
    /// Two processes say that they have the same number.
    #[error("two processes say that they are process {process}")]
    Duplicate {
        /// The number.
        process: u32,
    },
    /// The address of process 0 cannot be listened on, or connected to.
    #[error("{address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The caller's own all-gather failed, or brought what it should not.
    #[error("the all-gather that was given: {0}")]
    Given(String),
    /// Another thread of this process is in a call.
    #[error("another thread is in a call")]
    Busy,
    /// An earlier call has failed, so that processes may be out of step.
    #[error("an earlier call failed ({0}): make a new group")]
    Earlier(String),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl Cause {
    /// The numbers of the processes that it is about.
    pub fn processes(&self) -> Vec<u32> {
        match self {
            Self::Late { processes, .. } | Self::Told { processes, .. } => processes.clone(),
            Self::Lost { process, .. }
            | Self::Forged { process }
            | Self::OutOfStep { process, .. }
            | Self::Secret { process }
            | Self::Disagreement { process, .. }
            | Self::Duplicate { process } => vec![*process],
            Self::Unreachable { .. } => vec![0],
            Self::Given(_) | Self::Busy | Self::Earlier(_) | Self::Random(_) => Vec::new(),
        }
    }
}

/// Processes by number, not too many.
struct Named<'a>(&'a [u32]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        const SHOWN: usize = 16;
        let Self(processes) = self;
        f.write_str(if processes.len() == 1 { "process" } else { "processes" })?;
        for (index, process) in processes.iter().take(SHOWN).enumerate() {
            write!(f, "{} {process}", if index == 0 { "" } else { "," })?;
        }
        match processes.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Connections that were turned away.
struct Refused(u32);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str("; 1 connection was turned away: it did not prove that it knows the secret"),
            many => {
                write!(
                    f,
                    "; {many} connections were turned away: they did not prove that they know the secret"
                )
            }
        }
    }
}
