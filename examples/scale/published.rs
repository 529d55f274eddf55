//! What was measured: by us on two GPUs, by DeepEP's authors, and by others of DeepEP.

use super::constants as c;
use super::routing::Gating;
use super::time::{Copies, Machine, Mode, Payload, Work};
use Measured::{NicGbs, NvlinkGbs, Us};
use Payload::{Bf16Dispatch, Combine, Fp8Dispatch};

/// Where rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// docs/performance.md, "Throughput, first figures (2026-11-24)".
    TwoGpus,
    /// DeepEP, docs/legacy.md: 4096 tokens, H800, 400 Gb/s ConnectX-7.
    Throughput,
    /// DeepEP's first README (2025-02): all messages by RDMA.
    FirstLowLatency,
    /// DeepEP, docs/legacy.md: NVLink inside a node since 2025-06-05. Its rows of EP128 and EP256 are the first README's.
    LowLatency,
    /// DeepEP V2's README: 8192 tokens, SM90, ConnectX-7.
    V2,
    /// pplx-garden, docs/fabric-lib.md: DeepEP on ConnectX-7.
    Others,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::TwoGpus, Self::Throughput, Self::FirstLowLatency, Self::LowLatency, Self::V2, Self::Others];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoGpus => "tokenrail, 2 GPUs",
            Self::Throughput => "DeepEP V1, throughput",
            Self::FirstLowLatency => "DeepEP V1, low latency, RDMA only",
            Self::LowLatency => "DeepEP V1, low latency, with NVLink",
            Self::V2 => "DeepEP V2",
            Self::Others => "DeepEP V1, low latency, by pplx-garden",
        }
    }
}

/// A figure as it was stated.
#[derive(Clone, Copy, Debug)]
pub enum Measured {
    /// µs.
    Us(f64),
    /// GB/s of a row for each node that a token goes to, its own counted.
    NicGbs(f64),
    /// GB/s of a row for each rank that a token goes to, its own counted.
    NvlinkGbs(f64),
}

/// One figure, and what it is of.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Where it comes from.
    pub source: Source,
    /// What was done.
    pub work: Work,
    /// By what.
    pub machine: Machine,
    /// How long it took, or how fast it was.
    pub measured: Measured,
    /// Whether a constant of the model was chosen by it.
    pub fitted: bool,
}

/// H800s of which kernels tell the NIC themselves. How many SMs DeepEP's kernels need is not modelled.
const H800: Machine = Machine {
    nvlink_push: c::H800_NVLINK_GBS,
    nvlink_pull: c::H800_NVLINK_GBS,
    packet_overhead: 1.0,
    sms: f64::INFINITY,
    proxy: None,
    ..Machine::H100
};

/// V2's GPUs move more over NVLink than an H800 can: taken to be as fast as H100s.
const SM90: Machine = Machine { sms: f64::INFINITY, proxy: None, ..Machine::H100 };

/// The shape that all measured: hidden 7168, 8 of 256 experts.
fn work(ranks: u32, tokens: u32, payload: Payload, mode: Mode, gating: Gating) -> Work {
    Work { ranks, tokens, hidden: 7168, topk: 8, experts: 256, gating, payload, mode }
}

/// All figures.
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (sms, tokens, payload, us) in [
        (16.0, 128, Bf16Dispatch, 29.0),
        (16.0, 128, Fp8Dispatch, 24.9),
        (16.0, 128, Combine, 18.4),
        (16.0, 1024, Bf16Dispatch, 71.7),
        (16.0, 1024, Fp8Dispatch, 47.0),
        (16.0, 1024, Combine, 55.8),
        (16.0, 4096, Bf16Dispatch, 212.0),
        (16.0, 4096, Fp8Dispatch, 114.0),
        (16.0, 4096, Combine, 188.0),
        (8.0, 4096, Bf16Dispatch, 335.0),
        (8.0, 4096, Fp8Dispatch, 199.0),
        (8.0, 4096, Combine, 267.0),
        (24.0, 4096, Bf16Dispatch, 227.0),
        (24.0, 4096, Fp8Dispatch, 130.0),
        (24.0, 4096, Combine, 188.0),
    ] {
        rows.push(Row {
            source: Source::TwoGpus,
            work: work(2, tokens, payload, Mode::Throughput, Gating::Uniform),
            machine: Machine { sms, ..Machine::H100 },
            measured: Us(us),
            fitted: false,
        });
    }
    // Groups are nodes there, of which at most four are kept: below 64 ranks no limit.
    let grouped = Gating::Nodes { top: 4 };
    for (ranks, dispatch, combine, fitted) in [
        (8, NvlinkGbs(153.0), NvlinkGbs(158.0), true),
        (16, NicGbs(43.0), NicGbs(43.0), false),
        (32, NicGbs(58.0), NicGbs(57.0), false),
        (64, NicGbs(51.0), NicGbs(50.0), true),
    ] {
        for (payload, measured) in [(Fp8Dispatch, dispatch), (Combine, combine)] {
            let work = work(ranks, 4096, payload, Mode::Throughput, grouped);
            rows.push(Row { source: Source::Throughput, work, machine: H800, measured, fitted });
        }
    }
    let alone = Machine { ranks_per_node: 1, ..H800 };
    for (source, machine, ranks, dispatch, combine) in [
        (Source::FirstLowLatency, alone, 8, 163.0, 318.0),
        (Source::FirstLowLatency, alone, 16, 173.0, 329.0),
        (Source::FirstLowLatency, alone, 32, 182.0, 350.0),
        (Source::FirstLowLatency, alone, 64, 186.0, 353.0),
        (Source::FirstLowLatency, alone, 128, 192.0, 369.0),
        (Source::FirstLowLatency, alone, 256, 194.0, 360.0),
        (Source::LowLatency, H800, 8, 77.0, 114.0),
        (Source::LowLatency, H800, 16, 118.0, 195.0),
        (Source::LowLatency, H800, 32, 155.0, 273.0),
        (Source::LowLatency, H800, 64, 173.0, 314.0),
        (Source::Others, H800, 16, 123.9, 203.0),
        (Source::Others, H800, 32, 159.1, 285.0),
        (Source::Others, H800, 64, 177.9, 325.0),
    ] {
        for (payload, us) in [(Fp8Dispatch, dispatch), (Combine, combine)] {
            let work = work(ranks, 128, payload, Mode::LowLatency(Copies::PerExpert), Gating::Uniform);
            rows.push(Row { source, work, machine, measured: Us(us), fitted: false });
        }
    }
    for (ranks, dispatch, combine) in [(16, 90.0, 81.0), (32, 61.0, 61.0)] {
        for (payload, gbs) in [(Fp8Dispatch, dispatch), (Combine, combine)] {
            let work = work(ranks, 8192, payload, Mode::Throughput, Gating::Uniform);
            let (source, measured) = (Source::V2, NicGbs(gbs));
            rows.push(Row { source, work, machine: SM90, measured, fitted: false });
        }
    }
    rows
}
