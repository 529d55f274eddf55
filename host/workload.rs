//! What stands in for a model where a check needs one.

use crate::gpu::{Grid, Stream, View};
use crate::{Element, Error, Exchange, Half, Received};
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::workload::elements::{Elements, Format};
use tokenrail_device::workload::experts::{Experts, ExpertsArgs};

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
