//! What stands in for a model where a check needs one.

use crate::gpu::{Grid, Stream, View};
use crate::{Error, Exchange, Received};
use tokenrail_device::gpu::mem::Address;
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::workload::experts::{Experts, ExpertsArgs};

/// Applies the experts of [`crate::oracle::experts`] to every received row, on the device, into
/// [`Received::outputs`]. An engine runs its grouped GEMM in this place.
///
/// # Errors
/// [`Error::Stale`] if there was another dispatch since; [`Error::Device`] if the launch is refused.
pub fn experts(exchange: &Exchange, stream: &Stream, received: &Received) -> Result<(), Error> {
    exchange.current(received)?;
    let (config, gpu) = (exchange.config(), exchange.gpu());
    let address = |view: View| Address(view.address());
    let args = ExpertsArgs {
        x: address(received.x()),
        x_scales: address(received.x_scales()),
        topk_idx: address(received.topk_idx()),
        topk_weights: address(received.topk_weights()),
        out: address(received.outputs()),
        rows: address(received.rows()),
        hidden: config.hidden,
        scales: config.element.scales(config.hidden),
        topk: config.topk,
        first_expert: exchange.first_expert(),
    };
    let grid = Grid { blocks: exchange.sms(), threads: gpu.description().warps * WARP, shared_bytes: 0 };
    // SAFETY: the arrays lie in this rank's arena, which the exchange keeps, sized for as many rows as it can receive.
    unsafe { gpu.launch::<Experts>(stream, grid, &args) }
}
