//! A flag that goes round all ranks: what telling a peer takes, and nothing else.

use crate::gpu::mem::{self, Address};
use crate::gpu::{block, clock};
use crate::kernel::kernel;

/// Arguments of [`Flag`].
///
/// Contract: `own` and `next` are u64s that nobody else writes; every rank of the ring runs the kernel at once, with the
/// next one's `own` as its `next`, and the same numbers of rounds and `before`; one of them leads. No `own` was ever more than
/// `before`, and all come to it. `elapsed` is a u64. One block.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlagArgs {
    /// Where the rank before writes: memory of this rank.
    pub own: Address,
    /// Where this rank writes: memory of the next.
    pub next: Address,
    /// Out: nanoseconds of all timed rounds.
    pub elapsed: Address,
    /// What the flags have come to: all rounds of earlier launches.
    pub before: u64,
    /// How long all of it may take, in nanoseconds.
    pub timeout_ns: u64,
    /// Rounds before those that are timed, until all ranks have begun: at least 1.
    pub untimed: u32,
    /// Timed rounds.
    pub rounds: u32,
    /// 1 if this rank begins each round, else 0.
    pub leads: u32,
}

kernel!(
    /// Passes the flag on as soon as it comes. One thread works.
    Flag, tokenrail_flag, FlagArgs, flag
);

unsafe fn flag(args: FlagArgs) {
    if !block::is_first_thread() {
        return;
    }
    let deadline_ns = clock::now_ns() + args.timeout_ns;
    let mut started_ns = 0;
    // SAFETY: the contract of FlagArgs.
    unsafe {
        for round in 1..args.untimed + args.rounds + 1 {
            let value = args.before + round as u64;
            // Who leads waits for the round before to have come back.
            if mem::wait_at_least_acquire_sys(args.own, value - args.leads as u64, deadline_ns).is_err() {
                return;
            }
            if round == args.untimed {
                started_ns = clock::now_ns();
            }
            if round == args.untimed + args.rounds {
                mem::store_u64(args.elapsed, clock::now_ns() - started_ns);
            }
            // Partner: the next rank's wait above.
            mem::store_release_sys_u64(args.next, value);
        }
    }
}
