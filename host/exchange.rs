//! The calls a user makes: layout, dispatch, combine.

use crate::arena::Arena;
use crate::gpu::{Buffer, Description, Gpu, Grid, HostBuffer, Stream, View};
use crate::{Config, Error, Member};
use std::sync::Arc;
use std::time::Duration;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::kernel::Kernel;
use tokenrail_device::throughput::{combine, dispatch, layout};
use tokenrail_device::wire::{self, ArenaLayout, Failure, Phase, Report, Shape, WorkspaceLayout};

/// One rank's end of an exchange: its arena, its workspace, and the operations on them.
///
/// Calls only queue work on the stream they are given; [`Exchange::finish`] waits for it and says whether it went
/// well. All ranks make the same calls in the same order, each on streams that keep that order.
pub struct Exchange {
    member: Member,
    config: Config,
    shape: Shape,
    arena_layout: ArenaLayout,
    work_layout: WorkspaceLayout,
    arena: Arena,
    workspace: Buffer,
    report: HostBuffer,
    sms: u32,
    bulk_copy: bool,
    dispatch_staging: Staging,
    combine_staging: Staging,
    dispatches: u64,
    /// Tokens of the last dispatch.
    tokens: u32,
    failed: bool,
}

/// What a rank dispatches. Every array is row-major and aligned to 16 bytes.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// bf16 or e4m3 `[tokens, hidden]`, as the config says.
    pub x: &'a Buffer,
    /// f32 `[tokens, ceil(hidden / 128)]`, for e4m3.
    pub x_scales: Option<&'a Buffer>,
    /// i32 `[tokens, topk]`, −1 for an empty slot.
    pub topk_idx: &'a Buffer,
    /// f32 `[tokens, topk]`.
    pub topk_weights: &'a Buffer,
    /// Tokens, at most the config's.
    pub tokens: u32,
}

/// What a rank has received, in place in its arena: valid until the next dispatch, which makes it stale.
///
/// Rows lie in the order (source rank, token index there). How many there are is known on the device
/// ([`Received::rows`]); [`Exchange::counts`] tells the host.
#[derive(Clone)]
pub struct Received {
    dispatch: u64,
    shape: Shape,
    arena_layout: ArenaLayout,
    work_layout: WorkspaceLayout,
    arena: Arc<Buffer>,
    workspace: Address,
}

/// How much a rank has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Rows in all.
    pub rows: u32,
    /// Rows from each rank.
    pub tokens_per_source: Vec<u32>,
    /// (row, slot) pairs of each expert of this rank.
    pub tokens_per_expert: Vec<u32>,
}

/// Who goes where, on the device.
pub struct Layout {
    /// u32 `[ranks]`: tokens with an expert on that rank.
    pub tokens_per_rank: Buffer,
    /// u32 `[experts]`: (token, slot) pairs.
    pub tokens_per_expert: Buffer,
    /// u8 `[tokens, ranks]`: 1 where the token goes to the rank.
    pub is_token_in_rank: Buffer,
}

/// Most bytes of one of dispatch's buffers: a row of DeepSeek-V3's fits, and enough warps have one.
const DISPATCH_BUFFER_BYTES: u32 = 16 << 10;
/// Dispatch's buffers of a warp. More put more bytes on their way than the links take well: FP8 rows took 118 µs with
/// one and 126 µs with two (docs/performance.md).
const DISPATCH_STAGES: u32 = 1;
/// Most bytes of each partial row that combine pulls at once: of 2, 3.5 and 7 KiB the quickest (docs/performance.md).
const COMBINE_PIECE_BYTES: u32 = 2 << 10;
/// Combine's stages of a warp.
const COMBINE_STAGES: u32 = 2;

/// How long ranks wait for each other to set up, at least: drivers take their time, however short a kernel's wait is.
const SETUP_PATIENCE: Duration = Duration::from_secs(30);

/// How a block's shared memory is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Staging {
    warps: u32,
    stages: u32,
    stage_bytes: u32,
}

impl Staging {
    /// Dispatch's on this device.
    fn of_dispatch(shape: &Shape, device: &Description, bulk_copy: bool) -> Result<Self, Error> {
        // Plain copies need no buffers.
        let stage_bytes = if bulk_copy { shape.row_bytes.min(DISPATCH_BUFFER_BYTES) } else { 0 };
        let most = Self { warps: device.warps, stages: DISPATCH_STAGES, stage_bytes };
        most.fit(shape, device, |Self { warps, stages, stage_bytes }| {
            dispatch::Shared::new(shape, warps, stages, stage_bytes).bytes
        })
    }

    /// Combine's on this device.
    fn of_combine(shape: &Shape, device: &Description, bulk_copy: bool) -> Result<Self, Error> {
        let piece_bytes = shape.output_bytes().min(COMBINE_PIECE_BYTES);
        let stage_bytes = if bulk_copy { piece_bytes * shape.route_width() } else { 0 };
        let most = Self { warps: device.warps, stages: COMBINE_STAGES, stage_bytes };
        most.fit(shape, device, |Self { warps, stages, stage_bytes }| {
            combine::Shared::new(warps, stages, stage_bytes).bytes
        })
    }

    /// The most warps whose shared memory fits, with as many stages or else one.
    fn fit(self, shape: &Shape, device: &Description, bytes: impl Fn(Self) -> u32) -> Result<Self, Error> {
        let limit = device.shared_bytes;
        let sizes = [self.stages, 1]
            .into_iter()
            .flat_map(|stages| (1..=self.warps).rev().map(move |warps| Self { warps, stages, ..self }));
        sizes.into_iter().find(|staging| bytes(*staging) <= limit).ok_or_else(|| {
            let value = format!("{} with {} ranks", shape.experts, shape.ranks);
            let limit = format!("their counts do not fit a block's {limit} bytes of shared memory");
            Error::Config { field: "experts", value, limit }
        })
    }
}

impl Exchange {
    /// Sets up this rank's end. All ranks of the group call it together.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that are not possible here, [`Error::Disagreement`] if ranks were given
    /// different ones, [`Error::Device`] without enough memory, [`Error::Rendezvous`] if a rank does not come.
    pub fn new(member: Member, config: &Config) -> Result<Self, Error> {
        // Ranks whose own settings are impossible still tell the others, who would wait for them otherwise.
        let shape = config.shape(member.ranks());
        let patience = config.timeout.max(SETUP_PATIENCE);
        let configs = member.all_gather(config.clone(), "comparison of the settings", patience)?;
        let shape = shape?;
        for (rank, theirs) in (0..).zip(&configs) {
            config.agree(member.rank(), theirs, rank)?;
        }
        let device = member.gpu().description().clone();
        let sms = config.sms.unwrap_or(device.default_sms);
        let most = device.multiprocessors / device.ranks;
        if sms > most {
            let limit = format!("{} has {} for {} ranks", device.name, device.multiprocessors, device.ranks);
            return Err(Error::Config { field: "sms", value: sms.to_string(), limit });
        }
        let bulk_copy = config.bulk_copy.unwrap_or(device.bulk_copy);
        if bulk_copy && !device.bulk_copy {
            let limit = format!("{} has no bulk copies", device.name);
            return Err(Error::Config { field: "bulk_copy", value: "true".into(), limit });
        }

        let dispatch_staging = Staging::of_dispatch(&shape, &device, bulk_copy)?;
        let combine_staging = Staging::of_combine(&shape, &device, bulk_copy)?;

        let arena_layout = ArenaLayout::new(&shape);
        let work_layout = WorkspaceLayout::new(&shape, sms);
        let gpu = member.gpu();
        let workspace = gpu.alloc_zeroed(work_layout.bytes as usize);
        let report = gpu.alloc_host(8 * Report::WORDS);
        let arena = Arena::new(&member, arena_layout.bytes, patience)?;
        let (workspace, report) = (workspace?, report?);
        gpu.write(workspace.part(work_layout.peers, 8 * shape.ranks as u64), &arena.addresses())?;
        Ok(Self {
            config: config.clone(),
            shape,
            arena_layout,
            work_layout,
            arena,
            workspace,
            report,
            sms,
            bulk_copy,
            dispatch_staging,
            combine_staging,
            dispatches: 0,
            tokens: 0,
            failed: false,
            member,
        })
    }

    /// This rank's GPU.
    pub fn gpu(&self) -> &Gpu {
        self.member.gpu()
    }

    /// This rank's number.
    pub fn rank(&self) -> u32 {
        self.member.rank()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Streaming multiprocessors that a kernel occupies.
    pub fn sms(&self) -> u32 {
        self.sms
    }

    /// Gives every rank what each has put up, on the host: [`Member::all_gather`]. Also a way to meet, so that no rank
    /// frees memory while another's kernels still run.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] when a rank does not come within `timeout`.
    pub fn all_gather<T>(&self, value: T, place: &'static str, timeout: Duration) -> Result<Vec<T>, Error>
    where
        T: Clone + Send + 'static,
    {
        self.member.all_gather(value, place, timeout)
    }

    /// Number, over all ranks, of this rank's first expert.
    pub fn first_expert(&self) -> u32 {
        self.rank() * self.shape.experts_per_rank()
    }

    /// Counts tokens per rank and per expert, without communication.
    ///
    /// # Errors
    /// [`Error::Argument`] if `topk_idx` is shorter than `tokens` rows.
    pub fn layout(&self, stream: &Stream, topk_idx: &Buffer, tokens: u32) -> Result<Layout, Error> {
        let (shape, gpu) = (&self.shape, self.gpu());
        topk_idx.view().holds("topk_idx", tokens as usize * shape.topk as usize * 4)?;
        let result = Layout {
            tokens_per_rank: gpu.alloc(4 * shape.ranks as usize)?,
            tokens_per_expert: gpu.alloc(4 * shape.experts as usize)?,
            is_token_in_rank: gpu.alloc(tokens as usize * shape.ranks as usize)?,
        };
        gpu.fill(stream, result.tokens_per_rank.view(), 0)?;
        gpu.fill(stream, result.tokens_per_expert.view(), 0)?;
        let args = layout::LayoutArgs {
            shape: *shape,
            topk_idx: topk_idx.address(),
            tokens_per_rank: result.tokens_per_rank.address(),
            tokens_per_expert: result.tokens_per_expert.address(),
            is_token_in_rank: result.is_token_in_rank.address(),
            tokens,
        };
        let threads = gpu.description().warps * WARP;
        let grid = Grid { blocks: self.sms, threads, shared_bytes: layout::shared_bytes(shape) };
        // SAFETY: sizes were checked or chosen above, and the outputs zeroed in stream order.
        unsafe { gpu.launch::<layout::Layout>(stream, grid, &args)? };
        Ok(result)
    }

    /// Sends every token's row to the ranks of its experts, and receives this rank's.
    ///
    /// # Errors
    /// [`Error::Argument`] if an array is shorter than `tokens` rows or there are more tokens than the config allows;
    /// [`Error::Failed`] after a failure. What goes wrong on the device is told by [`Exchange::finish`].
    pub fn dispatch(&mut self, stream: &Stream, input: &Input) -> Result<Received, Error> {
        self.usable()?;
        let shape = &self.shape;
        let tokens = input.tokens;
        if tokens > shape.tokens {
            let limit = format!("the config allows {}", shape.tokens);
            return Err(Error::Argument { argument: "tokens", value: tokens.to_string(), limit });
        }
        let rows_of = |bytes: u32| tokens as usize * bytes as usize;
        input.x.view().holds("x", rows_of(shape.row_bytes))?;
        input.topk_idx.view().holds("topk_idx", rows_of(4 * shape.topk))?;
        input.topk_weights.view().holds("topk_weights", rows_of(4 * shape.topk))?;
        let x_scales = match input.x_scales {
            Some(scales) => scales.view(),
            None => View::new(Address::NULL, 0),
        };
        x_scales.holds("x_scales", rows_of(4 * shape.scales))?;

        let Staging { warps, stages, stage_bytes } = self.dispatch_staging;
        let args = dispatch::DispatchArgs {
            exchange: self.device_side(),
            x: input.x.address(),
            x_scales: x_scales.address,
            topk_idx: input.topk_idx.address(),
            topk_weights: input.topk_weights.address(),
            tokens,
            stage_bytes,
            stages,
        };
        let shared = dispatch::Shared::new(shape, warps, stages, stage_bytes);
        let grid = Grid { blocks: self.sms, threads: warps * WARP, shared_bytes: shared.bytes };
        // SAFETY: the arena, the workspace and the report are this exchange's, of the sizes that the layouts say; the
        // inputs were checked above; `sms` blocks fit the device at once beside those of the ranks that share it.
        unsafe { self.launch::<dispatch::DispatchPlain, dispatch::Dispatch>(stream, grid, &args)? };
        self.dispatches += 1;
        self.tokens = tokens;
        Ok(Received {
            dispatch: self.dispatches,
            shape: self.shape,
            arena_layout: self.arena_layout,
            work_layout: self.work_layout,
            arena: self.arena.own().clone(),
            workspace: self.workspace.address(),
        })
    }

    /// Sums, for each token of that dispatch, what the ranks it went to have left in [`Received::outputs`], into
    /// `out`: bf16 `[tokens, hidden]`. A token that went nowhere gives zeros.
    ///
    /// # Errors
    /// [`Error::Stale`] if there was another dispatch since, [`Error::Argument`] if `out` is too short,
    /// [`Error::Failed`] after a failure. What goes wrong on the device is told by [`Exchange::finish`].
    pub fn combine(&mut self, stream: &Stream, received: &Received, out: &Buffer) -> Result<(), Error> {
        self.usable()?;
        self.current(received)?;
        out.view().holds("out", self.tokens as usize * self.shape.output_bytes() as usize)?;
        let Staging { warps, stages, stage_bytes } = self.combine_staging;
        let args = combine::CombineArgs {
            exchange: self.device_side(),
            out: out.address(),
            tokens: self.tokens,
            piece_bytes: stage_bytes / self.shape.route_width(),
            stages,
        };
        let shared = combine::Shared::new(warps, stages, stage_bytes);
        let grid = Grid { blocks: self.sms, threads: warps * WARP, shared_bytes: shared.bytes };
        // SAFETY: as in `dispatch`; the routes in the workspace are those of the last dispatch, which `received` is.
        unsafe { self.launch::<combine::CombinePlain, combine::Combine>(stream, grid, &args) }
    }

    /// Waits for the stream and tells how the operations on it went.
    ///
    /// # Errors
    /// [`Error::ExpertOutOfRange`], [`Error::PeerInput`] or [`Error::Capacity`] when nothing was sent, on all ranks
    /// alike, and the exchange goes on; [`Error::Late`] when a peer did not come, after which it is unusable.
    pub fn finish(&mut self, stream: &Stream) -> Result<(), Error> {
        stream.synchronize().inspect_err(|_| self.failed = true)?;
        let report = Report::from_words(self.report.read());
        if report.failure == 0 {
            return Ok(());
        }
        self.report.clear::<{ Report::WORDS }>();
        self.gpu().fill(stream, self.workspace.part(self.work_layout.report_claim, 4), 0)?;
        stream.synchronize()?;
        let error = self.explain(&report);
        self.failed = matches!(error, Error::Late { .. });
        Err(error)
    }

    /// Waits for a dispatch and reads how much it has brought.
    ///
    /// # Errors
    /// What [`Exchange::finish`] gives, and [`Error::Stale`].
    pub fn counts(&mut self, stream: &Stream, received: &Received) -> Result<Counts, Error> {
        self.current(received)?;
        self.finish(stream)?;
        let gpu = self.gpu();
        let rows: Vec<u32> = gpu.download(stream, received.rows(), 1)?;
        Ok(Counts {
            rows: rows[0],
            tokens_per_source: gpu.download(
                stream,
                received.tokens_per_source(),
                self.shape.ranks as usize,
            )?,
            tokens_per_expert: gpu.download(
                stream,
                received.tokens_per_expert(),
                self.local_experts() as usize,
            )?,
        })
    }

    /// Experts that this rank owns.
    pub fn local_experts(&self) -> u32 {
        self.shape.experts.saturating_sub(self.first_expert()).min(self.shape.experts_per_rank())
    }

    fn usable(&self) -> Result<(), Error> {
        if self.failed { Err(Error::Failed) } else { Ok(()) }
    }

    pub(crate) fn current(&self, received: &Received) -> Result<(), Error> {
        if received.dispatch == self.dispatches && Arc::ptr_eq(&received.arena, self.arena.own()) {
            return Ok(());
        }
        Err(Error::Stale { used: received.dispatch, current: self.dispatches })
    }

    /// What every kernel is told about this exchange.
    fn device_side(&self) -> wire::Exchange {
        wire::Exchange {
            shape: self.shape,
            arena: self.arena_layout,
            work: self.work_layout,
            workspace: self.workspace.address(),
            report: self.report.address(),
            timeout_ns: self.config.timeout.as_nanos() as u64,
            rank: self.rank(),
        }
    }

    /// Launches the variant that this exchange moves rows with.
    unsafe fn launch<P, B>(&self, stream: &Stream, grid: Grid, args: &P::Args) -> Result<(), Error>
    where
        P: Kernel,
        B: Kernel<Args = P::Args>,
    {
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if self.bulk_copy {
                self.gpu().launch::<B>(stream, grid, args)
            } else {
                self.gpu().launch::<P>(stream, grid, args)
            }
        }
    }

    fn explain(&self, report: &Report) -> Error {
        let peer = report.peer as u32;
        match report.failure {
            failure if failure == Failure::ExpertOutOfRange as u64 => Error::ExpertOutOfRange {
                token: report.token,
                slot: report.slot,
                value: report.seen as u32 as i32,
                experts: report.expected,
            },
            failure if failure == Failure::PeerInput as u64 => Error::PeerInput { peer },
            failure if failure == Failure::Capacity as u64 => {
                Error::Capacity { rank: peer, rows: report.seen, capacity: report.expected }
            }
            _ => Error::Late {
                peer,
                phase: match report.phase {
                    phase if phase == Phase::Counts as u64 => "counts of a dispatch",
                    phase if phase == Phase::Data as u64 => "rows of a dispatch",
                    _ => "outputs for a combine",
                },
                epoch: report.epoch,
                expected: report.expected,
                seen: report.seen,
            },
        }
    }
}

impl Received {
    fn region(&self, offset: u64, row_bytes: u32) -> View {
        self.arena.part(offset, self.shape.rows as u64 * row_bytes as u64)
    }

    /// The rows: bf16 or e4m3 `[receive_rows, hidden]`, of which the first [`Received::rows`] are filled. So for all.
    pub fn x(&self) -> View {
        self.region(self.arena_layout.rows, self.shape.row_bytes)
    }

    /// f32 `[receive_rows, ceil(hidden / 128)]`; empty for bf16.
    pub fn x_scales(&self) -> View {
        self.region(self.arena_layout.scales, 4 * self.shape.scales)
    }

    /// i32 `[receive_rows, topk]`: this rank's number of the expert, −1 where the slot is not this rank's.
    pub fn topk_idx(&self) -> View {
        self.region(self.arena_layout.topk_idx, 4 * self.shape.topk)
    }

    /// f32 `[receive_rows, topk]`: 0 where the index is −1.
    pub fn topk_weights(&self) -> View {
        self.region(self.arena_layout.topk_weights, 4 * self.shape.topk)
    }

    /// u32 `[receive_rows, 2]`: source rank, and the token's index there.
    pub fn sources(&self) -> View {
        self.region(self.arena_layout.sources, 8)
    }

    /// bf16 `[receive_rows, hidden]`: where the experts' outputs go, one per row, weighted and summed over this
    /// rank's experts.
    pub fn outputs(&self) -> View {
        self.region(self.arena_layout.outputs, self.shape.output_bytes())
    }

    /// u32: number of rows, on the device.
    pub fn rows(&self) -> View {
        View::new(self.workspace.offset(self.work_layout.received), 4)
    }

    /// u32 `[ranks]`: rows from each rank, on the device.
    pub fn tokens_per_source(&self) -> View {
        View::new(self.workspace.offset(self.work_layout.tokens_per_source), 4 * self.shape.ranks as usize)
    }

    /// u32 `[experts per rank]`: (row, slot) pairs of each of this rank's experts, on the device.
    pub fn tokens_per_expert(&self) -> View {
        let bytes = 4 * self.shape.experts_per_rank() as usize;
        View::new(self.workspace.offset(self.work_layout.tokens_per_expert), bytes)
    }
}
