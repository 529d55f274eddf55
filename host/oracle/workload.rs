//! Seeded inputs.

use super::random::Random;
use half::bf16;

const HIDDEN_STATES: u64 = 1;
const MASK: u64 = 2;

/// Roughly normal values, mean 0 and deviation 1, none of them 0: `[tokens, hidden]`. A seed gives the same values
/// everywhere and always.
pub fn hidden_states(seed: u64, tokens: usize, hidden: usize) -> Vec<bf16> {
    let mut random = Random::stream(seed, HIDDEN_STATES);
    (0..tokens * hidden).map(|_| bf16::from_f32(random.normal())).collect()
}

/// Empties one slot in `one_in` on average, at random; none if `one_in` is 0.
pub fn mask_some(topk_idx: &mut [i32], seed: u64, one_in: u64) {
    let mut random = Random::stream(seed, MASK);
    for expert in topk_idx {
        if random.next().checked_rem(one_in) == Some(0) {
            *expert = -1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_decide() {
        assert_eq!(hidden_states(5, 3, 16), hidden_states(5, 3, 16));
        assert_ne!(hidden_states(5, 3, 16), hidden_states(6, 3, 16));
        assert!(hidden_states(5, 64, 128).iter().all(|value| value.to_f32() != 0.0));
        // Recorded when this was written: a workload must not change under its seed.
        let bits: Vec<u16> = hidden_states(0, 1, 4).iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [48992, 49059, 48786, 48860]);
    }

    #[test]
    fn masks_about_one_in_n() {
        let mut slots = vec![7; 10_000];
        mask_some(&mut slots, 1, 0);
        assert!(slots.iter().all(|&slot| slot == 7));
        mask_some(&mut slots, 1, 8);
        let masked = slots.iter().filter(|&&slot| slot == -1).count();
        assert!((1100..1400).contains(&masked), "{masked}");
        mask_some(&mut slots, 1, 1);
        assert!(slots.iter().all(|&slot| slot == -1));
    }
}
