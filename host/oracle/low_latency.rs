//! What low-latency dispatch and combine must deliver.

use super::tensor::nth;
use super::wire::through_the_wire;
use super::{Placement, Quantized, SCALE_GROUP, TokenBatch, quantize, quantize_ue8m0, ue8m0_to_f32};
use crate::{CombineFormat, DispatchFormat, Element, Half, Summation};
use half::bf16;

/// What an expert holds after a low-latency dispatch: a row for each token that names it, in however many slots, by source
/// rank, then by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertRows {
    /// bf16 or e4m3, `[received, row bytes]`.
    pub rows: Vec<u8>,
    /// Scales that the rows have, `[received, words]`.
    pub scales: Vec<u32>,
    /// The rank each row came from.
    pub source_rank: Vec<u32>,
    /// The token that each row was there.
    pub source_token: Vec<u32>,
    /// Rows from each rank.
    pub tokens_per_source: Vec<u32>,
}

/// What every rank's experts hold after all ranks have dispatched their batches of bf16 rows: for each rank, for each of
/// its experts.
///
/// # Panics
/// If there is not one batch a rank, or one is not of bf16.
pub fn low_latency_dispatch(
    batches: &[TokenBatch],
    placement: &Placement,
    format: DispatchFormat,
) -> Vec<Vec<ExpertRows>> {
    assert_eq!(batches.len(), placement.ranks(), "one batch a rank");
    assert!(batches.iter().all(|batch| batch.element == Element::Bf16), "rows are bf16");
    let sent: Vec<_> = batches.iter().map(|batch| made(batch, format)).collect();
    let of_expert = |expert: usize| {
        let mut all = ExpertRows {
            rows: Vec::new(),
            scales: Vec::new(),
            source_rank: Vec::new(),
            source_token: Vec::new(),
            tokens_per_source: vec![0; batches.len()],
        };
        for (source, (batch, sent)) in batches.iter().zip(&sent).enumerate() {
            let (bytes, words) = (sent.rows.len(), sent.scales.len());
            let width = |all: usize| all.checked_div(batch.tokens).unwrap_or(0);
            for token in (0..batch.tokens).filter(|&token| batch.experts_of(token).contains(&(expert as i32)))
            {
                all.rows.extend_from_slice(nth(&sent.rows, token, width(bytes)));
                all.scales.extend_from_slice(nth(&sent.scales, token, width(words)));
                all.source_rank.push(source as u32);
                all.source_token.push(token as u32);
                all.tokens_per_source[source] += 1;
            }
        }
        all
    };
    (0..batches.len()).map(|rank| placement.experts_of(rank).map(of_expert).collect()).collect()
}

/// A batch's rows as they are dispatched.
fn made(batch: &TokenBatch, format: DispatchFormat) -> Quantized {
    let halves = batch.rows.as_chunks().0;
    let x: Vec<_> = halves.iter().map(|&bytes| bf16::from_le_bytes(bytes)).collect();
    let whole = "a batch has whole rows";
    match format {
        DispatchFormat::Bf16 => Quantized { rows: batch.rows.clone(), scales: Vec::new() },
        DispatchFormat::Fp8 => quantize(&x, batch.hidden).expect(whole),
        DispatchFormat::Fp8Ue8m0 => quantize_ue8m0(&x, batch.hidden).expect(whole),
        DispatchFormat::Fp8PowerOfTwo => {
            let Quantized { rows, scales } = quantize_ue8m0(&x, batch.hidden).expect(whole);
            let groups = batch.hidden.div_ceil(SCALE_GROUP);
            let of_row = |words: &[u32]| -> Vec<u32> {
                let codes = words.iter().flat_map(|word| word.to_le_bytes()).take(groups);
                codes.map(|code| ue8m0_to_f32(code).to_bits()).collect()
            };
            Quantized { rows, scales: scales.chunks(groups.div_ceil(4)).flat_map(of_row).collect() }
        }
    }
}

/// The sums that come back to the tokens of every rank, bf16 `[tokens, hidden]` each.
///
/// `outputs[r][e]` are the rows, bf16 `[received, hidden]`, that rank r's expert e made of what it held;
/// `weights[r]` those of rank r's tokens, `[tokens, topk]`. [`Summation`] says in what order the products, each rounded to
/// f32, are added in f32, and [`CombineFormat`] what rows travel as. A sum begins with its first addend and not with 0, so
/// that a lone −0 stays; one of none is 0.
///
/// # Panics
/// If there is not one batch, array of weights and set of outputs a rank, or one is too short.
pub fn low_latency_combine(
    outputs: &[Vec<Vec<u16>>],
    batches: &[TokenBatch],
    weights: &[Vec<f32>],
    placement: &Placement,
    summation: Summation,
    format: CombineFormat,
) -> Vec<Vec<u16>> {
    let rows = low_latency_dispatch(batches, placement, DispatchFormat::Bf16);
    let combine = |(source, batch): (usize, &TokenBatch)| -> Vec<u16> {
        let output = |token: usize, expert: usize| -> Vec<f32> {
            let rank = placement.rank_of(expert);
            let local = expert - placement.experts_of(rank).start;
            let held = &rows[rank][local];
            let from = held.source_rank.iter().zip(&held.source_token);
            let row = from
                .clone()
                .position(|(&rank, &at)| (rank as usize, at as usize) == (source, token))
                .expect("the token was dispatched");
            nth(&outputs[rank][local], row, batch.hidden)
                .iter()
                .map(|&bits| Half::Bf16.to_f32(bits))
                .collect()
        };
        let token = |token: usize| -> Vec<u16> {
            let slots: Vec<(usize, f32)> = batch
                .experts_of(token)
                .iter()
                .zip(nth(&weights[source], token, batch.topk))
                .filter_map(|(&expert, &weight)| Some((usize::try_from(expert).ok()?, weight)))
                .collect();
            let times = |row: Vec<f32>, weight: f32| row.into_iter().map(|value| value * weight).collect();
            let sum = match summation {
                Summation::BySlot => sum(slots.iter().map(|&(expert, weight)| {
                    times(through_the_wire(&output(token, expert), format), weight)
                })),
                Summation::ByRank => sum((0..placement.ranks()).filter_map(|rank| {
                    let here = slots.iter().filter(|&&(expert, _)| placement.rank_of(expert) == rank);
                    let partial = sum(here.map(|&(expert, weight)| times(output(token, expert), weight)))?;
                    Some(through_the_wire(&partial, format))
                })),
            };
            let sum = sum.unwrap_or_else(|| vec![0.0; batch.hidden]);
            sum.into_iter().map(|value| Half::Bf16.round(value)).collect()
        };
        (0..batch.tokens).flat_map(token).collect()
    };
    batches.iter().enumerate().map(combine).collect()
}

/// The sum of rows in their order; `None` of none.
fn sum(rows: impl Iterator<Item = Vec<f32>>) -> Option<Vec<f32>> {
    rows.reduce(|mut sums, row| {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        sums
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{OracleError, Routing};

    /// Two ranks with two experts each. Rank 0's tokens: one names expert 3 twice and 0, one nobody, one 1 and 0; rank 1's
    /// names 0.
    fn example() -> Result<(Vec<TokenBatch>, Placement), OracleError> {
        let batch = |first: f32, topk_idx: &[i32]| {
            let tokens = topk_idx.len() / 3;
            let x: Vec<_> = (0..16 * tokens).map(|at| bf16::from_f32(first + (at / 16) as f32)).collect();
            let topk_weights = vec![1.0; topk_idx.len()];
            TokenBatch::bf16(&x, 16, Routing { topk: 3, topk_idx: topk_idx.to_vec(), topk_weights })
        };
        let batches = vec![batch(1.0, &[3, 0, 3, -1, -1, -1, 1, -1, 0])?, batch(11.0, &[-1, 0, -1])?];
        Ok((batches, Placement::new(2, 4)?))
    }

    #[test]
    fn rows_lie_by_expert_then_source_then_token() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let held = low_latency_dispatch(&batches, &placement, DispatchFormat::Bf16);
        let from = |rank: usize, expert: usize| {
            let held: &ExpertRows = &held[rank][expert];
            let value =
                |row: usize| bf16::from_le_bytes([held.rows[32 * row], held.rows[32 * row + 1]]).to_f32();
            (0..held.source_rank.len()).map(value).collect::<Vec<_>>()
        };
        assert_eq!(
            [from(0, 0), from(0, 1), from(1, 0), from(1, 1)],
            [vec![1.0, 3.0, 11.0], vec![3.0], vec![], vec![1.0]]
        );
        assert_eq!(held[0][0].source_rank, [0, 0, 1]);
        assert_eq!(held[0][0].source_token, [0, 2, 0]);
        assert_eq!(held[0][0].tokens_per_source, [2, 1]);
        Ok(())
    }

    #[test]
    fn scales_follow_their_rows() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let scales = |format| low_latency_dispatch(&batches, &placement, format)[0][0].scales.clone();
        assert_eq!(
            scales(DispatchFormat::Fp8),
            [1.0f32 / 448.0, 3.0 / 448.0, 11.0 / 448.0].map(f32::to_bits)
        );
        // 448 · 2^−8 is 1.75.
        assert_eq!(scales(DispatchFormat::Fp8Ue8m0), [119, 120, 122]);
        assert_eq!(
            scales(DispatchFormat::Fp8PowerOfTwo),
            [-8, -7, -5].map(|power| 2f32.powi(power).to_bits())
        );
        Ok(())
    }

    #[test]
    fn codes_are_those_of_the_formats() -> Result<(), OracleError> {
        // 640 channels are five groups: two words of packed scales, the second with one byte.
        let mut x = vec![bf16::ONE; 2 * 640];
        x[640 + 639] = bf16::from_f32(-450.0);
        let routing = Routing { topk: 2, topk_idx: vec![1, 1, -1, 1], topk_weights: vec![1.0; 4] };
        let batch = TokenBatch::bf16(&x, 640, routing)?;
        let placement = Placement::new(1, 2)?;
        let of = |format| low_latency_dispatch(std::slice::from_ref(&batch), &placement, format)[0].clone();
        let bf16 = of(DispatchFormat::Bf16);
        assert_eq!((&bf16[1].rows, &bf16[1].scales), (&batch.rows, &vec![]));
        assert_eq!(
            (bf16[1].tokens_per_source.as_slice(), bf16[0].tokens_per_source.as_slice()),
            (&[2][..], &[0][..])
        );
        assert!(bf16[0].rows.is_empty() && bf16[0].source_token.is_empty());

        let fp8 = of(DispatchFormat::Fp8).swap_remove(1);
        let scales = [[1.0f32 / 448.0; 9].as_slice(), &[450.0 / 448.0]].concat();
        assert_eq!(fp8.scales, scales.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert_eq!((fp8.rows.len(), fp8.rows[0], fp8.rows[640 + 639]), (2 * 640, 0x7e, 0xfe));

        // 1 / 2^−8 = 256; 450 needs 2, and 225 is nearest to 224.
        let packed = of(DispatchFormat::Fp8Ue8m0).swap_remove(1);
        assert_eq!(packed.scales, [0x7777_7777, 0x77, 0x7777_7777, 0x80]);
        assert_eq!((packed.rows.len(), packed.rows[0], packed.rows[640 + 639]), (2 * 640, 0x78, 0xf6));
        let powers = of(DispatchFormat::Fp8PowerOfTwo).swap_remove(1);
        let scales = [[0.00390625f32; 9].as_slice(), &[2.0]].concat();
        assert_eq!(powers.scales, scales.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert_eq!(powers.rows, packed.rows);
        Ok(())
    }

    #[test]
    fn batches_may_be_empty() -> Result<(), OracleError> {
        let routing = || Routing { topk: 2, topk_idx: vec![], topk_weights: vec![] };
        let batches = [TokenBatch::bf16(&[], 16, routing())?, TokenBatch::bf16(&[], 16, routing())?];
        let placement = Placement::new(2, 3)?;
        for format in [
            DispatchFormat::Bf16,
            DispatchFormat::Fp8,
            DispatchFormat::Fp8PowerOfTwo,
            DispatchFormat::Fp8Ue8m0,
        ] {
            let held = low_latency_dispatch(&batches, &placement, format);
            assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
            assert!(
                held.concat().iter().all(|held| held.rows.is_empty() && held.tokens_per_source == [0, 0])
            );
        }
        let outputs = [vec![vec![]; 2], vec![vec![]; 1]];
        let weights = [vec![], vec![]];
        for summation in [Summation::ByRank, Summation::BySlot] {
            let format = CombineFormat::Log10;
            let sums = low_latency_combine(&outputs, &batches, &weights, &placement, summation, format);
            assert_eq!(sums, [[], []] as [[u16; 0]; 2]);
        }
        Ok(())
    }

    #[test]
    fn ranks_are_added_in_order_and_rows_lose_what_their_format_does() -> Result<(), OracleError> {
        // One token, whose slots name three ranks' experts from the last to the first.
        let batch = |topk_idx: Vec<i32>| {
            let x = vec![bf16::ONE; 16 * topk_idx.len() / 3];
            let topk_weights = vec![1.0; topk_idx.len()];
            TokenBatch::bf16(&x, 16, Routing { topk: 3, topk_idx, topk_weights })
        };
        let batches = [batch(vec![2, 1, 0])?, batch(vec![])?, batch(vec![])?];
        let placement = Placement::new(3, 3)?;
        let weights = [vec![1.0; 3], vec![], vec![]];
        // 17 lies between the codes of 16 and 18 where 448 is the largest; weights come after that.
        let outputs = |values: [f32; 3]| {
            values.map(|value| {
                let mut row = vec![Half::Bf16.round(value); 16];
                row[15] = Half::Bf16.round(448.0);
                vec![row]
            })
        };
        let sum = |values, weights: &[Vec<f32>], summation, format| {
            let sums =
                low_latency_combine(&outputs(values), &batches, weights, &placement, summation, format);
            Half::Bf16.to_f32(sums[0][0])
        };
        let big = 2f32.powi(30);
        let in_order = |values, summation| sum(values, &weights, summation, CombineFormat::Bf16);
        assert_eq!(in_order([big, -big, 1.0], Summation::ByRank), 1.0);
        assert_eq!(in_order([big, -big, 1.0], Summation::BySlot), 0.0);
        assert_eq!(in_order([1.0, -big, big], Summation::ByRank), 0.0);
        assert_eq!(in_order([1.0, -big, big], Summation::BySlot), 1.0);

        let weights = [vec![0.0, 0.0, 3.0], vec![], vec![]];
        let lossy = |summation| sum([17.0, 0.0, 0.0], &weights, summation, CombineFormat::Fp8);
        // 3 · 17 = 51 among 3 · 448 is at the same place between codes, and 16 is the even one.
        assert_eq!([Summation::ByRank, Summation::BySlot].map(lossy), [48.0, 48.0]);
        Ok(())
    }

    #[test]
    fn slots_of_one_expert_are_added_one_by_one() -> Result<(), OracleError> {
        let routing = Routing { topk: 3, topk_idx: vec![0, 0, 0], topk_weights: vec![1.0; 3] };
        let batches = [TokenBatch::bf16(&[bf16::ONE; 16], 16, routing)?];
        let placement = Placement::new(1, 1)?;
        let sum = |value: f32, weights: [f32; 3], summation| {
            let outputs = [vec![vec![Half::Bf16.round(value); 16]]];
            let format = CombineFormat::Bf16;
            let sums =
                low_latency_combine(&outputs, &batches, &[weights.into()], &placement, summation, format);
            sums[0][0]
        };
        for summation in [Summation::ByRank, Summation::BySlot] {
            // (2^30 + 1) − 2^30 loses the 1, which no other order of the slots does.
            let big = 2f32.powi(30);
            assert_eq!(sum(1.0, [big, 1.0, -big], summation), 0);
            assert_eq!(sum(1.0, [big, -big, 1.0], summation), Half::Bf16.round(1.0));
            assert_eq!(sum(-0.0, [1.0; 3], summation), 0x8000);
            assert_eq!(sum(f32::INFINITY, [0.0, 1.0, 1.0], summation), 0x7fff);
        }
        Ok(())
    }

    #[test]
    fn sums_by_hand() -> Result<(), OracleError> {
        let (batches, placement) = example()?;
        let row = |value: f32| vec![Half::Bf16.round(value); 16];
        // Expert 0's three rows, 1's, none, and 3's.
        let outputs =
            vec![vec![[row(1.0), row(-0.0), row(5.0)].concat(), row(2.0)], vec![vec![], row(0.0078125)]];
        // What a third of a bf16's last place comes to depends on where it is rounded.
        let weights = vec![vec![0.34, 1.0, 0.34, 9.0, 9.0, 9.0, 0.0, 9.0, 1.0], vec![9.0, 2.0, 9.0]];
        let combine = |summation| -> Vec<Vec<f32>> {
            let sums =
                low_latency_combine(&outputs, &batches, &weights, &placement, summation, CombineFormat::Bf16);
            let firsts = |sums: &Vec<u16>| sums.chunks(16).map(|row| Half::Bf16.to_f32(row[0])).collect();
            sums.iter().map(firsts).collect()
        };
        for summation in [Summation::ByRank, Summation::BySlot] {
            let sums = combine(summation);
            assert_eq!(sums[0][0], 1.0078125, "0.0078125 · 0.68 is nearer to one last place than to none");
            assert_eq!(sums[0][1].to_bits(), 0, "a token of no expert");
            // 2 · 0 comes first, and 0 + −0 is 0.
            assert_eq!(sums[0][2].to_bits(), 0);
            assert_eq!(sums[1], [10.0]);
        }
        Ok(())
    }

    #[test]
    fn where_rows_are_rounded_shows() -> Result<(), OracleError> {
        // One token, experts 0 and 1 on rank 0, 2 on rank 1.
        let x = [bf16::ONE; 16];
        let routing = Routing { topk: 3, topk_idx: vec![0, 1, 2], topk_weights: vec![1.0; 3] };
        let empty = Routing { topk: 3, topk_idx: vec![], topk_weights: vec![] };
        let batches = vec![TokenBatch::bf16(&x, 16, routing)?, TokenBatch::bf16(&[], 16, empty)?];
        let placement = Placement::new(2, 4)?;
        let row = |value: f32| vec![Half::Bf16.round(value); 16];
        let sum = |values: [f32; 3], summation| {
            let outputs = vec![vec![row(values[0]), row(values[1])], vec![row(values[2]), vec![]]];
            let weights = [vec![1.0; 3], vec![]];
            let format = CombineFormat::Bf16;
            let sums = low_latency_combine(&outputs, &batches, &weights, &placement, summation, format);
            Half::Bf16.to_f32(sums[0][0])
        };
        // 1 + 2^−8 is rounded to 1 where it travels; the rest of the last place comes from the other rank.
        let values = [1.0, 2f32.powi(-8), 2f32.powi(-9)];
        assert_eq!(sum(values, Summation::ByRank), 1.0);
        assert_eq!(sum(values, Summation::BySlot), 1.0 + 2f32.powi(-7));
        // A lone −0.
        assert_eq!(sum([-0.0; 3], Summation::ByRank).to_bits(), (-0.0f32).to_bits());
        Ok(())
    }

    #[test]
    fn rows_travel_with_or_without_their_weights() -> Result<(), OracleError> {
        // bf16 does not hold 1 + 2^−9, but it holds what is left of that less 1.
        let rest = 2f32.powi(-9);
        let weights = [vec![1.0 + rest, 1.0], vec![], vec![]];
        let sum = |ranks: usize, summation| -> Result<f32, OracleError> {
            let batch = |topk_idx: Vec<i32>| {
                let x = vec![bf16::ONE; 8 * topk_idx.len() / 2];
                let topk_weights = vec![9.0; topk_idx.len()];
                TokenBatch::bf16(&x, 8, Routing { topk: 2, topk_idx, topk_weights })
            };
            let batches = [batch(vec![0, 2])?, batch(vec![])?, batch(vec![])?];
            let rows = [1.0, 0.0, -1.0].map(|value| vec![Half::Bf16.round(value); 8]);
            let outputs: Vec<_> = rows.chunks(3 / ranks).map(<[_]>::to_vec).collect();
            let (batches, weights) = (&batches[..ranks], &weights[..ranks]);
            let (placement, format) = (Placement::new(ranks, 3)?, CombineFormat::Bf16);
            let sums = low_latency_combine(&outputs, batches, weights, &placement, summation, format);
            Ok(Half::Bf16.to_f32(sums[0][0]))
        };
        // Rounded on its way, or with the other row's in one sum, or not at all.
        assert_eq!([sum(3, Summation::ByRank)?, sum(1, Summation::ByRank)?], [0.0, rest]);
        assert_eq!([sum(3, Summation::BySlot)?, sum(1, Summation::BySlot)?], [rest, rest]);
        Ok(())
    }

    #[test]
    #[should_panic(expected = "rows are bf16")]
    fn other_rows_are_refused() {
        let routing = Routing { topk: 1, topk_idx: vec![0], topk_weights: vec![1.0] };
        let batch = TokenBatch::f16(&[bf16::ONE; 8], 8, routing).expect("lengths agree");
        let placement = Placement::new(1, 1).expect("one of each");
        low_latency_dispatch(&[batch], &placement, DispatchFormat::Bf16);
    }
}
