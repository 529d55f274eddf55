//! `tokenrail lanes`: every kernel as each compiler lane has made it, timed side by side in one run.

pub mod args;
mod family;
mod line;
mod local;
mod low_latency;
mod results;
mod throughput;
mod turns;

use crate::files::write_json;
use crate::meet::Failure;
use crate::progress::Progress;
use args::{Lane, LanesArgs};
use family::{Family, LEFT_OUT, Machine, Plan, Sizes, Workloads};
use line::{GOAL, Line};
use results::{LeftOut, Results, describe, print, slower};
use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::path::Path;
use tokenrail::Group;
use tokenrail::gpu::Description;
use turns::{Cell, Done, turns};

/// Of the JSON.
const VERSION: u32 = 1;
/// How many queues of a GPU the driver spreads a process's streams over.
const QUEUES: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
/// Failures after which what is left of a family is not tried.
const ENOUGH: usize = 2;

/// Times, prints and writes; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn lanes(args: &LanesArgs) -> Result<bool, Box<dyn Error>> {
    let (lanes, only) = (args.lanes()?, args.kernels()?);
    let sizes = match (args.is_gpu(), args.quick) {
        (true, false) => Sizes::FULL,
        (true, true) => Sizes::QUICK,
        (false, _) => Sizes::EMULATED,
    };
    let sizes = Sizes { repeat: args.repeat.unwrap_or(sizes.repeat), ..sizes };
    // Not used: they keep the devices open from one exchange to the next.
    let members = Group::in_process(args.ranks, &lanes[0].backend)?;
    let devices: Vec<_> = members.iter().map(|member| member.gpu().description().clone()).collect();
    let share = devices.iter().any(|device| device.ranks > 1);
    if args.is_gpu() && share && env::var_os(QUEUES).is_none() && !args.quiet {
        eprintln!("note: ranks share a GPU; without {QUEUES}=32 one may hold up another until it fails");
    }
    let plan = Plan { sizes, machine: machine(&devices), seed: args.seed };
    let mut comparison = Comparison::new(lanes, plan, &devices, Progress::new(args.quiet));
    comparison.all(&only, args.json.as_deref())?;
    let results = &comparison.results;
    print!("{}", print(results));
    Ok(results.failures.is_empty() && !(args.strict && slower(results).next().is_some()))
}

fn machine(devices: &[Description]) -> Machine {
    let of = |number: fn(&Description) -> u32| devices.iter().map(number).min().unwrap_or(1);
    Machine {
        ranks: devices.len() as u32,
        most_sms: of(|device| device.multiprocessors / device.ranks),
        default_sms: of(|device| device.default_sms.min(device.multiprocessors / device.ranks)),
        bulk_copy: devices.iter().all(|device| device.bulk_copy),
    }
}

/// A comparison under way.
struct Comparison {
    lanes: Vec<Lane>,
    plan: Plan,
    workloads: Workloads,
    progress: Progress,
    results: Results,
}

impl Comparison {
    fn new(lanes: Vec<Lane>, plan: Plan, devices: &[Description], progress: Progress) -> Self {
        let sizes = &plan.sizes;
        let results = Results {
            version: VERSION,
            tokenrail: env!("CARGO_PKG_VERSION"),
            backend: if devices.iter().any(|device| device.capability > 0) { "cuda" } else { "emulator" },
            devices: devices.iter().map(|device| format!("{} {}", device.name, device.ordinal)).collect(),
            lanes: lanes.iter().map(|lane| lane.name.clone()).collect(),
            hidden: sizes.hidden,
            experts: sizes.experts,
            topk: sizes.topk,
            repetitions: sizes.repeat,
            goal: GOAL,
            lines: Vec::new(),
            equal: 0,
            failures: Vec::new(),
            left_out: LEFT_OUT.map(|(kernel, why)| LeftOut { kernel, why }).into(),
        };
        Self { lanes, plan, workloads: Workloads::default(), progress, results }
    }

    /// Times everything, or the lines with these kernels alone. What is there is written after each family.
    fn all(&mut self, only: &[&str], json: Option<&Path>) -> Result<(), Box<dyn Error>> {
        let wanted =
            |kernels: &[&'static str]| only.is_empty() || kernels.iter().any(|kernel| only.contains(kernel));
        let mut families = self.plan.families();
        families.retain(|family| family.parts.iter().any(|part| wanted(&part.kernels)));
        let steps = families.iter().map(|family| family.ranks.0 * family.cells.len() as u32).sum();
        self.progress.part("taking turns", steps);
        for family in &families {
            self.family(family, &wanted);
            if let Some(path) = json {
                write_json("--json", path, &self.results)?;
            }
        }
        self.progress.end();
        Ok(())
    }

    /// Times one family. A size that fails is left out, and the others are tried with new buffers.
    fn family(&mut self, family: &Family, wanted: Wanted) {
        let (mut left, mut failures) = (&family.cells[..], 0);
        while !left.is_empty() && failures < ENOUGH {
            let (done, why) =
                self.turns(family, left).unwrap_or_else(|error| (Vec::new(), error.to_string()));
            for (&cell, done) in left.iter().zip(&done) {
                self.collect(family, cell, done, wanted);
            }
            left = &left[done.len()..];
            let Some((&cell, rest)) = left.split_first() else { break };
            self.fail(family, cell, &why);
            (left, failures) = (rest, failures + 1);
        }
        left.iter().for_each(|&cell| self.fail(family, cell, "not tried, as others before it failed"));
    }

    /// What came of these sizes, and why not of all of them.
    fn turns(&mut self, family: &Family, cells: &[Cell]) -> Result<(Vec<Done>, String), Box<dyn Error>> {
        let suite = family.suite(&self.plan, &mut self.workloads, self.lanes.len())?;
        let repeat = self.plan.sizes.repeat;
        let turned = turns(&self.lanes, family.ranks, &*suite, cells, repeat, &self.progress)?;
        Ok((turned.done, causes(&turned.ends)))
    }

    fn fail(&mut self, family: &Family, cell: Cell, why: &str) {
        for subject in family.subjects(cell) {
            self.results.failures.push(format!("{}: {why}", describe(&subject)));
        }
    }

    /// Makes lines of what was timed, and compares what the lanes have left.
    fn collect(&mut self, family: &Family, cell: Cell, done: &Done, wanted: Wanted) {
        let results = &mut self.results;
        for (subject, medians) in family.subjects(cell).zip(&done.medians) {
            if !wanted(&subject.kernels) {
                continue;
            }
            let lanes: Vec<_> =
                results.lanes.iter().map(String::as_str).zip(medians.iter().cloned()).collect();
            results.lines.extend(Line::new(subject, &lanes));
        }
        let differs = done.digests.iter().position(|digests| *digests != done.digests[0]);
        match (differs, family.subjects(cell).next()) {
            (Some(lane), Some(subject)) => {
                let [first, other] = [&results.lanes[0], &results.lanes[lane]];
                let which = describe(&subject);
                results.failures.push(format!("{which}: the results of {first} and {other} differ"));
            }
            _ => results.equal += 1,
        }
    }
}

/// Whether lines with these kernels are asked for.
type Wanted<'a> = &'a dyn Fn(&[&'static str]) -> bool;

/// What ranks say, each thing once.
fn causes(ends: &[Result<(), Failure>]) -> String {
    let own = ends.iter().filter_map(|end| match end {
        Err(Failure::Own(error)) => Some(error.to_string()),
        _ => None,
    });
    Vec::from_iter(own.collect::<BTreeSet<_>>()).join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use line::{REFERENCE, Timed};
    use tokenrail::Backend;

    /// Two emulated machines, of which the second stands for the reference.
    fn comparison() -> Comparison {
        let lanes = [("nvvm", 1), (REFERENCE, 2)]
            .map(|(name, seed)| Lane { name: name.into(), backend: Backend::emulator(seed) });
        let members = Group::in_process(2, &lanes[0].backend).unwrap();
        let devices: Vec<_> = members.iter().map(|member| member.gpu().description().clone()).collect();
        let plan = Plan { sizes: Sizes::EMULATED, machine: machine(&devices), seed: 0 };
        Comparison::new(lanes.into(), plan, &devices, Progress::new(true))
    }

    #[test]
    fn lanes_take_turns_and_are_compared() {
        let mut comparison = comparison();
        comparison.all(&["tokenrail_combine", "tokenrail_combine_across"], None).unwrap();
        let results = &comparison.results;
        assert!(results.failures.is_empty() && results.equal > 0, "{:?}", results.failures);
        for line in &results.lines {
            assert!(line.subject.kernels.iter().any(|kernel| kernel.starts_with("tokenrail_combine")));
            let [Timed { against: Some(against), repetitions, .. }, Timed { against: None, .. }] =
                &line.lanes[..]
            else {
                panic!("{line:?}");
            };
            assert_eq!(repetitions.len(), 2);
            let is_judged = !line.subject.operation.contains("across");
            assert!(against.ratio > 0.0 && against.verdict.is_some() == is_judged, "{line:?}");
        }
        let text = print(results);
        for words in
            ["nvvm/nvcc", "nvvm: of ", "(reduce, combine)", "and are not judged", "of 2 lanes are equal"]
        {
            assert!(text.contains(words), "{words:?} is not in: {text}");
        }
    }

    #[test]
    fn results_that_differ_are_told() {
        let mut comparison = comparison();
        let family = comparison.plan.families().swap_remove(0);
        let done = Done { medians: vec![vec![vec![1.0]; 2]], digests: vec![vec![1, 2], vec![1, 3]] };
        comparison.collect(&family, family.cells[0], &done, &|_| true);
        let results = &comparison.results;
        assert_eq!((results.lines.len(), results.equal), (1, 0));
        assert!(
            print(results).contains("FAILED: layout, ranks 1, tokens 6: the results of nvvm and nvcc differ")
        );
    }

    #[test]
    fn what_cannot_be_is_told_and_the_rest_is_timed() {
        let mut comparison = comparison();
        // Low-latency rows of FP8 are multiples of 16 bytes.
        comparison.plan.sizes.hidden = 24;
        comparison.all(&["tokenrail_low_latency_dispatch"], None).unwrap();
        let results = &comparison.results;
        assert!(results.failures.iter().any(|failure| failure.contains("dispatch fp8, send")), "{results:?}");
        assert!(results.lines.iter().all(|line| line.subject.operation.contains("dispatch bf16")));
        assert!(!results.lines.is_empty());
    }
}
