//! Device memory: host memory that is known, so that accesses outside it are found.

use crate::Error;
use crate::machine::Shared;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What fresh memory holds: no zeros, on which mistakes hide.
pub const POISON: u8 = 0xa5;
/// Every allocation begins at a multiple of this.
const ALIGNMENT: usize = 256;

/// A live allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    pub device: usize,
}

impl Range {
    pub fn holds(&self, address: u64, bytes: usize) -> bool {
        self.start <= address && address <= self.end && bytes as u64 <= self.end - address
    }
}

/// All live allocations.
#[derive(Default)]
pub struct Registry {
    ranges: Mutex<BTreeMap<u64, Range>>,
    /// Counts changes, so that what was looked up can be kept until the next.
    version: AtomicU64,
}

impl Registry {
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Range>)) {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut ranges);
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// Places of a [`View`] that remember what was found last.
const REMEMBERED: usize = 64;

/// The engine's copy of the registry: looked up millions of times between changes, without a lock.
pub struct View {
    version: u64,
    /// In the order of addresses.
    ranges: Vec<Range>,
    /// By page, modulo their number: the range found last.
    remembered: [Range; REMEMBERED],
}

impl View {
    const NOWHERE: Range = Range { start: u64::MAX, end: 0, device: 0 };

    pub fn new() -> Self {
        Self { version: u64::MAX, ranges: Vec::new(), remembered: [Self::NOWHERE; REMEMBERED] }
    }

    /// The live allocation that holds all of `bytes` bytes at `address`.
    pub fn find(&mut self, registry: &Registry, address: u64, bytes: usize) -> Option<Range> {
        if self.version != registry.version() {
            let ranges = registry.ranges.lock().unwrap_or_else(PoisonError::into_inner);
            self.version = registry.version();
            self.ranges = ranges.values().copied().collect();
            self.remembered = [Self::NOWHERE; REMEMBERED];
        }
        let place = (address >> 12) as usize % REMEMBERED;
        if !self.remembered[place].holds(address, bytes) {
            let after = self.ranges.partition_point(|range| range.start <= address);
            let range = *self.ranges.get(after.checked_sub(1)?)?;
            if !range.holds(address, bytes) {
                return None;
            }
            self.remembered[place] = range;
        }
        Some(self.remembered[place])
    }
}

/// A block of host memory.
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, as a Box would.
unsafe impl Send for Block {}
// SAFETY: it gives no access by itself.
unsafe impl Sync for Block {}

impl Block {
    /// Poisoned memory of this size and alignment (a power of two); `None` if the host has not enough.
    pub fn new(bytes: usize, alignment: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.max(1), alignment).ok()?;
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: allocated just now with this size.
        unsafe { start.as_ptr().write_bytes(POISON, layout.size()) };
        Some(Self { start, layout })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: from `alloc` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Memory of a device, aligned to 256 bytes. When dropped it is no longer valid for kernels, which fault
/// if they still use it; the host memory beneath it goes once no device has work left, so that a copy still queued is
/// not left dangling.
pub struct Allocation {
    block: Option<Block>,
    bytes: usize,
    device: usize,
    machine: Arc<Shared>,
}

impl Allocation {
    pub(crate) fn new(machine: Arc<Shared>, device: usize, bytes: usize) -> Result<Self, Error> {
        let limit = machine.options.memory_bytes;
        let taken = machine.lock().reserve(device, bytes, limit);
        let out_of_memory = |used: usize| Error::OutOfMemory { device, bytes, free: limit - used, limit };
        taken.map_err(out_of_memory)?;
        let Some(block) = Block::new(bytes, ALIGNMENT) else {
            machine.lock().release(device, bytes);
            return Err(out_of_memory(limit));
        };
        let start = block.as_ptr().expose_provenance() as u64;
        let range = Range { start, end: start + bytes as u64, device };
        machine.registry.change(|ranges| _ = ranges.insert(start, range));
        Ok(Self { block: Some(block), bytes, device, machine })
    }

    /// Its first byte. Provenance is exposed: kernels work with addresses.
    pub fn ptr(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), Block::as_ptr)
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let start = self.ptr() as u64;
        self.machine.registry.change(|ranges| _ = ranges.remove(&start));
        let mut host = self.machine.lock();
        host.release(self.device, self.bytes);
        if let Some(block) = self.block.take() {
            host.retire(block);
        }
    }
}
