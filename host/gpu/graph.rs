//! Work that is put together once and launched often.

use super::capture;
use super::device::{Core, Replay};
use super::stream::Stream;
use crate::Error;
use std::sync::Arc;

/// Work of one GPU that was captured ([`Stream::capture`]): a CUDA graph, ready to be launched.
///
/// It keeps neither the memory that it works on alive nor what else its kernels were promised: all that must outlive
/// its last launch. Dropping it lets launches that are under way go on.
///
/// Making and dropping a graph allocates and frees memory of the driver's. Ranks that share a GPU do neither while one
/// of them is in the middle of an operation, whose kernels wait for each other.
pub struct Graph {
    core: Arc<Core>,
    replay: Box<dyn Replay>,
}

impl Stream {
    /// Keeps the work that `issue` gives this stream (kernels, copies, fills) for later,
    /// rather than doing it, and gives the graph that it makes, with what `issue` returns.
    ///
    /// Other streams of this GPU become part of the capture by waiting for an event that was recorded in it
    /// ([`Stream::wait`]), and have to be joined back by an event that this stream waits for. Such events are moments
    /// of the graph: they cannot be waited for from outside or on the host, nor measured.
    ///
    /// What has to happen at once is not possible meanwhile on captured streams ([`Stream::synchronize`],
    /// [`Gpu::download`](super::Gpu::download)) nor in `issue` at all ([`Gpu::write`](super::Gpu::write)). Memory can be
    /// allocated, also with contents: that happens once, during the capture, and is no part of the graph.
    ///
    /// The capture ends when `issue` does, also with an error or a panic, and the streams go on as before. Other
    /// threads' work on other streams is not disturbed.
    ///
    /// # Errors
    /// That of `issue`; [`Error::Capture`] if this stream is being captured already, or if a stream that has joined is
    /// not joined back; [`Error::Device`] if the driver refuses.
    pub fn capture<T>(&self, issue: impl FnOnce() -> Result<T, Error>) -> Result<(T, Graph), Error> {
        let under = capture::begin(&self.0)?;
        let issued = issue();
        let replay = under.end();
        let value = issued?;
        Ok((value, Graph { core: self.0.core.clone(), replay: replay? }))
    }
}

impl Graph {
    /// Queues the whole graph on a stream, whose later work comes after all of it. Launches of one graph follow each
    /// other, on whichever streams they are.
    ///
    /// # Errors
    /// [`Error::Argument`] for a stream that another [`Gpu`](super::Gpu) has made, [`Error::Capture`] in a capture: the
    /// driver does not make a graph part of another in this way; [`Error::Device`] if it refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), Error> {
        stream.0.runs("the launch of a graph")?;
        stream.0.of(&self.core)?.issue(|queue| self.replay.launch(queue))
    }
}
