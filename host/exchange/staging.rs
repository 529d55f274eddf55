//! How a block's warps and shared memory are divided up.

use crate::Error;
use crate::gpu::Description;
use tokenrail_device::throughput::{combine, dispatch};
use tokenrail_device::wire::Shape;

/// Most bytes of one of dispatch's buffers: a row of DeepSeek-V3's fits, and enough warps have one.
const DISPATCH_BUFFER_BYTES: u32 = 16 << 10;
/// Dispatch's buffers of a warp. More put more bytes on their way than the links take well: FP8 rows took 118 µs with
/// one and 126 µs with two (docs/performance.md).
const DISPATCH_STAGES: u32 = 1;
/// Buffers of a warp that expands: with one it waits for each row, with three it is no quicker (docs/performance.md).
const EXPAND_STAGES: u32 = 2;
/// One in so many warps expands: of 4, 6 and 8 of 16 the quickest (docs/performance.md). Few warps with two buffers
/// have an SM write as much as it can.
const EXPANDING_ONE_IN: u32 = 4;
/// Most warps of a block that dispatches across nodes without bulk copies: what registers allow in the lane that takes most.
const ACROSS_PLAIN_WARPS: u32 = 12;
/// Most bytes of each partial row that combine pulls at once: of 2, 3.5 and 7 KiB the quickest (docs/performance.md).
const COMBINE_PIECE_BYTES: u32 = 2 << 10;
/// Combine's stages of a warp.
const COMBINE_STAGES: u32 = 2;

/// Dispatch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchStaging {
    pub warps: u32,
    pub senders: u32,
    pub groups: u32,
    pub stages: u32,
    pub expand_stages: u32,
    pub stage_bytes: u32,
}

impl DispatchStaging {
    /// On this device: the most warps whose shared memory fits.
    pub fn new(shape: &Shape, device: &Description, bulk_copy: bool) -> Result<Self, Error> {
        // Plain copies need no buffers.
        let stage_bytes = if bulk_copy { shape.row_bytes.min(DISPATCH_BUFFER_BYTES) } else { 0 };
        let by_expert = shape.expert_rows > 0;
        let most = if by_expert { EXPAND_STAGES } else { 0 };
        for expand_stages in [most, most.min(1)] {
            let most_warps = if shape.is_across() && !bulk_copy { ACROSS_PLAIN_WARPS } else { device.warps };
            for warps in (1..=device.warps.min(most_warps)).rev() {
                if by_expert && warps == 1 {
                    continue;
                }
                let expanders = if by_expert { (warps / EXPANDING_ONE_IN).max(1) } else { 0 };
                let groups = if by_expert { (1..=warps).rev() } else { (1..=1).rev() };
                for groups in groups {
                    let staging = Self {
                        warps,
                        senders: warps - expanders,
                        groups,
                        stages: DISPATCH_STAGES,
                        expand_stages,
                        stage_bytes,
                    };
                    if staging.shared(shape).bytes <= device.shared_bytes {
                        return Ok(staging);
                    }
                }
            }
        }
        Err(too_small(shape, device))
    }

    /// The shared memory of a block.
    pub fn shared(&self, shape: &Shape) -> dispatch::Shared {
        let buffers = dispatch::buffers(self.warps, self.senders, self.stages, self.expand_stages);
        dispatch::Shared::new(shape, self.warps, self.groups, buffers, self.stage_bytes)
    }
}

/// Combine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineStaging {
    pub warps: u32,
    pub stages: u32,
    pub stage_bytes: u32,
}

impl CombineStaging {
    /// On this device: the most warps whose shared memory fits, with as many stages or else one.
    pub fn new(shape: &Shape, device: &Description, bulk_copy: bool) -> Result<Self, Error> {
        let piece_bytes = shape.output_bytes().min(COMBINE_PIECE_BYTES);
        let stage_bytes = if bulk_copy { piece_bytes * shape.route_width() } else { 0 };
        let sizes = [COMBINE_STAGES, 1].into_iter().flat_map(|stages| {
            (1..=device.warps).rev().map(move |warps| Self { warps, stages, stage_bytes })
        });
        sizes
            .into_iter()
            .find(|staging| staging.shared_bytes() <= device.shared_bytes)
            .ok_or_else(|| too_small(shape, device))
    }

    /// The shared memory of a block.
    pub fn shared_bytes(&self) -> u32 {
        combine::Shared::new(self.warps, self.stages, self.stage_bytes).bytes
    }
}

fn too_small(shape: &Shape, device: &Description) -> Error {
    let value = format!("{} with {} ranks", shape.experts, shape.ranks);
    let limit = format!("their counts do not fit a block's {} bytes of shared memory", device.shared_bytes);
    Error::Config { field: "experts", value, limit }
}
