//! The one error type.

use crate::bootstrap;
use crate::fabric::Cause;
use std::time::Duration;

/// What can go wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is not possible.
    #[error("{field} = {value}: {limit}")]
    Config {
        /// The setting's name.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// What it has to be.
        limit: String,
    },
    /// Two ranks were given different settings.
    #[error("ranks disagree on {field}: rank {rank} has {theirs}, rank {own_rank} has {ours}")]
    Disagreement {
        /// The setting's name.
        field: &'static str,
        /// The other rank.
        rank: u32,
        /// Its value.
        theirs: String,
        /// The rank that noticed.
        own_rank: u32,
        /// Its value.
        ours: String,
    },
    /// An argument of a call does not fit the exchange.
    #[error("{argument}: {value}, but {limit}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What was given.
        value: String,
        /// What it has to be.
        limit: String,
    },
    /// A received view was used after a later dispatch had reused its buffers.
    #[error(
        "received view of dispatch {used}: its buffers have been used again, the latest dispatch is {current}"
    )]
    Stale {
        /// The dispatch the view came from.
        used: u64,
        /// The latest dispatch.
        current: u64,
    },
    /// A handle was used after a later routing had taken its memory, or with an exchange that it is not of.
    #[error(
        "handle of routing {used}: its memory has been used again, the latest routing is {current}; \
         config.handles says how many are kept"
    )]
    StaleHandle {
        /// The routing it is of.
        used: u64,
        /// The latest routing.
        current: u64,
    },
    /// What a dispatch brought was to be combined a second time.
    #[error("dispatch {dispatch} has been combined already: its outputs may be read only once")]
    AlreadyCombined {
        /// The dispatch.
        dispatch: u64,
    },
    /// What a hook stands for has been received already.
    #[error("low-latency batch {batch}: what its hook stands for has been received already")]
    HookUsed {
        /// The batch, counted from 1.
        batch: u64,
    },
    /// A low-latency call needs buffers in which something is still to be received.
    #[error(
        "low-latency batch {batch} has to be received first: low_latency.depth = {depth} batches may be under way"
    )]
    HookPending {
        /// The batch that holds the buffers.
        batch: u64,
        /// How many batches may be under way.
        depth: u32,
    },
    /// A rank did not come to a rendezvous on the host.
    #[error("rank {rank} waited {waited:?} for the others at {place}")]
    Rendezvous {
        /// The rank that waited.
        rank: u32,
        /// What the ranks were to meet for.
        place: &'static str,
        /// For how long it waited.
        waited: Duration,
    },
    /// The processes of a group did not come together, or one of them has gone. The bootstrap cannot be used any more.
    #[error("process {process} at {place}: {cause}")]
    Bootstrap {
        /// The process that noticed.
        process: u32,
        /// What the processes were to meet for.
        place: &'static str,
        /// What it noticed. It names the others.
        cause: bootstrap::Cause,
    },
    /// A peer's flag did not come in time. The exchange cannot be used any more; the GPU can.
    #[error("rank {peer} is late: {phase} of epoch {epoch}, flag expected at {expected}, seen at {seen}")]
    Late {
        /// The rank that was waited for.
        peer: u32,
        /// What was waited for.
        phase: &'static str,
        /// The epoch of the operation.
        epoch: u64,
        /// The flag's value that was waited for.
        expected: u64,
        /// Its last value.
        seen: u64,
    },
    /// An expert id of this rank's input is out of range. Nothing was sent.
    #[error("topk_idx[{token}, {slot}] = {value}: an expert id is −1 or below {experts}; nothing was sent")]
    ExpertOutOfRange {
        /// The token.
        token: u64,
        /// Its slot.
        slot: u64,
        /// The id.
        value: i32,
        /// The number of experts.
        experts: u64,
    },
    /// A peer's input was invalid. Nothing was sent.
    #[error("rank {peer} announced an invalid input; nothing was sent")]
    PeerInput {
        /// The rank.
        peer: u32,
    },
    /// Ranks do not follow the handle of the same dispatch, or only some of them follow one. Nothing was sent.
    #[error("rank {peer} follows another handle, or one of us follows none; nothing was sent")]
    HandleMismatch {
        /// A rank that does not agree with this one.
        peer: u32,
    },
    /// The count of tokens on the device is too large. Nothing was sent.
    #[error("{tokens} tokens, counted on the device, but the config allows {limit}; nothing was sent")]
    TokenCount {
        /// What the device counted.
        tokens: u64,
        /// What the config allows.
        limit: u64,
    },
    /// This rank's expert-major form would need more rows than it has room for. The form is empty; the rank-major rows
    /// are all there.
    #[error(
        "the expert-major form would be {rows} rows, but expert_major.rows = {capacity}; it is left empty"
    )]
    ExpertRows {
        /// Rows, padding counted.
        rows: u64,
        /// The rows it has room for.
        capacity: u64,
    },
    /// More rows are routed to a rank than it has room for. Nothing was sent.
    #[error("rank {rank} would receive {rows} rows, but receive_rows = {capacity}; nothing was sent")]
    Capacity {
        /// The rank.
        rank: u32,
        /// The rows routed to it.
        rows: u64,
        /// The rows it has room for.
        capacity: u64,
    },
    /// The exchange has failed before in a way that leaves ranks out of step.
    #[error("this exchange failed earlier and cannot go on: make a new group")]
    Failed,
    /// Two GPUs cannot map each other's memory.
    #[error(
        "GPU {from} cannot access the memory of GPU {to}: no NVLink and no peer access over PCIe between them"
    )]
    NoPeerAccess {
        /// The GPU that would read and write.
        from: usize,
        /// The GPU whose memory it would map.
        to: usize,
    },
    /// There is no such backend or device here.
    #[error("{what} is not available: {why}")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// Why it is not there, and how to get it.
        why: String,
    },
    /// None of the embedded kernels runs on this GPU.
    #[error(
        "no kernels for {device} (sm_{major}{minor}): this build has {built}; the smallest of them needs a newer GPU"
    )]
    Architecture {
        /// The GPU's name.
        device: String,
        /// Its compute capability.
        major: u32,
        /// The minor part of it.
        minor: u32,
        /// What the library was built for.
        built: String,
    },
    /// A capture into a graph does not allow this. The capture goes on, unless this was its end.
    #[error("{call} is not possible: {why}")]
    Capture {
        /// What was to be done.
        call: &'static str,
        /// What speaks against it.
        why: &'static str,
    },
    /// The fabric between nodes refused a call.
    #[error("fabric: {call} failed: {reason}")]
    Fabric {
        /// What was being done.
        call: String,
        /// What was said.
        reason: String,
    },
    /// The connection to a rank of another node has failed. The exchange cannot be used any more; the GPU can.
    #[error("rank {rank} lost lane {lane} to rank {peer}: {cause}")]
    Link {
        /// The rank that noticed.
        rank: u32,
        /// The rank at the other end.
        peer: u32,
        /// Which of the connections to it.
        lane: u32,
        /// Why.
        cause: Cause,
    },
    /// The driver, or the emulator, refused a call.
    #[error("{call} failed: {reason}")]
    Device {
        /// What was being done.
        call: String,
        /// What the driver said.
        reason: String,
    },
}
