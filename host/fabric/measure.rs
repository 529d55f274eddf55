//! What a proxy comes to on this machine.

use super::loopback::HostMemory;
use super::proxy::{Flags, Proxy};
use super::ring::Consumer;
use super::{Arrival, Fabric, Loopback, LoopbackOptions, Memory, Network};
use crate::gpu::agent::{self, Agent, ThreadOptions};
use crate::gpu::{Buffer, Gpu, Grid, HostBuffer, Stream};
use crate::{Backend, Error, Group};
use std::ptr::with_exposed_provenance_mut;
use std::time::{Duration, Instant};
use tokenrail_device::gpu::mem::Quad;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::internode::command::{Command, Target};
use tokenrail_device::internode::ring::Ring;
use tokenrail_device::workload::commands::{Commands, CommandsArgs};

/// How fast commands go from a kernel through the ring and the proxy to a fabric. Bytes go nowhere: the fabric moves a few
/// within the host's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProxySpeed {
    /// Commands a second that one thread takes out of the ring, and does nothing else.
    pub taken_per_s: f64,
    /// Writes a second that the proxy's thread makes of commands, gives a fabric and sees done.
    pub posted_per_s: f64,
    /// From a kernel's command to the kernel's sight of a word in host memory that was written for it, in nanoseconds.
    pub round_trip_ns: f64,
    /// Most commands that waited in the ring.
    pub high_water: u64,
}

/// Blocks and threads that give commands.
const GRID: Grid = Grid { blocks: 16, threads: 8 * WARP, shared_bytes: 0 };
/// Logarithm of the ring's places.
const LOG2: u32 = 14;
/// Bytes of a put: the least, so that it is the proxy that is measured.
const PIECE: u32 = 16;
const LANES: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(20);

impl ProxySpeed {
    /// Measures on the first GPU of a backend, with a proxy on `core` if that is given. On the emulator the figures say
    /// nothing.
    ///
    /// # Errors
    /// What [`Group::in_process`] gives; [`Error::Device`] without enough memory.
    pub fn measure(backend: &Backend, core: Option<usize>) -> Result<Self, Error> {
        let mut members = Group::in_process(1, backend)?;
        let Some(member) = members.pop() else {
            return Err(Error::Unavailable { what: "a GPU".into(), why: "the backend has none".into() });
        };
        let bench = Bench::new(member.gpu().clone())?;
        let is_emulated = bench.gpu.description().capability == 0;
        let (puts, round_trips) = if is_emulated { (2, 4) } else { (4096, 2000) };

        let (ring, _words, _commands) = bench.ring()?;
        let taken = if is_emulated { f64::NAN } else { bench.take(&ring, puts)? };

        let (ring, _words, _commands) = bench.ring()?;
        // SAFETY: the ring is this function's, of the size that its logarithm says, zeroed, and kept until the proxy is gone.
        let consumer = unsafe { Consumer::new(&ring) };
        let (fabric, _other) = bench.fabric()?;
        let (proxy, shared) = Proxy::new(consumer, fabric, FLAGS, 0);
        let running = bench.gpu.run(Box::new(proxy), false, ThreadOptions { core })?;
        let all = u64::from(puts) * COMMANDS_OF_A_PUT;
        let begun = Instant::now();
        bench.launch(&ring, puts, 0)?;
        bench.stream.synchronize()?;
        let done = || shared.statistics().completed == all;
        let until = Instant::now() + PATIENCE;
        while !is_emulated && !done() && Instant::now() < until {
            std::hint::spin_loop();
        }
        let posted = all as f64 / begun.elapsed().as_secs_f64();
        bench.launch(&ring, 0, round_trips)?;
        let elapsed = bench.gpu.download::<u64>(&bench.stream, bench.elapsed.view(), 1)?[0];
        drop(running);
        let statistics = shared.statistics();
        if let Some(failure) = shared.failure() {
            return Err(failure.error(0));
        }
        if statistics.completed != all + u64::from(round_trips) || elapsed == 0 {
            let reason =
                format!("of {all} commands and {round_trips} round trips not all came: {statistics:?}");
            return Err(Error::Fabric { call: "measuring a proxy".into(), reason });
        }
        Ok(Self {
            taken_per_s: taken,
            posted_per_s: posted,
            round_trip_ns: elapsed as f64 / f64::from(round_trips),
            high_water: statistics.high_water,
        })
    }
}

impl ProxySpeed {
    /// What the proxy's thread alone comes to, without a GPU: commands are put into the ring by the host, in untimed pauses.
    /// There are no round trips: not a number.
    ///
    /// # Errors
    /// As [`ProxySpeed::measure`].
    pub fn of_host() -> Result<Self, Error> {
        const LAPS: u32 = 200;
        let mut members = Group::in_process(1, &Backend::emulator(0))?;
        let Some(member) = members.pop() else {
            return Err(Error::Unavailable { what: "an emulated GPU".into(), why: "there is none".into() });
        };
        let bench = Bench::new(member.gpu().clone())?;
        let all = u64::from(LAPS) << LOG2;
        let (ring, _words, _commands) = bench.ring()?;
        // SAFETY: as in `measure`, and below.
        let mut consumer = unsafe { Consumer::new(&ring) };
        let mut taking = Duration::ZERO;
        for lap in 0..LAPS {
            fill(&ring, lap);
            let begun = Instant::now();
            while let Some(Ok(command)) = consumer.next() {
                std::hint::black_box(command);
                consumer.take();
            }
            consumer.tell();
            taking += begun.elapsed();
        }
        let (ring, _words, _commands) = bench.ring()?;
        let (fabric, _other) = bench.fabric()?;
        // SAFETY: as above.
        let consumer = unsafe { Consumer::new(&ring) };
        let (mut proxy, shared) = Proxy::new(consumer, fabric, FLAGS, 0);
        let mut posting = Duration::ZERO;
        for lap in 0..LAPS {
            fill(&ring, lap);
            let begun = Instant::now();
            while proxy.step(0) == agent::Outlook::Worked {}
            posting += begun.elapsed();
        }
        let statistics = shared.statistics();
        if statistics.completed != all {
            let reason = format!("of {all} commands not all came: {statistics:?}");
            return Err(Error::Fabric { call: "measuring a proxy".into(), reason });
        }
        Ok(Self {
            taken_per_s: all as f64 / taking.as_secs_f64(),
            posted_per_s: all as f64 / posting.as_secs_f64(),
            round_trip_ns: f64::NAN,
            high_water: statistics.high_water,
        })
    }
}

/// Puts as many commands into a ring as it has places for, as a kernel would.
fn fill(ring: &Ring, lap: u32) {
    for place in lap << LOG2..(lap + 1) << LOG2 {
        let (lane, piece) = (place % LANES, u64::from(PIECE * (place % WARP)));
        let to = Target { peer: 1, lane };
        let put = Command::Put { to, channel: 0, from: piece, at: piece, bytes: PIECE };
        let quad = put.encode(Ring::generation(place, LOG2));
        let at = ring.commands.0 + 16 * u64::from(place & ((1 << LOG2) - 1));
        // SAFETY: a place of the ring, which nobody reads now.
        unsafe { with_exposed_provenance_mut::<Quad>(at as usize).write(quad) };
    }
}

/// Commands of the grid for each put of a lane.
const COMMANDS_OF_A_PUT: u64 = GRID.blocks as u64 * GRID.threads as u64;
const FLAGS: Flags = Flags { arrival: Arrival::Ordered, at: 0, channels: 1, ranks: 2, lanes: LANES };

struct Bench {
    gpu: Gpu,
    stream: Stream,
    elapsed: Buffer,
    /// What is sent, and where it goes.
    memory: [HostBuffer; 2],
    network: Network,
}

impl Bench {
    fn new(gpu: Gpu) -> Result<Self, Error> {
        let options = LoopbackOptions { depth: 1 << 10, ..LoopbackOptions::default() };
        Ok(Self {
            stream: gpu.stream()?,
            elapsed: gpu.alloc_zeroed(8)?,
            memory: [gpu.alloc_host((PIECE * WARP) as usize)?, gpu.alloc_host((PIECE * WARP) as usize)?],
            network: Network::new(options),
            gpu,
        })
    }

    fn ring(&self) -> Result<(Ring, Buffer, HostBuffer), Error> {
        let words = self.gpu.alloc_zeroed(256)?;
        let commands = self.gpu.alloc_host((16 << LOG2) + 128)?;
        let ring = Ring {
            commands: commands.address(),
            taken: commands.address().offset(16 << LOG2),
            reserved: words.address(),
            seen: words.address().offset(128),
            log2: LOG2,
        };
        Ok((ring, words, commands))
    }

    /// The ends of rank 0, and of rank 1, of which nothing but the memory is used. An end that is dropped is dead.
    fn fabric(&self) -> Result<(Box<dyn Fabric>, Loopback), Error> {
        let mut ends = [0, 1].map(|rank| self.network.end(rank, LANES, Box::new(HostMemory)));
        for (end, memory) in ends.iter_mut().zip(&self.memory) {
            let bytes = (PIECE * WARP).into();
            let memory = Memory { address: memory.address().0, bytes, on_device: false };
            // SAFETY: the memory outlives the proxy, which has the first end; the second is not written from.
            unsafe { end.register(memory)? };
        }
        let [mut first, mut second] = ends;
        first.connect(&[None, Some(second.address(0)?)])?;
        Ok((Box::new(first), second))
    }

    fn launch(&self, ring: &Ring, puts: u32, round_trips: u32) -> Result<(), Error> {
        let args = CommandsArgs {
            ring: *ring,
            flag: self.memory[1].address(),
            elapsed: self.elapsed.address(),
            timeout_ns: PATIENCE.as_nanos() as u64,
            to: 1,
            lanes: LANES,
            bytes: PIECE,
            puts,
            round_trips,
        };
        // SAFETY: all of it is alive and of the sizes that the contract asks for; callers wait for the kernel.
        unsafe { self.gpu.launch::<Commands>(&self.stream, GRID, &args) }
    }

    /// Commands a second that this thread takes out of a ring.
    fn take(&self, ring: &Ring, puts: u32) -> Result<f64, Error> {
        // SAFETY: the ring is the caller's, of the size that its logarithm says, zeroed, and outlives this.
        let mut consumer = unsafe { Consumer::new(ring) };
        let all = u64::from(puts) * COMMANDS_OF_A_PUT;
        let begun = Instant::now();
        self.launch(ring, puts, 0)?;
        let mut taken = 0;
        while taken < all && begun.elapsed() < PATIENCE {
            while consumer.next().is_some_and(|command| command.is_ok()) {
                consumer.take();
                taken += 1;
                if taken % 64 == 0 {
                    consumer.tell();
                }
            }
            consumer.tell();
        }
        let rate = taken as f64 / begun.elapsed().as_secs_f64();
        self.stream.synchronize()?;
        Ok(rate)
    }
}
