//! The same checks on GPUs: all of them, with one rank each and with several ranks sharing.
//!
//! Where there is no GPU a test says `skipped` and why.
#![cfg(feature = "cuda")]

#[path = "common/low_latency.rs"]
mod batches;
mod common;
#[path = "common/network.rs"]
mod network;
mod skip;
#[path = "common/streams.rs"]
mod streams;
#[path = "common/trace.rs"]
mod traced;

use common::input;
use common::random::Limits;
use common::{Back, Calls, Case, Where, check};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::time::Duration;
use tokenrail::fabric::{Arrival, LoopbackOptions, Network, ProxySpeed};
use tokenrail::gpu::{CudaOptions, images};
use tokenrail::{
    Backend, Buffer, Config, Element, Exchange, ExpertMajor, Group, Input, Internode, LowLatency, Member,
    Stream, Transport, Via,
};

/// Runs `test` on every lane that the GPUs can run, or says why it does not. Threads of the test runner share the GPUs, and tests whose
/// kernels occupy them all would wait for each other: one at a time.
fn on_gpus(test: impl Fn(&Backend)) {
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let devices = match Backend::cuda_devices() {
        Ok(devices) => devices,
        Err(error) => {
            skip::skipped(error);
            return;
        }
    };
    let capability = devices.iter().map(|device| device.capability).min().unwrap_or(0);
    for lane in images::lanes(capability) {
        test(&Backend::Cuda(CudaOptions { lane: Some(lane.into()), ..CudaOptions::default() }));
    }
}

fn rounds(ranks: usize, most: usize) -> Vec<Vec<usize>> {
    let even = vec![most; ranks];
    // Uneven, with at least one rank that has none.
    let uneven = (0..ranks).map(|rank| rank * most / ranks).collect();
    vec![even, uneven, vec![0; ranks], vec![most / 2 + 1; ranks]]
}

#[test]
fn machine_beneath_the_kernels() {
    on_gpus(common::probe::check);
}

#[test]
fn streams_events_graphs_and_memory() {
    on_gpus(streams::check);
}

#[test]
fn traced_calls_come_to_the_same() {
    if cfg!(not(feature = "trace")) {
        return skip::skipped("traces: these kernels are built without feature `trace`");
    }
    on_gpus(|backend| {
        if matches!(backend, Backend::Cuda(options) if options.lane.as_deref() == Some("nvcc")) {
            return skip::skipped("traces: the kernels in CUDA C++ record none");
        }
        let config = Config { low_latency: Some(LowLatency::new(128)), ..Config::new(64, 8, 1024, 128) };
        let by_expert =
            Config { expert_major: Some(ExpertMajor { alignment: 16, rows: None }), ..config.clone() };
        for ranks in [1, 2, 4] {
            for config in [&config, &by_expert, &Config { bulk_copy: Some(false), ..config.clone() }] {
                traced::check(config, ranks, 128, backend);
            }
        }
    });
}

#[test]
fn foreign_streams() {
    on_gpus(|backend| {
        let member = Group::in_process(1, backend).unwrap().remove(0);
        let gpu = member.gpu();
        let (stream, side) = (gpu.stream().unwrap(), gpu.stream().unwrap());
        let [x, y] = [(); 2].map(|()| gpu.alloc_zeroed(64).unwrap());
        let first = |stream: &Stream, of: &Buffer| gpu.download::<u8>(stream, of.view(), 1).unwrap()[0];
        // SAFETY: 0 is the default stream, and the other outlives its alias.
        let [default, alias] =
            [0, stream.raw().unwrap()].map(|raw| unsafe { gpu.stream_from_raw(raw).unwrap() });
        assert_eq!(alias.raw(), stream.raw());
        for (stream, byte) in [(&default, 1), (&alias, 2), (&alias.clone(), 3)] {
            gpu.fill(stream, x.view(), byte).unwrap();
            side.wait(&stream.record().unwrap()).unwrap();
            assert_eq!(first(&side, &x), byte);
        }
        // A capture that someone else began: only the driver knows who is part of it.
        let captured = "the stream is being captured into a graph";
        let ((), graph) = stream
            .capture(|| {
                gpu.fill(&alias, x.view(), 4)?;
                let fork = alias.record()?;
                assert!(fork.synchronize().unwrap_err().to_string().contains("recorded in a capture"));
                side.wait(&fork)?;
                gpu.copy(&side, x.view(), y.view(), 64)?;
                for stream in [&alias, &side] {
                    assert!(stream.synchronize().unwrap_err().to_string().contains(captured));
                }
                alias.wait(&side.record()?)
            })
            .unwrap();
        drop(alias);
        assert_eq!(first(&side, &y), 0);
        graph.launch(&stream).unwrap();
        assert_eq!(first(&stream, &y), 4);
    });
}

#[test]
fn formats_are_made_and_read() {
    on_gpus(common::formats::check);
}

#[test]
fn bf16_with_several_ranks() {
    on_gpus(|backend| {
        for ranks in [1, 2, 3, 4, 8] {
            let config = Config::new(256, 8, 1024, 200);
            check(
                &Case {
                    config,
                    tokens: rounds(ranks, 200),
                    mask_one_in: 7,
                    seed: 1,
                    calls: Calls::default(),
                },
                backend,
            );
        }
    });
}

#[test]
fn fp8_with_several_ranks() {
    on_gpus(|backend| {
        for ranks in [2, 4, 8] {
            let config = Config { element: Element::Fp8E4m3, ..Config::new(64, 6, 1040, 130) };
            check(
                &Case {
                    config,
                    tokens: rounds(ranks, 130),
                    mask_one_in: 9,
                    seed: 2,
                    calls: Calls::default(),
                },
                backend,
            );
        }
    });
}

#[test]
fn odd_shapes() {
    on_gpus(|backend| {
        for (experts, topk, hidden, tokens) in
            [(5, 5, 8, 33), (1000, 32, 24, 65), (7, 1, 20008, 20), (3, 2, 7168, 1)]
        {
            let config = Config { sms: Some(5), ..Config::new(experts, topk, hidden, tokens) };
            let tokens = rounds(4, tokens as usize);
            check(&Case { config, tokens, mask_one_in: 5, seed: 3, calls: Calls::default() }, backend);
        }
    });
}

#[test]
fn without_bulk_copies() {
    on_gpus(|backend| {
        for element in [Element::Bf16, Element::Fp8E4m3] {
            let config = Config { element, bulk_copy: Some(false), ..Config::new(32, 4, 528, 90) };
            check(
                &Case { config, tokens: rounds(4, 90), mask_one_in: 6, seed: 4, calls: Calls::default() },
                backend,
            );
        }
    });
}

/// The expert-major form, with room for everything.
fn aligned(alignment: u32) -> Option<ExpertMajor> {
    Some(ExpertMajor { alignment, rows: None })
}

#[test]
fn by_expert() {
    on_gpus(|backend| {
        for (element, bulk_copy) in
            [(Element::Bf16, None), (Element::Fp8E4m3, None), (Element::Fp8E4m3, Some(false))]
        {
            let config =
                Config { element, bulk_copy, expert_major: aligned(64), ..Config::new(32, 6, 1040, 300) };
            let calls = Calls { outputs: Where::ByExpert, follow: 1, ..Calls::default() };
            check(&Case { config, tokens: rounds(4, 300), mask_one_in: 6, seed: 6, calls }, backend);
        }
    });
}

#[test]
fn full_size_by_expert() {
    on_gpus(|backend| {
        let config = Config {
            element: Element::Fp8E4m3,
            expert_major: aligned(128),
            ..Config::new(256, 8, 7168, 1024)
        };
        let calls = Calls { outputs: Where::ByExpert, ..Calls::default() };
        check(&Case { config, tokens: vec![vec![1024; 2]], mask_one_in: 0, seed: 7, calls }, backend);
    });
}

#[test]
fn copy_engines() {
    on_gpus(|backend| {
        let config = Config { copy_engine: true, sides: vec![64], ..Config::new(32, 4, 1024, 300) };
        let calls = Calls { transport: Transport::CopyEngine, follow: 1, ..Calls::default() };
        check(&Case { config, tokens: rounds(4, 300), mask_one_in: 6, seed: 8, calls }, backend);
    });
}

#[test]
fn captured_overlapping_and_beside_each_other() {
    on_gpus(common::overlap::check);
}

/// Ranks are declared to be on two nodes: kernels, ring and proxy are real, and copies of the driver's are the network.
#[test]
fn across_nodes() {
    on_gpus(|backend| {
        for ordered in [true, false] {
            let options = LoopbackOptions { ordered, ..LoopbackOptions::default() };
            let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
            let internode =
                Internode { arrival, lanes: 4, ..Internode::new(Via::Loopback(Network::new(options))) };
            for expert_major in [None, Some(ExpertMajor { alignment: 128, rows: None })] {
                let config =
                    Config { expert_major, element: Element::Fp8E4m3, ..Config::new(32, 8, 7168, 300) };
                let config = network::on_nodes(config, 2, internode.clone());
                let outputs = if expert_major.is_some() { Where::ByExpert } else { Where::InPlace };
                let calls = Calls { follow: 1, slots: Back::InPlace, outputs, ..Calls::default() };
                check(&Case { config, tokens: rounds(4, 300), mask_one_in: 6, seed: 8, calls }, backend);
            }
        }
        // Of full size, a rank a node.
        let internode =
            Internode { lanes: 4, ..Internode::new(Via::Loopback(Network::new(LoopbackOptions::default()))) };
        let config = network::on_nodes(Config::new(256, 8, 7168, 4096), 1, internode);
        let calls = Calls { outputs: Where::InPlace, ..Calls::default() };
        let tokens = vec![vec![4096, 4096], vec![4096, 1]];
        check(&Case { config, tokens, mask_one_in: 0, seed: 3, calls }, backend);
    });
}

#[test]
fn any_case_across_nodes() {
    on_gpus(|backend| {
        let limits = Limits { ranks: 4, tokens: 300, eights: 300, rounds: 3, sms: 16 };
        let mut runner = TestRunner::deterministic();
        for choice in 0..number("TOKENRAIL_SOAK", 80).div_ceil(4) {
            let case = common::random::cases(limits).new_tree(&mut runner).unwrap().current();
            let internode = network::networks().new_tree(&mut runner).unwrap().current();
            let case = common::random::on_nodes_of_fewer(case, choice, internode);
            // Told if it fails.
            println!("{case:?}");
            check(&case, backend);
        }
    });
}

#[test]
fn low_latency_in_any_order() {
    on_gpus(|backend| {
        let gpus = Backend::cuda_devices().map_or(0, |devices| devices.len());
        // Of ranks that share a GPU, kernels that wait may stand in the same queue of the hardware before what they wait for
        // (docs/decisions.md): few ranks, and one stream each.
        let ranks = gpus.clamp(2, 4);
        let limits = batches::Limits { ranks, tokens: 60, sixteens: 450, batches: 5, sms: 16 };
        let mut runner = TestRunner::deterministic();
        for _ in 0..number("TOKENRAIL_SOAK", 80).div_ceil(4) {
            let case = batches::cases(limits).new_tree(&mut runner).unwrap().current();
            let streams = case.streams && case.tokens[0].len() <= gpus;
            let case = batches::Case { streams, ..case };
            // Told if it fails.
            println!("{case:?}");
            batches::check(&case, backend);
        }
    });
}

#[test]
fn low_latency_of_full_size() {
    on_gpus(|backend| {
        for halves in [false, true] {
            let config = batches::config(256, 8, 7168, LowLatency::new(128));
            let case = batches::Case::new(config, &[&[128, 128], &[128, 1], &[128, 128]]);
            let order = vec![0, 1, 0, 1, 0, 1, 0, 1];
            batches::check(&batches::Case { halves, order, ..case }, backend);
        }
    });
}

/// Ranks are declared to be on nodes of their own: kernel, ring and proxy are real, and copies of the driver's are the network.
#[test]
fn low_latency_across_nodes() {
    on_gpus(|backend| {
        for ordered in [true, false] {
            let options = LoopbackOptions { ordered, ..LoopbackOptions::default() };
            let arrival = if ordered { Arrival::Ordered } else { Arrival::Counted };
            let internode =
                Internode { arrival, lanes: 2, ..Internode::new(Via::Loopback(Network::new(options))) };
            for halves in [false, true] {
                let config = batches::config(256, 8, 7168, LowLatency::new(128));
                let config = network::on_nodes(config, 1, internode.clone());
                let case = batches::Case::new(config, &[&[128, 128], &[128, 1], &[128, 128]]);
                let order = vec![0, 1, 0, 1, 0, 1, 0, 1];
                batches::check(&batches::Case { halves, order, ..case }, backend);
            }
        }
        // As where NICs do not reach the GPU's memory.
        let options = LoopbackOptions { device_memory: false, ..LoopbackOptions::default() };
        let internode = Internode::new(Via::Loopback(Network::new(options)));
        let config = network::on_nodes(batches::config(64, 4, 2048, LowLatency::new(32)), 1, internode);
        batches::check(&batches::Case::new(config, &[&[32, 32], &[32, 1]]), backend);
        let mut runner = TestRunner::deterministic();
        let limits = batches::Limits { ranks: 3, tokens: 60, sixteens: 450, batches: 4, sms: 16 };
        for _ in 0..10 {
            let case = batches::cases(limits).new_tree(&mut runner).unwrap().current();
            let internode = network::networks().new_tree(&mut runner).unwrap().current();
            let per_node = 1 + case.seed as u32 % case.tokens[0].len() as u32;
            let config = network::on_nodes(case.config.clone(), per_node, internode);
            let case = batches::Case { config, streams: false, ..case };
            println!("{case:?}");
            batches::check(&case, backend);
        }
    });
}

#[test]
fn a_proxy_keeps_up_with_a_kernel() {
    on_gpus(|backend| {
        // That all commands come is checked within.
        println!("{:?}", ProxySpeed::measure(backend, None).unwrap());
    });
}

/// As many replays as TOKENRAIL_REPLAYS says.
#[test]
fn low_latency_graphs_and_late_ranks() {
    on_gpus(|backend| {
        batches::replays(backend, number("TOKENRAIL_REPLAYS", 500));
        batches::late_rank(backend);
    });
}

/// What the environment says, or a default.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable} = {text}: must be a number"))
    })
}

/// Random cases until so many exchanges were checked: 200, or what TOKENRAIL_SOAK says.
#[test]
fn soak() {
    let wanted = number("TOKENRAIL_SOAK", 200);
    on_gpus(|backend| {
        let limits = Limits { ranks: 4, tokens: 300, eights: 200, rounds: 25, sms: 24 };
        let mut runner = TestRunner::deterministic();
        let mut exchanges = 0;
        while exchanges < wanted / 2 {
            let case = common::random::cases(limits).new_tree(&mut runner).unwrap().current();
            check(&case, backend);
            exchanges += case.tokens.len() * (1 + case.calls.follow);
        }
        println!("{exchanges} exchanges of random cases");
    });
}

#[test]
fn full_size() {
    on_gpus(|backend| {
        let config = Config::new(256, 8, 7168, 4096);
        check(&Case::new(config, &[&[4096, 4096]], 0), backend);
    });
}

/// Dispatches `ids` of two slots a token, if any; gives what went wrong.
fn dispatch(member: Member, ids: Option<&[i32]>) -> String {
    let config = Config { timeout: Duration::from_millis(500), ..Config::new(8, 2, 64, 4) };
    let mut exchange = Exchange::new(member, &config).unwrap();
    let gpu = exchange.gpu().clone();
    let stream = gpu.stream().unwrap();
    let (x, weights) = (gpu.alloc_zeroed(4 * 128).unwrap(), gpu.alloc_zeroed(4 * 8).unwrap());
    let topk_idx = gpu.upload(ids.unwrap_or_default()).unwrap();
    let result = ids.map_or(Ok(()), |ids| {
        let tokens = ids.len() as u32 / 2;
        let input = Input::new(&x, &topk_idx, &weights, tokens);
        exchange.dispatch(&stream, &input).and_then(|_| exchange.finish(&stream))
    });
    // The other rank may share the GPU: nothing is freed before it is done.
    exchange.all_gather((), "end of the test", Duration::from_secs(10)).unwrap();
    result.err().map_or(String::new(), |error| error.to_string())
}

/// What each of two ranks says when rank 0 dispatches its ids, and rank 1 its own.
fn two_ranks(backend: &Backend, ids: [Option<&[i32]>; 2]) -> Vec<String> {
    let members = Group::in_process(2, backend).unwrap();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = members
            .into_iter()
            .zip(ids)
            .map(|(member, ids)| scope.spawn(move || dispatch(member, ids)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn failures_are_told_and_the_gpu_stays_usable() {
    on_gpus(|backend| {
        let good: &[i32] = &[0, 7, 3, 4];
        assert_eq!(
            two_ranks(backend, [Some(good), None]),
            ["rank 1 is late: counts of a dispatch of epoch 1, flag expected at 1, seen at 0", ""]
        );
        assert_eq!(
            two_ranks(backend, [Some(&[0, 1, 2, 8]), Some(good)]),
            [
                "topk_idx[1, 1] = 8: an expert id is −1 or below 8; nothing was sent",
                "rank 0 announced an invalid input; nothing was sent"
            ]
        );
        assert_eq!(two_ranks(backend, [Some(good), Some(good)]), ["", ""]);
    });
}
