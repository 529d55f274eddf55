//! Gives a proxy commands, as fast as it takes them or one after the other.

use crate::gpu::mem::{self, Address};
use crate::gpu::{clock, thread};
use crate::internode::command::{Command, Target};
use crate::internode::ring::Ring;
use crate::kernel::kernel;

/// Arguments of [`Commands`].
///
/// Contract: [`Ring`]'s; there is a rank `to` with so many lanes, whose memory has room for 32 pieces of `bytes` bytes, a
/// multiple of 16; `flag` is the u64 that its first eight bytes are, as this GPU sees it; `elapsed` is a u64.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CommandsArgs {
    /// The ring.
    pub ring: Ring,
    /// Where a round trip comes back.
    pub flag: Address,
    /// Out: nanoseconds of all round trips.
    pub elapsed: Address,
    /// How long any one wait may take, in nanoseconds.
    pub timeout_ns: u64,
    /// Whom to send to.
    pub to: u32,
    /// Lanes to it.
    pub lanes: u32,
    /// Bytes of a put.
    pub bytes: u32,
    /// Puts of every lane of every warp.
    pub puts: u32,
    /// Words that the first thread sends, each after the one before has come back.
    pub round_trips: u32,
}

kernel!(
    /// Gives a proxy commands.
    Commands, tokenrail_commands, CommandsArgs, commands
);

#[inline(always)]
unsafe fn commands(args: CommandsArgs) {
    let lane = thread::lane();
    let deadline_ns = clock::now_ns() + args.timeout_ns;
    // SAFETY: the contract of CommandsArgs.
    unsafe {
        let piece = args.bytes as u64 * lane as u64;
        let to = Target { peer: args.to, lane: lane % if args.lanes == 0 { 1 } else { args.lanes } };
        for _ in 0..args.puts {
            let put = Command::Put { to, channel: 0, from: piece, at: piece, bytes: args.bytes };
            if !args.ring.push(true, put, deadline_ns) {
                return;
            }
        }
        if thread::block_index() == 0 && thread::warp_index() == 0 && args.round_trips > 0 {
            let before = mem::load_acquire_sys_u64(args.flag);
            let started_ns = clock::now_ns();
            for trip in 1..args.round_trips as u64 + 1 {
                let word = Command::Word { to: Target { lane: 0, ..to }, at: 0, value: before + trip };
                args.ring.push(lane == 0, word, deadline_ns);
                // Partner: the proxy's fabric, by way of the word.
                if mem::wait_at_least_acquire_sys(args.flag, before + trip, deadline_ns).is_err() {
                    return;
                }
            }
            if lane == 0 {
                mem::store_u64(args.elapsed, clock::now_ns() - started_ns);
            }
        }
    }
}
