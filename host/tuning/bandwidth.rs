//! What links and multiprocessors give, measured.

use super::CopyKernel;
use super::ranks::{PATIENCE, of_next, on_all_ranks};
use crate::gpu::{Backend, Stream, View};
use crate::{Buffer, Error, Member};
use std::sync::Arc;

/// What copies come to on a machine, for one rank while all copy at once. GB/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidths {
    /// A multiprocessor's writes to the next rank.
    pub push_per_sm: f64,
    /// The most that writes to the next rank come to.
    pub push_ceiling: f64,
    /// A multiprocessor's reads from the next rank.
    pub pull_per_sm: f64,
    /// The most that reads from the next rank come to.
    pub pull_ceiling: f64,
    /// A multiprocessor's copies within its GPU.
    pub local_per_sm: f64,
}

/// Multiprocessors that no link limits: two, so that one of them which is badly placed is half of the figure only.
const FEW: u32 = 2;
/// Multiprocessors of which some number fills a link.
const MANY: [u32; 3] = [16, 24, 32];
/// Pieces of a copy: long enough that its start and end do not count, short enough for many.
const PIECES: u32 = 4096;
/// On the emulator, whose times say nothing.
const EMULATED_PIECES: u32 = 32;
/// Copies before those that count, and those.
const REPETITIONS: (u32, u32) = (2, 7);

/// One rank's buffers and the next's.
struct Places {
    own: Buffer,
    target: Arc<Buffer>,
    next: Arc<Buffer>,
    pieces: u32,
}

impl Bandwidths {
    /// Measures with `ranks` ranks in this process, all of which copy at once, each to and from the next. With one rank,
    /// or several on one GPU, nothing crosses a link, and it is the GPU's own memory that is measured.
    ///
    /// # Errors
    /// What [`Group::in_process`](crate::Group::in_process) gives; [`Error::Unavailable`] for GPUs without bulk copies; [`Error::Device`] without
    /// enough memory.
    pub fn measure(backend: &Backend, ranks: u32) -> Result<Self, Error> {
        let all = on_all_ranks(backend, ranks, Self::of_rank)?;
        // The slowest rank is what an exchange waits for.
        let least = |rate: fn(&Self) -> f64| all.iter().map(rate).fold(f64::INFINITY, f64::min);
        Ok(Self {
            push_per_sm: least(|rates| rates.push_per_sm),
            push_ceiling: least(|rates| rates.push_ceiling),
            pull_per_sm: least(|rates| rates.pull_per_sm),
            pull_ceiling: least(|rates| rates.pull_ceiling),
            local_per_sm: least(|rates| rates.local_per_sm),
        })
    }

    /// One rank's; `None` if another has failed.
    fn of_rank(member: &Member) -> Result<Option<Self>, Error> {
        let prepared = Self::prepare(member);
        let target = prepared.as_ref().ok().map(|(_, _, _, target, _)| target.clone());
        let next = of_next(member, target)?;
        let (kernel, stream, own, target, pieces) = prepared?;
        let Some(next) = next else { return Ok(None) };
        let places = Places { own, target, next, pieces };
        let measured = places.measure(member, &kernel, &stream);
        // Freeing memory waits for all kernels of a GPU: nobody does while another rank may still start some.
        member.all_gather((), "the end of the measurement", PATIENCE)?;
        measured.map(Some)
    }

    #[allow(clippy::type_complexity)]
    fn prepare(member: &Member) -> Result<(CopyKernel, Stream, Buffer, Arc<Buffer>, u32), Error> {
        let gpu = member.gpu();
        let pieces = if gpu.description().capability == 0 { EMULATED_PIECES } else { PIECES };
        let bytes = pieces as usize * CopyKernel::PIECE_BYTES as usize;
        let target = Arc::new(gpu.alloc(bytes)?);
        let kernel = CopyKernel::new(gpu)?;
        let own = kernel.source(pieces)?;
        Ok((kernel, gpu.stream()?, own, target, pieces))
    }
}

impl Places {
    fn measure(&self, member: &Member, kernel: &CopyKernel, stream: &Stream) -> Result<Bandwidths, Error> {
        let device = member.gpu().description();
        let most = (device.multiprocessors / device.ranks).max(1);
        let few = FEW.min(most);
        let rate = |from: View, to: View, sms: u32| -> Result<f64, Error> {
            member.all_gather((), "the next measurement", PATIENCE)?;
            let mut times = kernel.times(stream, (from, to, self.pieces), sms, REPETITIONS)?;
            times.sort_by(f64::total_cmp);
            let bytes = f64::from(self.pieces) * f64::from(CopyKernel::PIECE_BYTES);
            Ok(bytes / times[times.len() / 2] / 1e3)
        };
        let ceiling = |from: View, to: View| -> Result<f64, Error> {
            let rates = MANY.map(|sms| rate(from, to, sms.min(most)));
            rates.into_iter().try_fold(0.0, |best: f64, rate| Ok(best.max(rate?)))
        };
        let (own, target, next) = (self.own.view(), self.target.view(), self.next.view());
        Ok(Bandwidths {
            push_per_sm: rate(own, next, few)? / f64::from(few),
            push_ceiling: ceiling(own, next)?,
            pull_per_sm: rate(next, own, few)? / f64::from(few),
            pull_ceiling: ceiling(next, own)?,
            local_per_sm: rate(own, target, few)? / f64::from(few),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are the emulator's, but every step is taken and every rank comes to an end.
    #[test]
    fn measures_on_the_emulator() -> Result<(), Error> {
        for ranks in [1, 3] {
            let Bandwidths { push_per_sm, push_ceiling, pull_per_sm, pull_ceiling, local_per_sm } =
                Bandwidths::measure(&Backend::emulator(0), ranks)?;
            for rate in [push_per_sm, push_ceiling, pull_per_sm, pull_ceiling, local_per_sm] {
                assert!(rate.is_finite() && rate > 0.0, "{rate}");
            }
        }
        Ok(())
    }

    #[test]
    fn an_impossible_group_is_refused() {
        let error = Bandwidths::measure(&Backend::emulator(0), 0).unwrap_err();
        assert_eq!(error.to_string(), "ranks = 0: must be 1 to 1024");
    }
}
