//! What runs under the checker: small, but every buffer is used again, and every way to call is there.

use crate::batches;
use crate::common::{self, Back, Calls, Where};
use tokenrail::gpu::EmulatorOptions;
use tokenrail::gpu::emulator_check::Checker;
use tokenrail::{
    Backend, CombineFormat, Config, DispatchFormat, Element, ExpertMajor, LowLatency, ScaleLayout, Summation,
    Transport,
};

/// An exchange that is compared with the reference, too.
pub struct Case {
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    Throughput(common::Case),
    LowLatency(batches::Case),
}

impl Case {
    /// Runs it on the machine that these options make.
    pub fn run(&self, checker: &Checker, options: EmulatorOptions) {
        let backend = Backend::Emulator(EmulatorOptions { checker: Some(checker.clone()), ..options });
        match &self.kind {
            Kind::Throughput(case) => common::check(case, &backend),
            Kind::LowLatency(case) => batches::check(case, &backend),
        }
    }
}

fn throughput(name: &'static str, config: Config, tokens: &[&[usize]], calls: Calls) -> Case {
    let case = common::Case { calls, ..common::Case::new(config, tokens, 5) };
    Case { name, kind: Kind::Throughput(case) }
}

fn low_latency(name: &'static str, case: batches::Case) -> Case {
    Case { name, kind: Kind::LowLatency(case) }
}

/// Two ranks, a block, and a row of the smallest size for each: the kernels' every step, in the least time. The quickest first.
pub fn smallest() -> Vec<Case> {
    let calls = Calls { sms: Some(1), ..Calls::default() };
    let config = Config::new(2, 1, 16, 1);
    let plain = Config { bulk_copy: Some(false), ..config.clone() };
    let batch = batches::config(2, 1, 16, LowLatency::new(1));
    let batch = batches::Case { sms: Some(1), mask_one_in: 0, ..batches::Case::new(batch, &[&[1, 1]]) };
    vec![
        low_latency("smallest, low latency", batch),
        throughput("smallest, plain", plain, &[&[1, 1]], calls),
        throughput("smallest, bulk", config, &[&[1, 1]], calls),
    ]
}

/// Every family, form and format.
pub fn all() -> Vec<Case> {
    let by_expert = Some(ExpertMajor { alignment: 4, rows: None });
    let rounds: &[&[usize]] = &[&[40, 33], &[38, 40]];
    // Two pieces of each partial row.
    let bulk = Config { element: Element::Fp8E4m3, ..Config::new(6, 3, 1040, 40) };
    let plain = Config { bulk_copy: Some(false), ..Config::new(6, 3, 64, 40) };
    let expanded = Config { expert_major: by_expert, ..Config::new(6, 3, 64, 40) };
    // More tokens than a block has threads.
    let expanded_plain =
        Config { expert_major: by_expert, bulk_copy: Some(false), ..Config::new(6, 3, 16, 140) };
    let followed = Config { handles: Some(3), in_flight: 2, sides: vec![4, 36], ..Config::new(6, 4, 64, 12) };
    let copied = Config { copy_engine: true, ..Config::new(6, 3, 64, 12) };
    let order = vec![0, 1, 1, 0, 0, 1, 0, 1, 2, 3, 2, 3, 3, 3, 2, 2];
    let batch = |low_latency: LowLatency, hidden| batches::config(7, 3, hidden, low_latency);
    let nine = LowLatency::new(9);
    let tokens: &[&[usize]] = &[&[9, 5], &[3, 9], &[9, 9], &[1, 2]];
    vec![
        throughput(
            "bulk",
            bulk,
            rounds,
            Calls { biases: 1, slots: Back::InPlace, sms: Some(3), ..Calls::default() },
        ),
        throughput(
            "plain",
            plain,
            rounds,
            Calls { slots: Back::Foreign, outputs: Where::Rows, tokens_on_device: true, ..Calls::default() },
        ),
        throughput("by expert", expanded, rounds, Calls { outputs: Where::ByExpert, ..Calls::default() }),
        throughput(
            "by expert, plain",
            expanded_plain,
            &[&[140, 133], &[2, 9]],
            Calls { outputs: Where::ByExpertGiven, slots: Back::Foreign, ..Calls::default() },
        ),
        throughput(
            "followed",
            followed,
            &[&[12, 7], &[5, 12], &[12, 12]],
            Calls { follow: 1, slots: Back::InPlace, ..Calls::default() },
        ),
        throughput(
            "copied",
            copied,
            &[&[12, 7], &[9, 12]],
            Calls { transport: Transport::CopyEngine, follow: 1, biases: 1, ..Calls::default() },
        ),
        low_latency("batches", batches::Case::new(batch(nine.clone(), 64), tokens)),
        low_latency(
            "batches in halves, in any order, FP8",
            batches::Case {
                order,
                halves: true,
                streams: true,
                tokens_on_device: true,
                ..batches::Case::new(
                    batch(
                        LowLatency {
                            depth: 2,
                            dispatch: DispatchFormat::Fp8,
                            combine: CombineFormat::Fp8,
                            ..nine.clone()
                        },
                        272,
                    ),
                    // As many as there is room for: dispatch loads ahead of the count.
                    &[&[9, 9], &[9, 9], &[9, 9], &[9, 9]],
                )
            },
        ),
        low_latency(
            "batches by slot, logarithmic",
            batches::Case::new(
                batch(
                    LowLatency {
                        dispatch: DispatchFormat::Fp8Ue8m0,
                        combine: CombineFormat::Log10,
                        scale_layout: ScaleLayout::ColumnMajor,
                        summation: Summation::BySlot,
                        ..nine.clone()
                    },
                    1040,
                ),
                tokens,
            ),
        ),
        low_latency(
            "batches without a combine",
            batches::Case { dropped_one_in: 1, halves: true, ..batches::Case::new(batch(nine, 64), tokens) },
        ),
    ]
}
