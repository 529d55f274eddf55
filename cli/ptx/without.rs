//! `tokenrail ptx` in a build without kernels for GPUs.

use clap::Args;
use std::error::Error;

/// What `tokenrail ptx` can be told elsewhere.
#[derive(Args, Debug)]
pub struct PtxArgs {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _any: Vec<String>,
}

/// Says what to do.
///
/// # Errors
/// Always.
pub fn ptx(_: &PtxArgs) -> Result<bool, Box<dyn Error>> {
    Err("this build has no kernels for GPUs; build with `--features reference`, or with `--features cuda` to compare the \
         lanes without CUDA C++"
        .into())
}
