//! `tokenrail run`: makes the problem, lets the ranks solve it, reports.

use crate::args::RunArgs;
use crate::dump::Dump;
use crate::measure::{Repetitions, Times, copy_pieces};
use crate::meet::{Failure, all_ranks, print_failures};
use crate::progress::Progress;
use crate::rank::{self, Calls, Job, Outcome};
use crate::reference::Reference;
use crate::report;
use crate::workload::Workload;
use std::error::Error;
use std::time::{Duration, Instant};
use tokenrail::gpu::Description;
use tokenrail::tuning::{Operation, Tuning};
use tokenrail::{Backend, Group, Transport, bytes_for};

/// What the ranks run on, and how often.
pub struct Machine {
    /// Emulator or GPUs.
    pub backend: Backend,
    /// Each rank's.
    pub devices: Vec<Description>,
    /// How often to measure.
    pub repetitions: Repetitions,
}

/// Runs; true if everything is as it must be.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn run(args: &RunArgs) -> Result<bool, Box<dyn Error>> {
    let backend = args.backend.open(args.seed)?;
    let members = Group::in_process(args.ranks, &backend)?;
    let devices: Vec<Description> = members.iter().map(|member| member.gpu().description().clone()).collect();
    let mut repetitions = Repetitions { warmup: args.warmup, timed: args.iterations(), copy_pieces: 0 };

    let started = Instant::now();
    let calls = Calls::new(args, &devices[0])?;
    let progress = Progress::new(args.quiet);
    progress.part("drawing and routing tokens", 0);
    let mut workload = Workload::new(args)?;
    let asked = calls.dispatch_sms.max(calls.combine_sms).unwrap_or(0);
    workload.config.max_sms = workload.config.max_sms.max(asked);
    let dump = args.dump.as_deref().map(Dump::open).transpose()?;
    if matches!(backend, Backend::Cuda(_)) && devices.iter().all(|device| device.bulk_copy) {
        repetitions.copy_pieces = copy_pieces(bytes_for(&workload.config, args.ranks)?);
    }
    progress.part("computing the reference", 0);
    let reference = Reference::new(&workload);
    let prepared = started.elapsed();
    let machine = Machine { backend, devices, repetitions };

    progress.part("running the ranks", args.ranks * rank::steps(calls, repetitions));
    let job = Job { workload: &workload, reference: &reference, calls, repetitions, progress: &progress };
    let results = all_ranks(members, |member| rank::work(member, &job));
    progress.end();
    let ran = started.elapsed() - prepared;

    if !args.quiet {
        workload.notes.iter().for_each(|note| println!("note: {note}"));
        println!("{}", report::configuration(&workload, &machine, calls));
        println!("{}", report::traffic(&workload, &reference));
        println!("{}", report::load(&reference));
    }
    let Some(outcomes) = whole(&results) else {
        print_failures(&results);
        return Ok(false);
    };
    if !args.quiet {
        let times: Vec<&Times> = outcomes.iter().filter_map(|outcome| outcome.times.as_ref()).collect();
        if !times.is_empty() {
            println!("{}", report::times(&workload, &reference, &machine, &times));
        }
        println!("{}", elapsed(prepared, ran));
    }
    if let Some(dump) = dump {
        dump.write(&workload, &outcomes)?;
    }
    Ok(verdict(&outcomes))
}

impl Calls {
    fn new(args: &RunArgs, device: &Description) -> Result<Self, Box<dyn Error>> {
        let transport = if args.copy_engine { Transport::CopyEngine } else { Transport::Kernel };
        let mut calls = Self { transport, dispatch_sms: None, combine_sms: None, follow: args.follow };
        if let Some(path) = &args.tuning {
            let tuning = Tuning::load(path)?;
            let config = args.config(args.topk, args.hidden, args.tokens);
            let dispatch =
                if args.by_expert.is_some() { Operation::DispatchByExpert } else { Operation::Dispatch };
            let sms = |operation| tuning.sms(&device.name, operation, &config, args.ranks, args.tokens);
            (calls.dispatch_sms, calls.combine_sms) = (sms(dispatch), sms(Operation::Combine));
        }
        Ok(calls)
    }
}

/// What came out, if all ranks came to their end.
fn whole(results: &[Result<Outcome, Failure>]) -> Option<Vec<&Outcome>> {
    results.iter().map(|result| result.as_ref().ok()).collect()
}

fn elapsed(prepared: Duration, ran: Duration) -> String {
    let [prepared, ran] = [prepared, ran].map(|time| time.as_secs_f64());
    format!("took {prepared:.2} s for tokens, routing and reference, {ran:.2} s for the ranks")
}

/// Prints what differs; true if nothing does.
fn verdict(outcomes: &[&Outcome]) -> bool {
    let differences: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.differences).collect();
    if differences.is_empty() {
        println!("ok: every output of {} ranks equals the CPU reference, bit for bit", outcomes.len());
        return true;
    }
    for difference in &differences {
        eprintln!("error: {difference}");
    }
    println!("FAILED: {} tensors differ from the CPU reference", differences.len());
    false
}
