//! The order in which tokens of several sources are gone through: by lane, so that what comes first is worked on first.

use crate::wire::CHUNK;

/// This warp's share of the tokens of `sources` sources, of which each has as many as `tokens` says: single ones or, if
/// `CHUNKED`, whole chunks. Gives the source, the first token and the one past the last.
#[derive(Clone, Copy)]
pub struct Walk<T, const CHUNKED: bool> {
    tokens: T,
    sources: u32,
    lanes: u32,
    lane: u32,
    source: u32,
    /// Counted over the tokens of this source on this lane.
    at: u32,
    step: u32,
}

impl<T: Fn(u32) -> u32, const CHUNKED: bool> Walk<T, CHUNKED> {
    /// The share of worker `worker` of `workers`.
    #[inline(always)]
    pub fn new(tokens: T, sources: u32, lanes: u32, worker: u32, workers: u32) -> Self {
        Self { tokens, sources, lanes: lanes.max(1), lane: 0, source: 0, at: worker, step: workers }
    }
}

impl<T: Fn(u32) -> u32, const CHUNKED: bool> Iterator for Walk<T, CHUNKED> {
    type Item = (u32, u32, u32);

    #[inline(always)]
    fn next(&mut self) -> Option<(u32, u32, u32)> {
        while self.lane < self.lanes {
            if self.source == self.sources {
                self.source = 0;
                self.lane += 1;
                continue;
            }
            let tokens = (self.tokens)(self.source);
            let chunks = tokens.div_ceil(CHUNK);
            let here = chunks.saturating_sub(self.lane).div_ceil(self.lanes);
            let units = if CHUNKED { here } else { here * CHUNK };
            if self.at >= units {
                self.at -= units;
                self.source += 1;
                continue;
            }
            let at = self.at;
            self.at += self.step;
            let chunk = if CHUNKED { at } else { at / CHUNK };
            let first = (chunk * self.lanes + self.lane) * CHUNK + if CHUNKED { 0 } else { at % CHUNK };
            if first < tokens {
                let end = if CHUNKED { tokens.min(first + CHUNK) } else { first + 1 };
                return Some((self.source, first, end));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn all<const CHUNKED: bool>(tokens: &[u32], lanes: u32, workers: u32) -> Vec<(u32, u32)> {
        let share = |worker| {
            let of = |source: u32| tokens[source as usize];
            let walk: Walk<_, CHUNKED> = Walk::new(of, tokens.len() as u32, lanes, worker, workers);
            let units: Vec<_> = walk.collect();
            let lane = |&(_, first, _): &(u32, u32, u32)| first / CHUNK % lanes;
            assert!(units.iter().map(lane).is_sorted(), "by lane");
            let ends_in_lane = |&(_, first, end): &(u32, u32, u32)| first / CHUNK == (end - 1) / CHUNK;
            assert!(units.iter().all(ends_in_lane));
            units.into_iter().flat_map(|(source, first, end)| (first..end).map(move |token| (source, token)))
        };
        (0..workers).flat_map(share).collect()
    }

    #[test]
    fn every_token_once_and_by_lane() {
        for tokens in [&[][..], &[0], &[1], &[8, 0, 9], &[100, 3, 64], &[17, 17, 17, 17]] {
            for lanes in [1, 2, 3, 7] {
                for workers in [1, 3, 40] {
                    let mut want: Vec<_> = (0u32..)
                        .zip(tokens)
                        .flat_map(|(source, &tokens)| (0..tokens).map(move |token| (source, token)))
                        .collect();
                    for mut found in
                        [all::<false>(tokens, lanes, workers), all::<true>(tokens, lanes, workers)]
                    {
                        found.sort_unstable();
                        want.sort_unstable();
                        assert_eq!(found, want, "{tokens:?}, {lanes} lanes, {workers} workers");
                    }
                }
            }
        }
    }
}
