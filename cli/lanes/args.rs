//! What `tokenrail lanes` can be told.

use super::family::LEFT_OUT;
use crate::choices::{BackendArgs, BackendName};
use clap::Args;
use std::path::PathBuf;
use tokenrail::device::KERNELS;
use tokenrail::{Backend, Error};

/// What all names of kernels begin with.
const PREFIX: &str = "tokenrail_";

/// Which lanes and kernels, and how often.
#[derive(Args, Debug)]
pub struct LanesArgs {
    /// What ranks run on
    #[arg(long, value_enum, default_value = "emulator")]
    pub backend: BackendName,
    /// GPUs to spread the ranks over, by the driver's numbers [default: all]
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<usize>,
    /// Compiler lanes to time [default: all that are built in and that the GPUs can run]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub lanes: Vec<String>,
    /// Ranks; each is a thread of this process
    #[arg(long, default_value_t = 2)]
    pub ranks: u32,
    /// Time the lines with these kernels alone, such as dispatch or tokenrail_dispatch
    #[arg(long, value_name = "KERNEL", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Repetitions: how often the lanes take turns with each size [default: 7; 3 with --quick, 2 on the emulator]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: Option<u32>,
    /// Fewer sizes, and fewer repetitions; on the emulator there are few anyway
    #[arg(long)]
    pub quick: bool,
    /// End with status 1 if a kernel is slower than CUDA's
    #[arg(long)]
    pub strict: bool,
    /// What hidden states, routings and the emulator's interleavings are drawn from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write all of it to FILE
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print results and errors only
    #[arg(long, short)]
    pub quiet: bool,
}

/// A lane, and what ranks of it run on.
pub struct Lane {
    /// Its name; `emulator` there.
    pub name: String,
    /// With its kernels.
    pub backend: Backend,
}

impl LanesArgs {
    /// Whether times are a GPU's.
    pub fn is_gpu(&self) -> bool {
        self.backend == BackendName::Cuda
    }

    /// The lanes to time, in the order that they are printed in.
    ///
    /// # Errors
    /// [`Error::Config`] for a lane that is not there or is named twice; what [`Backend::cuda_devices`] gives.
    pub fn lanes(&self) -> Result<Vec<Lane>, Error> {
        let there = if self.is_gpu() { built_in()? } else { vec!["emulator"] };
        let refuse = |lane: &String, limit| Error::Config { field: "lanes", value: lane.clone(), limit };
        for (at, lane) in self.lanes.iter().enumerate() {
            if !there.contains(&lane.as_str()) {
                return Err(refuse(lane, format!("there are {there:?} here")));
            }
            if self.lanes[..at].contains(lane) {
                return Err(refuse(lane, "each can be named once".into()));
            }
        }
        let names = if self.lanes.is_empty() {
            there.into_iter().map(String::from).collect()
        } else {
            self.lanes.clone()
        };
        let lane = |name: String| {
            let lane = self.is_gpu().then(|| name.clone());
            let backend = BackendArgs { backend: self.backend, devices: self.devices.clone(), lane };
            Ok(Lane { backend: backend.open(self.seed)?, name })
        };
        names.into_iter().map(lane).collect()
    }

    /// The kernels of [`LanesArgs::only`], by their whole names.
    ///
    /// # Errors
    /// [`Error::Config`] for one that there is not, or that is not timed.
    pub fn kernels(&self) -> Result<Vec<&'static str>, Error> {
        let named = |asked: &String| {
            let is = |kernel: &&&str| **kernel == asked || short(kernel) == asked;
            let refuse = |limit| Error::Config { field: "only", value: asked.clone(), limit };
            let kernel = KERNELS.iter().find(is).copied().ok_or_else(|| {
                let all: Vec<&str> = KERNELS.iter().map(|kernel| short(kernel)).collect();
                refuse(format!("the kernels are {}", all.join(", ")))
            })?;
            match LEFT_OUT.iter().find(|(left_out, _)| *left_out == kernel) {
                Some((_, why)) => Err(refuse(format!("it is not timed: {why}"))),
                None => Ok(kernel),
            }
        };
        self.only.iter().map(named).collect()
    }
}

/// Without what all names begin with.
pub fn short(kernel: &str) -> &str {
    kernel.strip_prefix(PREFIX).unwrap_or(kernel)
}

#[cfg(feature = "cuda")]
fn built_in() -> Result<Vec<&'static str>, Error> {
    let devices = Backend::cuda_devices()?;
    let capability = devices.iter().map(|device| device.capability).min().unwrap_or(0);
    Ok(tokenrail::gpu::images::lanes(capability))
}

/// There is an error for it.
#[cfg(not(feature = "cuda"))]
fn built_in() -> Result<Vec<&'static str>, Error> {
    Backend::cuda_devices().map(|_| Vec::new())
}
