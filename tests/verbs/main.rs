//! What holds on every fabric, over real devices: a NIC, or Soft-RoCE in scripts/rdma-testbed. Where there is none the
//! tests say so and pass, unless TOKENRAIL_REQUIRE_VERBS is set.
#![cfg(feature = "rdma")]

mod addresses;
mod ends;
mod faults;
mod machines;
#[path = "../skip/mod.rs"]
mod skip;
mod writes;
