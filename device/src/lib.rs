//! tokenrail's GPU kernels, and the layout of all memory that two ranks share.
//!
//! Every kernel is an ordinary Rust function over [`gpu`], the machine beneath it. Built for `nvptx64-nvidia-cuda`
//! that machine is inline PTX and LLVM intrinsics; built for the host it is `tokenrail-emulator`. One kernel, one
//! file; the argument struct of a kernel stands next to it and is what the host fills in.
//!
//! * [`wire`]: what ranks share: flags, counts, the arena's regions
//! * [`throughput`]: layout, dispatch and combine for training and prefill
//! * [`low_latency`]: dispatch and combine for decode
//! * [`internode`]: commands to the proxy, for what goes to other nodes
//! * [`trace`]: what warps do, and when
//! * [`quantize`]: bf16 rows to FP8 with scales
//! * [`workload`]: what measurements and checks use: a known expert function, a plain copy, a flag, a probe of the machine
#![no_std]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(abi_ptx, asm_experimental_arch, link_llvm_intrinsics, stdarch_nvptx)
)]

pub mod gpu;
pub mod internode;
pub mod kernel;
pub mod low_latency;
mod meet;
pub mod quantize;
pub mod throughput;
pub mod trace;
mod unroll;
pub mod wire;
pub mod workload;

/// The names of all kernels. A module for GPUs without bulk copies has those that need none.
#[cfg(not(target_arch = "nvptx64"))]
pub const KERNELS: &[&str] = {
    use kernel::Kernel;
    &[
        <throughput::layout::Layout as Kernel>::NAME,
        <throughput::dispatch::Dispatch as Kernel>::NAME,
        <throughput::dispatch::DispatchPlain as Kernel>::NAME,
        <throughput::dispatch::DispatchByExpert as Kernel>::NAME,
        <throughput::dispatch::DispatchByExpertPlain as Kernel>::NAME,
        <throughput::dispatch::DispatchAcross as Kernel>::NAME,
        <throughput::dispatch::DispatchAcrossPlain as Kernel>::NAME,
        <throughput::dispatch::DispatchByExpertAcross as Kernel>::NAME,
        <throughput::dispatch::DispatchByExpertAcrossPlain as Kernel>::NAME,
        <throughput::dispatch::Arrive as Kernel>::NAME,
        <throughput::reduce::Reduce as Kernel>::NAME,
        <throughput::combine::Combine as Kernel>::NAME,
        <throughput::combine::CombinePlain as Kernel>::NAME,
        <throughput::combine::CombineAcross as Kernel>::NAME,
        <throughput::combine::CombineAcrossPlain as Kernel>::NAME,
        <low_latency::dispatch::Dispatch as Kernel>::NAME,
        <low_latency::combine::Combine as Kernel>::NAME,
        <low_latency::combine::CombineFp8 as Kernel>::NAME,
        <low_latency::combine::CombineLog10 as Kernel>::NAME,
        <low_latency::dispatch::DispatchAcross as Kernel>::NAME,
        <low_latency::combine::CombineAcross as Kernel>::NAME,
        <low_latency::combine::CombineFp8Across as Kernel>::NAME,
        <low_latency::combine::CombineLog10Across as Kernel>::NAME,
        <quantize::Quantize as Kernel>::NAME,
        <workload::experts::Experts as Kernel>::NAME,
        <workload::experts_by_expert::ExpertsByExpert as Kernel>::NAME,
        <workload::commands::Commands as Kernel>::NAME,
        <workload::delay::Delay as Kernel>::NAME,
        <workload::flag::Flag as Kernel>::NAME,
        <workload::stream::Stream as Kernel>::NAME,
        <workload::probe::Probe as Kernel>::NAME,
        <workload::copy::Copy as Kernel>::NAME,
    ]
};

/// Kernels have nobody to tell: none of them may reach a panic, and one that does stops its thread.
#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    gpu::thread::trap()
}
