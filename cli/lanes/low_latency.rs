//! Dispatch and combine of few tokens.

use super::family::Part;
use super::turns::{self, Bench, Suite, digest};
use crate::latency::rank::{Cell, Memory};
use crate::meet::{Failure, HOST_PATIENCE, together};
use crate::workload::Workload;
use std::sync::Arc;
use tokenrail::device::kernel::Kernel;
use tokenrail::device::low_latency::combine::{
    Combine, CombineAcross, CombineFp8, CombineFp8Across, CombineLog10, CombineLog10Across,
};
use tokenrail::device::low_latency::dispatch::{Dispatch, DispatchAcross};
use tokenrail::{CombineFormat, Config, DispatchFormat, Error, Exchange, LowLatency, Member, Summation};

/// What rows travel as.
#[derive(Clone, Copy, Debug)]
pub struct Formats {
    /// There.
    pub dispatch: DispatchFormat,
    /// And back.
    pub combine: CombineFormat,
    /// Who weights and sums.
    pub summation: Summation,
}

impl Formats {
    /// What is timed: whole calls, and halves if all ranks are on one node.
    pub fn parts(&self, across: bool) -> Vec<Part> {
        let dispatch = match self.dispatch {
            DispatchFormat::Bf16 => "bf16",
            DispatchFormat::Fp8 => "fp8",
            DispatchFormat::Fp8PowerOfTwo => "fp8-power-of-two",
            DispatchFormat::Fp8Ue8m0 => "fp8-ue8m0",
        };
        let combine = match self.combine {
            CombineFormat::Bf16 => "bf16",
            CombineFormat::Fp8 => "fp8",
            CombineFormat::Log10 => "log10",
        };
        let by_slot = if self.summation == Summation::BySlot { " by-slot" } else { "" };
        let there = if across { DispatchAcross::NAME } else { Dispatch::NAME };
        let back = match (self.combine, across) {
            (CombineFormat::Bf16, false) => Combine::NAME,
            (CombineFormat::Fp8, false) => CombineFp8::NAME,
            (CombineFormat::Log10, false) => CombineLog10::NAME,
            (CombineFormat::Bf16, true) => CombineAcross::NAME,
            (CombineFormat::Fp8, true) => CombineFp8Across::NAME,
            (CombineFormat::Log10, true) => CombineLog10Across::NAME,
        };
        let far = if across { " across" } else { "" };
        let mut parts = vec![
            (format!("low-latency dispatch {dispatch}{far}"), there),
            (format!("low-latency combine {combine}{by_slot}{far}"), back),
        ];
        if !across {
            parts.extend([
                (format!("low-latency dispatch {dispatch}, send"), there),
                (format!("low-latency dispatch {dispatch}, receive"), there),
                (format!("low-latency combine {combine}{by_slot}, send"), back),
                (format!("low-latency combine {combine}{by_slot}, receive"), back),
            ]);
        }
        parts.into_iter().map(|(operation, kernel)| Part { operation, kernels: vec![kernel] }).collect()
    }

    /// Settings of the exchange, which has low-latency calls alone.
    pub fn config(&self, base: Config) -> Config {
        let low_latency = LowLatency {
            dispatch: self.dispatch,
            combine: self.combine,
            summation: self.summation,
            ..LowLatency::new(base.tokens)
        };
        Config { tokens: 0, low_latency: Some(low_latency), ..base }
    }
}

/// Everything that a measurement of latencies needs.
pub struct LowLatencyCalls {
    /// The tokens.
    pub workload: Arc<Workload>,
    /// Of each lane.
    pub configs: Vec<Config>,
    /// Tokens.
    pub most: u32,
    /// Timed calls of each.
    pub iterations: u32,
    /// Whether halves are timed too.
    pub halves: bool,
}

impl Suite for LowLatencyCalls {
    fn open(&self, member: Member, lane: usize) -> Result<Box<dyn Bench + '_>, Failure> {
        let config = &self.configs[lane];
        let exchange = Exchange::new(member, config)?;
        exchange.all_gather(true, "the start", HOST_PATIENCE)?;
        let memory = together(&exchange, Memory::new(&exchange, &self.workload, self.most, 0))?;
        Ok(Box::new(Rank { exchange, memory, config, suite: self }))
    }
}

struct Rank<'a> {
    exchange: Exchange,
    memory: Memory,
    config: &'a Config,
    suite: &'a LowLatencyCalls,
}

impl Bench for Rank<'_> {
    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn measure(&mut self, cell: turns::Cell) -> Result<turns::Times, Error> {
        let mut calls = Cell {
            exchange: &mut self.exchange,
            memory: &self.memory,
            config: self.config,
            tokens: cell.tokens,
            sms: cell.sms,
            iterations: self.suite.iterations,
        };
        let mut times = Vec::from(calls.whole()?);
        if self.suite.halves {
            times.extend(calls.apart()?);
        }
        Ok(times)
    }

    fn digest(&self, cell: turns::Cell) -> Result<u64, Error> {
        let words = cell.tokens as usize * self.config.hidden as usize;
        digest(self.exchange.gpu(), &self.memory.stream, self.memory.combined.view(), words)
    }
}
