//! Many schedules: by chance, and gone through one by one. What orders accesses hardly depends on the schedule, so that most of
//! them are of the smallest exchanges.

use crate::cases::{self, Case};
use crate::on_all_cores;
use std::time::Instant;
use tokenrail::gpu::emulator_check::Checker;
use tokenrail::gpu::{EmulatorOptions, EmulatorScript};

/// Schedules by chance, unless TOKENRAIL_RACES says another number. One is a run of a case under a seed.
const BY_CHANCE: usize = 3_600;
/// One in so many of them is of a larger case.
const LARGE_ONE_IN: usize = 75;
/// Where the first of two preemptions may be, and the second: among the first points of a run.
const PAIRED_POINTS: u64 = 96;

/// Panics if anything is found in this schedule.
fn is_clean(case: &Case, options: EmulatorOptions) {
    let checker = Checker::new();
    let which = format!("{}, seed {}, {:?}", case.name, options.seed, options.script);
    case.run(&checker, options);
    let told: Vec<_> = checker.findings().iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{which}: {} findings\n{}", told.len(), told.join("\n"));
}

/// Runs these, and says how many there were.
fn all_are_clean<T: Sync>(what: &str, schedules: &[T], run: impl Fn(&T) + Sync) {
    let start = Instant::now();
    on_all_cores(schedules, run);
    println!("{} schedules {what}, in {:.0?}", schedules.len(), start.elapsed());
}

#[test]
fn by_chance() {
    let count = std::env::var("TOKENRAIL_RACES").map_or(BY_CHANCE, |text| {
        text.parse().unwrap_or_else(|_| panic!("TOKENRAIL_RACES = {text}: must be a number"))
    });
    let (smallest, large) = (cases::smallest(), cases::all());
    let schedules: Vec<_> = (0..count)
        .map(|number| {
            let nth = number / LARGE_ONE_IN;
            match number % LARGE_ONE_IN {
                0 => (&large[nth % large.len()], number),
                // The batch is by far the quickest.
                1..5 => (&smallest[1 + number % 2], number),
                _ => (&smallest[0], number),
            }
        })
        .collect();
    all_are_clean("by chance", &schedules, |&(case, number)| {
        let seed = number as u64;
        is_clean(case, EmulatorOptions { seed, preempt_one_in: 16, ..EmulatorOptions::default() });
    });
}

fn run_script(case: &Case, preempt_at: &[u64]) -> u64 {
    let script = EmulatorScript::new(preempt_at);
    is_clean(case, EmulatorOptions { script: Some(script.clone()), ..EmulatorOptions::default() });
    script.points()
}

/// One preemption, anywhere: all such schedules of the two quickest. The run without any says how many points there are.
#[test]
fn with_one_preemption() {
    let cases = cases::smallest();
    let schedules: Vec<_> = cases[..2]
        .iter()
        .flat_map(|case| {
            let points = run_script(case, &[]);
            assert_eq!(run_script(case, &[]), points, "{}: runs of a script repeat", case.name);
            (0..points).map(move |point| (case, point))
        })
        .collect();
    all_are_clean("with one preemption", &schedules, |&(case, point)| _ = run_script(case, &[point]));
}

#[test]
fn with_two_preemptions() {
    let cases = cases::smallest();
    let pairs: Vec<_> = (0..PAIRED_POINTS).flat_map(|b| (0..b).map(move |a| [a, b])).collect();
    all_are_clean("with two preemptions", &pairs, |pair| _ = run_script(&cases[0], pair));
}
