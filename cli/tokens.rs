//! The tokens of a rank on its GPU.

use tokenrail::oracle::TokenBatch;
use tokenrail::{Buffer, Error, Gpu, Input};

/// What is dispatched, and where the sums go.
pub struct Tokens {
    /// Rows.
    pub x: Buffer,
    /// Their scales, where they have some.
    pub x_scales: Option<Buffer>,
    /// i32 `[tokens, topk]`.
    pub topk_idx: Buffer,
    /// f32 `[tokens, topk]`.
    pub topk_weights: Buffer,
    /// Out: `[tokens, hidden]`.
    pub combined: Buffer,
    /// How many.
    pub count: u32,
}

impl Tokens {
    /// Uploads a batch; `x` is what rows and scales are, if not the batch's own.
    ///
    /// # Errors
    /// [`Error::Device`] without enough memory.
    pub fn upload(gpu: &Gpu, batch: &TokenBatch, x: Option<(Buffer, Buffer)>) -> Result<Self, Error> {
        let (x, x_scales) = match x {
            Some((x, scales)) => (x, Some(scales)),
            None => {
                let scales = (batch.scale_words() > 0).then(|| gpu.upload(&batch.scales)).transpose()?;
                (gpu.upload(&batch.rows)?, scales)
            }
        };
        Ok(Self {
            x,
            x_scales,
            topk_idx: gpu.upload(&batch.topk_idx)?,
            topk_weights: gpu.upload(&batch.topk_weights)?,
            combined: gpu.alloc(2 * batch.tokens * batch.hidden)?,
            count: batch.tokens as u32,
        })
    }

    /// All of them.
    pub fn input(&self) -> Input<'_> {
        self.first(self.count)
    }

    /// The first so many.
    pub fn first(&self, count: u32) -> Input<'_> {
        let x_scales = self.x_scales.as_ref().map(Buffer::view);
        Input { x_scales, ..Input::new(&self.x, &self.topk_idx, &self.topk_weights, count) }
    }
}
