//! What goes wrong, and what the user is told.

#[cfg(feature = "cuda")]
mod skip;

use half::bf16;
use std::time::Duration;
use tokenrail::gpu::EmulatorOptions;
use tokenrail::gpu::View;
use tokenrail::{
    Backend, Config, Error, Exchange, ExpertMajor, Group, Half, Input, Member, Output, Outputs, Overflow,
    Received, Routing, Stream, Tokens, Transport, Weights,
};

/// Runs every rank on a thread of its own; gives what each returned, in rank order.
fn on_ranks<T: Send>(members: Vec<Member>, rank: impl Fn(Member) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = members.into_iter().map(|member| scope.spawn(|| rank(member))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

fn group(ranks: u32) -> Vec<Member> {
    Group::in_process(ranks, &Backend::emulator(1)).expect("the emulator is always there")
}

/// Dispatches rows of ones with these ids and weights of one, and combines what comes.
fn exchange_once(exchange: &mut Exchange, stream: &Stream, topk_idx: &[i32]) -> Result<Vec<bf16>, Error> {
    let gpu = exchange.gpu().clone();
    let hidden = exchange.config().hidden as usize;
    let tokens = topk_idx.len() / exchange.config().topk as usize;
    let x = gpu.upload(&vec![bf16::ONE; tokens * hidden])?;
    let ids = gpu.upload(topk_idx)?;
    let weights = gpu.upload(&vec![1f32; topk_idx.len()])?;
    let input = Input::new(&x, &ids, &weights, tokens as u32);
    let received = exchange.dispatch(stream, &input)?;
    let counts = exchange.counts(stream, &received)?;
    gpu.copy(stream, received.x(), received.outputs(), counts.rows as usize * hidden * 2)?;
    let combined = gpu.alloc(tokens * hidden * 2)?;
    exchange.combine(stream, &received, &combined)?;
    exchange.finish(stream)?;
    gpu.download(stream, combined.view(), tokens * hidden)
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn settings_that_are_not_possible() {
    let refusal = |config: Config, ranks| text(config.shape(ranks));
    assert_eq!(
        refusal(Config::new(8, 2, 12, 4), 2),
        "hidden = 12: a row of Bf16 is 24 bytes, and must be a multiple of 16"
    );
    let fp8 = Config { element: tokenrail::Element::Fp8E4m3, ..Config::new(8, 2, 24, 4) };
    assert_eq!(refusal(fp8, 2), "hidden = 24: a row of Fp8E4m3 is 24 bytes, and must be a multiple of 16");
    let opaque = |hidden, row_bytes, scale_words| {
        let element = tokenrail::Element::Opaque { row_bytes, scale_words };
        refusal(Config { element, ..Config::new(8, 2, hidden, 4) }, 2)
    };
    assert_eq!(opaque(64, 0, 0), "row_bytes = 0: must be 16 to 2097152");
    assert_eq!(opaque(64, 24, 0), "row_bytes = 24: must be a multiple of 16");
    assert_eq!(opaque(64, 32, u32::MAX), "scale_words = 4294967295: must be 0 to 65536");
    let combined = "hidden = 12: a row of combined Bf16 is 24 bytes, and must be a multiple of 16";
    assert_eq!(opaque(12, 32, 1), combined);
    assert_eq!(refusal(Config::new(4, 5, 64, 4), 2), "topk = 5: must be at most experts = 4");
    assert_eq!(refusal(Config::new(64, 33, 64, 4), 2), "topk = 33: must be 1 to 32");
    assert_eq!(refusal(Config::new(0, 1, 64, 4), 2), "experts = 0: must be 1 to 16384");
    assert_eq!(refusal(Config::new(8, 2, 64, 4), 0), "ranks = 0: must be 1 to 1024");
    let many = Config { receive_rows: Some(9), ..Config::new(8, 2, 64, 4) };
    assert_eq!(refusal(many, 2), "receive_rows = 9: ranks · tokens = 8 is the most there can be");
    let hasty = Config { timeout: Duration::ZERO, ..Config::new(8, 2, 64, 4) };
    assert_eq!(refusal(hasty, 2), "timeout = 0ns: must be above 0 and at most a day");
    let large = Config::new(8, 8, 64, u32::MAX / 8);
    assert!(refusal(large, 4).starts_with("tokens = 536870911: ranks · tokens · 8"));
    assert!(text(Group::in_process(0, &Backend::emulator(1)).map(drop)).starts_with("ranks = 0"));
}

#[test]
fn more_sms_than_there_are() {
    let config = Config { sms: Some(1000), max_sms: 1000, ..Config::new(8, 2, 64, 4) };
    let errors = on_ranks(group(2), |member| text(Exchange::new(member, &config)));
    assert_eq!(errors, ["sms = 1000: emulated GPU has 132 for 1 ranks"; 2]);
}

#[test]
fn ranks_that_disagree() {
    let errors = on_ranks(group(2), |member| {
        let hidden = if member.rank() == 0 { 64 } else { 128 };
        text(Exchange::new(member, &Config::new(8, 2, hidden, 4)))
    });
    assert_eq!(errors[0], "ranks disagree on hidden: rank 1 has 128, rank 0 has 64");
    assert_eq!(errors[1], "ranks disagree on hidden: rank 0 has 64, rank 1 has 128");
    let errors = on_ranks(group(2), |member| {
        let combined = if member.rank() == 0 { Half::Bf16 } else { Half::F16 };
        text(Exchange::new(member, &Config { combined, ..Config::new(8, 2, 64, 4) }))
    });
    assert_eq!(errors[0], "ranks disagree on combined: rank 1 has F16, rank 0 has Bf16");
}

#[test]
fn an_impossible_setting_does_not_keep_the_others_waiting() {
    let errors = on_ranks(group(2), |member| {
        let topk = if member.rank() == 0 { 2 } else { 9 };
        text(Exchange::new(member, &Config::new(8, topk, 64, 4)))
    });
    assert_eq!(errors[0], "ranks disagree on topk: rank 1 has 9, rank 0 has 2");
    assert_eq!(errors[1], "topk = 9: must be at most experts = 8");
}

#[test]
fn expert_ids_out_of_range_send_nothing_and_the_exchange_goes_on() {
    for id in [8, i32::MAX, -2, i32::MIN] {
        let results = on_ranks(group(2), |member| {
            let rank = member.rank();
            let mut exchange = Exchange::new(member, &Config::new(8, 2, 64, 4)).expect("good settings");
            let stream = exchange.gpu().stream().expect("a stream");
            let ids = if rank == 0 { [0, 1, 7, id] } else { [0, 1, 2, 3] };
            let first = text(exchange_once(&mut exchange, &stream, &ids));
            let second =
                exchange_once(&mut exchange, &stream, &[0, 7, 4, -1]).expect("a good call after a bad one");
            // Token 0 went to both ranks, token 1 to one.
            assert_eq!((second[0].to_f32(), second[64].to_f32()), (2.0, 1.0));
            first
        });
        assert_eq!(
            results[0],
            format!("topk_idx[1, 1] = {id}: an expert id is −1 or below 8; nothing was sent")
        );
        assert_eq!(results[1], "rank 0 announced an invalid input; nothing was sent");
    }
}

#[test]
fn too_many_rows_for_a_rank_send_nothing_and_the_exchange_goes_on() {
    let config = Config { receive_rows: Some(3), ..Config::new(2, 1, 64, 4) };
    let results = on_ranks(group(2), |member| {
        let mut exchange = Exchange::new(member, &config).expect("good settings");
        let stream = exchange.gpu().stream().expect("a stream");
        // Two tokens of each rank to rank 0, whose room is for three.
        let first = text(exchange_once(&mut exchange, &stream, &[0, 0, 1]));
        exchange_once(&mut exchange, &stream, &[0, 1]).expect("a good call after a bad one");
        first
    });
    assert_eq!(results, ["rank 0 would receive 4 rows, but receive_rows = 3; nothing was sent"; 2]);
}

#[test]
fn a_rank_that_does_not_come() {
    let results = on_ranks(group(3), |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &Config::new(6, 2, 64, 4)).expect("good settings");
        if rank == 1 {
            return String::new();
        }
        let stream = exchange.gpu().stream().expect("a stream");
        let late = text(exchange_once(&mut exchange, &stream, &[0, 5]));
        assert_eq!(
            text(exchange_once(&mut exchange, &stream, &[0, 5])),
            "this exchange failed earlier and cannot go on: make a new group"
        );
        late
    });
    let late = "rank 1 is late: counts of a dispatch of epoch 1, flag expected at 1, seen at 0";
    assert_eq!(results, [late, "", late]);
}

#[test]
fn a_rank_that_leaves_before_combine() {
    let results = on_ranks(group(2), |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &Config::new(4, 2, 64, 4)).expect("good settings");
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().expect("a stream");
        let upload = |ids: &[i32]| gpu.upload(ids).expect("memory");
        let (x, ids) = (gpu.alloc_zeroed(128).expect("memory"), upload(&[0, 3]));
        let input = Input::new(&x, &ids, &ids, 1);
        let received = exchange.dispatch(&stream, &input).expect("queued");
        exchange.finish(&stream).expect("both ranks dispatch");
        if rank == 1 {
            return String::new();
        }
        let combined = gpu.alloc(128).expect("memory");
        exchange.combine(&stream, &received, &combined).expect("queued");
        text(exchange.finish(&stream))
    });
    assert_eq!(results[0], "rank 1 is late: outputs for a combine of epoch 1, flag expected at 1, seen at 0");
}

#[test]
fn patience_that_just_does_not_last_gives_an_error_or_all_rows() {
    let (mut late, mut right) = (0, 0);
    // Among them is one where some blocks of a kernel give up and others just do not.
    for seed in 400..460 {
        // Virtual time, around what it takes.
        let timeout = Duration::from_nanos(8_000 + (seed * 7919) % 36_000);
        let members = Group::in_process(2, &Backend::emulator(seed)).expect("the emulator is always there");
        let results = on_ranks(members, |member| {
            let config = Config { timeout, sms: Some(6), ..Config::new(4, 2, 64, 48) };
            let mut exchange = Exchange::new(member, &config)?;
            let gpu = exchange.gpu().clone();
            let stream = gpu.stream()?;
            let ids: Vec<i32> = (0..48).flat_map(|token| [token % 4, (token + 1) % 4]).collect();
            let (x, topk_idx) = (gpu.upload(&[bf16::ONE; 48 * 64])?, gpu.upload(&ids)?);
            let input = Input::new(&x, &topk_idx, &topk_idx, 48);
            let received = exchange.dispatch(&stream, &input)?;
            let counts = exchange.counts(&stream, &received)?;
            // Three of four tokens of each rank have an expert on either.
            assert_eq!(counts.rows, 2 * 36, "seed {seed}");
            gpu.download::<bf16>(&stream, received.x(), 2 * 36 * 64)
        });
        for result in results {
            match result {
                Err(Error::Late { .. }) => late += 1,
                Ok(rows) => {
                    right += 1;
                    assert!(rows.iter().all(|value| *value == bf16::ONE), "seed {seed}: a row is missing");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(late > 0 && right > 0, "{late} late, {right} right: the times do not straddle what it takes");
}

/// Runs `test` on a rank that is alone, with one token of 128 bytes for experts 0 and 3.
fn with_one_token(config: Config, test: impl Fn(&mut Exchange, &Stream, &Input) + Sync) {
    on_ranks(group(1), |member| {
        let mut exchange = Exchange::new(member, &config).expect("good settings");
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().expect("a stream");
        let (x, ids) = (gpu.alloc_zeroed(128).expect("memory"), gpu.upload(&[0, 3]).expect("memory"));
        let input = Input::new(&x, &ids, &ids, 1);
        test(&mut exchange, &stream, &input);
    });
}

#[test]
fn a_view_whose_buffers_were_reused() {
    with_one_token(Config::new(4, 2, 64, 4), |exchange, stream, input| {
        let old = exchange.dispatch(stream, input).expect("queued");
        exchange.dispatch(stream, input).expect("queued");
        let stale = "received view of dispatch 1: its buffers have been used again, the latest dispatch is 2";
        let combined = exchange.gpu().alloc(128).expect("memory");
        assert_eq!(text(exchange.combine(stream, &old, &combined)), stale);
        assert_eq!(text(exchange.counts(stream, &old)), stale);
        exchange.finish(stream).expect("both dispatches were fine");
    });
}

#[test]
fn arguments_that_are_too_short() {
    with_one_token(Config::new(4, 2, 64, 4), |exchange, stream, input| {
        let Routing::New { topk_idx, .. } = input.routing else { unreachable!("a new one") };
        let tokens = |tokens| Input::new(input.x, topk_idx, topk_idx, tokens);
        let mut refused = |input: &Input| text(exchange.dispatch(stream, input));
        assert_eq!(refused(&tokens(5)), "tokens: 5, but the config allows 4");
        assert_eq!(refused(&tokens(2)), "topk_weights: 8 bytes, but 16 bytes are needed");
        assert_eq!(refused(&Input { x: topk_idx, ..*input }), "x: 8 bytes, but 128 bytes are needed");
        let received = exchange.dispatch(stream, input).expect("queued");
        let out = "combined: 8 bytes, but 128 bytes are needed";
        assert_eq!(text(exchange.combine(stream, &received, topk_idx)), out);
        exchange.finish(stream).expect("the one dispatch was fine");
    });
}

#[test]
fn scales_must_come_with_fp8() {
    let config = Config { element: tokenrail::Element::Fp8E4m3, ..Config::new(4, 2, 128, 4) };
    with_one_token(config, |exchange, stream, input| {
        assert_eq!(text(exchange.dispatch(stream, input)), "x_scales: 0 bytes, but 4 bytes are needed");
    });
}

#[test]
fn gpus_that_cannot_reach_each_other() {
    let options = EmulatorOptions { no_peer_access: vec![(0, 1)], ..EmulatorOptions::default() };
    let refused = Group::in_process(2, &Backend::Emulator(options)).map(drop);
    assert_eq!(
        text(refused),
        "GPU 0 cannot access the memory of GPU 1: no NVLink and no peer access over PCIe between them"
    );
}

#[test]
fn more_memory_than_there_is() {
    let options = EmulatorOptions { memory_bytes: 1 << 20, ..EmulatorOptions::default() };
    let members = Group::in_process(2, &Backend::Emulator(options)).expect("the emulator is always there");
    let config = Config { timeout: Duration::from_millis(200), ..Config::new(8, 2, 8192, 64) };
    let errors = on_ranks(members, |member| text(Exchange::new(member, &config)));
    assert!(errors[0].starts_with("allocating emulated memory failed: "), "{}", errors[0]);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_backend_that_was_not_built() {
    let expected =
        "the CUDA backend is not available: this build is without it; build with `--features cuda`";
    assert_eq!(text(Group::in_process(2, &Backend::cuda()).map(drop)), expected);
    assert_eq!(text(Backend::cuda_devices()), expected);
}

#[cfg(feature = "cuda")]
#[test]
fn a_driver_that_is_not_there() {
    match Backend::cuda_devices() {
        Ok(devices) => {
            skip::skipped(format_args!("there is a driver, and it sees {} devices", devices.len()))
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("a CUDA GPU is not available: the driver does not start: "), "{error}");
            assert_eq!(text(Group::in_process(2, &Backend::cuda()).map(drop)), error);
        }
    }
}

/// The text of each rank's error where all make the same two dispatches and the second is refused by the kernels.
fn second_dispatch<'a>(
    config: &Config,
    second: impl Fn(&mut Exchange, &Stream, &Received, [View; 2]) -> Result<(), Error> + Sync + 'a,
) -> Vec<String> {
    on_ranks(group(2), |member| {
        let mut exchange = Exchange::new(member, config).expect("good settings");
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().expect("a stream");
        let x = gpu.upload(&[bf16::ONE; 4 * 64]).expect("memory");
        let ids = gpu.upload(&[0, 7, 3, 4, 1, 2, 5, 6]).expect("memory");
        let input = Input::new(&x, &ids, &ids, 4);
        let received = exchange.dispatch(&stream, &input).expect("queued");
        exchange.finish(&stream).expect("the first is fine");
        let error = text(second(&mut exchange, &stream, &received, [x.view(), ids.view()]));
        // The exchange goes on.
        exchange.dispatch(&stream, &input).expect("queued");
        exchange.finish(&stream).expect("a good call after a bad one");
        error
    })
}

#[test]
fn ranks_that_follow_different_handles_send_nothing() {
    let config = Config { handles: Some(3), ..Config::new(8, 2, 64, 4) };
    let followed = |both: bool| {
        second_dispatch(&config, move |exchange, stream, first, [x, ids]| {
            let latest = exchange.dispatch(stream, &Input::new(x, ids, ids, 2))?;
            let rank = exchange.rank();
            let input = match (rank, both) {
                (0, _) => Input::follow(x, first.handle()),
                (_, true) => Input::follow(x, latest.handle()),
                (_, false) => Input::new(x, ids, ids, 4),
            };
            exchange.dispatch(stream, &input)?;
            exchange.finish(stream)
        })
    };
    let error =
        |peer| format!("rank {peer} follows another handle, or one of us follows none; nothing was sent");
    assert_eq!(followed(true), [error(1), error(0)]);
    assert_eq!(followed(false), [error(1), error(0)]);
}

#[test]
fn handles_whose_memory_was_used_again() {
    with_one_token(Config { handles: Some(2), ..Config::new(4, 2, 64, 4) }, |exchange, stream, input| {
        let first = exchange.dispatch(stream, input).expect("queued");
        let second = exchange.dispatch(stream, input).expect("queued");
        // Both are there, and following one takes nobody's memory.
        for handle in [first.handle(), second.handle(), first.handle()] {
            exchange.dispatch(stream, &Input::follow(input.x, handle)).expect("queued");
        }
        exchange.dispatch(stream, input).expect("queued");
        exchange.dispatch(stream, &Input::follow(input.x, second.handle())).expect("still there");
        let stale = "handle of routing 1: its memory has been used again, the latest routing is 3; config.handles says \
                     how many are kept";
        assert_eq!(text(exchange.dispatch(stream, &Input::follow(input.x, first.handle()))), stale);
        exchange.finish(stream).expect("all were fine");
    });
}

#[test]
fn handles_of_another_exchange() {
    let kept = std::sync::Mutex::new(None);
    let config = Config::new(4, 2, 64, 4);
    with_one_token(config.clone(), |exchange, stream, input| {
        let received = exchange.dispatch(stream, input).expect("queued");
        exchange.finish(stream).expect("fine");
        *kept.lock().expect("unpoisoned") = Some(received);
    });
    with_one_token(config, |exchange, stream, input| {
        let own = exchange.dispatch(stream, input).expect("queued");
        let kept = kept.lock().expect("unpoisoned");
        let other = kept.as_ref().expect("the first has run");
        let foreign = text(exchange.dispatch(stream, &Input::follow(input.x, other.handle())));
        assert!(foreign.starts_with("handle of routing 1"), "{foreign}");
        let combined = exchange.gpu().alloc(128).expect("memory");
        let foreign = text(exchange.combine(stream, other, &combined));
        assert!(foreign.starts_with("received view of dispatch 1"), "{foreign}");
        exchange.combine(stream, &own, &combined).expect("its own");
        exchange.finish(stream).expect("fine");
    });
}

#[test]
fn outputs_are_combined_once() {
    with_one_token(Config::new(4, 2, 64, 4), |exchange, stream, input| {
        let received = exchange.dispatch(stream, input).expect("queued");
        let combined = exchange.gpu().alloc(128).expect("memory");
        exchange.combine(stream, &received, &combined).expect("the first time");
        let again = "dispatch 1 has been combined already: its outputs may be read only once";
        assert_eq!(text(exchange.combine(stream, &received, &combined)), again);
        let next = exchange.dispatch(stream, &Input::follow(input.x, received.handle())).expect("queued");
        exchange.combine(stream, &next, &combined).expect("the first time of the next");
        exchange.finish(stream).expect("all were fine");
    });
}

#[test]
fn more_tokens_on_the_device_than_there_is_room_for() {
    let errors = second_dispatch(&Config::new(8, 2, 64, 4), |exchange, stream, _, [x, ids]| {
        let tokens = exchange.gpu().upload(&[4 + exchange.rank()])?;
        let tokens = Tokens::Device(tokens.view());
        let routing = Routing::New { topk_idx: ids, topk_weights: ids, tokens };
        exchange.dispatch(stream, &Input { routing, ..Input::new(x, ids, ids, 0) })?;
        exchange.finish(stream)
    });
    assert_eq!(errors[0], "rank 1 announced an invalid input; nothing was sent");
    assert_eq!(errors[1], "5 tokens, counted on the device, but the config allows 4; nothing was sent");
}

#[test]
fn an_expert_major_form_that_is_too_small() {
    let form = Some(ExpertMajor { alignment: 8, rows: Some(31) });
    let config = Config { expert_major: form, ..Config::new(8, 2, 64, 4) };
    let results = on_ranks(group(2), |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &config).expect("good settings");
        let gpu = exchange.gpu().clone();
        let stream = gpu.stream().expect("a stream");
        let x = gpu.upload(&[bf16::ONE; 4 * 64]).expect("memory");
        let ones = gpu.upload(&[1f32; 4 * 2]).expect("memory");
        // One that fits leaves its form behind.
        let few = gpu.upload(&[0, 7, 1, 0, 0, 0, 1, 1]).expect("memory");
        exchange.dispatch(&stream, &Input::new(&x, &few, &ones, 4)).expect("queued");
        exchange.finish(&stream).expect("it fits");
        // All four experts of rank 0 have pairs, and one of rank 1.
        let ids = gpu.upload(&[0, 7, 1, 2, 3, 0, 1, 1]).expect("memory");
        let received = exchange.dispatch(&stream, &Input::new(&x, &ids, &ones, 4)).expect("queued");
        let error = exchange.finish(&stream).err().map(|error| error.to_string());
        // Every row is there all the same, and the exchange goes on.
        let counts = exchange.counts(&stream, &received).expect("told once");
        assert_eq!(counts.rows, [8, 2][rank as usize]);
        assert_eq!(counts.expert_starts.last(), Some(&[0, 8][rank as usize]));
        // Nothing is taken from the form of the one before.
        let form = received.by_expert().expect("the config has the form");
        let experts: Vec<i32> = gpu.download(&stream, form.experts, 31).expect("still there");
        assert_eq!(experts.iter().any(|&expert| expert >= 0), rank == 1);
        let combined = gpu.alloc(4 * 128).expect("memory");
        let outputs = Outputs::ByExpert(form.x, Weights::Received);
        exchange
            .combine_with(&stream, &received, &Output { outputs, ..Output::new(&combined) })
            .expect("queued");
        exchange.finish(&stream).expect("fine");
        let sums: Vec<bf16> = gpu.download(&stream, combined.view(), 4 * 64).expect("still there");
        assert_eq!([0, 1, 2, 3].map(|token: usize| sums[64 * token].to_f32()), [1.0, 0.0, 0.0, 0.0]);
        error
    });
    let error = "the expert-major form would be 32 rows, but expert_major.rows = 31; it is left empty";
    assert_eq!(results, [Some(error.to_owned()), None]);
}

#[test]
fn a_rank_that_does_not_come_to_a_dispatch_by_expert() {
    let form = Some(ExpertMajor { alignment: 8, rows: None });
    let config = Config { expert_major: form, ..Config::new(6, 2, 64, 4) };
    let results = on_ranks(group(3), |member| {
        let rank = member.rank();
        let mut exchange = Exchange::new(member, &config).expect("good settings");
        let stream = exchange.gpu().stream().expect("a stream");
        if rank == 1 { String::new() } else { text(exchange_once(&mut exchange, &stream, &[0, 5])) }
    });
    let late = "rank 1 is late: counts of a dispatch of epoch 1, flag expected at 1, seen at 0";
    assert_eq!(results, [late, "", late]);
}

#[test]
fn what_a_call_asks_for_without_room_for_it() {
    with_one_token(Config::new(4, 2, 64, 4), |exchange, stream, input| {
        let view = input.x;
        let mut refused = |input: Input| text(exchange.dispatch(stream, &input));
        assert_eq!(refused(Input { sms: Some(65), ..*input }), "sms: 65, but it must be 1 to 64");
        assert_eq!(refused(Input { sms: Some(0), ..*input }), "sms: 0, but it must be 1 to 64");
        assert_eq!(refused(Input { sides: &[view], ..*input }), "sides: 1, but the config has 0");
        let copies = "transport: copy engine, but the config has no room for packed rows: set copy_engine";
        assert_eq!(refused(Input { transport: Transport::CopyEngine, ..*input }), copies);

        let received = exchange.dispatch(stream, input).expect("queued");
        let output = Output::new(view);
        let mut refused = |output: Output| text(exchange.combine_with(stream, &received, &output));
        assert_eq!(refused(Output { transport: Transport::CopyEngine, ..output }), copies);
        assert_eq!(refused(Output { biases: &[view; 3], ..output }), "biases: 3, but there can be 2");
        assert_eq!(
            refused(Output { outputs: Outputs::ByExpert(view, Weights::None), ..output }),
            "outputs: expert-major, but the config has no expert-major form: set expert_major"
        );
        assert_eq!(
            refused(Output { outputs: Outputs::Rows(view), ..output }),
            "outputs: 128 bytes, but 512 bytes are needed"
        );
        exchange.finish(stream).expect("the one dispatch was fine");
    });
}

#[test]
fn settings_of_forms_that_are_not_possible() {
    let good = Config::new(8, 2, 64, 4);
    let form =
        |alignment, rows| Config { expert_major: Some(ExpertMajor { alignment, rows }), ..good.clone() };
    for (config, refusal) in [
        (form(0, None), "alignment = 0: must be 1 to 4096"),
        (form(8, Some(0)), "expert_major.rows = 0: must be at least 1"),
        (
            form(8, Some(1000)),
            "expert_major.rows = 1000: 44 is the most there can be, and it must be below 2147483648",
        ),
        (
            Config { receive_rows: Some(7), overflow: Overflow::Cap, ..form(8, None) },
            "receive_rows = 7: with the expert-major form and Overflow::Cap there must be room for all rows: None",
        ),
        (Config { sides: vec![4; 9], ..good.clone() }, "sides = 9: there can be 8"),
        (
            Config { sides: vec![6], ..good.clone() },
            "sides = 6: must be a multiple of 4 bytes for a token, at most 2097152",
        ),
        (Config { ranks_per_node: Some(3), ..good.clone() }, "ranks_per_node = 3: must be 1 to 2"),
        (Config { in_flight: 17, ..good.clone() }, "in_flight = 17: must be 1 to 16"),
        (Config { in_flight: 2, handles: Some(1), ..good.clone() }, "handles = 1: must be 2 to 65536"),
        (Config { sms: Some(65), ..good.clone() }, "sms = 65: max_sms = 64"),
        (Config { max_sms: 0, ..good.clone() }, "max_sms = 0: must be 1 to 1024"),
    ] {
        assert_eq!(text(config.shape(2)), refusal);
    }
}
