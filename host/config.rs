//! The settings of an exchange, and what follows from them.

mod internode;
mod low_latency;

pub(crate) use internode::LinkPlan;
pub use internode::{ArenaMemory, Internode, Via};
pub(crate) use low_latency::BatchPlan;
pub use low_latency::{CombineFormat, DispatchFormat, LowLatency, Summation};

use crate::Error;
use crate::group::{pack, unpack};
use std::time::Duration;
use tokenrail_device::internode::command::MAX_BYTES;
use tokenrail_device::wire::{ArenaLayout, HandleLayout, MAX_SIDES, SCALE_CHANNELS, Shape, WorkspaceLayout};

/// What a row's elements are when it is dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 2 bytes.
    Bf16,
    /// 2 bytes.
    F16,
    /// FP8 e4m3, 1 byte, with one f32 scale per 128 channels.
    Fp8E4m3,
    /// FP8 e4m3, 1 byte, with one power of two per 128 channels as scale: UE8M0, byte e is 2^(e − 127), four to a word,
    /// group 4j + i in byte i of word j.
    Fp8E4m3Ue8m0,
    /// Any bytes, which travel untouched: FP4 with its block scales, say.
    Opaque {
        /// Bytes of a row, a multiple of 16.
        row_bytes: u32,
        /// 4-byte words of scales of a row; 0 for none.
        scale_words: u32,
    },
}

impl Element {
    /// Bytes of a row of `hidden` elements.
    pub const fn row_bytes(self, hidden: u32) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 2 * hidden,
            Self::Fp8E4m3 | Self::Fp8E4m3Ue8m0 => hidden,
            Self::Opaque { row_bytes, .. } => row_bytes,
        }
    }

    /// 4-byte words of scales that travel with a row of `hidden` elements.
    pub const fn scale_words(self, hidden: u32) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 0,
            Self::Fp8E4m3 => hidden.div_ceil(SCALE_CHANNELS),
            Self::Fp8E4m3Ue8m0 => hidden.div_ceil(SCALE_CHANNELS).div_ceil(4),
            Self::Opaque { scale_words, .. } => scale_words,
        }
    }
}

/// What experts' outputs and combined rows are. Sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Half {
    #[default]
    /// 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// 5 bits of exponent, 10 of mantissa.
    F16,
}

/// How received scales lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// `[rows, words]`.
    RowMajor,
    /// `[words, rows rounded up to 4]`, so that a column begins at a multiple of 16 bytes: what grouped GEMMs read by
    /// TMA.
    ColumnMajor,
}

/// What happens to rows for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// The dispatch fails: with [`Error::Capacity`] on all ranks, and nothing is sent; with [`Error::ExpertRows`] on the
    /// rank whose expert-major form is too small, which still has every row, rank-major.
    Fail,
    /// The rows that come last in the order of rows are left out, and counted: [`Counts`](crate::Counts) tells the
    /// receiver and the sender how many. Combine sums what is there.
    Cap,
}

/// The expert-major form of what is received: one copy of a row for each of this rank's experts that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertMajor {
    /// Each expert's rows begin at a multiple of this; rows in between are padding, all zeros and marked −1. 1 for none,
    /// at most 4096.
    pub alignment: u32,
    /// Most expert-major rows, padding counted. `None`: what cannot overflow.
    pub rows: Option<u32>,
}

/// Settings of an exchange. Those that say how ranks talk must be the same on all of them; `sms`, `timeout` and
/// `bulk_copy` are each rank's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Experts over all ranks. Rank r owns the block of ceil(experts / ranks) from r · ceil(experts / ranks) on.
    pub experts: u32,
    /// Expert slots of a token, 1 to 32.
    pub topk: u32,
    /// Elements of a row. Rows must be a multiple of 16 bytes, dispatched and combined.
    pub hidden: u32,
    /// What the dispatched elements are.
    pub element: Element,
    /// What experts' outputs and combined rows are.
    pub combined: Half,
    /// How received scales lie.
    pub scale_layout: ScaleLayout,
    /// Side tensors that travel with each token: bytes of each for one token, a multiple of 4. At most 8.
    pub sides: Vec<u32>,
    /// Most tokens that a rank dispatches in one call.
    pub tokens: u32,
    /// Most rows that a rank can receive in one call. `None`: ranks · tokens, which cannot overflow.
    pub receive_rows: Option<u32>,
    /// Whether dispatch also fills the expert-major form, and how.
    pub expert_major: Option<ExpertMajor>,
    /// What happens to rows for which there is no room.
    pub overflow: Overflow,
    /// Ranks of a node: node n has those from n · `ranks_per_node` on. `None`: all are on one.
    pub ranks_per_node: Option<u32>,
    /// How ranks of other nodes are reached. `None`: all ranks reach each other's memory, whatever nodes they are on.
    /// For dispatch and combine (`tokens` above 0) all nodes must have as many ranks, and `copy_engine` must be off; with
    /// `tokens` of 0 there are low-latency calls alone.
    pub internode: Option<Internode>,
    /// Whether there are low-latency calls, and how. They share the arena with the others, which take next to nothing
    /// where `tokens` is 0.
    pub low_latency: Option<LowLatency>,
    /// Whether there is room for rows that copy engines move, see [`Transport`](crate::Transport).
    pub copy_engine: bool,
    /// Dispatches whose received rows are there at the same time, 1 to 16. Each has its own buffers.
    pub in_flight: u32,
    /// Handles that are valid at the same time, at least `in_flight`. `None`: as many as `in_flight`. Each costs
    /// what its routes take, a few bytes a slot.
    pub handles: Option<u32>,
    /// Streaming multiprocessors that a kernel occupies, unless a call says otherwise. `None`: 16 on a GPU, 2 on the
    /// emulator. [`Bandwidths::sms`](crate::tuning::Bandwidths::sms) gives a number from what was measured.
    pub sms: Option<u32>,
    /// Most multiprocessors that a call may ask for. `sms` may not be above it.
    pub max_sms: u32,
    /// How long a kernel waits for a peer. To set up, ranks wait for each other as long, and at least 30 s.
    pub timeout: Duration,
    /// Move rows by bulk copies. `None`: where the GPU has them (sm_90 and later).
    pub bulk_copy: Option<bool>,
}

/// Most experts: each block keeps a count per expert in shared memory.
const MAX_EXPERTS: u32 = 16384;
/// Most slots: a token's routes are held by the lanes of one warp.
const MAX_TOPK: u32 = 32;
/// Most ranks: the counts of all rank pairs are added up by every block.
const MAX_RANKS: u32 = 1024;
/// Most elements of a row.
const MAX_HIDDEN: u32 = 1 << 20;
/// Most bytes of a row, or of a side tensor's part of it.
const MAX_ROW_BYTES: u32 = 2 * MAX_HIDDEN;
/// Most words of scales of a row.
const MAX_SCALE_WORDS: u32 = 65536;
/// Most slots of all rows of a rank: their indices are 32 bits.
const MAX_SLOTS: u64 = 1 << 31;
/// Most dispatches in flight: their number has 8 bits in a handle's name.
const MAX_IN_FLIGHT: u32 = 16;
/// Most handles.
const MAX_HANDLES: u32 = 65536;
/// Largest alignment of expert-major rows.
const MAX_ALIGNMENT: u32 = 4096;
/// Most multiprocessors: more than any GPU has.
const MAX_SMS: u32 = 1024;

fn refuse(field: &'static str, value: impl ToString, limit: impl Into<String>) -> Error {
    Error::Config { field, value: value.to_string(), limit: limit.into() }
}

fn within(field: &'static str, value: u32, least: u32, most: u32) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(refuse(field, value, format!("must be {least} to {most}")))
}

impl Config {
    /// bf16, room for every token of every rank, one dispatch in flight, 10 s of patience.
    pub fn new(experts: u32, topk: u32, hidden: u32, tokens: u32) -> Self {
        Self {
            experts,
            topk,
            hidden,
            element: Element::Bf16,
            combined: Half::Bf16,
            scale_layout: ScaleLayout::RowMajor,
            sides: Vec::new(),
            tokens,
            receive_rows: None,
            expert_major: None,
            overflow: Overflow::Fail,
            ranks_per_node: None,
            internode: None,
            low_latency: None,
            copy_engine: false,
            in_flight: 1,
            handles: None,
            sms: None,
            max_sms: 64,
            timeout: Duration::from_secs(10),
            bulk_copy: None,
        }
    }

    /// Handles that are valid at the same time.
    pub(crate) fn handle_count(&self) -> u32 {
        self.handles.unwrap_or(self.in_flight)
    }

    /// Checks every setting and gives the sizes that kernels work with.
    ///
    /// # Errors
    /// [`Error::Config`] with the first setting that is not possible.
    pub fn shape(&self, ranks: u32) -> Result<Shape, Error> {
        within("ranks", ranks, 1, MAX_RANKS)?;
        within("experts", self.experts, 1, MAX_EXPERTS)?;
        within("topk", self.topk, 1, MAX_TOPK)?;
        within("hidden", self.hidden, 1, MAX_HIDDEN)?;
        if self.topk > self.experts {
            return Err(refuse("topk", self.topk, format!("must be at most experts = {}", self.experts)));
        }
        let row_bytes = self.check_rows()?;
        let side_words = self.check_sides()?;
        let ranks_per_node = self.ranks_per_node.unwrap_or(ranks);
        within("ranks_per_node", ranks_per_node, 1, ranks)?;

        let most_rows = ranks as u64 * self.tokens as u64;
        let rows = self.receive_rows.map_or(most_rows, u64::from);
        if rows > most_rows {
            let limit = format!("ranks · tokens = {most_rows} is the most there can be");
            return Err(refuse("receive_rows", rows, limit));
        }
        let widest = u64::from(self.topk.max(self.element.scale_words(self.hidden)));
        if most_rows * widest >= MAX_SLOTS {
            let limit =
                format!("ranks · tokens · {widest} (slots or scales of a row) must be below {MAX_SLOTS}");
            return Err(refuse("tokens", self.tokens, limit));
        }
        let experts_per_rank = self.experts.div_ceil(ranks);
        let (expert_rows, alignment) = self.expert_rows(rows, rows == most_rows, experts_per_rank)?;
        self.check_resources()?;
        Ok(Shape {
            ranks,
            ranks_per_node,
            experts: self.experts,
            topk: self.topk,
            hidden: self.hidden,
            row_bytes,
            scales: self.element.scale_words(self.hidden),
            column_major: (self.scale_layout == ScaleLayout::ColumnMajor).into(),
            side_words,
            tokens: self.tokens,
            rows: rows as u32,
            expert_rows,
            alignment,
            cap: (self.overflow == Overflow::Cap).into(),
            f16: (self.combined == Half::F16).into(),
            copy_engine: self.copy_engine.into(),
            near_ranks: self.near_ranks(ranks, ranks_per_node)?,
        })
    }

    /// Ranks that reach each other's memory in dispatch and combine.
    fn near_ranks(&self, ranks: u32, ranks_per_node: u32) -> Result<u32, Error> {
        if self.internode.is_none() || ranks_per_node == ranks || self.tokens == 0 {
            return Ok(ranks);
        }
        if !ranks.is_multiple_of(ranks_per_node) {
            let limit = format!("with internode and tokens above 0 it must divide {ranks}, the ranks");
            return Err(refuse("ranks_per_node", ranks_per_node, limit));
        }
        if self.copy_engine {
            let limit = "copy engines do not reach ranks of other nodes: it must be false with internode";
            return Err(refuse("copy_engine", true, limit));
        }
        Ok(ranks_per_node)
    }

    /// Bytes of a dispatched row.
    fn check_rows(&self) -> Result<u32, Error> {
        let row_bytes = self.element.row_bytes(self.hidden);
        if let Element::Opaque { scale_words, .. } = self.element {
            within("row_bytes", row_bytes, 16, MAX_ROW_BYTES)?;
            within("scale_words", scale_words, 0, MAX_SCALE_WORDS)?;
            if !row_bytes.is_multiple_of(16) {
                return Err(refuse("row_bytes", row_bytes, "must be a multiple of 16"));
            }
        }
        let rule = "bytes, and must be a multiple of 16";
        if !row_bytes.is_multiple_of(16) {
            let limit = format!("a row of {:?} is {row_bytes} {rule}", self.element);
            return Err(refuse("hidden", self.hidden, limit));
        }
        if !self.hidden.is_multiple_of(8) {
            let limit = format!("a row of combined {:?} is {} {rule}", self.combined, 2 * self.hidden);
            return Err(refuse("hidden", self.hidden, limit));
        }
        Ok(row_bytes)
    }

    /// Words of each side tensor.
    fn check_sides(&self) -> Result<[u32; MAX_SIDES], Error> {
        if self.sides.len() > MAX_SIDES {
            return Err(refuse("sides", self.sides.len(), format!("there can be {MAX_SIDES}")));
        }
        let mut words = [0; MAX_SIDES];
        for (words, &bytes) in words.iter_mut().zip(&self.sides) {
            if bytes == 0 || bytes > MAX_ROW_BYTES || !bytes.is_multiple_of(4) {
                let limit = format!("must be a multiple of 4 bytes for a token, at most {MAX_ROW_BYTES}");
                return Err(refuse("sides", bytes, limit));
            }
            *words = bytes / 4;
        }
        Ok(words)
    }

    /// Most rows of the expert-major form, and their alignment.
    fn expert_rows(&self, rows: u64, all_fit: bool, experts: u32) -> Result<(u32, u32), Error> {
        let Some(form) = self.expert_major else { return Ok((0, 1)) };
        within("alignment", form.alignment, 1, MAX_ALIGNMENT)?;
        let alignment = u64::from(form.alignment);
        let most = rows * u64::from(self.topk) + u64::from(experts) * (alignment - 1);
        let wanted = form.rows.map_or(most, u64::from);
        if form.rows == Some(0) {
            return Err(refuse("expert_major.rows", 0, "must be at least 1"));
        }
        if wanted > most || wanted >= MAX_SLOTS {
            let limit = format!("{most} is the most there can be, and it must be below {MAX_SLOTS}");
            return Err(refuse("expert_major.rows", wanted, limit));
        }
        if self.overflow == Overflow::Cap && !all_fit {
            let limit = "with the expert-major form and Overflow::Cap there must be room for all rows: None";
            return Err(refuse("receive_rows", rows, limit));
        }
        // No rows at all would be no such form.
        Ok((wanted.max(1) as u32, form.alignment))
    }

    fn check_resources(&self) -> Result<(), Error> {
        within("in_flight", self.in_flight, 1, MAX_IN_FLIGHT)?;
        within("handles", self.handle_count(), self.in_flight, MAX_HANDLES)?;
        within("max_sms", self.max_sms, 1, MAX_SMS)?;
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(86400) {
            let limit = "must be above 0 and at most a day";
            return Err(refuse("timeout", format!("{:?}", self.timeout), limit));
        }
        match self.sms {
            Some(0) => Err(refuse("sms", 0, "must be at least 1")),
            Some(sms) if sms > self.max_sms => Err(refuse("sms", sms, format!("max_sms = {}", self.max_sms))),
            _ => Ok(()),
        }
    }

    /// The settings that ranks must agree on, as [`Config::agree`] takes them.
    pub(crate) fn terms(&self) -> Vec<u8> {
        pack(&self.shown().map(|(_, value)| value.into_bytes()))
    }

    /// Compares the settings that ranks must agree on with another rank's [terms](Config::terms).
    ///
    /// # Errors
    /// [`Error::Disagreement`] with the first field that differs.
    pub(crate) fn agree(&self, own_rank: u32, theirs: &[u8], rank: u32) -> Result<(), Error> {
        let theirs = unpack(theirs).unwrap_or_default();
        for (index, (field, ours)) in self.shown().into_iter().enumerate() {
            let theirs = theirs.get(index).map(|value| String::from_utf8_lossy(value).into_owned());
            if theirs.as_ref() != Some(&ours) {
                // Of another version, maybe.
                let theirs = theirs.unwrap_or_else(|| "no such setting".into());
                return Err(Error::Disagreement { field, rank, theirs, own_rank, ours });
            }
        }
        Ok(())
    }

    fn shown(&self) -> [(&'static str, String); 17] {
        let config = self;
        [
            ("experts", config.experts.to_string()),
            ("topk", config.topk.to_string()),
            ("hidden", config.hidden.to_string()),
            ("element", format!("{:?}", config.element)),
            ("combined", format!("{:?}", config.combined)),
            ("scale_layout", format!("{:?}", config.scale_layout)),
            ("sides", format!("{:?}", config.sides)),
            ("tokens", config.tokens.to_string()),
            ("receive_rows", format!("{:?}", config.receive_rows)),
            ("expert_major", format!("{:?}", config.expert_major)),
            ("overflow", format!("{:?}", config.overflow)),
            ("ranks_per_node", format!("{:?}", config.ranks_per_node)),
            ("internode", config.internode.as_ref().map_or("None".into(), Internode::shared)),
            ("low_latency", format!("{:?}", config.low_latency.clone().map(LowLatency::shared))),
            ("copy_engine", config.copy_engine.to_string()),
            ("in_flight", config.in_flight.to_string()),
            ("handles", config.handle_count().to_string()),
        ]
    }
}

/// Whether a command of the proxy can hold a token's message.
fn check_message(shape: &Shape) -> Result<(), Error> {
    let side_bytes: u64 = shape.side_words.iter().map(|&words| 4 * u64::from(words)).sum();
    let bytes = u64::from(shape.row_bytes) + 4 * u64::from(shape.scales) + side_bytes + 1024;
    if !shape.is_across() || bytes <= MAX_BYTES.into() {
        return Ok(());
    }
    let limit = format!("with internode, row, scales and sides of a token are at most {MAX_BYTES} bytes");
    Err(refuse("sides", bytes, limit))
}

/// Where things lie in the two allocations of an exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub shape: Shape,
    pub arena: ArenaLayout,
    pub work: WorkspaceLayout,
    pub handle: HandleLayout,
    /// Of low-latency calls, where there are any.
    pub batches: Option<BatchPlan>,
    /// Of what goes to other nodes, where there are any.
    pub link: Option<LinkPlan>,
    flights: u64,
    handles: u64,
}

impl Plan {
    /// # Errors
    /// [`Error::Config`] if the settings are not possible.
    pub fn new(config: &Config, ranks: u32) -> Result<Self, Error> {
        let shape = config.shape(ranks)?;
        let near_ranks = if config.internode.is_some() { shape.ranks_per_node } else { ranks };
        let depth = config.low_latency.as_ref().map_or(0, |low_latency| low_latency.depth);
        let link = match &config.internode {
            Some(internode) if near_ranks < ranks => {
                let flights = if shape.is_across() { config.in_flight } else { 0 };
                check_message(&shape)?;
                Some(LinkPlan::new(internode, ranks, near_ranks, depth, flights)?)
            }
            _ => None,
        };
        let plan = Self {
            shape,
            arena: ArenaLayout::new(&shape),
            work: WorkspaceLayout::new(&shape, config.max_sms),
            handle: HandleLayout::new(&shape),
            batches: config
                .low_latency
                .as_ref()
                .map(|low_latency| BatchPlan::new(low_latency, config, ranks, near_ranks))
                .transpose()?,
            link,
            flights: config.in_flight.into(),
            handles: config.handle_count().into(),
        };
        link.map_or(Ok(()), |link| link.check_arena(plan.arena_bytes()))?;
        Ok(plan)
    }

    /// Bytes of the arena, which peers map.
    pub fn arena_bytes(&self) -> u64 {
        self.flags_offset() + self.link.map_or(0, |link| link.flags_bytes())
    }

    /// Bytes of the workspace: each flight's, then the handles, then each batch's, then what kernels share the ring by.
    pub fn workspace_bytes(&self) -> u64 {
        self.link_words_offset() + self.link.map_or(0, |_| LinkPlan::WORDS_BYTES)
    }

    /// Where the flags of ranks of other nodes begin in an arena, behind the batches' parts.
    pub fn flags_offset(&self) -> u64 {
        self.batch_arena_offset(0) + self.batches.map_or(0, |plan| plan.arena_bytes())
    }

    /// Where the words that kernels share the ring by begin in the workspace.
    pub fn link_words_offset(&self) -> u64 {
        self.batch_work_offset(0) + self.batches.map_or(0, |plan| plan.workspace_bytes())
    }

    /// Where a batch's part of an arena begins, behind those of the flights.
    pub fn batch_arena_offset(&self, batch: u32) -> u64 {
        let bytes = self.batches.map_or(0, |plan| plan.arena.bytes);
        self.flights * self.arena.bytes + u64::from(batch) * bytes
    }

    /// Where a batch's workspace begins, behind the handles.
    pub fn batch_work_offset(&self, batch: u32) -> u64 {
        let bytes = self.batches.map_or(0, |plan| plan.work.bytes);
        self.handle_offset(self.handles as u32) + u64::from(batch) * bytes
    }

    /// The first channel of a flight, behind those of the batches.
    pub fn flight_channel(&self, flight: u32) -> u32 {
        LinkPlan::flight_channel(self.batches.map_or(0, |plan| plan.depth), flight)
    }

    /// Where a flight's part of an arena begins.
    pub fn arena_offset(&self, flight: u32) -> u64 {
        u64::from(flight) * self.arena.bytes
    }

    /// Where a flight's workspace begins.
    pub fn work_offset(&self, flight: u32) -> u64 {
        u64::from(flight) * self.work.bytes
    }

    /// Where a handle begins in the workspace.
    pub fn handle_offset(&self, handle: u32) -> u64 {
        self.flights * self.work.bytes + u64::from(handle) * self.handle.bytes
    }
}

/// Bytes of device memory that an exchange takes on every rank of a group of `ranks`: exactly these.
///
/// ```
/// let config = tokenrail::Config::new(256, 8, 7168, 128);
/// let bytes = tokenrail::bytes_for(&config, 8)?;
/// // 8 · 128 rows of bf16, received and given back, are most of it.
/// assert!(bytes > 2 * 1024 * 7168 * 2 && bytes < 2 * 1024 * 7168 * 2 + (1 << 18));
/// # Ok::<(), tokenrail::Error>(())
/// ```
///
/// # Errors
/// [`Error::Config`] if the settings are not possible.
pub fn bytes_for(config: &Config, ranks: u32) -> Result<u64, Error> {
    let plan = Plan::new(config, ranks)?;
    Ok(plan.arena_bytes() + plan.workspace_bytes())
}
