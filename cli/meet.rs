//! Ranks as threads: they start together, meet at the end of each part, and stop together if one fails.

use crate::workload::join;
use std::thread;
use std::time::Duration;
use tokenrail::{Error, Exchange};

/// How much longer than for a kernel's deadline ranks wait for each other on the host, where they compare.
pub const HOST_PATIENCE: Duration = Duration::from_secs(60);

/// Why a rank has come to no end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its own error.
    #[error(transparent)]
    Own(#[from] Error),
    /// It stopped because that rank had failed.
    #[error("stopped because rank {0} had failed")]
    Peer(usize),
}

/// Meets the other ranks at the end of a part, failed or not: goes on only if all do. Since nobody leaves a part
/// before, nobody frees memory, for which a GPU waits for all its kernels, while another's kernels need peers.
///
/// # Errors
/// The rank's own, or that a peer has failed.
pub fn together<T>(exchange: &Exchange, result: Result<T, Error>) -> Result<T, Failure> {
    let patience = exchange.config().timeout + HOST_PATIENCE;
    let well = exchange.all_gather(result.is_ok(), "the end of a step", patience);
    let value = result?;
    match well?.iter().position(|well| !well) {
        None => Ok(value),
        Some(peer) => Err(Failure::Peer(peer)),
    }
}

/// Runs every rank in a thread of its own. What it is given is a [`Member`](tokenrail::Member), or several of one rank.
pub fn all_ranks<M: Send, T: Send>(
    members: Vec<M>,
    work: impl Fn(M) -> Result<T, Failure> + Sync,
) -> Vec<Result<T, Failure>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(move || work(member))).collect();
        threads.into_iter().map(join).collect()
    })
}

/// Every error once, with the ranks that have it.
pub fn print_failures<T>(results: &[Result<T, Failure>]) {
    let mut messages: Vec<(String, Vec<usize>)> = Vec::new();
    for (rank, result) in results.iter().enumerate() {
        let Err(failure) = result else { continue };
        let message = failure.to_string();
        match messages.iter_mut().find(|(known, _)| *known == message) {
            Some((_, ranks)) => ranks.push(rank),
            None => messages.push((message, vec![rank])),
        }
    }
    for (message, ranks) in messages {
        let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
        eprintln!("error: rank {}: {message}", ranks.join(", "));
    }
}
