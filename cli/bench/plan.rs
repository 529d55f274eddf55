//! What is measured, in what order: first of each section what says most, so that a limit of time costs the rest.

use super::args::BenchArgs;
use super::collect::counted;
use super::results::Section;
use crate::choices::{ElementName, GateName, HalfName};
use crate::latency::args::{CombineName, DispatchName, LatencyArgs, SummationName};
use crate::sweep::args::{Form, ShapeArgs};
use tokenrail::{Error, bytes_for};

/// A part that is measured in one go.
#[derive(Debug)]
pub struct Step {
    /// For people.
    pub name: String,
    /// What it is of.
    pub work: Work,
}

/// What to do.
#[derive(Debug)]
pub enum Work {
    /// Dispatch and combine of many tokens.
    Sweep(ShapeArgs),
    /// Low-latency calls, and their halves.
    Latency(LatencyArgs),
    /// The ring of commands.
    Proxy,
}

impl Work {
    /// The sections of its rows.
    pub fn sections(&self) -> &'static [Section] {
        match self {
            Self::Sweep(shape) if shape.forms.contains(&Form::CopyEngine) => &[Section::CopyEngine],
            Self::Sweep(_) => &[Section::Throughput],
            Self::Latency(_) => &[Section::LowLatency, Section::Overlap],
            Self::Proxy => &[Section::Proxy],
        }
    }
}

/// Everything to measure, where `most_sms` gives the multiprocessors that each of so many ranks can have.
///
/// # Errors
/// [`Error::Config`] for shapes that are not possible, and if no number of multiprocessors is left.
pub fn steps(args: &BenchArgs, most_sms: impl Fn(u32) -> u32) -> Result<Vec<Step>, Error> {
    let plan = Plan { args, most_sms };
    let mut steps = plan.all();
    steps.retain(|step| args.wants(step.work.sections()));
    for step in &steps {
        match &step.work {
            Work::Sweep(shape) if shape.sms.is_empty() => {
                let limit =
                    format!("each of {} ranks can have 1 to {}", shape.ranks, (plan.most_sms)(shape.ranks));
                return Err(Error::Config { field: "sms", value: format!("{:?}", args.sms), limit });
            }
            Work::Sweep(shape) => shape.check()?,
            Work::Latency(calls) => drop(bytes_for(&calls.config(), calls.ranks)?),
            Work::Proxy => (),
        }
    }
    Ok(steps)
}

struct Plan<'a, M> {
    args: &'a BenchArgs,
    most_sms: M,
}

impl<M: Fn(u32) -> u32> Plan<'_, M> {
    fn all(&self) -> Vec<Step> {
        let (args, ranks) = (self.args, self.args.ranks());
        let Some((&first, others)) = ranks.split_first() else { return Vec::new() };
        let tokens = args.or(&args.tokens, &[128, 4096], &[4, 16]);
        let most: Vec<u32> = tokens.iter().copied().max().into_iter().collect();
        let tokens = if args.quick { most.clone() } else { tokens };
        let few = |gpu: &[u32]| args.or(&args.few_tokens, gpu, &[1, 4]);
        let ends = few(&[1, 128]);
        let sms = |ranks, gpu: &[u32]| self.fitting(ranks, &args.or(&args.sms, gpu, &[1, 2]));
        // What most is measured with.
        let usual: Vec<u32> = sms(first, &[16]).last().copied().into_iter().collect();
        let fp8 = vec![ElementName::Fp8];

        let mut steps = Vec::new();
        let over: &[u32] = if args.quick { &[8, 16, 24] } else { &[4, 8, 16, 24, 32, 64] };
        let shape = ShapeArgs { tokens: tokens.clone(), sms: sms(first, over), ..self.shape(first) };
        steps.push(sweep("throughput", shape));
        let over = if args.quick { ends.clone() } else { few(&[1, 8, 32, 64, 128, 256]) };
        steps.push(latency("low latency", LatencyArgs { tokens: over, ..self.calls(first) }));
        let shape = ShapeArgs { tokens: tokens.clone(), sms: usual.clone(), ..self.shape(first) };
        steps.push(sweep("copy engines", ShapeArgs { forms: vec![Form::CopyEngine], ..shape }));
        steps.push(Step { name: "proxy".into(), work: Work::Proxy });
        for &ranks in others {
            let (tokens, sms) = (tokens.clone(), sms(ranks, &[8, 16]));
            steps.push(sweep("throughput", ShapeArgs { tokens, sms, ..self.shape(ranks) }));
            let tokens = if args.quick { ends.clone() } else { few(&[1, 32, 128]) };
            steps.push(latency("low latency", LatencyArgs { tokens, ..self.calls(ranks) }));
        }
        if args.quick {
            return steps;
        }

        let shape = |tokens: &[u32], sms: &[u32]| ShapeArgs {
            tokens: tokens.to_vec(),
            sms: sms.to_vec(),
            element: fp8.clone(),
            ..self.shape(first)
        };
        let forms = vec![Form::ByExpert, Form::Cached, Form::Plain];
        steps.push(sweep("forms", ShapeArgs { forms, ..shape(&tokens, &sms(first, &[16, 24])) }));
        let gate = vec![GateName::Zipf, GateName::One];
        steps.push(sweep("uneven routing", ShapeArgs { gate, ..shape(&most, &usual) }));
        if !ranks.contains(&1) {
            let tokens = few(&[1, 32, 128]);
            steps.push(latency("low latency", LatencyArgs { tokens, ..self.calls(1) }));
        }
        let calls = || LatencyArgs { tokens: ends.clone(), ..self.calls(first) };
        let fewer = LatencyArgs { sms: sms(first, &[16, 32]), ..calls() };
        steps.push(latency("fewer multiprocessors", fewer));
        let by_slot = LatencyArgs { summation: SummationName::BySlot, ..calls() };
        steps.push(latency("sums by slot", by_slot));
        let (dispatch, combine) = (DispatchName::Bf16, CombineName::Fp8);
        steps.push(latency("bf16 and fp8", LatencyArgs { dispatch, combine, ..calls() }));
        let (dispatch, combine) = (DispatchName::Fp8Ue8m0, CombineName::Log10);
        steps.push(latency("ue8m0 and log10", LatencyArgs { dispatch, combine, ..calls() }));
        if args.tokens.is_empty() && args.backend.is_gpu() {
            steps.push(sweep("over tokens", shape(&[16, 512, 1024, 2048, 8192], &usual)));
        }
        steps
    }

    /// What of a list a rank can have; of the default, at least all that it has.
    fn fitting(&self, ranks: u32, sms: &[u32]) -> Vec<u32> {
        let most = (self.most_sms)(ranks);
        let fitting: Vec<u32> = sms.iter().copied().filter(|sms| (1..=most).contains(sms)).collect();
        if fitting.is_empty() && self.args.sms.is_empty() { vec![most] } else { fitting }
    }

    /// A sweep in which `tokens` and `sms` are yet to be named.
    fn shape(&self, ranks: u32) -> ShapeArgs {
        let args = self.args;
        ShapeArgs {
            ranks,
            hidden: args.hidden,
            experts: args.experts,
            topk: args.topk,
            tokens: Vec::new(),
            sms: Vec::new(),
            element: vec![ElementName::Bf16, ElementName::Fp8],
            combined: HalfName::Bf16,
            gate: vec![GateName::Uniform],
            forms: vec![Form::RankMajor],
            alignment: 128,
            seed: args.seed,
            backend: args.backend.clone(),
            timeout: args.timeout,
            iterations: None,
            warmup: None,
            quick: args.quick && args.backend.is_gpu(),
            no_check: args.no_check,
            quiet: args.quiet,
        }
    }

    /// Low-latency calls of which `tokens` are yet to be named, on as many multiprocessors as the library takes.
    fn calls(&self, ranks: u32) -> LatencyArgs {
        let args = self.args;
        LatencyArgs {
            ranks,
            hidden: args.hidden,
            experts: args.experts,
            topk: args.topk,
            tokens: Vec::new(),
            sms: Vec::new(),
            dispatch: DispatchName::Fp8,
            combine: CombineName::Bf16,
            summation: SummationName::ByRank,
            gate: GateName::Uniform,
            seed: args.seed,
            backend: args.backend.clone(),
            timeout: args.timeout,
            iterations: None,
            weights: None,
            no_check: args.no_check,
            json: None,
            quiet: args.quiet,
        }
    }
}

fn sweep(name: &str, shape: ShapeArgs) -> Step {
    Step { name: format!("{name}, {}", counted(shape.ranks, "rank")), work: Work::Sweep(shape) }
}

fn latency(name: &str, calls: LatencyArgs) -> Step {
    Step { name: format!("{name}, {}", counted(calls.ranks, "rank")), work: Work::Latency(calls) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, ValueEnum};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn args(words: &str) -> BenchArgs {
        Cli::parse_from(["bench"].into_iter().chain(words.split_whitespace())).args
    }

    fn plan(words: &str, multiprocessors: u32) -> Result<Vec<Step>, Error> {
        steps(&args(words), |ranks| multiprocessors / ranks)
    }

    #[test]
    fn all_sections_come_before_more_of_any() -> Result<(), Error> {
        for words in ["", "--quick", "--backend cuda", "--backend cuda --quick --ranks 4,2,8"] {
            let steps = plan(words, 132)?;
            let first: Vec<Section> =
                steps[..4].iter().flat_map(|step| step.work.sections()).copied().collect();
            for section in Section::value_variants() {
                assert_eq!(first.iter().filter(|of| *of == section).count(), 1, "{words}: {section:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn nothing_is_swept_twice_and_quick_is_less() -> Result<(), Error> {
        let cells = |words: &str| -> Result<Vec<String>, Error> {
            let mut cells = Vec::new();
            for step in plan(words, 132)? {
                let Work::Sweep(shape) = step.work else { continue };
                for tokens in &shape.tokens {
                    for sms in &shape.sms {
                        for element in &shape.element {
                            let (form, gate) = (&shape.forms, &shape.gate);
                            cells.push(format!(
                                "{} {tokens} {sms} {element:?} {form:?} {gate:?}",
                                shape.ranks
                            ));
                        }
                    }
                }
            }
            Ok(cells)
        };
        let all = cells("--backend cuda")?;
        for (at, cell) in all.iter().enumerate() {
            assert!(!all[..at].contains(cell), "{cell}");
        }
        let quick = cells("--backend cuda --quick")?;
        assert!(quick.iter().all(|cell| all.contains(cell)) && 4 * quick.len() < all.len(), "{quick:?}");
        Ok(())
    }

    #[test]
    fn ranks_take_the_multiprocessors_that_they_have() -> Result<(), Error> {
        let of = |words: &str, multiprocessors: u32| -> Result<Vec<(u32, Vec<u32>)>, Error> {
            let words = format!("--backend cuda --quick --sections throughput {words}");
            let steps = plan(&words, multiprocessors)?.into_iter();
            let sms = steps.filter_map(|step| match step.work {
                Work::Sweep(shape) => Some((shape.ranks, shape.sms)),
                _ => None,
            });
            Ok(sms.collect())
        };
        assert_eq!(of("--ranks 8,16,2,8", 132)?, [(8, vec![8, 16]), (16, vec![8]), (2, vec![8, 16])]);
        assert_eq!(of("--ranks 2", 12)?, [(2, vec![6])]);
        assert_eq!(of("--ranks 2,4 --sms 3,20,40", 132)?, [(2, vec![3, 20, 40]), (4, vec![3, 20])]);
        let error = of("--ranks 2 --sms 67,0", 132).unwrap_err().to_string();
        assert!(error.contains("sms = [67, 0]") && error.contains("1 to 66"), "{error}");
        Ok(())
    }
}
