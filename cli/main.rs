//! The `tokenrail` command: runs a routing problem and checks every bit of it, and tells what it sees of the machine.

mod args;
mod bench;
mod by_expert;
mod choices;
mod compare;
mod dump;
mod files;
mod info;
mod input;
mod lanes;
mod latency;
mod measure;
mod meet;
mod progress;
mod proxy;
#[cfg(feature = "cuda")]
mod ptx;
#[cfg(not(feature = "cuda"))]
#[path = "ptx/without.rs"]
mod ptx;
mod rank;
mod reference;
mod report;
mod run;
mod sweep;
mod tokens;
mod trace;
mod tune;
mod workload;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Expert-parallel dispatch and combine for mixture-of-experts models.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Dispatch and combine a real routing problem, and compare every output with the CPU reference
    ///
    /// Without --input, hidden states are drawn from the seed and routed by the gate. Experts apply a simple known
    /// function on the device. Ends with status 1 if an output differs or a rank fails.
    // A later setting wins, so that scripts can add to a line of theirs.
    #[command(args_override_self = true)]
    Run(Box<args::RunArgs>),
    /// Time dispatch and combine over numbers of multiprocessors and tokens, elements, routings and forms
    ///
    /// Each time is of the whole operation, on the slowest rank, with ranks in step and the cache full of other things;
    /// beside it are the bytes that cross and what a plain copy between ranks comes to with as many multiprocessors. What
    /// is combined is compared with the CPU reference. Ends with status 1 if a row differs or a rank fails.
    #[command(args_override_self = true)]
    Sweep(Box<sweep::args::SweepArgs>),
    /// Time low-latency calls over numbers of tokens and multiprocessors: whole, in halves, and from a graph
    ///
    /// Each time is of the slowest rank. `dispatch` and `combine` are whole calls, `both` and `graph` a batch's share of
    /// many launched one by one, or replayed; `send`, `receive`, `send back` and `sum` are the halves, with all that they
    /// need there; `launch` is a kernel that does nothing; `weights` is a kernel that reads memory, alone and beside what
    /// is on its way. All have the launch in them. What is combined is compared with the CPU reference.
    #[command(args_override_self = true)]
    Latency(Box<latency::args::LatencyArgs>),
    /// Time every kernel as each compiler lane has made it, side by side, and say which are slower than CUDA's
    ///
    /// Lanes take turns with each size, so that clocks and neighbours do the same to all, and what they leave is compared,
    /// bit for bit. A kernel may take 1.02 of the time of the same one in CUDA C++ (lane `nvcc`, in builds with feature
    /// `reference`), or what differs from turn to turn. Each time is of the slowest rank, and has the launch in it. Ends with
    /// status 1 if a rank fails or results differ, and with --strict if a kernel is slower.
    #[command(args_override_self = true)]
    Lanes(Box<lanes::args::LanesArgs>),
    /// Try numbers of multiprocessors, and write the fewest that come within 2 % of the best to a file
    ///
    /// `run` and `sweep` take the file as --tuning; a program loads it with `Tuning::load`.
    #[command(args_override_self = true)]
    Tune(Box<sweep::args::TuneArgs>),
    /// Time the ring of commands and the proxy that serves it, as used between nodes, without a NIC
    ///
    /// Commands are put into the ring by the host, or by a kernel; writes go to memory of the host. A round trip is from a
    /// kernel's command to its sight of the word that was written for it. Figures of the emulator say nothing.
    #[command(args_override_self = true)]
    Proxy(proxy::ProxyArgs),
    /// Measure everything: throughput, low latency, halves and what runs beside them, copy engines, the proxy
    ///
    /// Every measurement stands beside what the machine gives at best, measured in the same run: a copy of as many ranks
    /// and multiprocessors, the way of a flag to a peer, the launch of nothing. Each is repeated; how much the runs
    /// differ is its noise. Ends with status 1 if a part failed, a row differs from the CPU reference, or --limit left
    /// something out.
    #[command(args_override_self = true)]
    Bench(Box<bench::args::BenchArgs>),
    /// Make an HTML report of a benchmark's results
    ///
    /// One file with plots and tables. It needs no GPU, and whoever reads it no network.
    #[command(args_override_self = true)]
    Report(bench::report::ReportArgs),
    /// Write a timeline of one dispatch and one combine of either kind: what each warp does, and whom it waits for
    ///
    /// Recorded by the kernels themselves, as Chrome's trace JSON: a process for each rank, a thread for each warp. Recording
    /// takes time of its own: what follows from what is to be seen, and where time goes, not how long it takes without.
    /// Experts do nothing. Ranks on different GPUs have different clocks; each GPU's begins with its first event.
    #[command(args_override_self = true)]
    Trace(trace::args::TraceArgs),
    /// Tell what hardware, driver and embedded kernels there are, what compiled them, and what the links give
    Info(info::InfoArgs),
    /// Compare what compilers made of the kernels: both lanes from Rust, and nvcc from CUDA C++
    ///
    /// Registers, spills, barriers, lines and instructions of each kernel, with a slash between lanes. Lanes must agree on how
    /// often a kernel synchronises, and on the widths of its plain accesses. Ends with status 1 if they do not and no allowance
    /// gives a reason, or if an allowance allows nothing.
    Ptx(ptx::PtxArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Sweep(args) => sweep::sweep(&args),
        Command::Latency(args) => latency::latency(&args),
        Command::Lanes(args) => lanes::lanes(&args),
        Command::Tune(args) => tune::tune(&args),
        Command::Proxy(args) => proxy::proxy(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Report(args) => bench::report::report(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Info(args) => {
            print!("{}", info::info(&args));
            Ok(true)
        }
        Command::Ptx(args) => ptx::ptx(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
