//! Finds what a run got right by luck: accesses to the same memory that nothing orders, by the PTX memory model's rules, and
//! reads of memory that nobody has written.
//!
//! Emulated threads run one at a time and see each other's writes at once, so that a missing fence does no harm in a run. With
//! a [`Checker`] the machine keeps, for every thread, what it can know of all others: a *happens-before* relation made of
//! program order, barriers, releases and acquires whose scopes include each other, fences, mbarriers, completed bulk
//! copies, and the order of streams. Two accesses of which one is a write, and which are neither ordered nor both strong
//! (ordered operations with scopes that include each other), are a race, whatever the order they came in.
//!
//! Bulk copies are actors of their own: they begin with what their thread knows, and are known to be over only by an mbarrier
//! or a wait for their group. They do not see ordinary writes that no `fence.proxy.async` stands behind.
//!
//! A [`Mutant`] makes one operation in the source order less than it says, in the books alone: the run goes on as before.
//! Whether the checker then finds a race tells whether the operation is needed, and the checker able to see it.
//!
//! Not seen is what the host itself does to memory, and what [`Actor`](crate::Actor)s do. What a stream is given is ordered
//! behind all that had ended then, whether or not the host had asked.

mod clock;
mod shadow;
mod watch;

pub(crate) use watch::{At, Watch};

use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether memory is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Read.
    Read,
    /// Written.
    Write,
    /// Both at once.
    Update,
}

impl Touch {
    fn writes(self) -> bool {
        self != Self::Read
    }
}

/// Who sees an operation in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Threads of the block.
    Block,
    /// Threads of the device.
    Device,
    /// Everybody.
    System,
}

/// Memory that an operation of a stream reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub address: u64,
    /// How long it is, in bytes.
    pub bytes: usize,
    /// Whether it is read or written.
    pub touch: Touch,
}

/// How an access is ordered with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Not at all.
    Plain,
    /// A strong operation of this scope; whether what came before is released, and what was released acquired.
    Strong {
        /// Of whom it is seen.
        scope: Scope,
        /// It releases.
        release: bool,
        /// It acquires.
        acquire: bool,
    },
}

impl Strength {
    /// `relaxed`.
    pub const fn relaxed(scope: Scope) -> Self {
        Self::Strong { scope, release: false, acquire: false }
    }

    /// `release`.
    pub const fn release(scope: Scope) -> Self {
        Self::Strong { scope, release: true, acquire: false }
    }

    /// `acquire`.
    pub const fn acquire(scope: Scope) -> Self {
        Self::Strong { scope, release: false, acquire: true }
    }

    /// `acq_rel`.
    pub const fn both(scope: Scope) -> Self {
        Self::Strong { scope, release: true, acquire: true }
    }
}

/// A place in the source where something is ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// The source file.
    pub file: String,
    /// Its line.
    pub line: u32,
    /// Its column.
    pub column: u32,
    /// What is called there.
    pub operation: &'static str,
}

impl Site {
    fn of(location: &Location<'_>, operation: &'static str) -> Self {
        Self { file: location.file().into(), line: location.line(), column: location.column(), operation }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}:{}", self.operation, self.file, self.line)
    }
}

/// How a mutant is weaker than the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weakness {
    /// It orders nothing: a forgotten barrier, fence or wait, a store or load that is relaxed.
    Nothing,
    /// What has system scope has device scope only.
    Narrow,
    /// A wait is over with the store before the one that it waits for.
    Early,
}

/// The operation that [`Weakness::Early`] is for.
const WAIT: &str = "wait_at_least";

/// An operation that is to order less than the source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Which one.
    pub site: Site,
    /// How much less.
    pub weakness: Weakness,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weakness {
            Weakness::Nothing => write!(f, "{} orders nothing", self.site),
            Weakness::Narrow => write!(f, "{} with the device's scope", self.site),
            Weakness::Early => write!(f, "{} for one store less", self.site),
        }
    }
}

/// One side of a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// Where and what.
    pub site: Site,
    /// Whether by a bulk copy that was started there.
    pub bulk: bool,
    /// The kernel.
    pub kernel: &'static str,
    /// How many kernels the stream had run before.
    pub launch: u64,
    /// The device.
    pub device: usize,
    /// The block, and the thread in it; `None` if it is the stream itself.
    pub thread: Option<(u32, u32)>,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site, bulk, kernel, launch, device, thread } = self;
        let by = if *bulk { " (the copy)" } else { "" };
        write!(f, "{site}{by}, {kernel} (launch {launch} of its stream) on device {device}")?;
        match thread {
            Some((block, thread)) => write!(f, ", block {block}, warp {}, lane {}", thread / 32, thread % 32),
            None => Ok(()),
        }
    }
}

/// Something that no run may do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Two accesses that nothing orders.
    Race {
        /// Where: an address of global memory, or an offset in the block's shared memory.
        address: u64,
        /// The one that came first, this time.
        first: Access,
        /// The other.
        second: Access,
    },
    /// A read of what nobody has written.
    Unwritten {
        /// Where.
        address: u64,
        /// The read.
        access: Access,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Race { address, first, second } => {
                write!(f, "race at {address:#x}:\n  {first}\n  {second}")
            }
            Self::Unwritten { address, access } => {
                write!(f, "read of unwritten memory at {address:#x}: {access}")
            }
        }
    }
}

/// Has a machine check what its kernels do. Cheap to clone; clones share what was found.
#[derive(Clone, Debug, Default)]
pub struct Checker(Arc<Mutex<Books>>);

/// Most findings that are kept: one for each pair of sites.
const MOST: usize = 64;

#[derive(Debug, Default)]
struct Books {
    mutant: Option<Mutant>,
    /// By where both sides are.
    findings: BTreeMap<(Site, Option<Site>), Finding>,
    sites: BTreeMap<Site, bool>,
}

impl Checker {
    /// One that checks what is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that checks as if an operation ordered less.
    pub fn of_mutant(mutant: Mutant) -> Self {
        Self(Arc::new(Mutex::new(Books { mutant: Some(mutant), ..Books::default() })))
    }

    /// What was found so far, one for each pair of places in the source.
    pub fn findings(&self) -> Vec<Finding> {
        self.books().findings.values().cloned().collect()
    }

    /// All that can be made weaker in what has run so far.
    pub fn mutants(&self) -> Vec<Mutant> {
        let books = self.books();
        let mutants = books.sites.iter().flat_map(|(site, &is_wide)| {
            let of = |weakness| Mutant { site: site.clone(), weakness };
            let waits = site.operation == WAIT;
            [
                Some(of(Weakness::Nothing)),
                is_wide.then(|| of(Weakness::Narrow)),
                waits.then(|| of(Weakness::Early)),
            ]
        });
        mutants.flatten().collect()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change is a single call, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mutant(&self) -> Option<Mutant> {
        self.books().mutant.clone()
    }

    fn found(&self, finding: Finding) {
        let key = match &finding {
            Finding::Race { first, second, .. } => (first.site.clone(), Some(second.site.clone())),
            Finding::Unwritten { access, .. } => (access.site.clone(), None),
        };
        let mut books = self.books();
        if books.findings.len() < MOST {
            books.findings.entry(key).or_insert(finding);
        }
    }

    fn orders_at(&self, site: Site, is_wide: bool) {
        *self.books().sites.entry(site).or_default() |= is_wide;
    }
}
