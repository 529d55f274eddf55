//! Layout: who goes where, without communication.

use super::Exchange;
use crate::Error;
use crate::gpu::{Buffer, Grid, Stream, View};
use tokenrail_device::gpu::thread::WARP;
use tokenrail_device::throughput::layout;

/// Who goes where, on the device.
pub struct Layout {
    /// u32 `[ranks]`: tokens with an expert on that rank.
    pub tokens_per_rank: Buffer,
    /// u32 `[nodes]`: tokens with an expert on that node.
    pub tokens_per_node: Buffer,
    /// u32 `[experts]`: (token, slot) pairs.
    pub tokens_per_expert: Buffer,
    /// u8 `[tokens, ranks]`: 1 where the token goes to the rank.
    pub is_token_in_rank: Buffer,
}

impl Exchange {
    /// Memory for a layout of up to `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn new_layout(&self, tokens: u32) -> Result<Layout, Error> {
        let (shape, gpu) = (&self.plan.shape, self.gpu());
        let words = |count: u32| gpu.alloc(4 * count as usize);
        Ok(Layout {
            tokens_per_rank: words(shape.ranks)?,
            tokens_per_node: words(shape.nodes())?,
            tokens_per_expert: words(shape.experts)?,
            is_token_in_rank: gpu.alloc(tokens as usize * shape.ranks as usize)?,
        })
    }

    /// Counts tokens per rank, node and expert. Ids out of range count for nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] if `topk_idx` is shorter than `tokens` rows.
    pub fn layout(&self, stream: &Stream, topk_idx: impl Into<View>, tokens: u32) -> Result<Layout, Error> {
        let layout = self.new_layout(tokens)?;
        self.layout_into(stream, topk_idx, tokens, &layout)?;
        Ok(layout)
    }

    /// [`Exchange::layout`] into memory that is there already.
    ///
    /// # Errors
    /// [`Error::Argument`] if `topk_idx` or the layout is too short for `tokens` tokens.
    pub fn layout_into(
        &self,
        stream: &Stream,
        topk_idx: impl Into<View>,
        tokens: u32,
        layout: &Layout,
    ) -> Result<(), Error> {
        let (shape, gpu) = (&self.plan.shape, self.gpu());
        let topk_idx = topk_idx.into();
        topk_idx.holds("topk_idx", tokens as usize * shape.topk as usize * 4)?;
        layout.is_token_in_rank.view().holds("is_token_in_rank", tokens as usize * shape.ranks as usize)?;
        for (argument, counts, words) in [
            ("tokens_per_rank", &layout.tokens_per_rank, shape.ranks),
            ("tokens_per_node", &layout.tokens_per_node, shape.nodes()),
            ("tokens_per_expert", &layout.tokens_per_expert, shape.experts),
        ] {
            counts.view().holds(argument, 4 * words as usize)?;
            gpu.fill(stream, counts.view(), 0)?;
        }
        let args = layout::LayoutArgs {
            shape: *shape,
            topk_idx: topk_idx.address,
            tokens_per_rank: layout.tokens_per_rank.address(),
            tokens_per_node: layout.tokens_per_node.address(),
            tokens_per_expert: layout.tokens_per_expert.address(),
            is_token_in_rank: layout.is_token_in_rank.address(),
            tokens,
        };
        let threads = gpu.description().warps * WARP;
        let grid = Grid { blocks: self.sms, threads, shared_bytes: layout::shared_bytes(shape) };
        // SAFETY: sizes were checked above, and the counts zeroed in stream order.
        unsafe { gpu.launch::<layout::Layout>(stream, grid, &args) }
    }
}
