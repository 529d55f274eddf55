//! A process that is a node of two ranks.

use super::batches::{self, Case};
use super::common::{self, Calls};
use std::io::{Read, Write, stdin, stdout};
use std::net::TcpListener;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokenrail::bootstrap::{Bootstrap, Rendezvous, Secret, TcpRendezvous};
use tokenrail::fabric::Arrival;
use tokenrail::fabric::verbs::{NicDescription, PortDescription, VerbsOptions, describe};
use tokenrail::low_latency::{Input, Rows, Sums};
use tokenrail::{
    Backend, CombineFormat, Config, DispatchFormat, Element, Error, Exchange, ExpertMajor, Group, Internode,
    LowLatency, Member, Summation, Via,
};

/// Ranks of a node.
pub const RANKS: u32 = 2;
const PORT: u16 = 7433;

/// Which process it is, and what it is to do.
pub struct Node {
    process: u32,
    address: String,
    device: String,
    scenario: String,
}

/// Devices to test with; `None` if there are none.
pub fn devices() -> Option<Vec<String>> {
    if let Ok(names) = std::env::var("TOKENRAIL_VERBS_DEVICES") {
        return Some(names.split_whitespace().map(Into::into).collect());
    }
    let active = |nic: &NicDescription| nic.ports.first().is_some_and(|port| port.state == "active");
    let names: Vec<_> =
        describe().unwrap_or_default().into_iter().filter(active).map(|nic| nic.name).take(2).collect();
    if !names.is_empty() {
        return Some(names);
    }
    assert!(std::env::var_os("TOKENRAIL_REQUIRE_VERBS").is_none(), "there has to be a verbs device");
    super::skip::skipped("no verbs device");
    None
}

/// Whether every NIC can be used.
pub fn all_ports_are_active() -> bool {
    let is_active = |port: &PortDescription| port.state == "active" && !port.gids.is_empty();
    describe().is_ok_and(|nics| nics.iter().all(|nic| nic.ports.first().is_some_and(is_active)))
}

impl Node {
    /// What a test has told this process to be.
    pub fn from_environment() -> Option<Self> {
        let told = std::env::var("TOKENRAIL_TEST_NODE").ok()?;
        let mut words = told.split(' ').map(str::to_owned);
        let process = words.next()?.parse().ok()?;
        Some(Self { process, address: words.next()?, device: words.next()?, scenario: words.next()? })
    }

    /// One of two machines, which are told their numbers and addresses.
    pub fn of_machine(device: &str) -> Option<Self> {
        let process = std::env::var("TOKENRAIL_RANK").ok()?.parse().ok()?;
        let addresses = std::env::var("TOKENRAIL_ADDRESSES").ok()?;
        let address = format!("{}:{PORT}", addresses.split_whitespace().next()?);
        Some(Self { process, address, device: device.to_owned(), scenario: "compare".to_owned() })
    }

    fn meet(&self) -> Result<Arc<dyn Bootstrap>, Error> {
        let secret = match (self.scenario.as_str(), self.process) {
            ("secret", 1) => "another secret, of another group",
            _ => "the secret that this group has",
        };
        let rendezvous = Rendezvous {
            timeout: Duration::from_secs(if self.scenario == "secret" { 5 } else { 60 }),
            ..Rendezvous::new(&self.address, self.process, 2, Secret::new(secret))
        };
        // A listener that a test has made, on a port that the system chose.
        let given = std::env::var("TOKENRAIL_TEST_LISTENER").ok().and_then(|fd| fd.parse().ok());
        match given.filter(|_| self.process == 0) {
            // SAFETY: the descriptor was left open for this process, which makes nothing else of it.
            Some(fd) => TcpRendezvous::host(unsafe { TcpListener::from_raw_fd(fd) }, &rendezvous),
            None => TcpRendezvous::join(&rendezvous),
        }
        .map(|bootstrap| Arc::new(bootstrap) as Arc<dyn Bootstrap>)
    }

    fn internode(&self, lanes: u32, arrival: Arrival) -> Internode {
        let options = VerbsOptions {
            devices: vec![self.device.clone()],
            ack_timeout: 14,
            deadline: Duration::from_secs(6),
            ..VerbsOptions::default()
        };
        Internode { lanes, arrival, ..Internode::new(Via::Verbs(options)) }
    }

    /// Does what it is to do. Panics if results are not those of the reference; other errors are told, a line each.
    pub fn run(&self) {
        let bootstrap = match self.meet() {
            Ok(bootstrap) => bootstrap,
            Err(error) => return tell(&format!("error: {error}")),
        };
        match self.scenario.as_str() {
            "compare" => self.compare(&bootstrap),
            scenario => self.rounds(&bootstrap, scenario == "stall" && self.process == 1),
        }
    }

    fn members(&self, bootstrap: &Arc<dyn Bootstrap>, seed: u64) -> Vec<Member> {
        Group::spanning(bootstrap.clone(), RANKS, &Backend::emulator(seed)).expect("a group")
    }

    /// Several exchanges, one after the other, each of all ranks.
    fn compare(&self, bootstrap: &Arc<dyn Bootstrap>) {
        let shapes = [
            (DispatchFormat::Fp8, CombineFormat::Bf16, Summation::ByRank, 272, Arrival::Ordered, 1),
            (DispatchFormat::Bf16, CombineFormat::Log10, Summation::BySlot, 1616, Arrival::Counted, 3),
            (DispatchFormat::Fp8Ue8m0, CombineFormat::Fp8, Summation::ByRank, 7168, Arrival::Counted, 2),
        ];
        for (seed, (dispatch, combine, summation, hidden, arrival, lanes)) in (0..).zip(shapes) {
            let low_latency = LowLatency { dispatch, combine, summation, ..LowLatency::new(6) };
            let config = Config {
                ranks_per_node: Some(RANKS),
                internode: Some(self.internode(lanes, arrival)),
                timeout: Duration::from_secs(60),
                ..batches::config(7, 3, hidden, low_latency)
            };
            let case = Case {
                halves: seed % 2 == 1,
                order: vec![0, 1, 0, 1, 1, 0],
                ..Case::new(config, &[&[6, 3, 0, 2], &[1, 6, 6, 4], &[0, 2, 5, 6]])
            };
            batches::check_among(&case, self.members(bootstrap, seed));
        }
        self.compare_throughput(bootstrap);
    }

    /// Dispatch and combine: bf16, with handles and biases; and FP8 with its scales, by expert.
    fn compare_throughput(&self, bootstrap: &Arc<dyn Bootstrap>) {
        let by_expert = ExpertMajor { alignment: 8, rows: None };
        for (seed, element, expert_major, arrival) in [
            (11, Element::Bf16, None, Arrival::Ordered),
            (12, Element::Fp8E4m3, Some(by_expert), Arrival::Counted),
        ] {
            let config = Config {
                element,
                expert_major,
                handles: Some(2),
                in_flight: 2,
                ranks_per_node: Some(RANKS),
                internode: Some(self.internode(2, arrival)),
                timeout: Duration::from_secs(60),
                ..Config::new(12, 3, 512, 12)
            };
            let calls = Calls { follow: 1, biases: 1, ..Calls::default() };
            let tokens: &[&[usize]] = &[&[12, 3, 0, 9], &[0, 12, 5, 1], &[12; 4]];
            let case = common::Case { calls, ..common::Case::new(config, tokens, 5) };
            common::check_among(&case, self.members(bootstrap, seed));
        }
    }

    /// Batches until something is wrong. With `stall`, five, and then nothing until the test says so.
    fn rounds(&self, bootstrap: &Arc<dyn Bootstrap>, stall: bool) {
        let members = self.members(bootstrap, 1);
        std::thread::scope(|scope| {
            for member in members {
                scope.spawn(move || {
                    let (rank, outcome) = (member.rank(), self.rank(member, stall));
                    match outcome {
                        Ok(()) => tell(&format!("rank {rank} is done")),
                        Err(error) => tell(&format!("error: {error}")),
                    }
                });
            }
        });
    }

    fn rank(&self, member: Member, stall: bool) -> Result<(), Error> {
        const TOKENS: usize = 4;
        const HIDDEN: usize = 128;
        const EXPERTS: usize = 8;
        let low_latency = LowLatency { dispatch: DispatchFormat::Bf16, ..LowLatency::new(TOKENS as u32) };
        let config = Config {
            ranks_per_node: Some(RANKS),
            internode: Some(self.internode(2, Arrival::Ordered)),
            timeout: Duration::from_secs(3),
            ..batches::config(EXPERTS as u32, 2, HIDDEN as u32, low_latency)
        };
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &config)?;
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream()?;
        let x = gpu.upload(&[half::bf16::ONE; TOKENS * HIDDEN])?;
        let ids = gpu.upload(&[0, 2, 4, 6, 1, 3, 5, 7])?;
        let weights = gpu.upload(&[0.5f32; 2 * TOKENS])?;
        let rows = EXPERTS * TOKENS * HIDDEN;
        let (received, y) = (gpu.alloc(2 * rows)?, gpu.upload(&vec![half::bf16::ONE; rows])?);
        let combined = gpu.alloc(2 * TOKENS * HIDDEN)?;
        for round in 1.. {
            if stall && round > 5 {
                // Until the test closes what this reads.
                let _ = stdin().read(&mut [0]);
                return Ok(());
            }
            let mut calls = exchange.low_latency()?;
            let batch = calls.dispatch(
                &stream,
                &Input::new(&x, &ids, &weights, TOKENS as u32),
                &Rows::bf16(&received),
            )?;
            calls.combine(&stream, &batch, &y, &Sums::new(&combined))?;
            exchange.finish(&stream)?;
            if rank.is_multiple_of(RANKS) {
                tell(&format!("round {round}"));
            }
        }
        Ok(())
    }
}

/// Tells the test, past what catches the output of tests.
fn tell(line: &str) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "node: {line}");
    let _ = out.flush();
}
