//! The `tokenrail` command: runs a routing problem and checks every bit of it, and tells what it sees of the machine.

mod args;
mod by_expert;
mod choices;
mod compare;
mod dump;
mod info;
mod input;
mod measure;
mod meet;
mod progress;
mod rank;
mod reference;
mod report;
mod run;
mod tokens;
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
    /// Tell what hardware, driver and embedded kernels there are, and what compiled them
    Info,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Info => {
            print!("{}", info::info());
            Ok(true)
        }
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
