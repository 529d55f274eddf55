//! The books of a machine that is checked: what every thread, word, stream and copy knows.

use super::clock::{Knowledge, join};
use super::shadow::{CELL, Past, Shadow, WHOLE, shared_address};
use super::{Access, Checker, Finding, Mutant, Scope, Site, Span, Strength, Touch, Weakness};
use crate::block::WARP;
use crate::collective::each_lane;
use crate::memory::POISON;
use std::collections::HashMap;
use std::panic::Location;
use std::rc::Rc;

/// Copies of a thread that are told apart; further ones take the names of the oldest.
const COPIES: u32 = 16;

/// The block of what a stream does without a kernel.
const STREAM: u32 = u32::MAX;

/// What is ordered where.
#[derive(Clone, Copy)]
pub struct At {
    /// The block's place.
    pub at: usize,
    /// The thread in it.
    pub thread: u32,
    /// What is called.
    pub operation: &'static str,
    /// Where.
    pub site: &'static Location<'static>,
}

/// Whose accesses a slot stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    device: usize,
    stream: u64,
    block: u32,
    thread: u32,
    /// 0 for the thread itself, then its copies.
    copy: u32,
}

/// A kernel that was started.
struct Launched {
    kernel: &'static str,
    number: u64,
}

/// A stream.
#[derive(Default)]
struct StreamBooks {
    knowledge: Rc<Knowledge>,
    launches: u64,
}

/// A grid under way.
struct GridBooks {
    device: usize,
    stream: u64,
    launch: u32,
    begin: Rc<Knowledge>,
    end: Rc<Knowledge>,
}

/// A bulk store that was not waited for.
struct Stored {
    slot: u32,
    read: u32,
    written: u32,
    /// Groups that were committed before.
    group: usize,
}

/// A thread.
struct ThreadBooks {
    slot: u32,
    time: u32,
    /// Up to which of its own moments bulk copies see its writes.
    fenced: u32,
    base: Rc<Knowledge>,
    /// What it knew at its last fence of each scope.
    fences: Vec<(Rc<Knowledge>, Scope)>,
    /// What relaxed loads have brought, for a fence to acquire.
    pending: Vec<Released>,
    copies: u32,
    stores: Vec<Stored>,
    commits: usize,
}

/// A block.
struct BlockBooks {
    grid: usize,
    threads: Vec<ThreadBooks>,
}

/// An mbarrier: what has been brought to it so far, and what had been when its last phase ended.
#[derive(Default)]
struct MbarrierBooks {
    brought: Knowledge,
    over: Rc<Knowledge>,
}

/// Who accesses memory, and what it knows.
struct Actor {
    /// Of the thread or stream; a copy has one of its own.
    slot: u32,
    copy: Option<u32>,
    /// When it reads and when it writes.
    times: [u32; 2],
    launch: u32,
    fenced: u32,
    base: Rc<Knowledge>,
}

/// What a store has released.
#[derive(Clone)]
struct Released {
    knowledge: Rc<Knowledge>,
    scope: Scope,
    by: u32,
}

/// A word: what its last store has released, and the one before.
#[derive(Default)]
struct Word {
    last: Vec<Released>,
    before: Vec<Released>,
}

/// Everything.
pub struct Watch {
    checker: Checker,
    mutant: Option<Mutant>,
    sites: HashMap<(*const Location<'static>, *const u8), Option<Weakness>>,
    slots: HashMap<Place, u32>,
    places: Vec<Place>,
    /// By slot: the last moment in use.
    times: Vec<u32>,
    launches: Vec<Launched>,
    streams: HashMap<(usize, u64), StreamBooks>,
    /// What was known when so many kernels had ended.
    ended: Vec<Rc<Knowledge>>,
    grids: HashMap<usize, GridBooks>,
    blocks: HashMap<usize, BlockBooks>,
    words: HashMap<u64, Word>,
    /// By the block's place and the offset.
    mbarriers: HashMap<(usize, u32), MbarrierBooks>,
    /// What streams knew when they recorded events.
    moments: Vec<Rc<Knowledge>>,
    shadow: Shadow,
}

impl ThreadBooks {
    /// All that it knows, with what it did itself.
    fn knowledge(&self) -> Rc<Knowledge> {
        let mut knowledge = Knowledge::clone(&self.base);
        knowledge.seen.raise(self.slot, self.time);
        knowledge.fenced.raise(self.slot, self.fenced);
        Rc::new(knowledge)
    }
}

impl Actor {
    /// Whether the past access is known to have been.
    fn knows(&self, past: &Past, places: &[Place]) -> bool {
        if self.copy == Some(past.slot) {
            return true;
        }
        // Within a block the copies see each other's writes; what is read may be overwritten as soon as the reading is over.
        let is_near = || past.bulk && places[past.slot as usize].is_of_block(&places[self.slot as usize]);
        let by_fence = self.copy.is_some() && past.touch.writes() && !is_near();
        match (past.slot == self.slot, by_fence) {
            (true, false) => true,
            (true, true) => past.time <= self.fenced,
            (false, false) => self.base.seen.of(past.slot) >= past.time,
            (false, true) => self.base.fenced.of(past.slot) >= past.time,
        }
    }
}

impl Place {
    fn is_of_block(&self, other: &Self) -> bool {
        (self.device, self.stream, self.block) == (other.device, other.stream, other.block)
    }

    /// Whether an operation of this scope by it is seen by `other` as such.
    fn includes(&self, scope: Scope, other: &Self) -> bool {
        match scope {
            Scope::System => true,
            Scope::Device => self.device == other.device,
            Scope::Block => self.is_of_block(other),
        }
    }
}

impl Watch {
    pub fn new(checker: Checker) -> Self {
        Self {
            mutant: checker.mutant(),
            checker,
            sites: HashMap::new(),
            slots: HashMap::new(),
            places: Vec::new(),
            times: Vec::new(),
            launches: Vec::new(),
            streams: HashMap::new(),
            ended: vec![Rc::default()],
            grids: HashMap::new(),
            blocks: HashMap::new(),
            words: HashMap::new(),
            mbarriers: HashMap::new(),
            moments: vec![Rc::default()],
            shadow: Shadow::default(),
        }
    }

    /// Kernels and other operations of streams that have ended.
    pub fn ended(&self) -> usize {
        self.ended.len() - 1
    }

    /// A kernel that was queued when so many had ended starts.
    pub fn begin_grid(
        &mut self,
        grid: usize,
        device: usize,
        stream: u64,
        kernel: &'static str,
        ended: usize,
    ) {
        let launch = self.launches.len() as u32;
        let books = self.streams.entry((device, stream)).or_default();
        join(&mut books.knowledge, &self.ended[ended]);
        self.launches.push(Launched { kernel, number: books.launches });
        books.launches += 1;
        let begin = books.knowledge.clone();
        self.grids.insert(grid, GridBooks { device, stream, launch, end: begin.clone(), begin });
    }

    pub fn begin_block(&mut self, at: usize, grid: usize, block: u32, threads: u32) {
        let Some(GridBooks { device, stream, begin, .. }) = self.grids.get(&grid) else { return };
        let (device, stream, begin) = (*device, *stream, begin.clone());
        let threads = (0..threads).map(|thread| {
            let slot = self.slot(Place { device, stream, block, thread, copy: 0 });
            self.times[slot as usize] += 1;
            ThreadBooks {
                slot,
                time: self.times[slot as usize],
                fenced: 0,
                base: begin.clone(),
                fences: Vec::new(),
                pending: Vec::new(),
                copies: 0,
                stores: Vec::new(),
                commits: 0,
            }
        });
        let threads = threads.collect();
        self.blocks.insert(at, BlockBooks { grid, threads });
    }

    /// The block's threads and copies are done.
    pub fn end_block(&mut self, at: usize) {
        self.shadow.forget_block(at);
        self.mbarriers.retain(|&(block, _), _| block != at);
        let Some(BlockBooks { grid, threads }) = self.blocks.remove(&at) else { return };
        let Some(grid) = self.grids.get_mut(&grid) else { return };
        let end = Rc::make_mut(&mut grid.end);
        let mut last: Option<&Rc<Knowledge>> = None;
        for books in &threads {
            if last.is_none_or(|last| !Rc::ptr_eq(last, &books.base)) {
                end.join(&books.base);
                last = Some(&books.base);
            }
            self.times[books.slot as usize] = books.time;
            // The end of a kernel is a fence for all that follows.
            end.fenced.raise(books.slot, books.time);
            end.seen.raise(books.slot, books.time);
            for copy in 1..=books.copies.min(COPIES) {
                let place = Place { copy, ..self.places[books.slot as usize] };
                if let Some(&slot) = self.slots.get(&place) {
                    end.seen.raise(slot, self.times[slot as usize]);
                }
            }
        }
    }

    /// All blocks have ended.
    pub fn end_grid(&mut self, grid: usize) {
        let Some(GridBooks { device, stream, end, .. }) = self.grids.remove(&grid) else { return };
        let books = self.streams.entry((device, stream)).or_default();
        join(&mut books.knowledge, &end);
        self.has_ended(&end);
    }

    /// A stream's operation reads and writes memory, at once; it was queued when so many had ended.
    pub fn stream_operation(
        &mut self,
        device: usize,
        stream: u64,
        (operation, site): (&'static str, &'static Location<'static>),
        ended: usize,
        spans: &[Span],
    ) {
        let launch = self.launches.len() as u32;
        let slot = self.slot(Place { device, stream, block: STREAM, thread: 0, copy: 0 });
        self.times[slot as usize] += 1;
        let time = self.times[slot as usize];
        let books = self.streams.entry((device, stream)).or_default();
        self.launches.push(Launched { kernel: "an operation of the stream", number: books.launches });
        join(&mut books.knowledge, &self.ended[ended]);
        let base = books.knowledge.clone();
        let actor = Actor { slot, copy: None, times: [time; 2], launch, fenced: time, base };
        let at = At { at: 0, thread: 0, operation, site };
        for span in spans {
            let address = (span.address, span.address);
            self.touch(&actor, at, address, span.bytes, span.touch, Strength::Plain);
        }
        let books = self.streams.entry((device, stream)).or_default();
        let knowledge = Rc::make_mut(&mut books.knowledge);
        knowledge.seen.raise(slot, time);
        knowledge.fenced.raise(slot, time);
        let knowledge = books.knowledge.clone();
        self.has_ended(&knowledge);
    }

    fn has_ended(&mut self, end: &Rc<Knowledge>) {
        let mut all = self.ended[self.ended()].clone();
        join(&mut all, end);
        self.ended.push(all);
    }

    /// A stream records an event: gives what [`Watch::wait_event`] knows it by.
    pub fn record_event(&mut self, device: usize, stream: u64) -> usize {
        self.moments.push(self.streams.entry((device, stream)).or_default().knowledge.clone());
        self.moments.len() - 1
    }

    /// A stream waits for an event: it comes behind what the event's stream had done.
    pub fn wait_event(&mut self, device: usize, stream: u64, moment: usize) {
        join(&mut self.streams.entry((device, stream)).or_default().knowledge, &self.moments[moment]);
    }

    /// The block is no more.
    pub fn drop_block(&mut self, at: usize) {
        self.blocks.remove(&at);
        self.mbarriers.retain(|&(block, _), _| block != at);
        self.shadow.forget_block(at);
    }

    fn slot(&mut self, place: Place) -> u32 {
        *self.slots.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.times.push(0);
            self.places.len() as u32 - 1
        })
    }

    /// How much less than it says the operation orders.
    fn weakness(&mut self, at: At, is_wide: bool) -> Option<Weakness> {
        let key = (std::ptr::from_ref(at.site), at.operation.as_ptr());
        if let Some(weakness) = self.sites.get(&key) {
            return *weakness;
        }
        let site = Site::of(at.site, at.operation);
        let weakness =
            self.mutant.as_ref().filter(|mutant| mutant.site == site).map(|mutant| mutant.weakness);
        self.checker.orders_at(site, is_wide);
        self.sites.insert(key, weakness);
        weakness
    }

    fn thread(&mut self, at: At) -> Option<&mut ThreadBooks> {
        self.blocks.get_mut(&at.at)?.threads.get_mut(at.thread as usize)
    }

    fn weakened(&mut self, at: At, strength: Strength) -> Strength {
        let Strength::Strong { scope, release, acquire } = strength else { return strength };
        match self.weakness(at, scope == Scope::System) {
            Some(Weakness::Nothing) if release || acquire => Strength::relaxed(scope),
            Some(Weakness::Nothing) => Strength::Plain,
            Some(Weakness::Narrow) => Strength::Strong { scope: Scope::Device, release, acquire },
            Some(Weakness::Early) | None => strength,
        }
    }

    /// Whether an operation of this scope by `from` is seen by `by` as such.
    fn includes(&self, scope: Scope, from: u32, by: u32) -> bool {
        self.places[from as usize].includes(scope, &self.places[by as usize])
    }

    /// A thread accesses global memory, whose bytes lie at the address.
    pub fn access(&mut self, at: At, address: u64, bytes: usize, touch: Touch, strength: Strength) {
        let strength = self.weakened(at, strength);
        let Some(actor) = self.actor(at) else { return };
        self.touch(&actor, at, (address, address), bytes, touch, strength);
        self.order(at, address, touch, strength);
    }

    /// A thread accesses its block's shared memory, of which `offset` lies at `pointer`.
    pub fn shared(
        &mut self,
        at: At,
        offset: u32,
        pointer: u64,
        bytes: usize,
        touch: Touch,
        strength: Strength,
    ) {
        let strength = self.weakened(at, strength);
        let Some(actor) = self.actor(at) else { return };
        self.touch(&actor, at, (shared_address(at.at, offset), pointer), bytes, touch, strength);
    }

    fn actor(&self, at: At) -> Option<Actor> {
        let BlockBooks { grid, threads } = self.blocks.get(&at.at)?;
        let books = threads.get(at.thread as usize)?;
        Some(Actor {
            slot: books.slot,
            copy: None,
            times: [books.time; 2],
            launch: self.grids.get(grid)?.launch,
            fenced: books.fenced,
            base: books.base.clone(),
        })
    }

    /// What an ordered access has released, and acquires.
    fn order(&mut self, at: At, address: u64, touch: Touch, strength: Strength) {
        let Strength::Strong { scope, release, acquire } = strength else { return };
        let is_early = self.weakness(at, scope == Scope::System) == Some(Weakness::Early);
        let Some(slot) = self.thread(at).map(|books| books.slot) else { return };
        if touch != Touch::Write
            && let Some(word) = self.words.get(&address)
        {
            let released = if is_early { &word.before } else { &word.last };
            let sees = |released: &&Released| {
                self.includes(released.scope, released.by, slot) && self.includes(scope, slot, released.by)
            };
            let released: Vec<_> = released.iter().filter(sees).cloned().collect();
            let Some(books) = self.thread(at) else { return };
            for released in released {
                if acquire {
                    join(&mut books.base, &released.knowledge);
                } else if !books.pending.iter().any(|old| Rc::ptr_eq(&old.knowledge, &released.knowledge)) {
                    books.pending.push(released);
                }
            }
        }
        if touch.writes() {
            let Some(books) = self.thread(at) else { return };
            let mut released: Vec<Released> = Vec::new();
            if release {
                released.push(Released { knowledge: books.knowledge(), scope, by: slot });
                books.time += 1;
            } else {
                let narrower = |other: Scope| if other == Scope::System { scope } else { other };
                let of = |(knowledge, of): &(Rc<Knowledge>, Scope)| Released {
                    knowledge: knowledge.clone(),
                    scope: narrower(*of),
                    by: slot,
                };
                released.extend(books.fences.iter().map(of));
            }
            let word = self.words.entry(address).or_default();
            if touch == Touch::Update {
                // It goes on with what the word had released.
                for new in released {
                    let same = |old: &&mut Released| (old.scope, old.by) == (new.scope, new.by);
                    match word.last.iter_mut().find(same) {
                        Some(old) => *old = new,
                        None => word.last.push(new),
                    }
                }
            } else {
                word.before = std::mem::replace(&mut word.last, released);
            }
        }
    }

    /// Compares an access with those that were, and remembers it.
    fn touch(
        &mut self,
        actor: &Actor,
        at: At,
        (address, pointer): (u64, u64),
        bytes: usize,
        touch: Touch,
        strength: Strength,
    ) {
        let slot = actor.copy.unwrap_or(actor.slot);
        let mut now = Past {
            slot,
            time: actor.times[usize::from(touch.writes())],
            launch: actor.launch,
            touch,
            strength,
            bulk: actor.copy.is_some(),
            bytes: 0,
            operation: at.operation,
            site: at.site,
        };
        let end = address + bytes as u64;
        let mut found = Vec::new();
        let mut cell_address = address - address % CELL;
        while cell_address < end {
            let first = address.saturating_sub(cell_address);
            let last = (end - cell_address).min(CELL);
            now.bytes = (WHOLE << first) & (WHOLE >> (CELL - last));
            let cell = self.shadow.cell(cell_address);
            let places = &self.places;
            let both_strong = |past: &Past| {
                let [here, there] = [slot, past.slot].map(|slot| &places[slot as usize]);
                match (strength, past.strength) {
                    (Strength::Strong { scope: a, .. }, Strength::Strong { scope: b, .. }) => {
                        here.includes(a, there) && there.includes(b, here)
                    }
                    _ => false,
                }
            };
            let races = |past: &&Past| {
                past.bytes & now.bytes != 0 && !actor.knows(past, places) && !both_strong(past)
            };
            let before = cell.writes().chain(if touch.writes() { &cell.reads[..] } else { &[] });
            found.extend(before.filter(races).map(|past| (cell_address, Some(*past))));
            if touch == Touch::Read {
                // What a stream reads or copies need not all have been written.
                let is_kernel = places[slot as usize].block != STREAM;
                if is_kernel && cell.writes().next().is_none() && now.bytes == WHOLE {
                    let at = std::ptr::with_exposed_provenance::<[u8; CELL as usize]>(
                        (pointer + (cell_address - address)) as usize,
                    );
                    // SAFETY: the accessed bytes are live memory, as was checked before; an array has no alignment.
                    if unsafe { at.read() } == [POISON; CELL as usize] {
                        found.push((cell_address, None));
                    }
                }
                cell.reads.retain(|past| !actor.knows(past, places));
                cell.reads.push(now);
            } else {
                cell.written(now);
            }
            cell_address += CELL;
        }
        for (address, past) in found {
            // Offsets of shared memory are told as such.
            let address = if address >> 63 != 0 { address & u64::from(u32::MAX) } else { address };
            let now = self.told(&now);
            self.checker.found(match past {
                Some(past) => Finding::Race { address, first: self.told(&past), second: now },
                None => Finding::Unwritten { address, access: now },
            });
        }
    }

    fn told(&self, past: &Past) -> Access {
        let Place { device, block, thread, .. } = self.places[past.slot as usize];
        let Launched { kernel, number } = self.launches[past.launch as usize];
        let site = Site::of(past.site, past.operation);
        let thread = (block != STREAM).then_some((block, thread));
        Access { site, bulk: past.bulk, kernel, launch: number, device, thread }
    }

    /// A fence that acquires and releases.
    pub fn fence(&mut self, at: At, scope: Scope) {
        let scope = match self.weakness(at, scope == Scope::System) {
            Some(Weakness::Narrow) => Scope::Device,
            Some(_) => return,
            None => scope,
        };
        let Some(books) = self.thread(at) else { return };
        let (slot, pending) = (books.slot, std::mem::take(&mut books.pending));
        let (came, left): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|released| self.includes(scope, slot, released.by));
        let Some(books) = self.thread(at) else { return };
        books.pending = left;
        came.iter().for_each(|released| join(&mut books.base, &released.knowledge));
        let knowledge = books.knowledge();
        books.fences.retain(|fence| fence.1 != scope);
        books.fences.push((knowledge, scope));
        books.time += 1;
    }

    /// `fence.proxy.async`.
    pub fn fence_proxy(&mut self, at: At) {
        if self.weakness(at, false).is_some() {
            return;
        }
        let Some(books) = self.thread(at) else { return };
        books.fenced = books.time;
        let knowledge = Rc::make_mut(&mut books.base);
        knowledge.fenced = knowledge.seen.clone();
        // What is written from now on is not fenced.
        books.time += 1;
    }

    /// All these threads of a block have met, by warp.
    pub fn meet(&mut self, at: At, lanes: &[u32]) {
        if self.weakness(at, false).is_some() {
            return;
        }
        let Some(BlockBooks { threads, .. }) = self.blocks.get_mut(&at.at) else { return };
        let mut who = Vec::new();
        for (warp, &lanes) in lanes.iter().enumerate() {
            each_lane(lanes, |lane| who.push(warp * WARP as usize + lane));
        }
        let Some(&first) = who.first() else { return };
        let mut all = Knowledge::clone(&threads[first].base);
        let mut last = threads[first].base.clone();
        for &thread in &who {
            let books = &threads[thread];
            if !Rc::ptr_eq(&books.base, &last) {
                all.join(&books.base);
                last = books.base.clone();
            }
            all.seen.raise(books.slot, books.time);
            all.fenced.raise(books.slot, books.fenced);
        }
        let all = Rc::new(all);
        for &thread in &who {
            threads[thread].base = all.clone();
            threads[thread].time += 1;
        }
    }

    /// A thread arrives at an mbarrier, or has seen a phase of it end. What is ordered there is the mbarrier's preparation.
    pub fn mbarrier(&mut self, at: At, offset: u32, pointer: u64, arrives: bool) {
        let is_weak = self.weakness(at, false).is_some();
        let Some(actor) = self.actor(at) else { return };
        let shared = (shared_address(at.at, offset), pointer);
        self.touch(&actor, at, shared, 8, Touch::Read, Strength::Plain);
        if is_weak {
            return;
        }
        let mbarrier = self.mbarriers.entry((at.at, offset)).or_default();
        let Some(books) =
            self.blocks.get_mut(&at.at).and_then(|block| block.threads.get_mut(at.thread as usize))
        else {
            return;
        };
        if arrives {
            mbarrier.brought.join(&books.knowledge());
            books.time += 1;
        } else {
            join(&mut books.base, &mbarrier.over);
        }
    }

    /// A phase of an mbarrier is over.
    pub fn phase(&mut self, at: usize, offset: u32) {
        let mbarrier = self.mbarriers.entry((at, offset)).or_default();
        mbarrier.over = Rc::new(mbarrier.brought.clone());
    }

    /// A bulk copy starts: gives its slot, and the moment at which it has come. A load tells an mbarrier.
    pub fn copy(
        &mut self,
        at: At,
        global: u64,
        shared: (u32, u64),
        bytes: u32,
        mbarrier: Option<(u32, u64)>,
    ) -> (u32, u32) {
        let Some(mut actor) = self.actor(at) else { return (0, 0) };
        let Some(books) = self.thread(at) else { return (0, 0) };
        let copy = books.copies % COPIES + 1;
        books.copies += 1;
        let slot = self.slot(Place { copy, ..self.places[actor.slot as usize] });
        let read = self.times[slot as usize] + 1;
        let written = read + 1;
        self.times[slot as usize] = written;
        (actor.copy, actor.times) = (Some(slot), [read, written]);
        let (bytes, plain) = (bytes as usize, Strength::Plain);
        let of = |(offset, pointer)| (shared_address(at.at, offset), pointer);
        let (global, shared) = ((global, global), of(shared));
        let (from, to) = if mbarrier.is_some() { (global, shared) } else { (shared, global) };
        self.touch(&actor, at, from, bytes, Touch::Read, plain);
        self.touch(&actor, at, to, bytes, Touch::Write, plain);
        if let Some(mbarrier) = mbarrier {
            self.touch(&actor, at, of(mbarrier), 8, Touch::Read, plain);
        } else if let Some(books) = self.thread(at) {
            let group = books.commits;
            books.stores.push(Stored { slot, read, written, group });
        }
        (slot, written)
    }

    /// A bulk load has completed on an mbarrier.
    pub fn loaded(&mut self, at: usize, offset: u32, (slot, time): (u32, u32)) {
        self.mbarriers.entry((at, offset)).or_default().brought.seen.raise(slot, time);
    }

    /// A thread's open group of stores is closed.
    pub fn commit(&mut self, at: At) {
        if let Some(books) = self.thread(at) {
            books.commits += 1;
        }
    }

    /// A thread has waited for all but its last `pending` groups, or only for their reads.
    pub fn wait_stores(&mut self, at: At, pending: usize, read_only: bool) {
        if self.weakness(at, false).is_some() {
            return;
        }
        let Some(books) = self.thread(at) else { return };
        let done = books.commits.saturating_sub(pending);
        let knowledge = Rc::make_mut(&mut books.base);
        for store in books.stores.iter().filter(|store| store.group < done) {
            knowledge.seen.raise(store.slot, if read_only { store.read } else { store.written });
        }
        if !read_only {
            books.stores.retain(|store| store.group >= done);
        }
    }
}
