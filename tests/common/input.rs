//! What exchanges are tried with, and how what comes of them is compared.

use std::fmt::Debug;
use tokenrail::Config;
use tokenrail::oracle::{self, Routing as Route};

/// What memory is filled with before it is written.
pub const POISON: u8 = 0xa5;

/// Pseudo-random routing: slots of a token may repeat an expert.
pub fn routing(config: &Config, mask_one_in: u64, seed: u64, tokens: usize) -> Route {
    let (topk, experts) = (config.topk as usize, config.experts as usize);
    // Hidden states are as good a source of numbers as any.
    let noise = oracle::hidden_states(seed ^ 0x5eed, tokens, 2 * topk);
    let mut topk_idx: Vec<i32> = noise
        .chunks(2)
        .map(|pair| (u32::from(pair[0].to_bits()) * 31 + u32::from(pair[1].to_bits())) as usize % experts)
        .map(|expert| expert as i32)
        .collect();
    oracle::mask_some(&mut topk_idx, seed, mask_one_in);
    let topk_weights = noise.chunks(2).map(|pair| pair[1].to_f32()).collect();
    Route { topk, topk_idx, topk_weights }
}

/// `count` numbers around 0.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    oracle::hidden_states(seed, 1, count).into_iter().map(f32::from).collect()
}

/// Panics at the first place where two arrays differ.
pub fn same<T: PartialEq + Debug>(what: &str, rank: usize, got: &[T], want: &[T]) {
    assert_eq!(got.len(), want.len(), "length of {what} on rank {rank}");
    if let Some(at) = (0..got.len()).find(|&at| got[at] != want[at]) {
        panic!("{what} on rank {rank}, element {at}: {:?}, should be {:?}", got[at], want[at]);
    }
}
