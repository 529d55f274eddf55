//! Which ranks a token goes to.

use crate::gpu::mem::{self, Address};
use crate::wire::Shape;

/// The destinations of `token` among the ranks `first..first + 32`, as a bit mask. Ids out of range count as empty.
///
/// # Safety
/// `topk_idx` is i32 `[tokens, topk]` in memory that nobody writes, and `token` is below `tokens`.
pub unsafe fn mask(shape: &Shape, topk_idx: Address, token: u32, first: u32) -> u32 {
    let mut mask = 0;
    let mut slot = 0;
    while slot < shape.topk {
        // SAFETY: the slot lies in the array.
        let expert = unsafe { mem::load_u32(topk_idx.word(token * shape.topk + slot)) };
        // −1 is above every expert as an unsigned number.
        if expert < shape.experts {
            let rank = (expert / shape.experts_per_rank()).wrapping_sub(first);
            mask |= if rank < 32 { 1 << rank } else { 0 };
        }
        slot += 1;
    }
    mask
}
