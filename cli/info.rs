//! What there is: the build, the GPUs, the kernels in the library and what made them.

use tokenrail::Backend;
use tokenrail::gpu::EmulatorOptions;

/// All of it, as text.
pub fn info() -> String {
    let options = EmulatorOptions::default();
    format!(
        "tokenrail {}\n\
         backends    emulator{}\n\
         emulator    one GPU a rank: {} blocks at once, {} KiB of shared memory a block, {} GiB of memory\n\
         {}{}",
        env!("CARGO_PKG_VERSION"),
        if cfg!(feature = "cuda") { ", cuda" } else { "" },
        options.resident_blocks,
        options.shared_bytes_per_block >> 10,
        options.memory_bytes >> 30,
        devices(),
        kernels(),
    )
}

/// The GPUs, or why there are none.
fn devices() -> String {
    let devices = match Backend::cuda_devices() {
        Ok(devices) => devices,
        Err(error) => return format!("GPUs        none: {error}\n"),
    };
    let lines = devices.iter().map(|device| {
        format!(
            "GPU {:<8}{}, sm_{}, {} SMs, {} KiB of shared memory a block, {} GiB of memory{}\n",
            device.ordinal,
            device.name,
            device.capability,
            device.multiprocessors,
            device.shared_bytes >> 10,
            device.memory >> 30,
            if device.bulk_copy { ", bulk copies" } else { "" },
        )
    });
    lines.collect()
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
