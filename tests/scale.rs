//! The model behind docs/scale.md and `examples/scale.rs`, tested here because `cargo test` leaves out tests in examples.

#[allow(dead_code, reason = "the example uses all of it")]
#[path = "../examples/scale/mod.rs"]
mod scale;

use scale::published::{Row, Source};
use scale::routing::Gating;
use scale::settings::{MODES, Settings};
use scale::tables;
use scale::time::{Copies, Machine, Mode, Payload, Resource, Work, estimate};
use scale::validation::{self, Summary};

fn work(ranks: u32, gating: Gating, payload: Payload, mode: Mode) -> Work {
    let tokens = if mode == Mode::Throughput { 4096 } else { 128 };
    Work { ranks, tokens, hidden: 7168, topk: 8, experts: ranks.max(256), gating, payload, mode }
}

#[test]
fn from_32_ranks_on_the_nic_is_the_bottleneck() {
    for payload in Payload::ALL {
        for ranks in [32, 64, 128, 256, 512, 1024] {
            for mode in [Mode::Throughput, Mode::LowLatency(Copies::PerRank)] {
                let estimate = estimate(&work(ranks, Gating::Uniform, payload, mode), &Machine::H100);
                assert_eq!(estimate.bottleneck(), Resource::Nic, "EP{ranks} {payload:?} {mode:?}");
            }
        }
    }
}

#[test]
fn time_grows_with_ranks_but_less_and_less() {
    let time = |ranks| {
        estimate(&work(ranks, Gating::Uniform, Payload::Combine, Mode::Throughput), &Machine::H100).total()
    };
    let steps: Vec<f64> = (4..11).map(|power| time(2 << power) / time(1 << power)).collect();
    assert!(steps.iter().all(|step| *step > 1.0), "{steps:?}");
    assert!(steps.is_sorted_by(|a, b| a > b), "{steps:?}");
}

#[test]
fn a_limit_of_nodes_keeps_its_worth_and_a_limit_of_groups_loses_it() {
    let time = |ranks, gating| {
        estimate(&work(ranks, gating, Payload::Fp8Dispatch, Mode::Throughput), &Machine::H100).total()
    };
    let gain = |ranks, gating| time(ranks, Gating::Uniform) / time(ranks, gating);
    let (nodes, groups) = (Gating::Nodes { top: 4 }, Gating::Groups { groups: 8, top: 4 });
    // The two are one where there are 8 nodes.
    assert!((gain(64, nodes) - gain(64, groups)).abs() < 1e-12);
    assert!(gain(64, nodes) > 1.3);
    assert!(gain(2048, nodes) > 1.8);
    assert!(gain(256, groups) < 1.15);
    assert!(gain(2048, groups) < 1.05);
}

#[test]
fn a_slow_proxy_is_the_bottleneck() {
    let mut machine = Machine::H100;
    machine.proxy.as_mut().unwrap().posts = 2.0;
    let estimate = |machine: &Machine| {
        let mode = Mode::LowLatency(Copies::PerRank);
        estimate(&work(256, Gating::Uniform, Payload::Fp8Dispatch, mode), machine)
    };
    assert_eq!(estimate(&machine).bottleneck(), Resource::Proxy);
    // At just the rate that is needed, the proxy takes as long as the NIC.
    machine.proxy.as_mut().unwrap().posts = estimate(&machine).posts_needed();
    let even = estimate(&machine);
    assert!((even.time(Resource::Proxy) / even.time(Resource::Nic) - 1.0).abs() < 1e-9);
}

/// docs/scale.md gives these figures in tables of its own, with a minus sign for a hyphen.
#[test]
fn figures_in_the_docs_are_the_models() {
    let docs = include_str!("../docs/scale.md").replace('\u{2212}', "-");
    let mut quoted = Vec::new();
    let checks = validation::checks();
    let mut errors = |wanted: &dyn Fn(&Row) -> bool| {
        let Summary { count, mean, worst } = validation::summary(&checks, wanted);
        quoted.push(format!("| {count} | {:.1} % | {} |", 100.0 * mean, tables::percent(worst)));
    };
    errors(&|row| row.fitted);
    errors(&|row| !row.fitted);
    for source in Source::ALL {
        errors(&|row| row.source == source && !row.fitted);
    }
    let settings = Settings::default();
    let few = Settings { tokens: settings.low_latency_tokens, ..settings.clone() };
    let [any, groups, nodes] = settings.gatings().map(|(gating, _)| gating);
    let [two_levels, straight] = MODES;
    for ranks in [16, 64, 256, 2048] {
        let cells = |settings: &Settings, wanted: &[(Gating, Mode)]| {
            let cell = |&(gating, mode): &(Gating, Mode)| {
                let [fp8, combine] = [Payload::Fp8Dispatch, Payload::Combine]
                    .map(|payload| settings.estimate(ranks, gating, payload, mode).total());
                format!(" {fp8:.0} / {combine:.0} |")
            };
            format!("| EP{ranks} |{}", wanted.iter().map(cell).collect::<String>())
        };
        quoted.push(cells(&settings, &[any, groups, nodes].map(|gating| (gating, two_levels))));
        let ways = [(any, straight), (nodes, straight), (any, two_levels), (nodes, two_levels)];
        quoted.push(cells(&few, &ways));
    }
    for quoted in quoted {
        assert!(docs.contains(&quoted), "docs/scale.md lacks {quoted}");
    }
}

/// What docs/scale.md refers to is what the model says.
#[test]
fn tables_in_the_docs_are_the_models() {
    let docs = include_str!("../docs/scale/tables.md");
    let model = tables::tables(&Settings::default());
    for (docs, model) in docs.lines().zip(model.lines()) {
        assert_eq!(docs, model, "run `cargo run --release --example scale` and look at docs/scale.md again");
    }
    assert_eq!(docs.len(), model.len());
}
