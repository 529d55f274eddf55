//! What there is: the build, the GPUs, the kernels in the library and what made them.

use crate::choices::BackendName;
use clap::Args;
use tokenrail::gpu::{CudaOptions, EmulatorOptions};
use tokenrail::tuning::{Bandwidths, Operation};
use tokenrail::{Backend, Config, Element};

/// What `tokenrail info` can be told.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// What to look at: GPUs, whose links are measured, or the emulator alone
    #[arg(long, value_enum, default_value = "cuda")]
    backend: BackendName,
    /// Ranks for which links are measured [default: one a GPU, at least 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    ranks: Option<u32>,
    /// Measure nothing
    #[arg(long)]
    no_measure: bool,
}

/// All of it, as text.
pub fn info(args: &InfoArgs) -> String {
    let options = EmulatorOptions::default();
    format!(
        "tokenrail {}\n\
         backends    emulator{}\n\
         emulator    one GPU a rank: {} blocks at once, {} KiB of shared memory a block, {} GiB of memory\n\
         {}{}{}{}",
        env!("CARGO_PKG_VERSION"),
        if cfg!(feature = "cuda") { ", cuda" } else { "" },
        options.resident_blocks,
        options.shared_bytes_per_block >> 10,
        options.memory_bytes >> 30,
        devices(),
        nics(),
        bandwidth(args),
        kernels(),
    )
}

/// The GPUs, or why there are none.
fn devices() -> String {
    let devices = match Backend::cuda_devices() {
        Ok(devices) => devices,
        Err(error) => return format!("GPUs        none: {error}\n"),
    };
    let peermem = std::path::Path::new("/sys/module/nvidia_peermem").exists();
    let lines = devices.iter().map(|device| {
        format!(
            "GPU {:<8}{}, sm_{}, {} SMs, {} KiB of shared memory a block, {} GiB of memory{}; NICs reach it by {}\n",
            device.ordinal,
            device.name,
            device.capability,
            device.multiprocessors,
            device.shared_bytes >> 10,
            device.memory >> 30,
            if device.bulk_copy { ", bulk copies" } else { "" },
            match (device.dma_buf, peermem) {
                (true, true) => "dma-buf or nvidia_peermem",
                (true, false) => "dma-buf",
                (false, true) => "nvidia_peermem",
                (false, false) => "the host's memory alone: no dma-buf, no nvidia_peermem",
            },
        )
    });
    lines.collect()
}

/// The NICs with RDMA, or why there are none.
#[cfg(feature = "rdma")]
fn nics() -> String {
    match tokenrail::fabric::verbs::describe() {
        Ok(nics) => nics.iter().map(|nic| format!("NIC         {nic}\n")).collect(),
        Err(error) => format!("NICs        none: {error}\n"),
    }
}

#[cfg(not(feature = "rdma"))]
fn nics() -> String {
    "NICs        unknown; a build with `--features rdma` asks libibverbs for them\n".into()
}

/// What links and multiprocessors give, and how many of the latter the model takes for it; or why nothing was measured.
fn bandwidth(args: &InfoArgs) -> String {
    let not = |why: String| format!("bandwidth   not measured: {why}\n");
    if args.no_measure {
        return not("--no-measure".into());
    }
    if args.backend == BackendName::Emulator {
        return not("the emulator's says nothing about a GPU".into());
    }
    let gpus = match Backend::cuda_devices() {
        Ok(devices) => devices.len() as u32,
        Err(_) => return not("there is no GPU".into()),
    };
    let ranks = args.ranks.unwrap_or(gpus.max(2));
    match Bandwidths::measure(&Backend::Cuda(CudaOptions::default()), ranks) {
        Ok(rates) => measured(&rates, ranks, gpus),
        Err(error) => not(error.to_string()),
    }
}

/// For people. The shape is DeepSeek-V3's.
fn measured(rates: &Bandwidths, ranks: u32, gpus: u32) -> String {
    let shared = if ranks > gpus { format!(" on {gpus} GPUs, which some share") } else { String::new() };
    let mut text = format!(
        "bandwidth   GB/s of each of {ranks} ranks{shared}, all at once, to and from the next:\n\
         {:12}push {:.1} a multiprocessor, {:.1} at most; pull {:.1} and {:.1}; local copy {:.1} a multiprocessor\n\
         model       multiprocessors for 4096 tokens of 7168, 256 experts, top-8:\n",
        "", rates.push_per_sm, rates.push_ceiling, rates.pull_per_sm, rates.pull_ceiling, rates.local_per_sm,
    );
    for (name, element) in [("bf16", Element::Bf16), ("fp8", Element::Fp8E4m3)] {
        let config = Config { element, ..Config::new(256, 8, 7168, 4096) };
        let [dispatch, by_expert, combine] =
            [Operation::Dispatch, Operation::DispatchByExpert, Operation::Combine]
                .map(|operation| rates.sms(operation, &config, ranks));
        text += &format!("{:12}{name:<5}dispatch {dispatch}, by expert {by_expert}, combine {combine}\n", "");
    }
    text
}

#[cfg(feature = "cuda")]
fn kernels() -> String {
    use tokenrail::gpu::images::{KERNEL_COMPILER, KERNEL_IMAGES};
    let judged =
        if KERNEL_IMAGES.iter().all(|image| image.cubin.is_some()) { ", ptxas" } else { ", no ptxas" };
    let libnvvm = KERNEL_IMAGES.iter().any(|image| image.lane == "nvvm");
    let libnvvm = if libnvvm { ", libNVVM" } else { ", no libNVVM" };
    let toolchain = format!("toolchain   {KERNEL_COMPILER}{libnvvm}{judged}\n");
    let images = KERNEL_IMAGES.iter().map(|image| {
        let code = if image.cubin.is_some() { "machine code and PTX" } else { "PTX" };
        let preferred = if image.preferred { ", preferred" } else { "" };
        let kernels = image.kernels.iter().map(|kernel| {
            format!(
                "            {:<32}{:>4} registers, {} spilled bytes\n",
                kernel.name, kernel.registers, kernel.spill_store_bytes
            )
        });
        format!(
            "kernels     sm_{}, lane {}{preferred}: {code}\n{}",
            image.sm,
            image.lane,
            kernels.collect::<String>()
        )
    });
    toolchain + &images.collect::<String>()
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> String {
    "kernels     for the emulator only; a build with `--features cuda` embeds those for GPUs\n".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_with_what_follows() {
        let rates = Bandwidths {
            push_per_sm: 10.0,
            push_ceiling: 20.0,
            pull_per_sm: 30.0,
            pull_ceiling: 40.0,
            local_per_sm: 1e6,
        };
        let text = measured(&rates, 4, 2);
        for words in [
            "each of 4 ranks on 2 GPUs",
            "push 10.0",
            "pull 30.0 and 40.0",
            "bf16 dispatch 3, by expert 3, combine 2",
        ] {
            assert!(text.contains(words), "{words:?} is not in: {text}");
        }
    }
}
