//! Dispatch and combine of many tokens.

use super::family::{Machine, Part, Sizes};
use super::turns::{self, Bench, Cell, Suite, digest};
use crate::choices::ElementName;
use crate::measure::{Repetitions, Times};
use crate::meet::Failure;
use crate::progress::Progress;
use crate::sweep::args::Form;
use crate::sweep::rank::{self, Job, Memory};
use crate::sweep::{name_of, with_room};
use crate::workload::Workload;
use std::sync::Arc;
use tokenrail::device::kernel::Kernel;
use tokenrail::device::throughput::combine::{Combine, CombineAcross, CombineAcrossPlain, CombinePlain};
use tokenrail::device::throughput::dispatch::{
    Arrive, Dispatch, DispatchAcross, DispatchAcrossPlain, DispatchByExpert, DispatchByExpertAcross,
    DispatchByExpertAcrossPlain, DispatchByExpertPlain, DispatchPlain,
};
use tokenrail::device::throughput::reduce::Reduce;
use tokenrail::{Config, Error, Exchange, ExpertMajor, Member, Stream};

/// The way to exchange.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How rows lie, and what moves them.
    pub form: Form,
    /// What they are.
    pub element: ElementName,
    /// Without bulk copies.
    pub plain: bool,
}

impl Shape {
    /// What is timed. What is combined is bf16 whatever was dispatched, and along a handle as without: it is timed once.
    pub fn parts(&self, across: bool) -> Vec<Part> {
        let by_expert = self.form == Form::ByExpert;
        let mut dispatch = vec![match (by_expert, self.plain, across) {
            (false, false, false) => Dispatch::NAME,
            (false, true, false) => DispatchPlain::NAME,
            (true, false, false) => DispatchByExpert::NAME,
            (true, true, false) => DispatchByExpertPlain::NAME,
            (false, false, true) => DispatchAcross::NAME,
            (false, true, true) => DispatchAcrossPlain::NAME,
            (true, false, true) => DispatchByExpertAcross::NAME,
            (true, true, true) => DispatchByExpertAcrossPlain::NAME,
        }];
        dispatch.extend((self.form == Form::CopyEngine).then_some(Arrive::NAME));
        let mut combine = Vec::from_iter(by_expert.then_some(Reduce::NAME));
        combine.push(match (self.plain, across) {
            (false, false) => Combine::NAME,
            (true, false) => CombinePlain::NAME,
            (false, true) => CombineAcross::NAME,
            (true, true) => CombineAcrossPlain::NAME,
        });
        let part = |operation: &str, kernels| {
            let form = if self.form == Form::RankMajor { "" } else { self.form.name() };
            let words =
                [operation, form, if self.plain { "plain" } else { "" }, if across { "across" } else { "" }];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            Part { operation: words.join(" "), kernels }
        };
        let mut parts = vec![part(&format!("dispatch {}", name_of(self.element)), dispatch)];
        if across || (self.element == ElementName::Bf16 && self.form != Form::Cached) {
            parts.push(part("combine", combine));
        }
        parts
    }

    /// Settings of the exchange. Two dispatches are in flight: one is for barriers.
    pub fn config(&self, workload: &Workload, sizes: &Sizes, machine: &Machine, cells: &[Cell]) -> Config {
        let most = cells.iter().filter_map(|cell| cell.sms).max().unwrap_or(machine.default_sms);
        let expert_major = ExpertMajor { alignment: sizes.alignment, rows: None };
        let config = Config {
            expert_major: (self.form == Form::ByExpert).then_some(expert_major),
            copy_engine: self.form == Form::CopyEngine,
            in_flight: 2,
            sms: Some(most.min(machine.default_sms)),
            max_sms: most,
            bulk_copy: self.plain.then_some(false),
            ..workload.config.clone()
        };
        with_room(workload, config)
    }
}

/// Everything that a sweep's measurement needs.
pub struct Throughput {
    workload: Arc<Workload>,
    /// Of each lane.
    configs: Vec<Config>,
    form: Form,
    repetitions: Repetitions,
    /// That of a single measurement, which nobody is shown.
    progress: Progress,
}

impl Throughput {
    /// With one config for each lane.
    pub fn new(workload: Arc<Workload>, configs: Vec<Config>, form: Form, repetitions: Repetitions) -> Self {
        Self { workload, configs, form, repetitions, progress: Progress::new(true) }
    }
}

impl Suite for Throughput {
    fn open(&self, member: Member, lane: usize) -> Result<Box<dyn Bench + '_>, Failure> {
        let job = Job {
            workload: &self.workload,
            samples: &[],
            config: &self.configs[lane],
            form: self.form,
            cells: &[],
            ceilings: &[],
            repetitions: self.repetitions,
            progress: &self.progress,
        };
        let (exchange, stream, memory) = rank::set_up(member, &job)?;
        Ok(Box::new(Rank { exchange, stream, memory, job }))
    }
}

struct Rank<'a> {
    exchange: Exchange,
    stream: Stream,
    memory: Memory,
    job: Job<'a>,
}

impl Bench for Rank<'_> {
    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn measure(&mut self, cell: Cell) -> Result<turns::Times, Error> {
        let sms = cell.sms.unwrap_or(self.exchange.sms());
        let cell = rank::Cell { tokens: cell.tokens, dispatch_sms: sms, combine_sms: sms };
        let times = rank::measure(&mut self.exchange, &self.stream, &self.memory, &self.job, &cell)?;
        let Times { dispatch, combine, .. } = times;
        Ok(vec![dispatch, combine])
    }

    fn digest(&self, cell: Cell) -> Result<u64, Error> {
        let words = cell.tokens as usize * self.job.config.hidden as usize;
        digest(self.exchange.gpu(), &self.stream, self.memory.tokens.combined.view(), words)
    }
}
