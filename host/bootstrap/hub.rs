//! Process 0: it gathers what the others give, and gives all of it to all of them.

use super::Cause;
use super::clock::{Deadline, Pace};
use super::door::Door;
use super::link::Link;
use super::message::{ENTRY, Message, place_name};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait before the others are told who is missing, and until they are told again.
const NEWS: Duration = Duration::from_millis(50);

pub(super) struct Hub {
    message_bytes: u32,
    /// To process 1 and so on.
    links: Vec<Option<Link>>,
}

/// What one gathering has brought so far.
struct Gathering<'a> {
    place: &'a str,
    /// Of process 0 and so on.
    entries: Vec<Option<Arc<Vec<u8>>>>,
    /// When to tell who is missing, and who was when it was told last.
    next_news: Instant,
    told: Vec<u32>,
}

impl Hub {
    pub fn new(processes: u32, message_bytes: u32) -> Self {
        Self { message_bytes, links: (1..processes).map(|_| None).collect() }
    }

    /// Gathers, and lets processes in that are still to come, if there is a door. If that fails, the others are told.
    ///
    /// # Errors
    /// Who is late, or what went wrong with whom.
    pub fn gather(
        &mut self,
        mut door: Option<Door>,
        bytes: &[u8],
        place: &str,
        deadline: &Deadline,
    ) -> Result<Vec<Vec<u8>>, Cause> {
        let mut entries = vec![None; self.links.len() + 1];
        entries[0] = Some(Arc::new(bytes.to_vec()));
        let next_news = Instant::now() + NEWS;
        let mut gathering = Gathering { place: place_name(place), entries, next_news, told: Vec::new() };
        self.collect(&mut door, &mut gathering, deadline)
            .and_then(|()| self.spread(gathering, deadline))
            .inspect_err(|cause| self.links.iter_mut().flatten().for_each(|link| link.abort(cause)))
    }

    /// Waits until every process has given its entry.
    fn collect(
        &mut self,
        door: &mut Option<Door>,
        gathering: &mut Gathering,
        deadline: &Deadline,
    ) -> Result<(), Cause> {
        let mut pace = Pace::default();
        loop {
            let mut has_moved = self.welcome(door)?;
            for (process, link) in (1..).zip(&mut self.links) {
                let Some(link) = link else { continue };
                let (moved, message) = link.receive()?;
                has_moved |= moved | link.send()?;
                if let Some(message) = message {
                    gathering.take(process, link, message, self.message_bytes)?;
                }
            }
            let missing = gathering.missing();
            if missing.is_empty() {
                return Ok(());
            }
            if deadline.has_passed() {
                let refused = door.as_ref().map_or(0, Door::refused);
                return Err(Cause::Late { processes: missing, waited: deadline.waited(), refused });
            }
            self.tell(gathering, missing);
            pace.rest(has_moved, deadline);
        }
    }

    fn welcome(&mut self, door: &mut Option<Door>) -> Result<bool, Cause> {
        let Some(door) = door else { return Ok(false) };
        let is_taken = |process: u32| self.links[process as usize - 1].is_some();
        let (has_moved, guest) = door.look(is_taken)?;
        if let Some(guest) = guest {
            let link = Link::new(guest.process, guest.stream, guest.session, self.message_bytes)?;
            self.links[guest.process as usize - 1] = Some(link);
        }
        Ok(has_moved)
    }

    /// Tells those who wait for whom they wait, so that they know when their patience ends.
    fn tell(&mut self, gathering: &mut Gathering, missing: Vec<u32>) {
        if Instant::now() < gathering.next_news {
            return;
        }
        gathering.next_news = Instant::now() + NEWS;
        // With every entry that comes, who gave it included, there are news for all.
        if gathering.told != missing {
            for link in self.links.iter_mut().flatten().filter(|link| link.is_idle()) {
                link.put(Message::Waiting(missing.clone()));
            }
            gathering.told = missing;
        }
    }

    /// Gives every process all entries.
    fn spread(&mut self, gathering: Gathering, deadline: &Deadline) -> Result<Vec<Vec<u8>>, Cause> {
        let entries: Vec<Arc<Vec<u8>>> = gathering.entries.into_iter().flatten().collect();
        let mut next = vec![0; self.links.len()];
        let mut pace = Pace::default();
        loop {
            let mut has_moved = false;
            let mut slow = Vec::new();
            for ((process, link), next) in (1..).zip(&mut self.links).zip(&mut next) {
                let Some(link) = link else { continue };
                has_moved |= link.send()?;
                while let Some(entry) = entries.get(*next).filter(|_| link.is_idle()) {
                    link.put_frame(ENTRY, entry.clone());
                    *next += 1;
                    has_moved |= link.send()?;
                }
                if !link.is_idle() {
                    slow.push(process);
                }
            }
            if slow.is_empty() {
                return Ok(entries.into_iter().map(Arc::unwrap_or_clone).collect());
            }
            if deadline.has_passed() {
                return Err(Cause::Late { processes: slow, waited: deadline.waited(), refused: 0 });
            }
            pace.rest(has_moved, deadline);
        }
    }
}

impl Gathering<'_> {
    fn missing(&self) -> Vec<u32> {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.is_none()).map(|(process, _)| process).collect()
    }

    /// Takes what a process has sent.
    fn take(&mut self, process: u32, link: &Link, message: Message, limit: u32) -> Result<(), Cause> {
        let (entry, place) = match message {
            Message::Gather { entry, place } => (entry, place),
            Message::Abort(abort) => return Err(abort.into_cause(process)),
            _ => return Err(link.out_of_step("it sends what only process 0 may")),
        };
        let own = &mut self.entries[process as usize];
        if own.is_some() {
            return Err(link.out_of_step("it gives a second entry before it has the others'"));
        }
        if place != self.place {
            return Err(link.out_of_step(format!("it is at {place:?}, we are at {:?}", self.place)));
        }
        if entry.len() > limit as usize {
            return Err(link.out_of_step(format!("its entry has {} bytes", entry.len())));
        }
        *own = Some(Arc::new(entry));
        Ok(())
    }
}
