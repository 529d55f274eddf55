//! What kernels report, as errors.

use super::Exchange;
use crate::Error;
use crate::gpu::{HostBuffer, Stream};
use tokenrail_device::wire::{Failure, Phase, Report};

impl Exchange {
    /// Waits for the stream and tells how the operations on it went.
    ///
    /// # Errors
    /// [`Error::ExpertOutOfRange`], [`Error::TokenCount`], [`Error::PeerInput`], [`Error::HandleMismatch`] or
    /// [`Error::Capacity`] when nothing was sent, on all ranks alike, and the exchange goes on; [`Error::ExpertRows`] when
    /// this rank's expert-major form is too small, and the exchange goes on; [`Error::Late`] when a peer did not come, and
    /// [`Error::Link`] or [`Error::Fabric`] when the way to one is lost, after which it is unusable.
    pub fn finish(&mut self, stream: &Stream) -> Result<(), Error> {
        stream.synchronize().inspect_err(|_| self.failed = true)?;
        // Of a connection that is gone kernels know only that something is late.
        let lost = self.link.as_ref().and_then(|link| link.failure(self.rank()));
        if let Some(error) = lost {
            self.failed = true;
            return Err(error);
        }
        let Some((buffer, claim)) = self.reported() else { return Ok(()) };
        let report = Report::from_words(buffer.read());
        buffer.clear::<{ Report::WORDS }>();
        self.gpu().fill(stream, self.workspace.part(claim, 4), 0)?;
        stream.synchronize()?;
        let error = explain(&report);
        self.failed = matches!(error, Error::Late { .. });
        Err(error)
    }

    /// Where the first failure was reported, and the offset in the workspace of the claim to report one.
    fn reported(&self) -> Option<(&HostBuffer, u64)> {
        let (work, batches) = (self.plan.work, self.plan.batches);
        let flights = (0..).zip(&self.flights);
        let flights =
            flights.map(|(at, flight)| (&flight.report, self.plan.work_offset(at) + work.report_claim));
        let batches = (0..).zip(&self.batches).filter_map(|(at, batch)| {
            Some((&batch.report, self.plan.batch_work_offset(at) + batches?.work.report_claim))
        });
        flights.chain(batches).find(|(report, _)| Report::from_words(report.read()).failure != 0)
    }

    /// What a flight's kernels have reported so far.
    pub(super) fn report_of(&self, flight: u32) -> Report {
        Report::from_words(self.flights[flight as usize].report.read())
    }
}

fn explain(report: &Report) -> Error {
    let peer = report.peer as u32;
    match report.failure {
        failure if failure == Failure::ExpertOutOfRange as u64 => Error::ExpertOutOfRange {
            token: report.token,
            slot: report.slot,
            value: report.seen as u32 as i32,
            experts: report.expected,
        },
        failure if failure == Failure::Tokens as u64 => {
            Error::TokenCount { tokens: report.seen, limit: report.expected }
        }
        failure if failure == Failure::PeerInput as u64 => Error::PeerInput { peer },
        failure if failure == Failure::Handle as u64 => Error::HandleMismatch { peer },
        failure if failure == Failure::Capacity as u64 => {
            Error::Capacity { rank: peer, rows: report.seen, capacity: report.expected }
        }
        failure if failure == Failure::ExpertRows as u64 => {
            Error::ExpertRows { rows: report.seen, capacity: report.expected }
        }
        _ => Error::Late {
            peer,
            phase: match report.phase {
                phase if phase == Phase::Counts as u64 => "counts of a dispatch",
                phase if phase == Phase::Data as u64 => "rows of a dispatch",
                phase if phase == Phase::Read as u64 => "reading of an earlier low-latency call",
                phase if phase == Phase::Summary as u64 => "routing of a low-latency dispatch",
                phase if phase == Phase::Rows as u64 => "rows of a low-latency dispatch",
                phase if phase == Phase::Parts as u64 => "outputs for a low-latency combine",
                phase if phase == Phase::Forwarded as u64 => "forwarding of an earlier dispatch",
                phase if phase == Phase::Messages as u64 => "rows of a dispatch for this node",
                phase if phase == Phase::Partials as u64 => "sums of another node for a combine",
                phase if phase == Phase::Ring as u64 => "room in the ring to its proxy",
                _ => "outputs for a combine",
            },
            epoch: report.epoch,
            expected: report.expected,
            seen: report.seen,
        },
    }
}
