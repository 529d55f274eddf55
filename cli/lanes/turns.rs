//! The lanes take turns: one measurement of each, again and again, so that clocks and neighbours do the same to all.

use super::args::Lane;
use crate::meet::{Failure, all_ranks, together};
use crate::progress::Progress;
use crate::sweep::{Spread, slowest};
use serde::Serialize;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokenrail::gpu::View;
use tokenrail::{Error, Exchange, Gpu, Group, Member, Stream};

/// A size that something is timed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Tokens of each rank.
    pub tokens: u32,
    /// Multiprocessors, if they are not what the library takes.
    pub sms: Option<u32>,
}

/// Times in µs of one measurement, for each part of what is timed.
pub type Times = Vec<Vec<f64>>;

/// What can be timed, with everything that is the same for all lanes.
pub trait Suite: Sync {
    /// Sets up one rank, with the kernels of one lane. All ranks do it together.
    fn open(&self, member: Member, lane: usize) -> Result<Box<dyn Bench + '_>, Failure>;
}

/// One rank with one lane's kernels, ready to be timed.
pub trait Bench {
    /// By which ranks meet.
    fn exchange(&self) -> &Exchange;

    /// Times everything a few times.
    fn measure(&mut self, cell: Cell) -> Result<Times, Error>;

    /// What the last measurement has left, in short: equal for all lanes.
    fn digest(&self, cell: Cell) -> Result<u64, Error>;
}

/// Most 16-bit words that [`digest`] looks at.
const MAX_WORDS: usize = 1 << 21;

/// Of the first `words` 16-bit words, or of fewer.
pub fn digest(gpu: &Gpu, stream: &Stream, view: View, words: usize) -> Result<u64, Error> {
    let words: Vec<u16> = gpu.download(stream, view, words.min(MAX_WORDS))?;
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    Ok(hasher.finish())
}

/// What came of a cell.
pub struct Done {
    /// The median of the slowest rank's times in µs, by part, lane and repetition.
    pub medians: Vec<Vec<Vec<f64>>>,
    /// For each lane, all ranks' digests.
    pub digests: Vec<Vec<u64>>,
}

/// What came of all.
pub struct Turned {
    /// Sizes, as far as all went well.
    pub done: Vec<Done>,
    /// How each rank ended.
    pub ends: Vec<Result<(), Failure>>,
}

/// One rank's.
#[derive(Default)]
struct Outcome {
    /// By cell, lane and repetition.
    times: Vec<Vec<Vec<Times>>>,
    /// By cell and lane.
    digests: Vec<Vec<u64>>,
}

/// Times sizes, one after the other, as far as all goes well.
///
/// # Errors
/// Devices that are not usable.
pub fn turns(
    lanes: &[Lane],
    (ranks, ranks_per_node): (u32, u32),
    suite: &dyn Suite,
    cells: &[Cell],
    repeat: u32,
    progress: &Progress,
) -> Result<Turned, Error> {
    // Of each rank the members of all lanes.
    let mut members: Vec<Vec<Member>> = (0..ranks).map(|_| Vec::new()).collect();
    for lane in lanes {
        let group = Group::on_nodes(ranks, ranks_per_node, &lane.backend)?;
        members.iter_mut().zip(group).for_each(|(members, member)| members.push(member));
    }
    let ranks = all_ranks(members, |members| {
        let mut outcome = Outcome::default();
        let end = rank(members, suite, cells, repeat, progress, &mut outcome);
        Ok((outcome, end))
    });
    let (outcomes, ends): (Vec<_>, Vec<_>) = ranks
        .into_iter()
        .map(|rank| rank.unwrap_or_else(|failure| (Outcome::default(), Err(failure))))
        .unzip();
    let count = outcomes.iter().map(|outcome| outcome.digests.len()).min().unwrap_or(0);
    let done = (0..count).map(|cell| Done {
        medians: medians(&outcomes.iter().map(|outcome| &outcome.times[cell]).collect::<Vec<_>>()),
        digests: (0..lanes.len())
            .map(|lane| outcomes.iter().map(|outcome| outcome.digests[cell][lane]).collect())
            .collect(),
    });
    Ok(Turned { done: done.collect(), ends })
}

/// One rank's part.
fn rank(
    members: Vec<Member>,
    suite: &dyn Suite,
    cells: &[Cell],
    repeat: u32,
    progress: &Progress,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    // Everything is allocated before anything is timed, and freed when all ranks have done: either may wait for kernels.
    let benches = members.into_iter().enumerate().map(|(lane, member)| suite.open(member, lane));
    let mut benches = benches.collect::<Result<Vec<_>, _>>()?;
    for &cell in cells {
        let mut times = vec![Vec::new(); benches.len()];
        for repetition in 0..repeat {
            for lane in order(benches.len(), repetition) {
                let bench = &mut benches[lane];
                let measured = bench.measure(cell);
                times[lane].push(together(bench.exchange(), measured)?);
            }
        }
        let digests = benches.iter().map(|bench| together(bench.exchange(), bench.digest(cell)));
        let digests = digests.collect::<Result<Vec<_>, _>>()?;
        outcome.times.push(times);
        outcome.digests.push(digests);
        progress.step();
    }
    Ok(())
}

/// Whose turn it is: there and back.
fn order(lanes: usize, repetition: u32) -> Vec<usize> {
    if repetition.is_multiple_of(2) { (0..lanes).collect() } else { (0..lanes).rev().collect() }
}

/// By part, lane and repetition, from each rank's times by lane and repetition.
fn medians(ranks: &[&Vec<Vec<Times>>]) -> Vec<Vec<Vec<f64>>> {
    let Some(first) = ranks.first() else { return Vec::new() };
    let parts = first.iter().flatten().map(Vec::len).min().unwrap_or(0);
    let median = |part: usize, lane: usize, repetition: usize| {
        let times: Vec<_> = ranks.iter().map(|rank| &rank[lane][repetition][part]).collect();
        Spread::of(&slowest(&times)).map(|spread| spread.median)
    };
    let of_lane = |part, lane: usize| {
        (0..first[lane].len()).filter_map(|repetition| median(part, lane, repetition)).collect()
    };
    (0..parts).map(|part| (0..first.len()).map(|lane| of_lane(part, lane)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenrail::{Backend, Config};

    #[test]
    fn lanes_go_there_and_back() {
        assert_eq!([0, 1, 2].map(|repetition| order(3, repetition)), [[0, 1, 2], [2, 1, 0], [0, 1, 2]]);
    }

    /// Fails on the second rank for 2 tokens.
    struct Fails;

    impl Suite for Fails {
        fn open(&self, member: Member, _lane: usize) -> Result<Box<dyn Bench + '_>, Failure> {
            Ok(Box::new(FailsHere(Exchange::new(member, &Config::new(4, 2, 64, 8))?)))
        }
    }

    struct FailsHere(Exchange);

    impl Bench for FailsHere {
        fn exchange(&self) -> &Exchange {
            &self.0
        }

        fn measure(&mut self, cell: Cell) -> Result<Times, Error> {
            if cell.tokens == 2 && self.0.rank() == 1 {
                let (argument, value, limit) = ("tokens", "2".into(), "not that".into());
                return Err(Error::Argument { argument, value, limit });
            }
            Ok(vec![vec![cell.tokens.into()]])
        }

        fn digest(&self, _cell: Cell) -> Result<u64, Error> {
            Ok(0)
        }
    }

    #[test]
    fn what_was_done_before_a_failure_stays() {
        let lanes = [1, 2].map(|seed| Lane { name: seed.to_string(), backend: Backend::emulator(seed) });
        let cells = [5, 2, 7].map(|tokens| Cell { tokens, sms: None });
        let Turned { done, ends } = turns(&lanes, (2, 2), &Fails, &cells, 3, &Progress::new(true)).unwrap();
        assert_eq!(done.iter().map(|done| &done.medians).collect::<Vec<_>>(), [&vec![vec![vec![5.0; 3]; 2]]]);
        assert!(matches!(ends[0], Err(Failure::Peer(1))) && matches!(ends[1], Err(Failure::Own(_))));
    }

    #[test]
    fn medians_are_of_the_slowest_rank() {
        // Two lanes, one repetition, two parts.
        let a = vec![vec![vec![vec![1.0, 5.0, 3.0], vec![2.0]]], vec![vec![vec![9.0], vec![8.0]]]];
        let b = vec![vec![vec![vec![4.0, 2.0, 2.0], vec![7.0]]], vec![vec![vec![1.0], vec![9.0]]]];
        assert_eq!(medians(&[&a, &b]), [[[4.0], [9.0]], [[7.0], [9.0]]]);
        assert!(medians(&[]).is_empty());
    }
}
