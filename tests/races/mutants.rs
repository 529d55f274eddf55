//! Every operation that orders something, made to order less: whatever is needed has to be missed.

use crate::cases::{self, Case};
use crate::on_all_cores;
use std::collections::BTreeMap;
use std::fs;
use tokenrail::gpu::EmulatorOptions;
use tokenrail::gpu::emulator_check::{Checker, Finding, Mutant, Site, Weakness};

/// Which operation, by what does not change with every edit: its file, the function and the line's text.
pub type Place = (String, String, String);

pub fn place_of(site: &Site) -> Place {
    let source = fs::read_to_string(&site.file).expect("the source of what is tested");
    let lines: Vec<_> = source.lines().take(site.line as usize).map(str::trim).collect();
    let name = |line: &&str| Some(line.split_once("fn ")?.1.split(['(', '<']).next()?.to_owned());
    let is_heading =
        |line: &&&str| !line.starts_with("//") && (line.starts_with("fn ") || line.contains(" fn "));
    let function = lines.iter().rev().filter(is_heading).find_map(name).unwrap_or_default();
    let file = site.file.trim_start_matches("device/src/").to_owned();
    (file, function, lines.last().copied().unwrap_or_default().to_owned())
}

fn options() -> EmulatorOptions {
    EmulatorOptions { seed: 1, preempt_one_in: 16, ..EmulatorOptions::default() }
}

/// All that can be made weaker, each with the cases in which it runs.
pub fn mutants(cases: &[Case]) -> Vec<(Mutant, Vec<&Case>)> {
    let of_cases = on_all_cores(cases, |case| {
        let checker = Checker::new();
        case.run(&checker, options());
        assert_eq!(checker.findings(), [], "{}", case.name);
        (case, checker.mutants())
    });
    let mut all: BTreeMap<(Site, Weakness), Vec<&Case>> = BTreeMap::new();
    for (case, mutants) in of_cases {
        mutants
            .into_iter()
            .for_each(|Mutant { site, weakness }| all.entry((site, weakness)).or_default().push(case));
    }
    all.into_iter().map(|((site, weakness), cases)| (Mutant { site, weakness }, cases)).collect()
}

/// What is found of a mutant.
pub fn findings_of(mutant: &Mutant, case: &Case) -> Vec<Finding> {
    let checker = Checker::of_mutant(mutant.clone());
    case.run(&checker, options());
    checker.findings()
}

#[test]
fn whatever_is_needed_is_missed() {
    let cases = cases::all();
    let all = mutants(&cases);
    let found = on_all_cores(&all, |(mutant, cases)| {
        let is_found = cases.iter().any(|case| !findings_of(mutant, case).is_empty());
        (mutant.clone(), is_found)
    });
    let mut survivors: Vec<_> = found
        .into_iter()
        .filter(|(_, is_found)| !is_found)
        .map(|(Mutant { site, weakness }, _)| (place_of(&site), weakness))
        .collect();
    survivors.sort();
    println!("{} mutants, {} of which nobody misses", all.len(), survivors.len());
    for ((file, function, line), weakness) in survivors {
        println!("    ({file:?}, {function:?}, {line:?}, {weakness:?}),");
    }
}
