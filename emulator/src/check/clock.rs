//! Vector clocks: what a thread has seen of all others.

use std::rc::Rc;

/// By slot: up to which of its moments everything is known to have happened; nothing of slots past the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times(Vec<u32>);

impl Times {
    pub fn of(&self, slot: u32) -> u32 {
        self.0.get(slot as usize).copied().unwrap_or(0)
    }

    pub fn raise(&mut self, slot: u32, time: u32) {
        let slot = slot as usize;
        if slot >= self.0.len() {
            self.0.resize(slot + 1, 0);
        }
        self.0[slot] = self.0[slot].max(time);
    }

    pub fn join(&mut self, other: &Self) {
        if other.0.len() > self.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own = (*own).max(*other));
    }
}

/// What is known of others' accesses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// What has happened.
    pub seen: Times,
    /// Which of the ordinary writes among that bulk copies see, too.
    pub fenced: Times,
}

impl Knowledge {
    pub fn join(&mut self, other: &Self) {
        self.seen.join(&other.seen);
        self.fenced.join(&other.fenced);
    }
}

/// Joins into what may be shared with others, without a copy where nothing changes.
pub fn join(own: &mut Rc<Knowledge>, other: &Rc<Knowledge>) {
    if !Rc::ptr_eq(own, other) {
        Rc::make_mut(own).join(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_take_the_later_of_each() {
        let mut a = Times::default();
        a.raise(1, 5);
        let mut b = Times::default();
        b.raise(1, 3);
        b.raise(4, 2);
        a.join(&b);
        assert_eq!([0, 1, 4, 9].map(|slot| a.of(slot)), [0, 5, 2, 0]);
        b.join(&a);
        assert_eq!(a, b);
    }
}
