//! All ranks of a measurement, each in a thread.

use crate::gpu::{Backend, Buffer};
use crate::{Error, Group, Member};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How long ranks wait for each other on the host.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What `work` gives on every rank. It gives `None` where it stopped because another rank has failed.
///
/// # Errors
/// What [`Group::in_process`] gives; the first rank's that has one.
pub fn on_all_ranks<T: Send>(
    backend: &Backend,
    ranks: u32,
    work: impl Fn(&Member) -> Result<Option<T>, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let members = Group::in_process(ranks, backend)?;
    let results: Vec<Result<Option<T>, Error>> = thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(move || work(&member))).collect();
        let join = |thread: thread::ScopedJoinHandle<_>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    Ok(results.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The next rank's buffer, if every rank has one. Ranks are in step then.
///
/// # Errors
/// As [`Member::all_gather`].
pub fn of_next(member: &Member, own: Option<Arc<Buffer>>) -> Result<Option<Arc<Buffer>>, Error> {
    let all = member.all_gather(own, "the buffers", PATIENCE)?;
    let next = (member.rank() as usize + 1) % all.len();
    Ok(all.into_iter().collect::<Option<Vec<_>>>().map(|all| all[next].clone()))
}
