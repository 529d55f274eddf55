//! The copy that links and multiprocessors are measured with.

use super::ranks::{PATIENCE, of_next, on_all_ranks};
use crate::gpu::{Buffer, Gpu, Grid, Stream, View};
use crate::{Backend, Error, Event};
use std::sync::Arc;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::workload::copy::{self, Copy, CopyArgs};

/// Bulk copies through shared memory, as dispatch and combine make them, with nothing else: their ceiling.
pub struct CopyKernel {
    gpu: Gpu,
    threads: u32,
    shared_bytes: u32,
}

impl CopyKernel {
    /// Bytes of one bulk copy: a row of DeepSeek-V3's.
    pub const PIECE_BYTES: u32 = 14336;

    /// For this GPU.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it has no bulk copies.
    pub fn new(gpu: &Gpu) -> Result<Self, Error> {
        let device = gpu.description();
        if !device.bulk_copy {
            return Err(Error::Unavailable {
                what: "the copy that bandwidth is measured with".into(),
                why: format!("{} has no bulk copies; sm_90 and later have", device.name),
            });
        }
        let fits = |warps: &u32| copy::shared_bytes(*warps, Self::PIECE_BYTES) <= device.shared_bytes;
        let warps = (1..=device.warps).rev().find(fits).unwrap_or(1);
        let shared_bytes = copy::shared_bytes(warps, Self::PIECE_BYTES);
        Ok(Self { gpu: gpu.clone(), threads: warps * WARP, shared_bytes })
    }

    /// `pieces` pieces of noise to be copied: zeros may move faster than real data do.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn source(&self, pieces: u32) -> Result<Buffer, Error> {
        noise(&self.gpu, pieces as usize * Self::PIECE_BYTES as usize)
    }

    /// Queues a copy of `pieces` pieces of [`CopyKernel::PIECE_BYTES`] on `sms` multiprocessors. Either place may be a
    /// peer's of the same group; both stay alive until the stream has come so far.
    ///
    /// # Errors
    /// [`Error::Argument`] if either is shorter, [`Error::Device`] if the launch is refused.
    pub fn queue(&self, stream: &Stream, from: View, to: View, pieces: u32, sms: u32) -> Result<(), Error> {
        let bytes = pieces as usize * Self::PIECE_BYTES as usize;
        from.holds("source of a copy", bytes)?;
        to.holds("destination of a copy", bytes)?;
        let args = CopyArgs {
            from: Address(from.address()),
            to: Address(to.address()),
            pieces,
            piece_bytes: Self::PIECE_BYTES,
        };
        let grid = Grid { blocks: sms, threads: self.threads, shared_bytes: self.shared_bytes };
        // SAFETY: both places were checked, allocations are aligned to more than 16 bytes, and the shared memory is what
        // `shared_bytes` says.
        unsafe { self.gpu.launch::<Copy>(stream, grid, &args) }
    }

    /// Queues the copy `warmup + timed` times back to back, waits, and gives the times of the last `timed` in µs.
    ///
    /// # Errors
    /// As [`CopyKernel::queue`].
    pub fn times(
        &self,
        stream: &Stream,
        (from, to, pieces): (View, View, u32),
        sms: u32,
        (warmup, timed): (u32, u32),
    ) -> Result<Vec<f64>, Error> {
        let mut events: Vec<Event> = vec![stream.record()?];
        for _ in 0..warmup + timed {
            self.queue(stream, from, to, pieces, sms)?;
            events.push(stream.record()?);
        }
        stream.synchronize()?;
        between(&events[warmup as usize..])
    }
}

/// Times in µs of copies to the next rank by copy engines, of all `ranks` ranks at once: for each rank, those of the last
/// `timed` of `warmup + timed` copies of `bytes` bytes that are queued back to back. With one rank, it is a copy to itself.
///
/// # Errors
/// What [`Group::in_process`](crate::Group::in_process) gives; [`Error::Device`] without enough memory.
pub fn copy_engine_times(
    backend: &Backend,
    ranks: u32,
    bytes: usize,
    (warmup, timed): (u32, u32),
) -> Result<Vec<Vec<f64>>, Error> {
    on_all_ranks(backend, ranks, |member| {
        let gpu = member.gpu();
        let prepared =
            noise(gpu, bytes).and_then(|own| Ok((own, Arc::new(gpu.alloc(bytes)?), gpu.stream()?)));
        let target = prepared.as_ref().ok().map(|(_, target, _)| target.clone());
        let Some(next) = of_next(member, target)? else { return prepared.map(|_| None) };
        let (own, _target, stream) = prepared?;
        let copied = || {
            let mut events = vec![stream.record()?];
            for _ in 0..warmup + timed {
                gpu.copy(&stream, own.view(), next.view(), bytes)?;
                events.push(stream.record()?);
            }
            stream.synchronize()?;
            between(&events[warmup as usize..])
        };
        let times = copied();
        // Nobody frees memory that others still copy to.
        member.all_gather((), "the end of the copies", PATIENCE)?;
        times.map(Some)
    })
}

/// So many bytes, whole words, of noise.
fn noise(gpu: &Gpu, bytes: usize) -> Result<Buffer, Error> {
    let mut word = 1u32;
    // Knuth and Lewis' generator, as in Numerical Recipes, chapter 7.1: any bits do.
    let mut next = || {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word
    };
    gpu.upload(&(0..bytes / 4).map(|_| next()).collect::<Vec<_>>())
}

/// Times in µs from each event to the next.
fn between(events: &[Event]) -> Result<Vec<f64>, Error> {
    events.windows(2).map(|pair| Ok(1e3 * pair[0].elapsed_ms(&pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_engines_are_timed_on_the_emulator() -> Result<(), Error> {
        for ranks in [1, 3] {
            let times = copy_engine_times(&Backend::emulator(0), ranks, 1 << 10, (1, 2))?;
            assert_eq!(times.len(), ranks as usize);
            for times in times {
                assert!(times.len() == 2 && times.iter().all(|time| time.is_finite()), "{times:?}");
            }
        }
        Ok(())
    }
}
