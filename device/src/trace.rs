//! What warps do, and when, recorded into a ring on the device where the host asks for it.
//!
//! A record is a *mark*: a thread has just ended something, which it has done since its last mark. Nothing has to be kept
//! from a begin to an end. Where no ring is given, a mark is one branch that all threads take alike. Marks of one thread lie in their order. Where there is no room for one, there is none for those after
//! it either: what was recorded before stays whole, and the count tells how many are lost.

use crate::gpu::mem::{self, Address};
use crate::gpu::{clock, opaque, thread};
use crate::wire::Phase;
use core::hint::cold_path;

/// Whether kernels record at all: on GPUs only where they are built with feature `trace`, for it costs registers and time even
/// where there is no ring (docs/decisions.md).
pub const RECORDED: bool = cfg!(any(not(target_arch = "nvptx64"), feature = "trace"));

/// A ring, and whose marks are put into it.
///
/// Contract: `ring` is null, or memory of this GPU with [`Trace::bytes`] of the capacity that its second word says, u32 each:
/// marks so far, capacity; then the marks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    /// Where marks go; null to make none.
    pub ring: Address,
    /// What tells marks of kernels apart that run at the same time: see [`Trace::call_of`].
    pub call: u32,
}

/// The operation that a kernel is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Of many tokens.
    Dispatch = 0,
    /// Of many tokens.
    Combine = 1,
    /// Of few.
    LowLatencyDispatch = 2,
    /// Of few.
    LowLatencyCombine = 3,
}

impl Operation {
    /// All of them, each at its number.
    pub const ALL: [Self; 4] =
        [Self::Dispatch, Self::Combine, Self::LowLatencyDispatch, Self::LowLatencyCombine];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Combine => "combine",
            Self::LowLatencyDispatch => "low-latency dispatch",
            Self::LowLatencyCombine => "low-latency combine",
        }
    }
}

/// What kind of thing a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It waits: for a peer, for other warps, for memory.
    Wait,
    /// It brings rows to the multiprocessor.
    Load,
    /// It writes rows, and what goes with them.
    Send,
    /// It tells others something.
    Signal,
    /// It counts, plans, keeps.
    Work,
}

impl Role {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Load => "load",
            Self::Send => "send",
            Self::Signal => "signal",
            Self::Work => "work",
        }
    }
}

/// Declares [`Activity`], with what each is called.
macro_rules! activities {
    ($($(#[$doc:meta])* $name:ident = $role:ident $text:literal,)*) => {
        /// What a thread has done from one mark to the next.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Activity {
            $($(#[$doc])* $name,)*
        }

        impl Activity {
            /// All of them, each at its number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is called.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What kind of thing it is.
            pub const fn role(self) -> Role {
                match self { $(Self::$name => Role::$role,)* }
            }
        }
    };
}

activities! {
    /// Counting the block's tokens by rank and expert.
    Count = Work "count",
    /// The meeting of all blocks of a grid.
    Meet = Wait "meet the other blocks",
    /// A barrier: others of the block still wait, or work.
    Barrier = Wait "wait for the block",
    /// Telling peers counts, or the routing of few tokens.
    Announce = Signal "announce",
    /// Making rows of counts.
    Plan = Work "plan",
    /// Reading and checking the routing of few tokens, and making the first row.
    Route = Work "route",
    /// Writing tokens for other nodes to the outbox, and putting them.
    Pack = Send "pack",
    /// Until a buffer is free: what was stored from it last has been read.
    WaitBuffer = Wait "wait for a buffer",
    /// A row on its way from memory.
    Load = Load "load",
    /// A row, and what lies beside it, to where it goes.
    Send = Send "send",
    /// Until what was stored is written, and not only read.
    WaitWritten = Wait "wait for the writes",
    /// Flags that tell peers that something is there.
    Signal = Signal "signal",
    /// A message of another node's rank to where it goes.
    Forward = Send "forward",
    /// The padding of the expert-major form.
    Pad = Work "pad",
    /// A chunk to the expert-major form.
    Expand = Send "expand",
    /// Keeping in the handle what was received.
    Settle = Work "settle",
    /// Partial rows on their way from those that have them.
    Pull = Load "pull",
    /// Partial rows to their sum.
    Sum = Work "sum",
    /// Partial rows of this node to the sum that goes to another.
    SumForward = Send "sum for another node",
    /// What goes back to slots.
    Slots = Load "slots",
    /// A tile that has arrived to where it belongs.
    Receive = Send "receive",
    /// For a peer's counts.
    WaitCounts = Wait "wait for counts",
    /// For a peer's rows.
    WaitRows = Wait "wait for rows",
    /// For a peer's expert outputs.
    WaitReady = Wait "wait for outputs",
    /// Until a peer has read what it was sent before.
    WaitRead = Wait "wait until read",
    /// For a peer's summary of its routing.
    WaitSummary = Wait "wait for the routing",
    /// For what a peer's experts made of few tokens.
    WaitParts = Wait "wait for parts",
    /// For messages of another node.
    WaitMessages = Wait "wait for messages",
    /// Until another node has forwarded what it was sent before.
    WaitForwarded = Wait "wait for forwarding",
    /// For sums of another node.
    WaitPartials = Wait "wait for sums",
}

impl Activity {
    /// The wait in a phase.
    pub const fn wait(phase: Phase) -> Self {
        match phase {
            // Nobody records those of a ring.
            Phase::None | Phase::Ring => Self::Barrier,
            Phase::Counts => Self::WaitCounts,
            Phase::Data | Phase::Rows => Self::WaitRows,
            Phase::Ready => Self::WaitReady,
            Phase::Read => Self::WaitRead,
            Phase::Summary => Self::WaitSummary,
            Phase::Parts => Self::WaitParts,
            Phase::Forwarded => Self::WaitForwarded,
            Phase::Messages => Self::WaitMessages,
            Phase::Partials => Self::WaitPartials,
        }
    }
}

/// What something that was done is about: a peer, a token, both or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    peer: u32,
    token: u32,
}

impl About {
    /// Neither.
    pub const NOTHING: Self = Self::both(Self::NO_PEER, Self::NO_TOKEN);
    const NO_PEER: u32 = u16::MAX as u32;
    const NO_TOKEN: u32 = u32::MAX;

    /// A rank.
    #[inline(always)]
    pub const fn peer(rank: u32) -> Self {
        Self::both(rank, Self::NO_TOKEN)
    }

    /// A token of this rank.
    #[inline(always)]
    pub const fn token(token: u32) -> Self {
        Self::both(Self::NO_PEER, token)
    }

    /// A token of a peer.
    #[inline(always)]
    pub const fn both(rank: u32, token: u32) -> Self {
        Self { peer: rank, token }
    }
}

/// Number of the mark with which something begins.
const BEGIN: u32 = u16::MAX as u32;

impl Trace {
    /// Bytes before the marks.
    pub const HEADER_BYTES: u64 = 8;
    /// Bytes of a mark.
    pub const MARK_BYTES: u64 = 8 * Mark::WORDS as u64;

    /// Bytes of a ring for so many marks.
    pub const fn bytes(capacity: u32) -> u64 {
        Self::HEADER_BYTES + Self::MARK_BYTES * capacity as u64
    }

    /// What [`Trace::call`] is for kernels that use a set of buffers.
    pub const fn call_of(operation: Operation, buffers: u32) -> u32 {
        (operation as u32) << 8 | buffers & 0xff
    }

    #[inline(always)]
    fn ring(&self) -> Address {
        if RECORDED { Address(opaque(self.ring.0)) } else { Address::NULL }
    }

    /// This thread begins something.
    ///
    /// # Safety
    /// The struct's contract. So for all methods here.
    #[inline(always)]
    pub unsafe fn begin(&self) {
        let ring = self.ring();
        if !ring.is_null() {
            // SAFETY: the caller's promise.
            unsafe { self.mark(ring, BEGIN, About::NOTHING) };
        }
    }

    /// This thread has just ended something.
    ///
    /// # Safety
    /// See [`Trace::begin`].
    #[inline(always)]
    pub unsafe fn end(&self, activity: Activity, about: About) {
        let ring = self.ring();
        if !ring.is_null() {
            // SAFETY: the caller's promise.
            unsafe { self.mark(ring, activity as u32, about) };
        }
    }

    /// [`Trace::begin`] for a warp, which its first lane stands for.
    ///
    /// # Safety
    /// See [`Trace::begin`].
    #[inline(always)]
    pub unsafe fn begin_warp(&self) {
        let ring = self.ring();
        if !ring.is_null() && thread::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { self.mark(ring, BEGIN, About::NOTHING) };
        }
    }

    /// [`Trace::end`] for a warp, which its first lane stands for.
    ///
    /// # Safety
    /// See [`Trace::begin`].
    #[inline(always)]
    pub unsafe fn end_warp(&self, activity: Activity, about: About) {
        let ring = self.ring();
        if !ring.is_null() && thread::lane() == 0 {
            // SAFETY: the caller's promise.
            unsafe { self.mark(ring, activity as u32, about) };
        }
    }

    #[inline(always)]
    unsafe fn mark(&self, ring: Address, activity: u32, about: About) {
        /// From here on the count is kept from growing, as it would begin again.
        const TOO_MANY: u32 = 1 << 31;
        cold_path();
        let now_ns = clock::now_ns();
        // SAFETY: the caller's promise. A mark's place is the thread's that has reserved it; the host reads when kernels
        // have ended.
        unsafe {
            let place = mem::fetch_add_relaxed_gpu_u32(ring, 1);
            if place < mem::load_u32(ring.word(1)) {
                let at = ring.offset(Self::HEADER_BYTES + Self::MARK_BYTES * place as u64);
                mem::store_u64(at, now_ns);
                let index = opaque(thread::index() as u64) as u32;
                let call = opaque(self.call as u64) as u32;
                mem::store_u32(at.word(2), index << 16 | activity);
                mem::store_u32(at.word(3), thread::multiprocessor() << 16 | thread::block_index());
                mem::store_u32(at.word(4), about.token);
                mem::store_u32(at.word(5), call << 16 | about.peer);
            } else if place >= TOO_MANY {
                mem::store_relaxed_gpu_u32(ring, TOO_MANY);
            }
        }
    }
}

/// A mark as the host reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When it was made, by the GPU's clock.
    pub at_ns: u64,
    /// What ended then; `None` if something began.
    pub activity: Option<Activity>,
    /// Of which the kernel is part.
    pub operation: Operation,
    /// Low 8 bits of the number of the set of buffers that the kernel used.
    pub buffers: u32,
    /// The rank that it is about.
    pub peer: Option<u32>,
    /// The token that it is about.
    pub token: Option<u32>,
    /// The multiprocessor.
    pub multiprocessor: u32,
    /// The block.
    pub block: u32,
    /// The thread of the block.
    pub thread: u32,
}

impl Mark {
    /// u64 words of a mark in memory.
    pub const WORDS: usize = 3;

    /// The mark whose words the host has read; `None` if no kernel writes such words.
    pub fn from_words([at_ns, who, about]: [u64; Self::WORDS]) -> Option<Self> {
        let part = |word: u64, shift: u32| u32::from((word >> shift) as u16);
        let (code, call) = (part(who, 0), part(about, 48));
        let activity = match code {
            BEGIN => None,
            code => Some(*Activity::ALL.get(code as usize)?),
        };
        let (peer, token) = (part(about, 32), about as u32);
        Some(Self {
            at_ns,
            activity,
            operation: *Operation::ALL.get(call as usize >> 8)?,
            buffers: call & 0xff,
            peer: (peer != About::NO_PEER).then_some(peer),
            token: (token != About::NO_TOKEN).then_some(token),
            multiprocessor: part(who, 48),
            block: part(who, 32),
            thread: part(who, 16),
        })
    }
}
