//! The model: bytes and commands of an operation, and the time that each resource needs for them.
//!
//! Units: bytes, µs, GB/s (10^9 bytes a second), millions a second. GB/s are thousands of bytes a µs, and millions a second
//! are ones a µs.

use super::constants as c;
use super::routing::Gating;
use tokenrail::tuning::{Operation, row_bytes};
use tokenrail::{Config, Element};

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Dispatch of bf16 rows.
    Bf16Dispatch,
    /// Dispatch of FP8 rows with an f32 scale for each 128 channels.
    Fp8Dispatch,
    /// Combine of bf16 rows.
    Combine,
}

impl Payload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp8Dispatch, Self::Bf16Dispatch, Self::Combine];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16Dispatch => "dispatch bf16",
            Self::Fp8Dispatch => "dispatch fp8",
            Self::Combine => "combine bf16",
        }
    }
}

/// How few or many tokens are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Over RDMA once for each node, to the GPU of the same rail; over NVLink from there.
    Throughput,
    /// Straight to each rank, so many messages a token.
    LowLatency(Copies),
}

/// Messages of a token in low latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// One for each rank: what tokenrail sends.
    PerRank,
    /// One for each expert: what DeepEP V1 sends.
    PerExpert,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Ranks, all of whose nodes are full.
    pub ranks: u32,
    /// Tokens of each rank.
    pub tokens: u32,
    /// Elements of a row.
    pub hidden: u32,
    /// Experts of a token.
    pub topk: u32,
    /// Experts in all.
    pub experts: u32,
    /// How they are chosen.
    pub gating: Gating,
    /// What is moved.
    pub payload: Payload,
    /// How.
    pub mode: Mode,
}

impl Work {
    /// Bytes of a row with all that travels with it: as many as the library counts. DeepEP's messages carry as much, to 64
    /// bytes in 7400.
    pub fn row(&self) -> f64 {
        let (operation, element) = match self.payload {
            Payload::Bf16Dispatch => (Operation::Dispatch, Element::Bf16),
            Payload::Fp8Dispatch => (Operation::Dispatch, Element::Fp8E4m3),
            Payload::Combine => (Operation::Combine, Element::Bf16),
        };
        let config = Config { element, ..Config::new(self.experts, self.topk, self.hidden, self.tokens) };
        row_bytes(operation, &config) as f64
    }

    /// Bytes of a row's elements and scales, which published bandwidths count.
    pub fn logical_row(&self) -> f64 {
        let hidden = f64::from(self.hidden);
        match self.payload {
            Payload::Fp8Dispatch => hidden + 4.0 * (hidden / 128.0).ceil(),
            Payload::Bf16Dispatch | Payload::Combine => 2.0 * hidden,
        }
    }
}

/// What does it.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Ranks of an NVLink domain.
    pub ranks_per_node: u32,
    /// GB/s each way that pushes reach over NVLink.
    pub nvlink_push: f64,
    /// GB/s each way that pulls reach.
    pub nvlink_pull: f64,
    /// Bytes on NVLink for each byte of a low-latency row.
    pub packet_overhead: f64,
    /// SMs of a throughput operation; infinitely many where they are not modelled.
    pub sms: f64,
    /// GB/s each way of a rank's NIC.
    pub nic: f64,
    /// Millions of messages a second of it.
    pub nic_messages: f64,
    /// µs to the other side.
    pub nic_latency: f64,
    /// The way from kernels to the NIC; without it, kernels tell the NIC themselves.
    pub proxy: Option<Proxy>,
}

/// The command ring and the host's thread at its end.
#[derive(Clone, Copy, Debug)]
pub struct Proxy {
    /// Millions of commands a second into the ring.
    pub ring: f64,
    /// Millions of writes a second that a thread posts.
    pub posts: f64,
    /// Threads of a GPU.
    pub threads: f64,
    /// µs from a kernel's store to the thread.
    pub latency: f64,
    /// Rows that a write carries in throughput mode.
    pub rows_per_write: f64,
}

impl Machine {
    /// H100s with a 400 Gb/s NIC each, and the constants of [`constants`](super::constants).
    pub const H100: Self = Self {
        ranks_per_node: 8,
        nvlink_push: c::NVLINK_PUSH_GBS,
        nvlink_pull: c::NVLINK_PULL_GBS,
        packet_overhead: c::PACKET_OVERHEAD,
        sms: c::SMS,
        nic: c::NIC_GBITS / 8.0 * c::NIC_EFFICIENCY,
        nic_messages: c::NIC_MESSAGES_M,
        nic_latency: c::NIC_LATENCY_US,
        proxy: Some(Proxy {
            ring: c::RING_M,
            posts: c::PROXY_M,
            threads: 1.0,
            latency: c::PROXY_LATENCY_US,
            rows_per_write: 1.0,
        }),
    };

    /// µs from a kernel's store to the bytes' being on the other side.
    fn hop(&self) -> f64 {
        self.nic_latency + self.proxy.map_or(0.0, |proxy| proxy.latency)
    }
}

/// What may take longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The NIC's bytes.
    Nic,
    /// The NIC's messages.
    Messages,
    /// NVLink's bytes.
    Nvlink,
    /// What SMs copy.
    Sms,
    /// Commands into the ring.
    Ring,
    /// Commands out of it.
    Proxy,
}

impl Resource {
    /// In the order of [`Estimate::times`].
    pub const ALL: [Self; 6] = [Self::Nic, Self::Messages, Self::Nvlink, Self::Sms, Self::Ring, Self::Proxy];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nic => "NIC",
            Self::Messages => "messages",
            Self::Nvlink => "NVLink",
            Self::Sms => "SMs",
            Self::Ring => "ring",
            Self::Proxy => "proxy",
        }
    }
}

/// What the model says of one operation of one rank. All ranks do as much.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Ranks that a token goes to.
    pub token_ranks: f64,
    /// Nodes that it goes to, its own counted.
    pub token_nodes: f64,
    /// Bytes that leave by the NIC, and come by it.
    pub nic_bytes: f64,
    /// Bytes that leave by NVLink, forwarded ones counted.
    pub nvlink_bytes: f64,
    /// Writes that are posted.
    pub commands: f64,
    /// µs that each resource takes, in the order of [`Resource::ALL`].
    pub times: [f64; 6],
    /// µs that pass with one token.
    pub fixed: f64,
}

impl Estimate {
    /// The resource that takes longest.
    pub fn bottleneck(&self) -> Resource {
        let most = (0..self.times.len()).max_by(|&a, &b| self.times[a].total_cmp(&self.times[b]));
        Resource::ALL[most.expect("there are resources")]
    }

    /// µs of the operation: the resource that takes longest, all others meanwhile, and what passes in any case.
    pub fn total(&self) -> f64 {
        self.times.iter().fold(0.0, |most: f64, &time| most.max(time)) + self.fixed
    }

    /// µs that a resource takes.
    pub fn time(&self, resource: Resource) -> f64 {
        let at = Resource::ALL.iter().position(|&each| each == resource);
        self.times[at.expect("all are listed")]
    }

    /// Millions of writes a second from which on the proxy does not keep the other resources waiting.
    pub fn posts_needed(&self) -> f64 {
        let others = [Resource::Nic, Resource::Nvlink, Resource::Sms].map(|each| self.time(each));
        self.commands / others.iter().fold(f64::MIN_POSITIVE, |most, &time| most.max(time))
    }
}

/// The model.
pub fn estimate(work: &Work, machine: &Machine) -> Estimate {
    match work.mode {
        Mode::Throughput => throughput(work, machine),
        Mode::LowLatency(copies) => low_latency(work, machine, copies),
    }
}

/// A node's ranks, and the nodes.
fn nodes(work: &Work, machine: &Machine) -> (f64, u32) {
    let per_node = machine.ranks_per_node.min(work.ranks);
    (f64::from(per_node), work.ranks / per_node)
}

fn throughput(work: &Work, machine: &Machine) -> Estimate {
    let (per_node, nodes) = nodes(work, machine);
    let token_ranks = work.gating.destinations(work.experts, work.topk, work.ranks, nodes);
    let token_nodes = work.gating.destinations(work.experts, work.topk, nodes, nodes);
    let all_bytes = f64::from(work.tokens) * work.row();
    let other_nodes = token_nodes * (1.0 - 1.0 / f64::from(nodes));
    // Whether it comes from a rank of the node or is forwarded, one row in `per_node` is already where it goes.
    let (peers, own) = (token_ranks * (1.0 - 1.0 / per_node), token_ranks / per_node);
    let (nvlink, per_sm) = match work.payload {
        Payload::Combine => (machine.nvlink_pull, c::SM_PULL_GBS),
        Payload::Bf16Dispatch | Payload::Fp8Dispatch => (machine.nvlink_push, c::SM_PUSH_GBS),
    };
    // SMs write what goes to other nodes into memory that the NIC reads.
    let sm_time = all_bytes / 1e3 * (peers / per_sm + (own + other_nodes) / c::SM_LOCAL_GBS);
    // Counts must be there before rows can be placed, and a flag follows the rows.
    let (kernel, hops) = match work.payload {
        Payload::Bf16Dispatch => (c::DISPATCH_FIXED_BF16_US, 2.0),
        Payload::Fp8Dispatch => (c::DISPATCH_FIXED_FP8_US, 2.0),
        Payload::Combine => (c::COMBINE_FIXED_US, 1.0),
    };
    let fixed = if nodes > 1 { kernel + hops * machine.hop() + c::NVLINK_FLAG_US } else { kernel };
    let rows_per_write = machine.proxy.map_or(1.0, |proxy| proxy.rows_per_write);
    let rows = f64::from(work.tokens) * other_nodes;
    let commands = rows / rows_per_write + hops * f64::from(nodes - 1);
    let nvlink_bytes = all_bytes * peers;
    with_times(
        machine,
        Estimate {
            token_ranks,
            token_nodes,
            nic_bytes: all_bytes * other_nodes,
            nvlink_bytes,
            commands,
            times: [0.0, 0.0, nvlink_bytes / 1e3 / nvlink, sm_time / machine.sms, 0.0, 0.0],
            fixed,
        },
    )
}

fn low_latency(work: &Work, machine: &Machine, copies: Copies) -> Estimate {
    let (per_node, nodes) = nodes(work, machine);
    let token_ranks = work.gating.destinations(work.experts, work.topk, work.ranks, nodes);
    let token_nodes = work.gating.destinations(work.experts, work.topk, nodes, nodes);
    let (all_nodes, all_ranks) = (f64::from(nodes), f64::from(work.ranks));
    let other_ranks = all_ranks - per_node;
    // Each message has one destination; flags follow them, where there are messages and where there are none.
    let (messages, flags) = match copies {
        Copies::PerRank => (token_ranks, other_ranks),
        Copies::PerExpert => (f64::from(work.topk), f64::from(work.experts) * (1.0 - per_node / all_ranks)),
    };
    let tokens = f64::from(work.tokens);
    let by_nic = messages * (1.0 - 1.0 / all_nodes);
    let by_nvlink = messages * (1.0 / all_nodes - 1.0 / all_ranks);
    let kernel = match work.payload {
        Payload::Combine => c::LOW_LATENCY_COMBINE_FIXED_US,
        Payload::Bf16Dispatch | Payload::Fp8Dispatch => c::LOW_LATENCY_DISPATCH_FIXED_US,
    };
    let hop = if nodes > 1 { machine.hop() } else { c::NVLINK_FLAG_US };
    let nvlink_bytes = tokens * work.row() * by_nvlink * machine.packet_overhead;
    with_times(
        machine,
        Estimate {
            token_ranks,
            token_nodes,
            nic_bytes: tokens * work.row() * by_nic,
            nvlink_bytes,
            commands: tokens * by_nic + flags,
            times: [0.0, 0.0, nvlink_bytes / 1e3 / machine.nvlink_push, 0.0, 0.0, 0.0],
            fixed: kernel + hop,
        },
    )
}

/// Adds the times of the NIC and of what feeds it.
fn with_times(machine: &Machine, mut estimate: Estimate) -> Estimate {
    estimate.times[0] = estimate.nic_bytes / 1e3 / machine.nic;
    estimate.times[1] = estimate.commands / machine.nic_messages;
    if let Some(proxy) = machine.proxy {
        estimate.times[4] = estimate.commands / proxy.ring;
        estimate.times[5] = estimate.commands / (proxy.posts * proxy.threads);
    }
    estimate
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    /// 2 nodes of 2 ranks, an expert each; a token goes to all four ranks.
    const WORK: Work = Work {
        ranks: 4,
        tokens: 1000,
        hidden: 1000,
        topk: 4,
        experts: 4,
        gating: Gating::Uniform,
        payload: Payload::Combine,
        mode: Mode::Throughput,
    };

    fn machine() -> Machine {
        Machine { ranks_per_node: 2, nvlink_pull: 200.0, nvlink_push: 100.0, nic: 50.0, ..Machine::H100 }
    }

    #[test]
    fn throughput_by_hand() {
        let estimate = estimate(&WORK, &machine());
        assert_relative_eq!(estimate.token_ranks, 4.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.token_nodes, 2.0, max_relative = 1e-12);
        // 1000 rows of 2000 bytes to the other node; on each node one of two ranks is not where the row is.
        assert_relative_eq!(estimate.nic_bytes, 2e6, max_relative = 1e-12);
        assert_relative_eq!(estimate.nvlink_bytes, 4e6, max_relative = 1e-12);
        assert_relative_eq!(estimate.commands, 1001.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.time(Resource::Nic), 40.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.time(Resource::Nvlink), 20.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.time(Resource::Proxy), 1001.0 / 20.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.time(Resource::Ring), 1001.0 / 50.0, max_relative = 1e-12);
        // 2 rows pulled at 50 GB/s, 2 at home and 1 for the NIC at 50, by 16 SMs.
        assert_relative_eq!(estimate.time(Resource::Sms), 10e6 / 50e3 / 16.0, max_relative = 1e-12);
        assert_eq!(estimate.bottleneck(), Resource::Proxy);
        assert_relative_eq!(estimate.total(), 1001.0 / 20.0 + 15.6 + 5.0 + 2.3, max_relative = 1e-12);
        // 1001 writes in the NIC's 40 µs.
        assert_relative_eq!(estimate.posts_needed(), 1001.0 / 40.0, max_relative = 1e-12);
    }

    #[test]
    fn fewer_commands_unblock_the_nic() {
        let mut machine = machine();
        machine.proxy.as_mut().unwrap().rows_per_write = 4.0;
        assert_eq!(estimate(&WORK, &machine).bottleneck(), Resource::Nic);
        assert_relative_eq!(estimate(&WORK, &machine).commands, 251.0, max_relative = 1e-12);
    }

    #[test]
    fn low_latency_by_hand() {
        let work = Work { tokens: 100, mode: Mode::LowLatency(Copies::PerRank), ..WORK };
        let estimate = estimate(&work, &machine());
        // Of four messages two leave the node, and one goes to the other rank of it, in packets.
        assert_relative_eq!(estimate.nic_bytes, 4e5, max_relative = 1e-12);
        assert_relative_eq!(estimate.nvlink_bytes, 2e5 * 4.0 / 3.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.commands, 202.0, max_relative = 1e-12);
        assert_relative_eq!(estimate.fixed, 9.9 + 5.0, max_relative = 1e-12);
    }

    #[test]
    fn a_message_for_each_expert_is_more() {
        // Two experts a rank, so that four experts are on fewer than four ranks.
        let per_rank = Work { experts: 8, mode: Mode::LowLatency(Copies::PerRank), ..WORK };
        let per_expert = Work { mode: Mode::LowLatency(Copies::PerExpert), ..per_rank };
        let [few, many] = [per_rank, per_expert].map(|work| estimate(&work, &machine()));
        assert_relative_eq!(many.nic_bytes / few.nic_bytes, 4.0 / few.token_ranks, max_relative = 1e-12);
        assert!(few.token_ranks < 3.9);
    }

    #[test]
    fn one_node_needs_no_nic() {
        for mode in [Mode::Throughput, Mode::LowLatency(Copies::PerRank)] {
            let estimate = estimate(&Work { ranks: 2, mode, ..WORK }, &machine());
            assert_eq!((estimate.nic_bytes, estimate.commands), (0.0, 0.0));
        }
        let one = estimate(&Work { ranks: 2, ..WORK }, &machine());
        assert_relative_eq!(one.fixed, 15.6, max_relative = 1e-12);
    }
}
