//! Bulk copies: read at one later moment and written at another.

use std::collections::VecDeque;

/// A thread's groups of bulk stores.
#[derive(Default)]
pub struct Groups {
    /// Committed groups, oldest first: stores of each not yet read, and not yet written.
    committed: VecDeque<Group>,
    open: Group,
    /// Number of the first of `committed`.
    first: u64,
}

#[derive(Clone, Copy, Default)]
struct Group {
    unread: u32,
    unwritten: u32,
}

impl Groups {
    /// Adds a store to the open group; gives the group's number.
    pub fn add(&mut self) -> u64 {
        self.open.unread += 1;
        self.open.unwritten += 1;
        self.first + self.committed.len() as u64
    }

    pub fn commit(&mut self) {
        self.committed.push_back(std::mem::take(&mut self.open));
        self.forget();
    }

    /// Drops the oldest groups that are complete.
    fn forget(&mut self) {
        while self.committed.front().is_some_and(|group| group.unwritten == 0) {
            self.committed.pop_front();
            self.first += 1;
        }
    }

    fn group(&mut self, number: u64) -> &mut Group {
        let index = (number - self.first) as usize;
        if index < self.committed.len() { &mut self.committed[index] } else { &mut self.open }
    }

    pub fn read(&mut self, number: u64) {
        self.group(number).unread -= 1;
    }

    pub fn written(&mut self, number: u64) {
        self.group(number).unwritten -= 1;
        self.forget();
    }

    /// Whether all but the latest `pending` committed groups are done, or read.
    pub fn done(&self, pending: usize, read_only: bool) -> bool {
        let left = |group: &Group| if read_only { group.unread } else { group.unwritten };
        let old = self.committed.len().saturating_sub(pending);
        self.committed.iter().take(old).all(|group| left(group) == 0)
    }
}

/// A copy on its way.
pub struct Copy {
    /// The block whose shared memory it uses.
    pub block: usize,
    pub shared: u32,
    pub global: u64,
    pub bytes: u32,
    pub kind: Kind,
    /// What has been read.
    pub staged: Option<Vec<u8>>,
    /// What the books of a checked machine know it by.
    pub watched: (u32, u32),
}

#[derive(Clone, Copy)]
pub enum Kind {
    /// To shared memory; completes on the mbarrier at this offset.
    Load { mbarrier: u32 },
    /// To global memory; belongs to this thread's group of this number.
    Store { thread: u32, group: u64 },
}
