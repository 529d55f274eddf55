//! Low-latency calls: dispatch and combine of few tokens in the least time, whole or in two halves.
//!
//! A **batch** is a dispatch and the combine of what it brought. [`Config::low_latency`](crate::Config::low_latency) says
//! how many may be under way; they take turns with so many sets of buffers, and different ones run in any order, on any
//! streams, as long as all kernels that may wait at the same time have their multiprocessors. Within a batch each call comes after the one before it, on one stream or on several that wait for each other's
//! events. All ranks make the same calls of a batch.
//!
//! A half that sends ends by itself, whatever peers do; what is on its way needs no multiprocessor until the other half
//! receives it. What the sending half gives, a *hook*, is what the receiving half takes.
//!
//! ```
//! use tokenrail::low_latency::{Input, Rows, Sums};
//! use tokenrail::{Backend, Config, Error, Exchange, Group, LowLatency};
//!
//! let member = Group::in_process(1, &Backend::emulator(0))?.remove(0);
//! // 4 experts, 2 a token, rows of 64; no other calls than low-latency ones, of at most 8 tokens.
//! let config = Config { low_latency: Some(LowLatency::new(8)), ..Config::new(4, 2, 64, 0) };
//! let mut exchange = Exchange::new(member, &config)?;
//! let gpu = exchange.gpu().clone();
//! let stream = gpu.stream()?;
//! let x = gpu.upload(&[half::bf16::ONE; 3 * 64])?;
//! let topk_idx = gpu.upload(&[0, 3, 1, 2, 2, -1])?;
//! let topk_weights = gpu.upload(&[0.5f32; 6])?;
//! // FP8 rows and scales of 4 experts, with room for 8 tokens each, and what the experts make of them.
//! let (rows, scales) = (gpu.alloc(4 * 8 * 64)?, gpu.alloc(4 * 8 * 4)?);
//! let y = gpu.alloc_zeroed(4 * 8 * 64 * 2)?;
//! let combined = gpu.alloc(3 * 64 * 2)?;
//!
//! let mut calls = exchange.low_latency()?;
//! let hook = calls.dispatch_send(&stream, &Input::new(&x, &topk_idx, &topk_weights, 3))?;
//! // Something else may run here.
//! let batch = calls.dispatch_receive(&stream, &hook, &Rows::fp8(&rows, &scales))?;
//! // The experts read `rows`, `scales` and `batch.counts()`, and write `y`.
//! calls.combine(&stream, &batch, &y, &Sums::new(&combined))?;
//! exchange.finish(&stream)?;
//! # Ok::<(), Error>(())
//! ```
//!
//! A combine takes what the receiving half of a dispatch gives, and not its hook:
//!
//! ```compile_fail
//! # use tokenrail::low_latency::{Calls, DispatchHook, Sums};
//! # fn early(calls: &mut Calls, stream: &tokenrail::Stream, hook: &DispatchHook, y: &tokenrail::Buffer) {
//! calls.combine(stream, hook, y, &Sums::new(y));
//! # }
//! ```

use super::link::NOWHERE;
use super::trace::Operation;
use super::{Exchange, Tokens};
use crate::arena::Arena;
use crate::config::{BatchPlan, Plan};
use crate::gpu::{Buffer, Description, Gpu, Grid, HostBuffer, Stream, View};
use crate::{CombineFormat, Config, Error};
use std::sync::Arc;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::low_latency::batch::{Batch as DeviceBatch, channel};
use tokenrail_device::low_latency::combine::{
    self, Combine, CombineAcross, CombineArgs, CombineFp8, CombineFp8Across, CombineLog10, CombineLog10Across,
};
use tokenrail_device::low_latency::dispatch::{self, Dispatch, DispatchAcross, DispatchArgs};
use tokenrail_device::low_latency::halves;
use tokenrail_device::low_latency::layout::Shape;
use tokenrail_device::wire::Report;

/// Most warps of a dispatch's block.
const DISPATCH_WARPS: u32 = 16;
/// And of a combine's, whose threads need more registers: they hold parts of several rows, or of larger ones.
const COMBINE_WARPS: [u32; 2] = [10, 8];

/// Tokens to dispatch.
#[derive(Clone, Copy)]
pub struct Input {
    /// bf16 `[tokens, hidden]`, aligned to 16 bytes. With room for as many tokens as the config allows if the device
    /// counts them; so for the other arrays.
    pub x: View,
    /// i32 `[tokens, topk]`: experts, −1 for none.
    pub topk_idx: View,
    /// f32 `[tokens, topk]`: what the experts' rows are multiplied by if they are summed [by
    /// rank](crate::Summation::ByRank). `None`: zeros.
    pub topk_weights: Option<View>,
    /// How many there are.
    pub tokens: Tokens,
}

impl Input {
    /// `tokens` tokens.
    pub fn new(
        x: impl Into<View>,
        topk_idx: impl Into<View>,
        topk_weights: impl Into<View>,
        tokens: u32,
    ) -> Self {
        Self {
            x: x.into(),
            topk_idx: topk_idx.into(),
            topk_weights: Some(topk_weights.into()),
            tokens: Tokens::Host(tokens),
        }
    }
}

/// Where received rows go. An expert's lie from the first of its part on, in the order (source rank, token index there);
/// what lies behind them is not written. A part has room for `ranks · tokens` rows.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Out: `[experts of this rank, ranks · tokens, hidden]`, bf16 or FP8, aligned to 16 bytes.
    pub x: View,
    /// Out: words of scales, for each expert `[ranks · tokens, words]` or `[words, ranks · tokens rounded up to 4]`.
    pub x_scales: Option<View>,
}

impl Rows {
    /// Rows without scales.
    pub fn bf16(x: impl Into<View>) -> Self {
        Self { x: x.into(), x_scales: None }
    }

    /// Rows with scales.
    pub fn fp8(x: impl Into<View>, x_scales: impl Into<View>) -> Self {
        Self { x: x.into(), x_scales: Some(x_scales.into()) }
    }
}

/// Where combined rows go.
#[derive(Clone, Copy)]
pub struct Sums {
    /// Out: bf16 `[tokens, hidden]`, aligned to 16 bytes; with room for as many tokens as the dispatch had.
    pub combined: View,
    /// f32 `[tokens, topk]`: what the experts' rows are multiplied by if they are summed [by slot](crate::Summation::BySlot).
    pub topk_weights: Option<View>,
}

impl Sums {
    /// Sums of what was weighted by rank.
    pub fn new(combined: impl Into<View>) -> Self {
        Self { combined: combined.into(), topk_weights: None }
    }

    /// Sums of every slot's row, weighted here.
    pub fn weighted(combined: impl Into<View>, topk_weights: impl Into<View>) -> Self {
        Self { combined: combined.into(), topk_weights: Some(topk_weights.into()) }
    }
}

/// A dispatch that has been sent: what [`Calls::dispatch_receive`] takes.
pub struct DispatchHook(Id);

/// A combine that has been sent: what [`Calls::combine_receive`] takes.
pub struct CombineHook(Id);

/// What a dispatch has brought: what [`Calls::combine`] takes. Valid until its buffers are used for another batch, which
/// is as many dispatches later as there may be batches under way.
pub struct Batch {
    id: Id,
    plan: BatchPlan,
    offset: u64,
}

/// Which batch, and whose.
#[derive(Clone)]
struct Id {
    index: u32,
    batch: u64,
    workspace: Arc<Buffer>,
}

impl Batch {
    fn region(&self, offset: u64, bytes: u64) -> View {
        self.id.workspace.part(self.offset + offset, bytes)
    }

    /// u32 `[experts of this rank]`: rows of each, on the device.
    pub fn counts(&self) -> View {
        self.region(self.plan.work.counts, 4 * u64::from(self.plan.shape.experts_per_rank()))
    }

    /// u64 `[experts of this rank, ranks]`: which of an expert's rows came from which rank, `first << 32 | rows`, on the
    /// device.
    pub fn ranges(&self) -> View {
        let shape = &self.plan.shape;
        self.region(self.plan.work.ranges, 8 * u64::from(shape.experts_per_rank() * shape.ranks))
    }
}

/// What low-latency calls have counted since the exchange was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Rows that each of this rank's experts has received.
    pub expert_rows: Vec<u64>,
    /// For each rank, how long dispatches waited for the last of what it sent, in nanoseconds, added up over the calls;
    /// what was there when it was looked for adds nothing.
    pub dispatch_wait_ns: Vec<u64>,
    /// The same of combines.
    pub combine_wait_ns: Vec<u64>,
}

/// A set of buffers.
pub(super) struct Buffers {
    pub report: HostBuffer,
    /// The batch that is in it, 0 for none.
    batch: u64,
    stage: Stage,
    /// Tokens that arrays must have room for.
    room: u32,
}

/// How far a batch has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There is none, or it has been received whole.
    Free,
    DispatchSent,
    DispatchReceived,
    CombineSent,
}

impl Buffers {
    pub fn all(gpu: &Gpu, plan: &Plan) -> Result<Vec<Self>, Error> {
        let one = |_| {
            let report = gpu.alloc_host(8 * Report::WORDS)?;
            Ok(Self { report, batch: 0, stage: Stage::Free, room: 0 })
        };
        (0..plan.batches.map_or(0, |plan| plan.depth)).map(one).collect()
    }
}

/// Multiprocessors of a call, unless it says otherwise.
pub(super) fn sms(config: &Config, plan: &Plan, device: &Description) -> Result<u32, Error> {
    let (Some(low_latency), Some(plan)) = (&config.low_latency, &plan.batches) else { return Ok(0) };
    let most = device.multiprocessors / device.ranks;
    // Batches on streams of their own may all wait at the same time. The emulator is slower the more blocks there are.
    let default = if device.capability == 0 { device.default_sms } else { most / low_latency.depth };
    let sms = low_latency.sms.unwrap_or(default.clamp(1, config.max_sms));
    let refuse = |field, value: String, limit| Err(Error::Config { field, value, limit });
    if sms > most {
        let limit = format!("{} has {} for {} ranks", device.name, device.multiprocessors, device.ranks);
        return refuse("low_latency.sms", sms.to_string(), limit);
    }
    if shared_bytes(&plan.shape, 1) > device.shared_bytes {
        let limit = format!(
            "what ranks tell each other does not fit a block's {} bytes of shared memory",
            device.shared_bytes
        );
        return refuse("low_latency.tokens", low_latency.tokens.to_string(), limit);
    }
    Ok(sms)
}

/// Shared memory of a dispatch's block.
fn shared_bytes(shape: &Shape, blocks: u32) -> u32 {
    dispatch::routing::Shared::new(shape, blocks).bytes.max(dispatch::receive::shared_bytes(shape))
}

/// Tells every batch's kernels where the peers' arenas are.
pub(super) fn write_peers(gpu: &Gpu, plan: &Plan, workspace: &Buffer, arena: &Arena) -> Result<(), Error> {
    let Some(batches) = &plan.batches else { return Ok(()) };
    for batch in 0..batches.depth {
        let offset = plan.batch_arena_offset(batch);
        let peers = arena.addresses(offset);
        let at = plan.batch_work_offset(batch) + batches.work.peers;
        gpu.write(workspace.part(at, 8 * u64::from(batches.shape.ranks)), &peers)?;
    }
    Ok(())
}

/// An exchange's low-latency calls.
pub struct Calls<'a> {
    exchange: &'a mut Exchange,
    plan: BatchPlan,
    sms: u32,
}

impl Exchange {
    /// The low-latency calls.
    ///
    /// # Errors
    /// [`Error::Argument`] if the config has none; [`Error::Failed`] after a failure.
    pub fn low_latency(&mut self) -> Result<Calls<'_>, Error> {
        self.usable()?;
        let Some(plan) = self.plan.batches else {
            let limit = "the config has no low-latency calls: set low_latency".into();
            return Err(Error::Argument { argument: "low_latency", value: "None".into(), limit });
        };
        let sms = self.low_latency_sms;
        Ok(Calls { exchange: self, plan, sms })
    }
}

impl<'a> Calls<'a> {
    /// The same, with so many multiprocessors a kernel.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many, or the config allows fewer.
    pub fn with_sms(self, sms: u32) -> Result<Self, Error> {
        let sms = self.exchange.blocks(Some(sms))?;
        Ok(Self { sms, ..self })
    }

    /// Multiprocessors of a kernel.
    pub fn sms(&self) -> u32 {
        self.sms
    }

    /// Sends every token's row to its experts, and receives this rank's.
    ///
    /// # Errors
    /// [`Error::Argument`] if an array is missing or too short, or there are more tokens than the config allows;
    /// [`Error::HookPending`] if the batch whose buffers it would take is not received. What goes wrong on the device is
    /// told by [`Exchange::finish`].
    pub fn dispatch(&mut self, stream: &Stream, input: &Input, rows: &Rows) -> Result<Batch, Error> {
        self.check_rows(rows)?;
        let id = self.launch_dispatch(stream, input, Some(rows))?;
        Ok(self.batch(id))
    }

    /// The half of a dispatch that sends. The buffers are taken until the other half has been called.
    ///
    /// # Errors
    /// As [`Calls::dispatch`].
    pub fn dispatch_send(&mut self, stream: &Stream, input: &Input) -> Result<DispatchHook, Error> {
        Ok(DispatchHook(self.launch_dispatch(stream, input, None)?))
    }

    /// The half of a dispatch that receives.
    ///
    /// # Errors
    /// [`Error::HookUsed`] the second time; [`Error::Stale`] if the hook is another exchange's; [`Error::Argument`] if an
    /// array is missing or too short, after which it can be called again.
    pub fn dispatch_receive(
        &mut self,
        stream: &Stream,
        hook: &DispatchHook,
        rows: &Rows,
    ) -> Result<Batch, Error> {
        self.expect(&hook.0, Stage::DispatchSent)?;
        self.check_rows(rows)?;
        let nothing = View::null();
        let input = Input { x: nothing, topk_idx: nothing, topk_weights: None, tokens: Tokens::Host(0) };
        self.run_dispatch(stream, hook.0.index, halves::RECEIVE, &input, 0, Some(rows))?;
        self.buffers(&hook.0).stage = Stage::DispatchReceived;
        Ok(self.batch(hook.0.clone()))
    }

    /// Brings back what the experts have made of the rows, `y`: bf16 `[experts of this rank, ranks · tokens, hidden]`, each
    /// row where the dispatch had put the one that it is made of. `y` may lie anywhere, and is read once.
    ///
    /// # Errors
    /// [`Error::Stale`] if the batch's buffers have been used for another, or it is another exchange's;
    /// [`Error::AlreadyCombined`] the second time; [`Error::Argument`] if an array is missing or too short.
    pub fn combine(
        &mut self,
        stream: &Stream,
        batch: &Batch,
        y: impl Into<View>,
        sums: &Sums,
    ) -> Result<(), Error> {
        self.expect(&batch.id, Stage::DispatchReceived)?;
        let y = self.check_outputs(y.into())?;
        self.check_sums(&batch.id, sums)?;
        self.run_combine(stream, batch.id.index, halves::BOTH, y, Some(sums))?;
        self.buffers(&batch.id).stage = Stage::Free;
        Ok(())
    }

    /// The half of a combine that sends. The buffers are taken until the other half has been called.
    ///
    /// # Errors
    /// As [`Calls::combine`].
    pub fn combine_send(
        &mut self,
        stream: &Stream,
        batch: &Batch,
        y: impl Into<View>,
    ) -> Result<CombineHook, Error> {
        self.expect(&batch.id, Stage::DispatchReceived)?;
        let y = self.check_outputs(y.into())?;
        self.run_combine(stream, batch.id.index, halves::SEND, y, None)?;
        self.buffers(&batch.id).stage = Stage::CombineSent;
        Ok(CombineHook(batch.id.clone()))
    }

    /// The half of a combine that receives.
    ///
    /// # Errors
    /// [`Error::HookUsed`] the second time; [`Error::Stale`] if the hook is another exchange's; [`Error::Argument`] if an
    /// array is missing or too short, after which it can be called again.
    pub fn combine_receive(&mut self, stream: &Stream, hook: &CombineHook, sums: &Sums) -> Result<(), Error> {
        self.expect(&hook.0, Stage::CombineSent)?;
        self.check_sums(&hook.0, sums)?;
        self.run_combine(stream, hook.0.index, halves::RECEIVE, Address::NULL, Some(sums))?;
        self.buffers(&hook.0).stage = Stage::Free;
        Ok(())
    }

    /// What was counted so far, once the stream has done what it was given.
    ///
    /// # Errors
    /// [`Error::Device`] if earlier work failed, [`Error::Capture`] while the stream is captured.
    pub fn statistics(&self, stream: &Stream) -> Result<Statistics, Error> {
        let (shape, work) = (&self.plan.shape, &self.plan.work);
        let (ranks, experts) = (shape.ranks as usize, shape.experts_per_rank() as usize);
        let mut all = Statistics {
            expert_rows: vec![0; self.exchange.local_experts() as usize],
            dispatch_wait_ns: vec![0; ranks],
            combine_wait_ns: vec![0; ranks],
        };
        for batch in 0..self.plan.depth {
            let offset = self.exchange.plan.batch_work_offset(batch);
            let part = |at: u64, bytes: usize| self.exchange.workspace.part(offset + at, bytes as u64);
            let gpu = self.exchange.gpu();
            let rows: Vec<u64> = gpu.download(stream, part(work.totals, 8 * experts), experts)?;
            let waits: Vec<u64> = gpu.download(stream, part(work.waits, 16 * ranks), 2 * ranks)?;
            // Those of the last calls, which have yet to be added.
            let last: Vec<u32> = gpu.download(stream, part(work.waited, 16 * ranks), 4 * ranks)?;
            all.expert_rows.iter_mut().zip(rows).for_each(|(sum, rows)| *sum += rows);
            for rank in 0..ranks {
                let late = |what: usize| {
                    let of = |parity: usize| u64::from(last[(2 * what + parity) * ranks + rank]);
                    waits[what * ranks + rank] + of(0) + of(1)
                };
                all.dispatch_wait_ns[rank] += late(0);
                all.combine_wait_ns[rank] += late(1);
            }
        }
        Ok(all)
    }

    fn buffers(&mut self, id: &Id) -> &mut Buffers {
        &mut self.exchange.batches[id.index as usize]
    }

    fn batch(&self, id: Id) -> Batch {
        Batch { offset: self.exchange.plan.batch_work_offset(id.index), plan: self.plan, id }
    }

    /// An error unless the batch is there and has come as far as that.
    fn expect(&self, id: &Id, stage: Stage) -> Result<(), Error> {
        self.exchange.usable()?;
        let buffers = self.exchange.batches.get(id.index as usize);
        let current = buffers.filter(|_| Arc::ptr_eq(&id.workspace, &self.exchange.workspace));
        let Some(buffers) = current.filter(|buffers| buffers.batch == id.batch) else {
            return Err(Error::Stale { used: id.batch, current: self.exchange.batches_begun });
        };
        match (stage, buffers.stage) {
            (wanted, is) if wanted == is => Ok(()),
            (Stage::DispatchReceived, _) => Err(Error::AlreadyCombined { dispatch: id.batch }),
            _ => Err(Error::HookUsed { batch: id.batch }),
        }
    }

    fn launch_dispatch(&mut self, stream: &Stream, input: &Input, rows: Option<&Rows>) -> Result<Id, Error> {
        self.exchange.usable()?;
        let room = self.check_input(input)?;
        let index = (self.exchange.batches_begun % u64::from(self.plan.depth)) as u32;
        let buffers = &self.exchange.batches[index as usize];
        if matches!(buffers.stage, Stage::DispatchSent | Stage::CombineSent) {
            return Err(Error::HookPending { batch: buffers.batch, depth: self.plan.depth });
        }
        let halves = if rows.is_some() { halves::BOTH } else { halves::SEND };
        self.run_dispatch(stream, index, halves, input, room, rows)?;
        self.exchange.batches_begun += 1;
        let batch = self.exchange.batches_begun;
        let stage = if rows.is_some() { Stage::DispatchReceived } else { Stage::DispatchSent };
        let buffers = &mut self.exchange.batches[index as usize];
        (buffers.batch, buffers.stage, buffers.room) = (batch, stage, room);
        Ok(Id { index, batch, workspace: self.exchange.workspace.clone() })
    }

    fn check_input(&self, input: &Input) -> Result<u32, Error> {
        let shape = &self.plan.shape;
        let room = match input.tokens {
            Tokens::Host(tokens) => tokens,
            Tokens::Device(at) => {
                at.holds("tokens", 4)?;
                shape.tokens
            }
        };
        if room > shape.tokens {
            let limit = format!("the config allows {}", shape.tokens);
            return Err(Error::Argument { argument: "tokens", value: room.to_string(), limit });
        }
        let slots = 4 * room as usize * shape.topk as usize;
        input.x.holds("x", 2 * room as usize * shape.hidden as usize)?;
        input.topk_idx.holds("topk_idx", slots)?;
        input.topk_weights.map_or(Ok(()), |weights| weights.holds("topk_weights", slots))?;
        Ok(room)
    }

    fn check_rows(&self, rows: &Rows) -> Result<(), Error> {
        let shape = &self.plan.shape;
        let experts = shape.experts_per_rank() as usize;
        rows.x.holds("rows.x", experts * shape.expert_rows() as usize * shape.row_bytes() as usize)?;
        let scales = 4 * experts * shape.expert_scale_words() as usize;
        match rows.x_scales {
            Some(x_scales) => x_scales.holds("rows.x_scales", scales),
            None if scales == 0 => Ok(()),
            None => Err(missing("rows.x_scales", "FP8 rows have scales")),
        }
    }

    fn check_outputs(&self, y: View) -> Result<Address, Error> {
        let shape = &self.plan.shape;
        let rows = shape.experts_per_rank() as usize * shape.expert_rows() as usize;
        y.holds("y", rows * 2 * shape.hidden as usize)?;
        Ok(y.address)
    }

    fn check_sums(&self, id: &Id, sums: &Sums) -> Result<(), Error> {
        let shape = &self.plan.shape;
        let room = self.exchange.batches[id.index as usize].room as usize;
        sums.combined.holds("sums.combined", room * 2 * shape.hidden as usize)?;
        match sums.topk_weights {
            Some(weights) => weights.holds("sums.topk_weights", 4 * room * shape.topk as usize),
            None if shape.by_slot == 0 => Ok(()),
            None => Err(missing("sums.topk_weights", "slots are weighted here with Summation::BySlot")),
        }
    }

    /// What every kernel of an operation of a batch is told.
    fn device_side(&self, operation: Operation, index: u32) -> DeviceBatch {
        let exchange = &self.exchange;
        DeviceBatch {
            shape: self.plan.shape,
            arena: self.plan.arena,
            work: self.plan.work,
            workspace: exchange.workspace.address().offset(exchange.plan.batch_work_offset(index)),
            own: exchange.arena.own().address().offset(exchange.plan.batch_arena_offset(index)),
            report: exchange.batches[index as usize].report.address(),
            trace: exchange.recorder.device_side(operation, index),
            link: exchange.link.as_ref().map_or(NOWHERE, |link| {
                link.device_side(index * channel::COUNT, exchange.plan.batch_arena_offset(index))
            }),
            timeout_ns: exchange.config.timeout.as_nanos() as u64,
            blocks: exchange.config.max_sms,
            rank: exchange.rank(),
            first_near: exchange.rank() - exchange.rank() % self.plan.shape.near_ranks,
        }
    }

    /// Whether some ranks are on other nodes.
    fn is_across(&self) -> bool {
        self.exchange.link.is_some()
    }

    fn grid(&self, warps: u32, shared_bytes: u32) -> Grid {
        let warps = warps.min(self.exchange.gpu().description().warps);
        Grid { blocks: self.sms, threads: warps * WARP, shared_bytes }
    }

    fn run_dispatch(
        &self,
        stream: &Stream,
        index: u32,
        halves: u32,
        input: &Input,
        room: u32,
        rows: Option<&Rows>,
    ) -> Result<(), Error> {
        let address = |view: Option<View>| view.map_or(Address::NULL, |view| view.address);
        let args = DispatchArgs {
            batch: self.device_side(Operation::LowLatencyDispatch, index),
            x: input.x.address,
            topk_idx: input.topk_idx.address,
            topk_weights: address(input.topk_weights),
            tokens_at: match input.tokens {
                Tokens::Host(_) => Address::NULL,
                Tokens::Device(at) => at.address,
            },
            tokens: room,
            halves,
            out: address(rows.map(|rows| rows.x)),
            out_scales: address(rows.and_then(|rows| rows.x_scales)),
        };
        let grid = self.grid(DISPATCH_WARPS, shared_bytes(&self.plan.shape, self.sms));
        // SAFETY: the arena, the workspace and the report are this exchange's, of the sizes that the layouts say; the
        // arrays were checked; the blocks fit the device at once beside those of the ranks that share it.
        unsafe {
            if self.is_across() {
                self.exchange.gpu().launch::<DispatchAcross>(stream, grid, &args)
            } else {
                self.exchange.gpu().launch::<Dispatch>(stream, grid, &args)
            }
        }
    }

    fn run_combine(
        &self,
        stream: &Stream,
        index: u32,
        halves: u32,
        y: Address,
        sums: Option<&Sums>,
    ) -> Result<(), Error> {
        let address = |view: Option<View>| view.map_or(Address::NULL, |view| view.address);
        let args = CombineArgs {
            batch: self.device_side(Operation::LowLatencyCombine, index),
            y,
            topk_weights: address(sums.and_then(|sums| sums.topk_weights)),
            out: address(sums.map(|sums| sums.combined)),
            halves,
        };
        let gpu = self.exchange.gpu();
        let format = self.exchange.config.low_latency.as_ref().map(|settings| settings.combine);
        let format = format.unwrap_or_default();
        let warps = COMBINE_WARPS[usize::from(format != CombineFormat::Bf16)];
        let grid = self.grid(warps, combine::send::shared_bytes(&self.plan.shape));
        // SAFETY: as in `run_dispatch`.
        unsafe {
            match (format, self.is_across()) {
                (CombineFormat::Bf16, false) => gpu.launch::<Combine>(stream, grid, &args),
                (CombineFormat::Fp8, false) => gpu.launch::<CombineFp8>(stream, grid, &args),
                (CombineFormat::Log10, false) => gpu.launch::<CombineLog10>(stream, grid, &args),
                (CombineFormat::Bf16, true) => gpu.launch::<CombineAcross>(stream, grid, &args),
                (CombineFormat::Fp8, true) => gpu.launch::<CombineFp8Across>(stream, grid, &args),
                (CombineFormat::Log10, true) => gpu.launch::<CombineLog10Across>(stream, grid, &args),
            }
        }
    }
}

fn missing(argument: &'static str, limit: &str) -> Error {
    Error::Argument { argument, value: "None".into(), limit: limit.into() }
}
