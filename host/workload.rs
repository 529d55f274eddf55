//! What stands in for a model where a check needs one.

use crate::gpu::{Buffer, Gpu, Grid, Stream, View};
use crate::{Element, Error, Exchange, Half, Received, ScaleLayout};
use std::time::Duration;
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::workload::delay::{Delay, DelayArgs};
use tokenrail_device::workload::elements::{Elements, Format};
use tokenrail_device::workload::experts::{Experts, ExpertsArgs};
use tokenrail_device::workload::experts_by_expert::{ExpertsByExpert, ExpertsByExpertArgs};
use tokenrail_device::workload::stream::{self, StreamArgs};

/// Applies the experts of [`crate::oracle::experts`] to every received row, on the device, into
/// [`Received::outputs`]. An engine runs its grouped GEMM in this place.
///
/// # Errors
/// [`Error::Argument`] for opaque rows, of which it does not know the elements; [`Error::Stale`] if there was another
/// dispatch since; [`Error::Device`] if the launch is refused.
pub fn experts(exchange: &Exchange, stream: &Stream, received: &Received) -> Result<(), Error> {
    exchange.current(received)?;
    let (config, gpu) = (exchange.config(), exchange.gpu());
    let address = |view: View| Address(view.address());
    let args = ExpertsArgs {
        x: Elements {
            x: address(received.x()),
            scales: address(received.x_scales()),
            hidden: config.hidden,
            format: format(config.element)?,
            scale_row_stride: config.element.scale_words(config.hidden),
            scale_word_stride: 1,
        },
        topk_idx: address(received.topk_idx()),
        topk_weights: address(received.topk_weights()),
        out: address(received.outputs()),
        rows: address(received.rows()),
        output: output(config.combined),
        topk: config.topk,
        first_expert: exchange.first_expert(),
    };
    let grid = Grid { blocks: exchange.sms(), threads: gpu.description().warps * WARP, shared_bytes: 0 };
    // SAFETY: the arrays lie in this rank's arena, which the exchange keeps, sized for as many rows as it can receive.
    unsafe { gpu.launch::<Experts>(stream, grid, &args) }
}

/// Applies the experts of [`crate::oracle::experts_by_expert`] to every expert-major row, on the device, into `out`:
/// `[expert rows, hidden]`. Padding is not written.
///
/// # Errors
/// As [`experts`]; [`Error::Argument`] too if there is no expert-major form, its scales are column-major, or `out` is too
/// short.
pub fn experts_by_expert(
    exchange: &Exchange,
    stream: &Stream,
    received: &Received,
    out: View,
) -> Result<(), Error> {
    exchange.current(received)?;
    let (config, gpu) = (exchange.config(), exchange.gpu());
    let refuse =
        |argument, value: String, limit: &str| Error::Argument { argument, value, limit: limit.into() };
    let form = received.by_expert().ok_or_else(|| {
        refuse("received", "rank-major".into(), "the config has no expert-major form: set expert_major")
    })?;
    if config.scale_layout != ScaleLayout::RowMajor {
        let value = format!("{:?}", config.scale_layout);
        return Err(refuse("scale_layout", value, "the test experts read RowMajor"));
    }
    let rows = form.experts.bytes() / 4;
    out.holds("out", rows * 2 * config.hidden as usize)?;
    let address = |view: View| Address(view.address());
    let args = ExpertsByExpertArgs {
        x: Elements {
            x: address(form.x),
            scales: address(form.x_scales),
            hidden: config.hidden,
            format: format(config.element)?,
            scale_row_stride: config.element.scale_words(config.hidden),
            scale_word_stride: 1,
        },
        expert_of_row: address(form.experts),
        out: address(out),
        // The end of the last expert's rows.
        rows: address(form.starts).word((form.starts.bytes() / 4 - 1) as u32),
        output: output(config.combined),
        first_expert: exchange.first_expert(),
    };
    let grid = Grid { blocks: exchange.sms(), threads: gpu.description().warps * WARP, shared_bytes: 0 };
    // SAFETY: the arrays lie in this rank's arena and handle, which the exchange keeps; `out` was checked.
    unsafe { gpu.launch::<ExpertsByExpert>(stream, grid, &args) }
}

/// How the experts are to read dispatched elements.
///
/// # Errors
/// [`Error::Argument`] if their format is not known.
pub fn format(element: Element) -> Result<Format, Error> {
    match element {
        Element::Bf16 => Ok(Format::Bf16),
        Element::F16 => Ok(Format::F16),
        Element::Fp8E4m3 => Ok(Format::E4m3),
        Element::Fp8E4m3Ue8m0 => Ok(Format::E4m3Ue8m0),
        Element::Opaque { .. } => Err(Error::Argument {
            argument: "element",
            value: format!("{element:?}"),
            limit: "the test experts read Bf16, F16, Fp8E4m3 and Fp8E4m3Ue8m0".into(),
        }),
    }
}

/// How the experts are to write their outputs.
pub fn output(half: Half) -> Format {
    match half {
        Half::Bf16 => Format::Bf16,
        Half::F16 => Format::F16,
    }
}

/// Kernels that take time: to see what runs beside what.
pub struct Busy {
    gpu: Gpu,
    weights: Buffer,
    sums: Buffer,
    zero: Buffer,
    blocks: u32,
}

impl Busy {
    /// Ready to read `bytes` of weights with all multiprocessors; on the emulator, with as many as a call takes.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory; [`Error::Argument`] for more than 64 GiB.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, Error> {
        if bytes / 16 > u32::MAX as usize {
            let limit = "at most 64 GiB can be read at once".into();
            return Err(Error::Argument { argument: "bytes", value: bytes.to_string(), limit });
        }
        let device = gpu.description();
        // A block of the emulator's has a stack for each thread.
        let blocks = match device.capability {
            0 => device.default_sms,
            _ => device.multiprocessors / device.ranks,
        };
        let threads = blocks * device.warps * WARP;
        Ok(Self {
            weights: gpu.alloc_zeroed(bytes)?,
            sums: gpu.alloc(4 * threads as usize)?,
            zero: gpu.alloc_zeroed(8)?,
            gpu: gpu.clone(),
            blocks,
        })
    }

    /// Reads all weights.
    ///
    /// # Errors
    /// [`Error::Device`] if the launch is refused.
    pub fn read_weights(&self, stream: &Stream) -> Result<(), Error> {
        let args = StreamArgs {
            from: self.weights.address(),
            quads: (self.weights.view().bytes() / 16) as u32,
            sums: self.sums.address(),
        };
        let grid =
            Grid { blocks: self.blocks, threads: self.gpu.description().warps * WARP, shared_bytes: 0 };
        // SAFETY: a word of `sums` for each thread; nobody else has the buffers.
        unsafe { self.gpu.launch::<stream::Stream>(stream, grid, &args) }
    }

    /// Lets the stream stand still for a time.
    ///
    /// # Errors
    /// [`Error::Device`] if the launch is refused.
    pub fn pause(&self, stream: &Stream, time: Duration) -> Result<(), Error> {
        let args = DelayArgs { zero: self.zero.address(), ns: time.as_nanos() as u64 };
        // SAFETY: the word stays 0.
        unsafe { self.gpu.launch::<Delay>(stream, Grid { blocks: 1, threads: WARP, shared_bytes: 0 }, &args) }
    }
}
