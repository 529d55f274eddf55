//! `tokenrail sweep`: throughput over multiprocessors, tokens, elements, routings and forms.

pub mod args;
pub mod rank;
mod row;
mod sample;

pub use row::{Results, Row, Spread, slowest};

use crate::choices::{ElementName, GateName};
use crate::files;
use crate::measure::{Repetitions, Times, copy_pieces};
use crate::meet::{all_ranks, print_failures};
use crate::progress::Progress;
use crate::workload::{Source, Workload};
use args::{Form, ShapeArgs, SweepArgs};
use clap::ValueEnum;
use rank::{Cell, Job, Outcome};
use row::{CopyRow, Crossing, copy_row};
use std::error::Error;
use tokenrail::gpu::Description;
use tokenrail::tuning::{Operation, Tuning};
use tokenrail::{Backend, Config, Group, Member};

/// Of the JSON.
const VERSION: u32 = 1;
/// Bytes that a ceiling's copy moves at least on a GPU, and on the emulator.
const COPY_BYTES: (u64, u64) = (256 << 20, 1 << 17);

/// Sweeps, prints and writes; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable. What goes wrong on a rank is printed.
pub fn sweep(args: &SweepArgs) -> Result<bool, Box<dyn Error>> {
    let tuning = args.tuning.as_deref().map(Tuning::load).transpose()?;
    let mut sweep = Sweep::new(&args.shape, 1, Progress::new(args.shape.quiet))?;
    let well = sweep.all(tuning.as_ref(), &mut |results| match &args.json {
        Some(path) => files::write_json("--json", path, results),
        None => Ok(()),
    })?;
    print!("{}", row::print(&sweep.results));
    Ok(verdict(&sweep, well))
}

/// Tells of what was compared; true if all is well.
pub fn verdict(sweep: &Sweep, well: bool) -> bool {
    let compared: usize = sweep.results.rows.iter().map(|row| row.compared).sum();
    match (well, sweep.args.no_check) {
        (false, _) => println!("FAILED: see above"),
        (true, true) => println!("nothing was compared with the CPU reference"),
        (true, false) => println!("ok: {compared} combined rows equal the CPU reference, bit for bit"),
    }
    well
}

/// What is done with the results so far.
pub type After<'a> = dyn FnMut(&Results) -> Result<(), Box<dyn Error>> + 'a;

/// A sweep under way.
pub struct Sweep<'a> {
    args: &'a ShapeArgs,
    backend: Backend,
    devices: Vec<Description>,
    /// Not used: they keep the devices open from one exchange to the next.
    _members: Vec<Member>,
    /// Multiprocessors of the list that a rank can have.
    sms: Vec<u32>,
    repetitions: Repetitions,
    /// How often to measure everything, each time with an exchange of its own.
    runs: u32,
    progress: Progress,
    /// So far.
    pub results: Results,
    /// Bytes of rows and scales of each element's and gate's dispatch of the most tokens, `[from][to]`.
    pub traffic: Vec<(ElementName, GateName, Vec<Vec<u64>>)>,
}

impl<'a> Sweep<'a> {
    /// Looks at the devices, and at what of the settings can be seen to be wrong before anything long. Everything is to be
    /// measured `runs` times, and has as many rows.
    ///
    /// # Errors
    /// Settings or devices that are not usable.
    pub fn new(args: &'a ShapeArgs, runs: u32, progress: Progress) -> Result<Self, Box<dyn Error>> {
        args.check()?;
        let backend = args.backend.open(args.seed)?;
        let members = Group::in_process(args.ranks, &backend)?;
        let devices: Vec<Description> =
            members.iter().map(|member| member.gpu().description().clone()).collect();
        let most = devices.iter().map(|device| device.multiprocessors / device.ranks).min().unwrap_or(0);
        let (sms, without): (Vec<u32>, Vec<u32>) =
            args.sms.iter().partition(|&&sms| (1..=most).contains(&sms));
        if !without.is_empty() && !args.quiet {
            eprintln!("note: {without:?} multiprocessors are left out: a rank can have 1 to {most} here");
        }
        if sms.is_empty() {
            let value = format!("{:?}", args.sms);
            let limit = format!("a rank can have 1 to {most} multiprocessors here");
            return Err(tokenrail::Error::Config { field: "sms", value, limit }.into());
        }
        let (timed, warmup) = args.repetitions();
        let bulk_copy = devices.iter().all(|device| device.bulk_copy);
        let copy_bytes = if args.backend.is_gpu() { COPY_BYTES.0 } else { COPY_BYTES.1 };
        let copy_pieces = if bulk_copy { copy_pieces(copy_bytes) } else { 0 };
        let mut ordinals: Vec<usize> = devices.iter().map(|device| device.ordinal).collect();
        ordinals.sort_unstable();
        ordinals.dedup();
        let results = Results {
            version: VERSION,
            tokenrail: env!("CARGO_PKG_VERSION"),
            backend: if args.backend.is_gpu() { "cuda" } else { "emulator" },
            lane: args.backend.lane.clone(),
            devices: devices.iter().map(|device| format!("{} {}", device.name, device.ordinal)).collect(),
            gpus: ordinals.len(),
            ranks: args.ranks,
            hidden: args.hidden,
            experts: args.experts,
            topk: args.topk,
            combined: name_of(args.combined),
            seed: args.seed,
            iterations: timed,
            warmup,
            copies: Vec::new(),
            rows: Vec::new(),
        };
        let repetitions = Repetitions { warmup, timed, copy_pieces };
        Ok(Self {
            args,
            backend,
            devices,
            _members: members,
            sms,
            repetitions,
            runs,
            progress,
            results,
            traffic: Vec::new(),
        })
    }

    /// The first rank's device.
    pub fn device(&self) -> &Description {
        &self.devices[0]
    }

    /// Everything that was asked for; `after` is given the results so far each time that there are more. True if all
    /// ranks came to an end and nothing differs.
    ///
    /// # Errors
    /// Settings that are not possible, and what `after` says.
    pub fn all(&mut self, tuning: Option<&Tuning>, after: &mut After) -> Result<bool, Box<dyn Error>> {
        let mut well = true;
        let args = self.args;
        for &gate in &args.gate {
            for &element in &args.element {
                self.progress.part("drawing and routing tokens", 0);
                let source =
                    Source { ranks: args.ranks, gate, seed: args.seed, uneven: false, mask_one_in: 0 };
                let mut workload = Workload::draw(args.config(element, Form::RankMajor)?, &source)?;
                // What is dispatched has been made of them.
                workload.x.clear();
                let bytes = row::dispatched_row_bytes(&workload.config);
                let between = row::rows_between(&workload, args.most_tokens()?);
                let between = between.iter().map(|to| to.iter().map(|rows| rows * bytes).collect()).collect();
                self.traffic.push((element, gate, between));
                for &form in &args.forms {
                    well &= self.one(&workload, (gate, element, form), tuning)?;
                    after(&self.results)?;
                }
            }
        }
        self.progress.end();
        Ok(well)
    }

    /// What is measured with one exchange.
    fn one(
        &mut self,
        workload: &Workload,
        (gate, element, form): (GateName, ElementName, Form),
        tuning: Option<&Tuning>,
    ) -> Result<bool, Box<dyn Error>> {
        let config = self.args.config(element, form)?;
        let cells = self.cells(&config, form, tuning);
        let all_sms = || cells.iter().flat_map(|cell| [cell.dispatch_sms, cell.combine_sms]);
        let most = all_sms().max().unwrap_or(1);
        let config = Config { sms: Some(most.min(self.device().default_sms)), max_sms: most, ..config };
        let config = with_room(workload, config);
        let samples = if self.args.no_check { Vec::new() } else { sample::samples(workload, &config) };
        let mut ceilings: Vec<u32> =
            all_sms().filter(|sms| self.results.copies.iter().all(|copy| copy.sms != *sms)).collect();
        ceilings.sort_unstable();
        ceilings.dedup();

        self.progress.part("measuring", self.runs * self.args.ranks * cells.len() as u32);
        let job = Job {
            workload,
            samples: &samples,
            config: &config,
            form,
            cells: &cells,
            ceilings: &ceilings,
            repetitions: self.repetitions,
            progress: &self.progress,
        };
        let name = format!("{} {} {}", name_of(element), form.name(), name_of(gate));
        let mut results = Vec::new();
        for _ in 0..self.runs {
            let members = Group::in_process(self.args.ranks, &self.backend)?;
            let of_run = all_ranks(members, |member| rank::work(member, &job));
            if of_run.iter().any(|result| result.is_err()) {
                eprintln!("error: {name}:");
                print_failures(&of_run);
                return Ok(false);
            }
            results.push(of_run);
        }
        let mut well = true;
        for of_run in &results {
            let outcomes: Vec<&Outcome> = of_run.iter().flatten().collect();
            self.collect(workload, &config, (gate, element, form), &cells, &outcomes);
            for difference in outcomes.iter().flat_map(|outcome| &outcome.differences) {
                eprintln!("error: {name}: {difference}");
                well = false;
            }
        }
        Ok(well)
    }

    /// What to measure, tuned or by the list.
    fn cells(&self, config: &Config, form: Form, tuning: Option<&Tuning>) -> Vec<Cell> {
        let (args, device) = (self.args, self.device());
        let most = self.devices.iter().map(|device| device.multiprocessors / device.ranks).min().unwrap_or(1);
        let cells = args.tokens.iter().flat_map(|&tokens| {
            let both = |sms| Cell { tokens, dispatch_sms: sms, combine_sms: sms };
            let Some(tuning) = tuning else { return self.sms.iter().map(|&sms| both(sms)).collect() };
            let tuned = |operation| {
                let sms = tuning.sms(&device.name, operation, config, args.ranks, tokens);
                sms.unwrap_or(device.default_sms).min(most)
            };
            let (dispatch_sms, combine_sms) = (tuned(form.dispatch()), tuned(Operation::Combine));
            vec![Cell { tokens, dispatch_sms, combine_sms }]
        });
        cells.collect()
    }

    fn collect(
        &mut self,
        workload: &Workload,
        config: &Config,
        (gate, element, form): (GateName, ElementName, Form),
        cells: &[Cell],
        outcomes: &[&Outcome],
    ) {
        if let Some(first) = outcomes.first() {
            let rows = first.copies.keys().filter_map(|&sms| {
                let ranks: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.copies.get(&sms)).collect();
                copy_row(sms, self.repetitions.copy_pieces, &ranks)
            });
            let rows: Vec<CopyRow> = rows.collect();
            self.results.copies.extend(rows);
        }
        for (at, cell) in cells.iter().enumerate() {
            let crossing = Crossing::new(workload, &self.devices, cell.tokens);
            let times: Vec<&Times> = outcomes.iter().map(|outcome| &outcome.times[at]).collect();
            let both = crossing.both(config, cell, &times, &self.results.copies);
            let Some((dispatch, combine)) = both else { continue };
            self.results.rows.push(Row {
                element: name_of(element),
                form,
                gate: name_of(gate),
                tokens: cell.tokens,
                dispatch,
                combine,
                compared: outcomes.iter().map(|outcome| outcome.compared[at]).sum(),
            });
        }
    }
}

/// As many expert-major rows as the routing takes: the most there could be would not fit a GPU for long batches.
pub fn with_room(workload: &Workload, config: Config) -> Config {
    let Some(form) = config.expert_major else { return config };
    let placement = &workload.placement;
    let mut pairs = vec![0u32; placement.experts()];
    let slots = workload.batches.iter().flat_map(|batch| &batch.topk_idx);
    slots.filter_map(|&expert| usize::try_from(expert).ok()).for_each(|expert| pairs[expert] += 1);
    let rows = |rank: usize| {
        let own = &pairs[placement.experts_of(rank)];
        own.iter().map(|count| count.next_multiple_of(form.alignment.max(1))).sum::<u32>()
    };
    let rows = (0..placement.ranks()).map(rows).max();
    Config { expert_major: Some(tokenrail::ExpertMajor { rows, ..form }), ..config }
}

/// A choice as it is written on the command line.
pub fn name_of(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
