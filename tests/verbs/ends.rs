//! Ranks of one process, each with an end and memory.

use std::alloc::{Layout, alloc, dealloc};
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use tokenrail::fabric::verbs::{Verbs, VerbsOptions, describe};
use tokenrail::fabric::{Event, Fabric, Lane, Memory, Payload, Region, Write};

/// How long anything may take: under emulation, and with other tests beside it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Taken for writing by what pulls the cable out.
pub static CABLE: RwLock<()> = RwLock::new(());

/// Devices to test with, and the cable, which stays in as long as this lives. `None` if there are none.
pub fn devices() -> Option<(Vec<String>, RwLockReadGuard<'static, ()>)> {
    Some((device_names()?, CABLE.read().unwrap_or_else(PoisonError::into_inner)))
}

pub fn device_names() -> Option<Vec<String>> {
    if let Ok(names) = std::env::var("TOKENRAIL_VERBS_DEVICES") {
        return Some(names.split_whitespace().map(Into::into).collect());
    }
    match describe() {
        Ok(nics) => {
            let active = |nic: &&tokenrail::fabric::verbs::NicDescription| {
                nic.ports.first().is_some_and(|port| port.state == "active")
            };
            let names: Vec<_> = nics.iter().filter(active).map(|nic| nic.name.clone()).take(2).collect();
            if !names.is_empty() {
                return Some(names);
            }
        }
        Err(error) => eprintln!("{error}"),
    }
    assert!(std::env::var_os("TOKENRAIL_REQUIRE_VERBS").is_none(), "there has to be a verbs device");
    super::skip::skipped("no verbs device");
    None
}

/// Settings of tests: failures come soon.
pub fn options() -> VerbsOptions {
    let deadline = Duration::from_secs(6);
    VerbsOptions { lanes: 2, ack_timeout: 14, retry_count: 6, deadline, ..VerbsOptions::default() }
}

/// Bytes that others write.
pub struct Bytes {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: it is plain memory; NICs write it whoever has it.
unsafe impl Send for Bytes {}

/// What memory is full of at first: never what is written.
pub const POISON: u8 = 0xa5;

impl Bytes {
    pub fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        assert!(!start.is_null());
        let mut new = Self { start, layout };
        new.fill(0..bytes, |_| POISON);
        new
    }

    pub fn fill(&mut self, range: Range<usize>, value: impl Fn(usize) -> u8) {
        assert!(range.end <= self.layout.size());
        for at in range {
            // SAFETY: inside the allocation. Volatile, as devices read it.
            unsafe { self.start.add(at).write_volatile(value(at)) };
        }
    }

    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        assert!(range.end <= self.layout.size());
        // SAFETY: inside the allocation. Volatile, as devices write it.
        range.map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    pub fn word(&self, at: usize) -> u64 {
        assert!(at + 8 <= self.layout.size() && at.is_multiple_of(8));
        // SAFETY: inside the allocation and aligned. Volatile, as devices write it.
        let word = unsafe { self.start.add(at).cast::<u64>().read_volatile() };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        word
    }

    pub fn memory(&self) -> Memory {
        Memory { address: self.start as u64, bytes: self.layout.size() as u64, on_device: false }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// A rank. Region 0 is its memory.
pub struct End {
    // Dropped before the memory.
    pub verbs: Verbs,
    pub bytes: Bytes,
    /// All that has happened.
    pub events: Vec<Event>,
    since: Instant,
}

impl End {
    pub fn open(rank: u32, ranks: u32, options: &VerbsOptions, bytes: usize) -> Self {
        let bytes = Bytes::new(bytes);
        let mut verbs = Verbs::open(rank, ranks, options, None).expect("opening the device");
        // SAFETY: the bytes are dropped after `verbs`.
        let region = unsafe { verbs.register(bytes.memory()) }.expect("registering");
        assert_eq!(region, Region(0));
        Self { verbs, bytes, events: Vec::new(), since: Instant::now() }
    }

    pub fn poll(&mut self) {
        let now = self.since.elapsed().as_nanos() as u64;
        self.verbs.poll(now, &mut self.events).expect("polling");
    }

    /// The same bytes of this end and the other.
    pub fn write(&mut self, lane: Lane, range: Range<usize>, immediate: Option<u32>) {
        let (offset, bytes) = (range.start as u64, range.len() as u32);
        let payload = Payload::Bytes { region: Region(0), offset, bytes };
        self.verbs.write(lane, &Write { payload, region: Region(0), offset, immediate }).expect("writing");
    }

    pub fn write_word(&mut self, lane: Lane, at: u64, word: u64) {
        let write = Write { payload: Payload::Word(word), region: Region(0), offset: at, immediate: None };
        self.verbs.write(lane, &write).expect("writing");
    }

    pub fn tell(&mut self, lane: Lane, immediate: u32) {
        let immediate = Some(immediate);
        let write = Write { payload: Payload::Nothing, region: Region(0), offset: 0, immediate };
        self.verbs.write(lane, &write).expect("writing");
    }

    pub fn arrived(&self, of: Lane) -> Vec<u32> {
        let immediate = |event: &Event| match *event {
            Event::Arrived { lane, immediate } if lane == of => Some(immediate),
            _ => None,
        };
        self.events.iter().filter_map(immediate).collect()
    }

    pub fn written(&self, of: Lane) -> u32 {
        let count = |event: &Event| match *event {
            Event::Written { lane, count } if lane == of => count,
            _ => 0,
        };
        self.events.iter().map(count).sum()
    }

    pub fn failures(&self) -> Vec<(Lane, tokenrail::fabric::Cause)> {
        let failure = |event: &Event| match event {
            Event::Failed { lane, cause } => Some((*lane, cause.clone())),
            _ => None,
        };
        self.events.iter().filter_map(failure).collect()
    }
}

pub fn lane(peer: u32, index: u32) -> Lane {
    Lane { peer, index }
}

/// Ends of ranks that all reach each other. Their devices take turns, unless the options name some.
pub fn ends(names: &[String], ranks: u32, options: &VerbsOptions, bytes: usize) -> Vec<End> {
    let open = |rank: u32| {
        let mut options = options.clone();
        if options.devices.is_empty() {
            options.devices = vec![names[rank as usize % names.len()].clone()];
        }
        End::open(rank, ranks, &options, bytes)
    };
    let mut ends: Vec<_> = (0..ranks).map(open).collect();
    connect(&mut ends, |_, _, address| address);
    ends
}

/// Connects all, with addresses changed on the way: of whom, for whom, and what.
pub fn connect(ends: &mut [End], change: impl Fn(u32, u32, Vec<u8>) -> Vec<u8>) {
    let ranks = ends.len() as u32;
    let mut told: Vec<Vec<_>> = (0..ranks).map(|_| vec![None; ranks as usize]).collect();
    for from in 0..ranks {
        for to in (0..ranks).filter(|&to| to != from) {
            let address = ends[from as usize].verbs.address(to).expect("an address");
            told[to as usize][from as usize] = Some(change(from, to, address));
        }
    }
    for (end, told) in ends.iter_mut().zip(&told) {
        end.verbs.connect(told).expect("connecting");
    }
}

/// Two ranks.
pub fn pair(names: &[String], options: &VerbsOptions, bytes: usize) -> [End; 2] {
    let Ok(pair) = ends(names, 2, options, bytes).try_into() else { unreachable!() };
    pair
}

/// Polls all until something holds; fails if it does not in time.
pub fn until<const N: usize>(ends: &mut [End; N], what: &str, holds: impl Fn(&[End; N]) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        ends.iter_mut().for_each(End::poll);
        if holds(ends) {
            return;
        }
        let failures: Vec<_> = ends.iter().map(End::failures).collect();
        assert!(Instant::now() < end, "waited for {what}; failures: {failures:?}");
    }
}
