//! A token on its way to another node.

use crate::gpu::mem::{self, Address, Quad};
use crate::wire::Shape;

/// Where one begins, in an outbox or an inbox: [`Shape::message_bytes`].
#[derive(Clone, Copy)]
pub struct Message(pub Address);

/// What one says of a slot.
#[derive(Clone, Copy)]
pub struct Slot {
    /// The expert, over all ranks; no expert for an empty slot.
    pub expert: u32,
    /// Its weight, as bits.
    pub weight: u32,
    /// How many earlier tokens of the source go to the expert's rank.
    pub index: u32,
    /// How many earlier pairs of the source the expert has. With the expert-major form.
    pub place: u32,
}

impl Slot {
    /// An empty one.
    pub const NONE: Self = Self { expert: u32::MAX, weight: 0, index: 0, place: 0 };
}

impl Message {
    /// The `index`th of those that begin at `at`.
    #[inline(always)]
    pub fn nth(shape: &Shape, at: Address, index: u32) -> Self {
        Self(at.offset(index as u64 * shape.message_bytes() as u64))
    }

    /// Says which dispatch it is of.
    ///
    /// # Safety
    /// There is a message, in memory that is mapped; nobody else accesses it if it is written. So for all here.
    #[inline(always)]
    pub unsafe fn set_epoch(self, epoch: u64) {
        // SAFETY: the caller's promise.
        unsafe { mem::store_quad(self.0, Quad([epoch as u32, (epoch >> 32) as u32, 0, 0])) };
    }

    /// Which dispatch it is of.
    #[inline(always)]
    pub unsafe fn epoch(self) -> u64 {
        // SAFETY: the caller's promise.
        let Quad([low, high, ..]) = unsafe { mem::load_quad(self.0) };
        (high as u64) << 32 | low as u64
    }

    /// Writes a slot.
    #[inline(always)]
    pub unsafe fn set_slot(self, slot: u32, of: Slot) {
        let quad = Quad([of.expert, of.weight, of.index, of.place]);
        // SAFETY: the caller's promise.
        unsafe { mem::store_quad(self.slot_at(slot), quad) };
    }

    /// Reads a slot.
    #[inline(always)]
    pub unsafe fn slot(self, slot: u32) -> Slot {
        // SAFETY: the caller's promise.
        let Quad([expert, weight, index, place]) = unsafe { mem::load_quad(self.slot_at(slot)) };
        Slot { expert, weight, index, place }
    }

    #[inline(always)]
    fn slot_at(self, slot: u32) -> Address {
        self.0.offset(16 + 16 * slot as u64)
    }

    /// Where its scales begin.
    #[inline(always)]
    pub fn scales(self, shape: &Shape) -> Address {
        self.0.offset(shape.message_scales().into())
    }

    /// Where its side tensors begin, one behind the other.
    #[inline(always)]
    pub fn sides(self, shape: &Shape) -> Address {
        self.0.offset(shape.message_sides().into())
    }

    /// Where its row begins.
    #[inline(always)]
    pub fn row(self, shape: &Shape) -> Address {
        self.0.offset(shape.message_row().into())
    }
}
