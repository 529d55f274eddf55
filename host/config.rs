//! The settings of an exchange, and what follows from them.

use crate::Error;
use std::time::Duration;
use tokenrail_device::wire::{ArenaLayout, SCALE_CHANNELS, Shape};

/// What a row's elements are when it is dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 2 bytes.
    Bf16,
    /// 2 bytes.
    F16,
    /// FP8 e4m3, 1 byte, with one f32 scale per 128 channels.
    Fp8E4m3,
    /// FP8 e4m3, 1 byte, with one power of two per 128 channels: UE8M0, a byte e for 2^(e − 127). Four of them are a
    /// word, group 4j + i in byte i of word j, little-endian; bytes of the last word that have no group are 0.
    Fp8E4m3Ue8m0,
    /// Any bytes, such as fp4 with its block scales: they arrive as they were sent.
    Opaque {
        /// Bytes of a row, a multiple of 16.
        row_bytes: u32,
        /// 4-byte words of scales that travel with a row.
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
            Self::Fp8E4m3Ue8m0 => hidden.div_ceil(4 * SCALE_CHANNELS),
            Self::Opaque { scale_words, .. } => scale_words,
        }
    }
}

/// What experts' outputs and combined rows are: 2 bytes an element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Half {
    /// 8 bits of exponent, 7 of mantissa.
    #[default]
    Bf16,
    /// 5 bits of exponent, 10 of mantissa.
    F16,
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
    /// Most tokens that a rank dispatches in one call.
    pub tokens: u32,
    /// Most rows that a rank can receive in one call. `None`: ranks · tokens, which cannot overflow.
    pub receive_rows: Option<u32>,
    /// Streaming multiprocessors that a kernel occupies. `None`: 16 on a GPU, 2 on the emulator.
    pub sms: Option<u32>,
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
/// Most scale words of an opaque row: one for 16 elements of the longest.
const MAX_SCALE_WORDS: u32 = MAX_HIDDEN / 16;
/// Most slots of all rows of a rank: their indices are 32 bits.
const MAX_SLOTS: u64 = 1 << 31;

fn refuse(field: &'static str, value: impl ToString, limit: impl Into<String>) -> Error {
    Error::Config { field, value: value.to_string(), limit: limit.into() }
}

impl Config {
    /// bf16, room for every token of every rank, 10 s of patience.
    pub fn new(experts: u32, topk: u32, hidden: u32, tokens: u32) -> Self {
        Self {
            experts,
            topk,
            hidden,
            element: Element::Bf16,
            combined: Half::Bf16,
            tokens,
            receive_rows: None,
            sms: None,
            timeout: Duration::from_secs(10),
            bulk_copy: None,
        }
    }

    /// Checks every setting and gives the sizes that kernels work with.
    ///
    /// # Errors
    /// [`Error::Config`] with the first setting that is not possible.
    pub fn shape(&self, ranks: u32) -> Result<Shape, Error> {
        let within = |field, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(refuse(field, value, format!("must be {least} to {most}")))
        };
        within("ranks", ranks, 1, MAX_RANKS)?;
        within("experts", self.experts, 1, MAX_EXPERTS)?;
        within("topk", self.topk, 1, MAX_TOPK)?;
        within("hidden", self.hidden, 1, MAX_HIDDEN)?;
        if self.topk > self.experts {
            return Err(refuse("topk", self.topk, format!("must be at most experts = {}", self.experts)));
        }
        if let Element::Opaque { row_bytes, scale_words } = self.element {
            within("row_bytes", row_bytes, 16, 2 * MAX_HIDDEN)?;
            within("scale_words", scale_words, 0, MAX_SCALE_WORDS)?;
            if !row_bytes.is_multiple_of(16) {
                return Err(refuse("row_bytes", row_bytes, "must be a multiple of 16"));
            }
        }
        let (row_bytes, scales) =
            (self.element.row_bytes(self.hidden), self.element.scale_words(self.hidden));
        let combined_bytes = 2 * self.hidden;
        for (row, bytes) in [
            (format!("{:?}", self.element), row_bytes),
            (format!("combined {:?}", self.combined), combined_bytes),
        ] {
            if !bytes.is_multiple_of(16) {
                let limit = format!("a row of {row} is {bytes} bytes, and must be a multiple of 16");
                return Err(refuse("hidden", self.hidden, limit));
            }
        }
        let most_rows = ranks as u64 * self.tokens as u64;
        let rows = self.receive_rows.map_or(most_rows, u64::from);
        if rows > most_rows {
            return Err(refuse(
                "receive_rows",
                rows,
                format!("ranks · tokens = {most_rows} is the most there can be"),
            ));
        }
        let widest = u64::from(self.topk.max(scales));
        if most_rows * widest >= MAX_SLOTS {
            let limit = format!(
                "ranks · tokens · {widest} (slots or scale words of a row) must be below {MAX_SLOTS}"
            );
            return Err(refuse("tokens", self.tokens, limit));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(86400) {
            return Err(refuse(
                "timeout",
                format!("{:?}", self.timeout),
                "must be above 0 and at most a day",
            ));
        }
        if self.sms == Some(0) {
            return Err(refuse("sms", 0, "must be at least 1"));
        }
        Ok(Shape {
            ranks,
            experts: self.experts,
            topk: self.topk,
            hidden: self.hidden,
            row_bytes,
            scales,
            tokens: self.tokens,
            rows: rows as u32,
        })
    }

    /// Compares the settings that ranks must agree on.
    ///
    /// # Errors
    /// [`Error::Disagreement`] with the first field that differs.
    pub(crate) fn agree(&self, own_rank: u32, theirs: &Self, rank: u32) -> Result<(), Error> {
        let fields: [(&'static str, String, String); 7] = [
            ("experts", self.experts.to_string(), theirs.experts.to_string()),
            ("topk", self.topk.to_string(), theirs.topk.to_string()),
            ("hidden", self.hidden.to_string(), theirs.hidden.to_string()),
            ("element", format!("{:?}", self.element), format!("{:?}", theirs.element)),
            ("combined", format!("{:?}", self.combined), format!("{:?}", theirs.combined)),
            ("tokens", self.tokens.to_string(), theirs.tokens.to_string()),
            ("receive_rows", format!("{:?}", self.receive_rows), format!("{:?}", theirs.receive_rows)),
        ];
        match fields.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            None => Ok(()),
            Some((field, ours, theirs)) => Err(Error::Disagreement { field, rank, theirs, own_rank, ours }),
        }
    }
}

/// Bytes of the arena that every rank of a group of `ranks` allocates: exactly these.
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
    Ok(ArenaLayout::new(&config.shape(ranks)?).bytes)
}
