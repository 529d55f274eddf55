//! Comparison of what lies by expert.

use crate::compare::Comparison;
use crate::reference;
use tokenrail::gpu::{Plain, View};
use tokenrail::{ByExpert, Counts, Error, Gpu, Stream};

/// Compares the arrays of the expert-major form, and what the experts have made of it.
///
/// # Errors
/// [`Error::Device`] if earlier work has failed.
pub fn compare(
    gpu: &Gpu,
    stream: &Stream,
    form: &ByExpert,
    outputs: Option<View>,
    counts: &Counts,
    expected: &reference::ByExpert,
    compare: &mut Comparison,
) -> Result<(), Error> {
    fn all<T: Plain>(gpu: &Gpu, stream: &Stream, view: View, count: usize) -> Result<Vec<T>, Error> {
        gpu.download(stream, view, count)
    }
    let rows = &expected.rows;
    let (element, hidden) = (rows.element, rows.hidden);
    // Past the end there is −1, as far as there is room.
    let room = form.experts.bytes() / 4;
    let padded = |values: &[i32]| -> Vec<i32> {
        values.iter().copied().chain(std::iter::repeat(-1)).take(room).collect()
    };
    compare.tensor("expert_starts", 1, &counts.expert_starts, &rows.starts);
    compare.tensor("expert_counts", 1, &counts.tokens_per_expert, &rows.counts);
    compare.tensor("expert_of_row", 1, &all(gpu, stream, form.experts, room)?, &padded(&rows.expert_of_row));
    compare.tensor("expert_source_row", 1, &all(gpu, stream, form.rows, room)?, &padded(&rows.source_row));
    let positions: Vec<i32> = all(gpu, stream, form.positions, rows.positions.len())?;
    compare.tensor("expert_positions", 1, &positions, &rows.positions);
    let weights: Vec<f32> = all(gpu, stream, form.weights, rows.weights.len())?;
    compare.tensor("expert_weights", 1, &weights, &rows.weights);
    compare.rows("expert_x", element, hidden, &all(gpu, stream, form.x, rows.rows.len())?, &rows.rows);
    let scales: Vec<u32> = all(gpu, stream, form.x_scales, rows.scales.len())?;
    let words = element.scale_words(hidden as u32).max(1) as usize;
    compare.scales("expert_x_scales", element, words, &scales, &rows.scales);
    if let Some(view) = outputs {
        let found: Vec<u16> = all(gpu, stream, view, expected.outputs.len())?;
        compare.halves("expert_rows_out", expected.half, hidden, &found, &expected.outputs);
    }
    Ok(())
}
