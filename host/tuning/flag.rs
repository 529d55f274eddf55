//! How long it takes to tell a peer something.

use super::ranks::{PATIENCE, of_next, on_all_ranks};
use crate::gpu::{Backend, Grid, Stream};
use crate::{Buffer, Error, Member};
use std::sync::Arc;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::workload::flag::{Flag, FlagArgs};

/// Timed rounds of a launch, on a GPU and on the emulator.
const ROUNDS: (u32, u32) = (200, 4);
/// Rounds before those.
const UNTIMED: u32 = 2;
const GRID: Grid = Grid { blocks: 1, threads: WARP, shared_bytes: 0 };

/// Times in µs of a flag's way from a rank to the next, from the store to the sight of it: for each of `launches`, the mean
/// over many rounds through all `ranks` ranks. Each flag lies in the memory of the rank that waits for it. With one rank,
/// it is a store to its own memory.
///
/// # Errors
/// What [`Group::in_process`](crate::Group::in_process) gives; [`Error::Device`] without enough memory, and if a round does
/// not come to its end.
pub fn flag_times(backend: &Backend, ranks: u32, launches: u32) -> Result<Vec<f64>, Error> {
    let times = on_all_ranks(backend, ranks, |member| {
        let prepared = Places::new(member);
        let own = prepared.as_ref().ok().map(|places| places.own.clone());
        let Some(next) = of_next(member, own)? else { return prepared.map(|_| None) };
        let places = prepared?;
        let times = (0..launches).map(|launch| places.round(member, &next, launch));
        let times: Result<Vec<f64>, Error> = times.collect();
        // Nobody frees a flag that another rank still writes.
        member.all_gather((), "the end of the flags", PATIENCE)?;
        times.map(Some)
    })?;
    // All have seen the same rounds.
    Ok(times.into_iter().next().unwrap_or_default())
}

/// What one rank has.
struct Places {
    stream: Stream,
    own: Arc<Buffer>,
    elapsed: Buffer,
    rounds: u32,
}

impl Places {
    fn new(member: &Member) -> Result<Self, Error> {
        let gpu = member.gpu();
        let rounds = if gpu.description().capability == 0 { ROUNDS.1 } else { ROUNDS.0 };
        let (own, elapsed) = (Arc::new(gpu.alloc_zeroed(8)?), gpu.alloc_zeroed(8)?);
        Ok(Self { stream: gpu.stream()?, own, elapsed, rounds })
    }

    /// The mean of one launch's rounds.
    fn round(&self, member: &Member, next: &Buffer, launch: u32) -> Result<f64, Error> {
        let args = FlagArgs {
            own: self.own.address(),
            next: next.address(),
            elapsed: self.elapsed.address(),
            before: u64::from(launch) * u64::from(UNTIMED + self.rounds),
            timeout_ns: PATIENCE.as_nanos() as u64,
            untimed: UNTIMED,
            rounds: self.rounds,
            leads: (member.rank() == 0).into(),
        };
        let gpu = member.gpu();
        gpu.fill(&self.stream, self.elapsed.view(), 0xff)?;
        self.stream.synchronize()?;
        member.all_gather((), "the next round", PATIENCE)?;
        // SAFETY: all ranks launch it with the same numbers and each other's words, which stay until all have ended.
        unsafe { gpu.launch::<Flag>(&self.stream, GRID, &args)? };
        // A copy that waits for the kernel could be in the way of what another rank on the GPU launches.
        self.stream.synchronize()?;
        let elapsed = gpu.download::<u64>(&self.stream, self.elapsed.view(), 1)?[0];
        if elapsed == u64::MAX {
            let reason = format!("it did not go round {} ranks within {PATIENCE:?}", member.ranks());
            return Err(Error::Device { call: "measuring a flag".into(), reason });
        }
        Ok(elapsed as f64 / f64::from(self.rounds * member.ranks()) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_round_any_number_of_ranks() -> Result<(), Error> {
        for ranks in [1, 2, 5] {
            let times = flag_times(&Backend::emulator(0), ranks, 3)?;
            assert_eq!(times.len(), 3);
            assert!(
                times.iter().all(|time| time.is_finite() && (*time > 0.0 || ranks == 1)),
                "{ranks}: {times:?}"
            );
        }
        Ok(())
    }
}
