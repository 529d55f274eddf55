//! The kernels under the emulator's checker: nothing may race, and nothing unwritten be read, in any schedule.

mod common;
#[path = "common/low_latency.rs"]
mod low_latency;

use common::{Calls, Case, Where, input};
use tokenrail::gpu::EmulatorOptions;
use tokenrail::gpu::emulator_check::{Checker, Mutant};
use tokenrail::{Backend, Config, Element, ExpertMajor, LowLatency};

fn backend(seed: u64, checker: &Checker) -> Backend {
    let checker = Some(checker.clone());
    Backend::Emulator(EmulatorOptions { seed, preempt_one_in: 16, checker, ..EmulatorOptions::default() })
}

fn is_clean(what: &str, run: impl Fn(&Backend)) {
    let checker = Checker::new();
    run(&backend(1, &checker));
    let findings = checker.findings();
    let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{what}: {} findings\n{}", told.len(), told.join("\n"));
}

#[test]
fn throughput() {
    let tokens: &[&[usize]] = &[&[9, 5], &[7, 8]];
    let config = Config { element: Element::Fp8E4m3, ..Config::new(6, 3, 272, 9) };
    is_clean("bulk", |backend| common::check(&Case::new(config.clone(), tokens, 5), backend));
}

#[test]
fn throughput_plain() {
    let tokens: &[&[usize]] = &[&[9, 5], &[7, 8]];
    let config = Config { bulk_copy: Some(false), ..Config::new(6, 3, 64, 9) };
    is_clean("plain", |backend| common::check(&Case::new(config.clone(), tokens, 5), backend));
}

#[test]
fn throughput_by_expert() {
    let tokens: &[&[usize]] = &[&[9, 5], &[7, 8]];
    let by_expert = Some(ExpertMajor { alignment: 4, rows: None });
    let config = Config { expert_major: by_expert, ..Config::new(6, 3, 64, 9) };
    let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
    let case = Case { calls, ..Case::new(config, tokens, 5) };
    is_clean("by expert", |backend| common::check(&case, backend));
}

#[test]
fn low_latency_calls() {
    let case = low_latency::Case::new(
        low_latency::config(8, 2, 64, LowLatency::new(9)),
        &[&[9, 5], &[3, 9], &[9, 9], &[1, 2]],
    );
    is_clean("low latency", |backend| low_latency::check(&case, backend));
}

/// Runs a case as it is, then once for each way to weaken an operation that it has: gives the mutants that nothing was found
/// of.
fn survivors(run: impl Fn(&Backend)) -> (usize, Vec<Mutant>) {
    let checker = Checker::new();
    run(&backend(1, &checker));
    assert_eq!(checker.findings(), []);
    let mutants = checker.mutants();
    let survives = |mutant: &Mutant| {
        let checker = Checker::of_mutant(mutant.clone());
        run(&backend(1, &checker));
        checker.findings().is_empty()
    };
    let survivors = mutants.iter().filter(|mutant| survives(mutant)).cloned().collect();
    (mutants.len(), survivors)
}

#[test]
fn print_survivors() {
    let tokens: &[&[usize]] = &[&[9, 5], &[7, 8], &[8, 9]];
    let config = Config { element: Element::Fp8E4m3, ..Config::new(6, 3, 272, 9) };
    let (all, left) = survivors(|backend| common::check(&Case::new(config.clone(), tokens, 5), backend));
    println!("throughput: {} of {all} survive", left.len());
    left.iter().for_each(|mutant| println!("  {mutant}"));
    let config = Config { bulk_copy: Some(false), ..Config::new(6, 3, 64, 9) };
    let (all, left) = survivors(|backend| common::check(&Case::new(config.clone(), tokens, 5), backend));
    println!("plain: {} of {all} survive", left.len());
    left.iter().for_each(|mutant| println!("  {mutant}"));
    let by_expert = Some(ExpertMajor { alignment: 4, rows: None });
    let config = Config { expert_major: by_expert, ..Config::new(6, 3, 64, 9) };
    let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
    let case = Case { calls, ..Case::new(config, tokens, 5) };
    let (all, left) = survivors(|backend| common::check(&case, backend));
    println!("by expert: {} of {all} survive", left.len());
    left.iter().for_each(|mutant| println!("  {mutant}"));
    let case = low_latency::Case::new(
        low_latency::config(8, 2, 64, LowLatency::new(9)),
        &[&[9, 5], &[3, 9], &[9, 9], &[1, 2]],
    );
    let (all, left) = survivors(|backend| low_latency::check(&case, backend));
    println!("low latency: {} of {all} survive", left.len());
    left.iter().for_each(|mutant| println!("  {mutant}"));
}
