//! What is timed with one set of buffers, and everything that there is to time.

use super::line::Subject;
use super::turns::{Cell, Suite};
use super::{local, low_latency, throughput};
use crate::choices::{ElementName, GateName};
use crate::measure::Repetitions;
use crate::sweep::args::Form;
use crate::workload::{Source, Workload};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokenrail::device::kernel::Kernel;
use tokenrail::device::workload::{commands::Commands, delay::Delay, flag::Flag, probe::Probe};
use tokenrail::fabric::{LoopbackOptions, Network};
use tokenrail::{CombineFormat, Config, DispatchFormat, Internode, Summation, Via};

/// Kernels that are not timed, and why.
pub const LEFT_OUT: [(&str, &str); 4] = [
    (Delay::NAME, "it takes as long as it is told to"),
    (Commands::NAME, "its time is the proxy's, see `tokenrail proxy`"),
    (Flag::NAME, "its time is a flag's, see `tokenrail bench`"),
    (Probe::NAME, "it shows what the machine does, for the tests"),
];

/// What a time across nodes has in it beside kernels.
const NETWORK: &str = "the proxy, and a network of the driver's copies";

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Elements of a token.
    pub hidden: u32,
    /// Experts over all ranks.
    pub experts: u32,
    /// Experts of a token.
    pub topk: u32,
    /// Alignment of rows by expert.
    pub alignment: u32,
    /// Tokens of throughput calls.
    pub tokens: &'static [u32],
    /// Multiprocessors of them.
    pub sms: &'static [u32],
    /// Tokens of throughput calls across nodes.
    pub tokens_across: &'static [u32],
    /// Tokens of low-latency calls.
    pub few_tokens: &'static [u32],
    /// How often a measurement repeats each throughput call.
    pub calls: Repetitions,
    /// The same across nodes.
    pub calls_across: Repetitions,
    /// How often a measurement repeats each low-latency call, and that across nodes.
    pub few_calls: (u32, u32),
    /// How often the lanes take turns.
    pub repeat: u32,
    /// How long a kernel waits for a peer: a lane that hangs is not to use up a GPU's time.
    pub timeout: Duration,
}

const fn repetitions(warmup: u32, timed: u32) -> Repetitions {
    Repetitions { warmup, timed, copy_pieces: 0 }
}

impl Sizes {
    /// For GPUs.
    pub const FULL: Self = Self {
        hidden: 7168,
        experts: 256,
        topk: 8,
        alignment: 128,
        tokens: &[1, 128, 4096],
        sms: &[8, 16, 24],
        tokens_across: &[128, 512],
        few_tokens: &[1, 32, 128],
        calls: repetitions(2, 10),
        calls_across: repetitions(1, 3),
        few_calls: (32, 6),
        repeat: 7,
        timeout: Duration::from_secs(3),
    };

    /// For a first look.
    pub const QUICK: Self = Self {
        tokens: &[128, 4096],
        sms: &[16],
        tokens_across: &[128],
        few_tokens: &[128],
        repeat: 3,
        ..Self::FULL
    };

    /// For the emulator, whose times say nothing.
    pub const EMULATED: Self = Self {
        hidden: 144,
        experts: 8,
        topk: 3,
        alignment: 4,
        tokens: &[1, 6],
        sms: &[2],
        tokens_across: &[3],
        few_tokens: &[3],
        calls: repetitions(0, 1),
        calls_across: repetitions(0, 1),
        few_calls: (1, 1),
        repeat: 2,
        timeout: Duration::from_secs(10),
    };
}

/// What all ranks' machines have, and how many there are.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Ranks.
    pub ranks: u32,
    /// Most multiprocessors that a rank can have.
    pub most_sms: u32,
    /// Multiprocessors of a call that is not told.
    pub default_sms: u32,
    /// Whether there are bulk copies.
    pub bulk_copy: bool,
}

/// Something of which a measurement gives the time.
pub struct Part {
    /// As the line is to be called.
    pub operation: String,
    /// In the order that they run in.
    pub kernels: Vec<&'static str>,
}

/// What is timed with one exchange of each lane.
pub struct Family {
    /// Ranks, and those of a node.
    pub ranks: (u32, u32),
    /// Sizes.
    pub cells: Vec<Cell>,
    /// What a measurement gives the times of.
    pub parts: Vec<Part>,
    /// What else is in the times.
    pub beside: Option<&'static str>,
    /// Whether lines are judged.
    pub judged: bool,
    what: What,
}

/// How something is timed.
enum What {
    Local,
    Throughput(throughput::Shape),
    LowLatency(low_latency::Formats),
}

impl Family {
    /// Its lines of one size.
    pub fn subjects(&self, cell: Cell) -> impl Iterator<Item = Subject> {
        self.parts.iter().map(move |part| Subject {
            operation: part.operation.clone(),
            kernels: part.kernels.clone(),
            ranks: self.ranks.0,
            cell,
            beside: self.beside,
            judged: self.judged,
        })
    }

    fn most_tokens(&self) -> u32 {
        self.cells.iter().map(|cell| cell.tokens).max().unwrap_or(0)
    }

    /// Ready for so many lanes.
    ///
    /// # Errors
    /// Settings that are not possible.
    pub fn suite(
        &self,
        plan: &Plan,
        workloads: &mut Workloads,
        lanes: usize,
    ) -> Result<Box<dyn Suite>, Box<dyn Error>> {
        let (sizes, ranks) = (&plan.sizes, self.ranks.0);
        let base = Config {
            timeout: sizes.timeout,
            ..Config::new(sizes.experts, sizes.topk, sizes.hidden, self.most_tokens())
        };
        let workload = |element: ElementName, workloads: &mut Workloads| {
            let config = Config { element: element.element(), ..base.clone() };
            workloads.get(config, ranks, plan.seed)
        };
        let across = ranks != self.ranks.1;
        // Each lane has a network of its own.
        let placed = |config: Config| -> Vec<Config> {
            let placed = |_| {
                if !across {
                    return config.clone();
                }
                let via = Via::Loopback(Network::new(LoopbackOptions::default()));
                let internode = Some(Internode { lanes: 2, ..Internode::new(via) });
                Config { ranks_per_node: Some(self.ranks.1), internode, ..config.clone() }
            };
            (0..lanes).map(placed).collect()
        };
        Ok(match &self.what {
            What::Local => {
                let workload = workload(ElementName::Bf16, workloads)?;
                let config = local::config(base, &workload, sizes, &plan.machine);
                Box::new(local::Local { workload, config, cells: self.cells.clone(), calls: sizes.calls })
            }
            What::Throughput(shape) => {
                let workload = workload(shape.element, workloads)?;
                let config = shape.config(&workload, sizes, &plan.machine, &self.cells);
                let repetitions = if across { sizes.calls_across } else { sizes.calls };
                Box::new(throughput::Throughput::new(workload, placed(config), shape.form, repetitions))
            }
            What::LowLatency(formats) => {
                let workload = workload(ElementName::Bf16, workloads)?;
                let (near, far) = sizes.few_calls;
                Box::new(low_latency::LowLatencyCalls {
                    configs: placed(formats.config(base)),
                    most: self.most_tokens(),
                    iterations: if across { far } else { near },
                    halves: !across,
                    workload,
                })
            }
        })
    }
}

/// Tokens and routings, drawn once.
#[derive(Default)]
pub struct Workloads(Vec<(Config, u32, Arc<Workload>)>);

impl Workloads {
    fn get(&mut self, config: Config, ranks: u32, seed: u64) -> Result<Arc<Workload>, Box<dyn Error>> {
        let is = |(drawn, of, _): &&(Config, u32, Arc<Workload>)| *drawn == config && *of == ranks;
        if let Some((.., workload)) = self.0.iter().find(is) {
            return Ok(workload.clone());
        }
        let source = Source { ranks, gate: GateName::Uniform, seed, uneven: false, mask_one_in: 0 };
        let mut workload = Workload::draw(config.clone(), &source)?;
        // What is dispatched has been made of them.
        workload.x.clear();
        let workload = Arc::new(workload);
        self.0.push((config, ranks, workload.clone()));
        Ok(workload)
    }
}

/// What to time.
pub struct Plan {
    /// How much.
    pub sizes: Sizes,
    /// On what.
    pub machine: Machine,
    /// What everything is drawn from.
    pub seed: u64,
}

impl Plan {
    /// Everything that there is to time.
    pub fn families(&self) -> Vec<Family> {
        let ranks = self.machine.ranks;
        let mut families = vec![self.local()];
        for plain in [false, true] {
            for form in [Form::RankMajor, Form::ByExpert] {
                families.extend(
                    [ElementName::Bf16, ElementName::Fp8]
                        .map(|element| self.throughput(throughput::Shape { form, element, plain })),
                );
            }
        }
        for form in [Form::Cached, Form::CopyEngine] {
            for element in [ElementName::Bf16, ElementName::Fp8] {
                families.push(self.throughput(throughput::Shape { form, element, plain: false }));
            }
        }
        let formats = [
            (DispatchFormat::Bf16, CombineFormat::Bf16, Summation::ByRank),
            (DispatchFormat::Fp8, CombineFormat::Fp8, Summation::ByRank),
            (DispatchFormat::Fp8Ue8m0, CombineFormat::Log10, Summation::ByRank),
            (DispatchFormat::Fp8PowerOfTwo, CombineFormat::Bf16, Summation::BySlot),
        ];
        let formats = formats.map(|(dispatch, combine, summation)| low_latency::Formats {
            dispatch,
            combine,
            summation,
        });
        for ranks in if ranks == 1 { vec![1] } else { vec![1, ranks] } {
            families.extend(formats.map(|formats| self.low_latency(formats, (ranks, ranks))));
        }
        // Two nodes, or as many as there are ranks.
        let all = ranks.max(2);
        let across = (all, if all.is_multiple_of(2) { all / 2 } else { 1 });
        for plain in [false, true] {
            for (form, element) in [(Form::RankMajor, ElementName::Bf16), (Form::ByExpert, ElementName::Fp8)]
            {
                families.push(self.across(throughput::Shape { form, element, plain }, across));
            }
        }
        families.extend(formats[..3].iter().map(|&formats| self.low_latency(formats, across)));
        if !self.machine.bulk_copy {
            families.retain(|family| !matches!(&family.what, What::Throughput(shape) if !shape.plain));
        }
        families
    }

    fn local(&self) -> Family {
        let cells = self.sizes.tokens.iter().filter(|&&tokens| tokens > 1);
        Family {
            ranks: (1, 1),
            cells: cells.map(|&tokens| Cell { tokens, sms: None }).collect(),
            parts: local::parts(&self.machine),
            beside: None,
            judged: true,
            what: What::Local,
        }
    }

    fn throughput(&self, shape: throughput::Shape) -> Family {
        let sizes = &self.sizes;
        let most = self.machine.most_sms;
        let mut sms: Vec<u32> = sizes.sms.iter().copied().filter(|&sms| sms <= most).collect();
        if sms.is_empty() {
            sms.push(most);
        }
        let cells = |sms| sizes.tokens.iter().map(move |&tokens| Cell { tokens, sms: Some(sms) });
        let by_copies = shape.form == Form::CopyEngine;
        Family {
            ranks: (self.machine.ranks, self.machine.ranks),
            cells: sms.into_iter().flat_map(cells).collect(),
            parts: shape.parts(false),
            beside: by_copies.then_some("the host, which waits for counts, and copy engines"),
            judged: true,
            what: What::Throughput(shape),
        }
    }

    fn across(&self, shape: throughput::Shape, ranks: (u32, u32)) -> Family {
        let cells = self.sizes.tokens_across.iter();
        Family {
            ranks,
            cells: cells.map(|&tokens| Cell { tokens, sms: None }).collect(),
            parts: shape.parts(true),
            beside: Some(NETWORK),
            judged: false,
            what: What::Throughput(shape),
        }
    }

    fn low_latency(&self, formats: low_latency::Formats, ranks: (u32, u32)) -> Family {
        let across = ranks.0 != ranks.1;
        let cells = self.sizes.few_tokens.iter();
        Family {
            ranks,
            cells: cells.map(|&tokens| Cell { tokens, sms: None }).collect(),
            parts: formats.parts(across),
            beside: across.then_some(NETWORK),
            judged: !across,
            what: What::LowLatency(formats),
        }
    }
}
