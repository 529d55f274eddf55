//! What must hold for any workload.

use super::random::Random;
use super::*;
use crate::{Element, Half};
use half::bf16;
use proptest::prelude::*;

const HIDDEN: usize = 144;

#[derive(Debug)]
struct Case {
    placement: Placement,
    batches: Vec<TokenBatch>,
    x: Vec<Vec<bf16>>,
}

/// Random batches with empty slots, experts named twice, ranks without tokens and ranks without experts.
fn case(element: Element) -> impl Strategy<Value = Case> {
    let shape = (prop::collection::vec(0..7usize, 1..6), 1..13usize, 1..5usize, any::<u64>());
    shape.prop_map(move |(tokens, experts, topk, seed)| {
        let placement = Placement::new(tokens.len(), experts).unwrap();
        let mut random = Random::new(seed);
        let mut x = Vec::new();
        let batches = tokens.iter().map(|&tokens| {
            let rows = hidden_states(random.next(), tokens, HIDDEN);
            let mut topk_idx: Vec<i32> =
                (0..tokens * topk).map(|_| (random.next() % experts as u64) as i32).collect();
            mask_some(&mut topk_idx, random.next(), 4);
            let topk_weights = (0..tokens * topk).map(|_| random.normal()).collect();
            let routing = Routing { topk, topk_idx, topk_weights };
            let batch = TokenBatch::of(element, &rows, HIDDEN, routing);
            x.push(rows);
            batch.unwrap().check(&placement).unwrap()
        });
        let batches = batches.collect();
        Case { placement, batches, x }
    })
}

fn any_element() -> impl Strategy<Value = Case> {
    prop_oneof![
        case(Element::Bf16),
        case(Element::F16),
        case(Element::Fp8E4m3),
        case(Element::Fp8E4m3Ue8m0),
        case(Element::Opaque { row_bytes: 80, scale_words: 5 }),
    ]
}

proptest! {
    #[test]
    fn every_row_is_its_source(Case { placement, batches, .. } in any_element()) {
        for received in dispatch(&batches, &placement, None) {
            let own = placement.experts_of(received.rank);
            for row in 0..received.tokens() {
                let source = &batches[received.source_rank[row] as usize];
                let token = received.source_token[row] as usize;
                prop_assert_eq!(received.row(row), source.row(token));
                prop_assert_eq!(received.scales_of(row), source.scales_of(token));
                let mut owned = 0;
                for slot in 0..source.topk {
                    let (expert, local) = (source.experts_of(token)[slot], received.experts_of(row)[slot]);
                    if local >= 0 {
                        owned += 1;
                        prop_assert_eq!(expert, own.start as i32 + local);
                        prop_assert_eq!(received.weights_of(row)[slot], source.weights_of(token)[slot]);
                    } else {
                        prop_assert!(expert < 0 || !own.contains(&(expert as usize)));
                        prop_assert_eq!(received.weights_of(row)[slot], 0.0);
                    }
                }
                prop_assert!(owned > 0, "a row that no expert of the rank asked for");
            }
            let order: Vec<_> = received.source_rank.iter().zip(&received.source_token).collect();
            prop_assert!(order.is_sorted_by(|a, b| a < b), "by source rank, then token, none twice");
        }
    }

    #[test]
    fn counts_agree(Case { placement, batches, .. } in any_element()) {
        let received = dispatch(&batches, &placement, None);
        let layouts: Vec<Layout> = batches.iter().map(|batch| layout(batch, &placement, 2)).collect();
        for (source, (batch, layout)) in batches.iter().zip(&layouts).enumerate() {
            for (rank, received) in received.iter().enumerate() {
                prop_assert_eq!(layout.tokens_per_rank[rank], received.tokens_per_source[source]);
                let marked = (0..batch.tokens)
                    .filter(|token| layout.is_token_in_rank[token * placement.ranks() + rank]);
                prop_assert_eq!(marked.count() as u32, layout.tokens_per_rank[rank]);
            }
            let slots = batch.topk_idx.iter().filter(|&&expert| expert >= 0).count() as u32;
            prop_assert_eq!(layout.tokens_per_expert.iter().sum::<u32>(), slots);
        }
        for received in &received {
            prop_assert_eq!(received.tokens_per_source.iter().sum::<u32>() as usize, received.tokens());
            for (local, expert) in placement.experts_of(received.rank).enumerate() {
                let pairs: u32 = layouts.iter().map(|layout| layout.tokens_per_expert[expert]).sum();
                prop_assert_eq!(received.tokens_per_expert[local], pairs);
            }
        }
    }

    /// Experts that change nothing: a token comes back as often as it was sent.
    #[test]
    fn combine_of_identity_is_a_multiple(Case { placement, batches, x } in case(Element::Bf16)) {
        let identity: Vec<Vec<u16>> = dispatch(&batches, &placement, None)
            .iter()
            .map(|received| received.rows.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect())
            .collect();
        let combined = combine(&identity, &batches, &placement, Half::Bf16, &[], None);
        for (source, batch) in batches.iter().enumerate() {
            let layout = layout(batch, &placement, 2);
            let ranks = layout.is_token_in_rank.chunks(placement.ranks());
            for (token, ranks) in ranks.enumerate() {
                let copies = ranks.iter().filter(|&&inside| inside).count() as f32;
                for at in token * HIDDEN..(token + 1) * HIDDEN {
                    // At most 5 times a bf16 is exact in f32: the one rounding is all that can happen.
                    let value = bf16::from_bits(combined[source][at]);
                    prop_assert_eq!(value, bf16::from_f32(copies * x[source][at].to_f32()));
                }
            }
        }
    }

    /// The whole way against one f64 sum over the slots: near it, as only roundings differ.
    #[test]
    fn the_whole_way_is_a_weighted_sum(Case { placement, batches, x } in case(Element::Bf16)) {
        let outputs: Vec<_> =
            dispatch(&batches, &placement, None).iter().map(|received| experts(received, &placement, Half::Bf16)).collect();
        let combined = combine(&outputs, &batches, &placement, Half::Bf16, &[], None);
        for (source, batch) in batches.iter().enumerate() {
            for token in 0..batch.tokens {
                for at in token * HIDDEN..(token + 1) * HIDDEN {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for (&expert, &weight) in batch.experts_of(token).iter().zip(batch.weights_of(token)) {
                        if expert >= 0 {
                            let (factor, addend) = expert_coefficients(expert as usize);
                            let value = f64::from(x[source][at].to_f32()) * f64::from(factor) + f64::from(addend);
                            sum += f64::from(weight) * value;
                            size += (f64::from(weight) * value).abs();
                        }
                    }
                    // bf16 rounds by at most 2^-8 of a value: once for each rank and once at the end.
                    let value = Half::Bf16.to_f32(combined[source][at]);
                    let error = (f64::from(value) - sum).abs();
                    prop_assert!(error <= size * 0.00784 + 1e-6, "{value} for {sum}");
                }
            }
        }
    }

    /// Every slot has its row by expert, and room that is not there takes from the end alone.
    #[test]
    fn expert_major_loses_nothing(
        Case { placement, batches, .. } in any_element(),
        alignment in 1..9usize,
        room in 0..40usize,
    ) {
        for received in dispatch(&batches, &placement, None) {
            let experts = placement.experts_of(received.rank).len();
            let all = expert_major(&received, experts, alignment, None);
            prop_assert_eq!(&all.counts, &received.tokens_per_expert);
            prop_assert!(all.starts.iter().all(|&start| (start as usize).is_multiple_of(alignment)));
            for (at, (&position, &expert)) in all.positions.iter().zip(&received.topk_idx).enumerate() {
                prop_assert_eq!(position >= 0, expert >= 0);
                if let Ok(position) = usize::try_from(position) {
                    let row = at / received.topk;
                    prop_assert_eq!(all.row(position), received.row(row));
                    prop_assert_eq!(all.scales_of(position), received.scales_of(row));
                    prop_assert_eq!(all.expert_of_row[position], expert);
                    prop_assert_eq!(all.source_row[position], row as i32);
                }
            }
            let ones = vec![Half::F16.round(1.0); all.len()];
            let slots = reduce(&ones, &all.positions, None, received.topk, 1, Half::F16);
            for (row, slots) in slots.into_iter().enumerate() {
                let owned = received.experts_of(row).iter().filter(|&&local| local >= 0).count();
                prop_assert_eq!(slots, Half::F16.round(owned as f32));
            }
            let some = expert_major(&received, experts, alignment, Some(room));
            prop_assert_eq!(&some.rows[..], &all.rows[..some.rows.len()]);
            prop_assert_eq!(some.len(), room.min(all.len()));
            let left: u32 = some.counts.iter().sum();
            prop_assert_eq!(left + some.dropped, all.counts.iter().sum::<u32>());
        }
    }
}
