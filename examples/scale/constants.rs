//! Every number that the model takes from elsewhere: its unit, and where it comes from.
//!
//! *Measured*: on 2 × H100 80 GB (or one, where it says so); commands and days in docs/performance.md. *Published*: of others.
//! *Fitted*: to rows of published tables, see [`validation`](super::validation). *Target*: what is asked of code that has not
//! been measured. *Assumed*: neither.

/// GB/s each way of NVLink between two H100s while all ranks push by bulk copies with 16 SMs. Measured 2026-11-24.
pub const NVLINK_PUSH_GBS: f64 = 343.0;
/// GB/s each way while all pull by bulk copies with 16 SMs. Measured 2026-11-23 on the same kind of host.
pub const NVLINK_PULL_GBS: f64 = 334.0;
/// GB/s that one SM pushes to a peer. Measured 2026-11-23.
pub const SM_PUSH_GBS: f64 = 44.0;
/// GB/s that one SM pulls from a peer. Measured 2026-11-23.
pub const SM_PULL_GBS: f64 = 50.0;
/// GB/s that one SM writes to its own GPU's memory by bulk copies. Measured 2026-11-24.
pub const SM_LOCAL_GBS: f64 = 50.0;
/// SMs of a throughput operation: the library's default.
pub const SMS: f64 = 16.0;

/// µs of a dispatch of one token between two ranks over NVLink, bf16: launch, counts, flags. Measured 2026-11-24.
pub const DISPATCH_FIXED_BF16_US: f64 = 21.7;
/// The same with FP8 and scales. Measured 2026-11-24.
pub const DISPATCH_FIXED_FP8_US: f64 = 22.2;
/// µs of a combine of one token. Measured 2026-11-24.
pub const COMBINE_FIXED_US: f64 = 15.6;
/// µs of a low-latency dispatch of one token, one rank alone on an H100, launch included. Measured 2026-11-24.
pub const LOW_LATENCY_DISPATCH_FIXED_US: f64 = 13.8;
/// µs of a low-latency combine of one token, in the same way. Measured 2026-11-24.
pub const LOW_LATENCY_COMBINE_FIXED_US: f64 = 9.9;
/// µs that a flag takes one way over NVLink: half of a round trip of 4.57 µs. Measured 2026-11-23.
pub const NVLINK_FLAG_US: f64 = 2.3;
/// Bytes on NVLink for each byte of a low-latency row: packets of 16 bytes carry 12 (device/src/low_latency/packet.rs).
pub const PACKET_OVERHEAD: f64 = 16.0 / 12.0;

/// Gb/s of a ConnectX-7 port (NDR). Published (NVIDIA's user manual).
pub const NIC_GBITS: f64 = 400.0;
/// Share of the port's rate that rows reach. **Fitted** to DeepEP's two rows of EP64, throughput.
pub const NIC_EFFICIENCY: f64 = 0.896;
/// µs from the NIC's being told to the bytes' being in a GPU behind a few switches. Assumed.
pub const NIC_LATENCY_US: f64 = 3.0;
/// Messages a NIC sends, in millions a second. Assumed: of the order that vendors state for one port, over many QPs.
pub const NIC_MESSAGES_M: f64 = 200.0;

/// Commands that kernels put into the ring, in millions a second. Target.
pub const RING_M: f64 = 50.0;
/// RDMA writes that a proxy thread posts, in millions a second. Target.
pub const PROXY_M: f64 = 20.0;
/// µs from a kernel's store into the ring to the proxy's seeing it. Target.
pub const PROXY_LATENCY_US: f64 = 2.0;

/// GB/s of NVLink between H800s, own rank's rows not counted. **Fitted** to DeepEP's two rows of EP8, throughput. It
/// publishes about 160 GB/s as the most.
pub const H800_NVLINK_GBS: f64 = 138.7;
