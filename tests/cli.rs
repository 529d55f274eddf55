//! The command, run as a user runs it, on the emulator.
#![cfg(feature = "cli")]

mod skip;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tokenrail::trace::{Activity, Operation};

fn tokenrail(args: &str) -> Output {
    let args = args.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_tokenrail")).args(args).output().expect("the command starts")
}

/// A small run with these settings besides.
fn run(args: &str) -> Output {
    tokenrail(&format!("run --ranks 3 --tokens 6 --hidden 64 --experts 16 --topk 3 {args}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn passes(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("equals the CPU reference, bit for bit"), "{out}{err}");
    out
}

/// The run ends with status `code`, says all of `words` on standard error, and claims no success.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    assert!(!out.contains("ok:") && !err.contains("panicked"), "{out}{err}");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in: {err}");
    }
}

/// An empty folder of the test's own.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{test}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an earlier run's folder can go");
    }
    fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

#[test]
fn every_kind_of_run_passes() {
    for args in [
        "",
        "--element f16",
        "--element fp8",
        "--element fp8-ue8m0 --hidden 528",
        "--gate softmax",
        "--uneven",
        "--plain",
        "--mask-one-in 3",
        "--gate uniform --combined f16",
        "--gate zipf --uneven --follow",
        "--gate one --ranks 2 --copy-engine --element fp8",
        "--by-expert 4 --iterations 1",
        "--by-expert 8 --follow --element fp8 --hidden 144 --combined f16 --mask-one-in 3",
        "--copy-engine --follow --iterations 1",
        "--by-expert 1 --plain --uneven",
        "--tokens 0",
        "--ranks 1 --sms 1",
        "--gate softmax --ranks 5 --experts 7 --topk 7 --hidden 24 --uneven --seed 3",
        "--element fp8 --plain --uneven --mask-one-in 2 --gate softmax --hidden 144",
    ] {
        passes(&run(args));
    }
}

#[test]
fn report_tells_settings_traffic_and_load() {
    let out = passes(&run("--tokens 2 --iterations 1"));
    for words in [
        "2 a rank, of 64 bf16 (128 bytes)",
        "deepseek-v3 experts=16",
        "from \\ to",
        "tokens per expert",
        "virtual",
    ] {
        assert!(out.contains(words), "{words:?} is not in: {out}");
    }
    let quiet = run("--quiet");
    assert_eq!(passes(&quiet).lines().count(), 1);
    assert!(quiet.stderr.is_empty());
}

#[test]
fn one_sends_everything_to_the_first_rank() {
    let out = passes(&run("--gate one"));
    for rank in 0..3 {
        assert!(out.contains(&format!("rank {rank}          6       0       0    6")), "{out}");
    }
    assert!(out.contains("routing    one experts=16 topk=3"), "{out}");
}

#[test]
fn followed_dispatches_are_timed() {
    assert!(passes(&run("--follow --iterations 1")).contains("cached dispatch"));
    assert!(!passes(&run("--iterations 1")).contains("cached dispatch"));
    assert!(passes(&run("--by-expert 4")).contains("and by expert, from multiples of 4"));
}

/// A small sweep with these settings besides.
fn sweep(args: &str) -> Output {
    let shape = "--ranks 3 --hidden 64 --experts 16 --topk 3 --iterations 2 --warmup 1 --alignment 4";
    tokenrail(&format!("sweep {shape} {args}"))
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("the file can be read")).expect("it is JSON")
}

#[test]
fn a_sweep_measures_and_checks_everything_that_was_asked_for() {
    let file = folder("sweep").join("sweep.json");
    let output = sweep(&format!(
        "--tokens 0,5,9 --sms 1,2 --element bf16,fp8 --hidden 144 --gate zipf,one \
         --forms rank-major,by-expert,cached,copy-engine,plain --json {}",
        file.display()
    ));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    // Of each of 3 ranks 0 + 5 + 9 tokens, with 2 numbers of multiprocessors, elements, gates and 5 forms.
    assert!(out.contains(&format!("ok: {} combined rows equal", 3 * 14 * 2 * 2 * 2 * 5)), "{out}");
    let json = json(&file);
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3 * 2 * 2 * 2 * 5);
    for row in rows {
        let tokens = row["tokens"].as_u64().expect("a number");
        assert_eq!(row["compared"], 3 * tokens, "{row}");
        for (operation, row_bytes) in
            [("dispatch", if row["element"] == "bf16" { 288 } else { 152 }), ("combine", 288)]
        {
            let timed = &row[operation];
            let time = |name: &str| timed["time"][name].as_f64().expect("a number");
            assert!(
                0.0 < time("p10") && time("p10") <= time("median") && time("median") <= time("p90"),
                "{row}"
            );
            assert!(timed["ceiling_gb_per_s"].as_f64().expect("a ceiling") > 0.0, "{row}");
            if row["gate"] == "one" {
                // Two ranks send all to the first.
                assert_eq!(timed["bytes"], 2 * tokens * row_bytes, "{row}");
            }
        }
    }
    let dispatched = |form: &str| {
        let of = |row: &&serde_json::Value| {
            row["form"] == form && row["tokens"] == 9 && row["dispatch"]["sms"] == 2
        };
        let times =
            rows.iter().filter(of).map(|row| row["dispatch"]["time"]["median"].as_f64().expect("a number"));
        times.sum::<f64>()
    };
    assert!(dispatched("cached") < dispatched("rank-major"), "a handle saves the exchange of counts");
    assert!(dispatched("by-expert") > dispatched("rank-major"), "rows by expert are more work");
}

#[test]
fn a_trace_is_chromes_and_has_every_rank() {
    let file = folder("trace").join("trace.json");
    let shape = "--ranks 2 --tokens 6 --hidden 128 --experts 8 --topk 3";
    let trace = |args: &str| {
        let output = tokenrail(&format!("trace --out {} {shape} {args}", file.display()));
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
        (out, err, json(&file))
    };
    let (out, _, all) = trace("");
    for words in ["dispatch, wait for counts", "combine, sum", "low-latency dispatch, send", "2 ranks to"] {
        assert!(out.contains(words), "{words:?} is not in: {out}");
    }
    let names: Vec<&str> = Activity::ALL.iter().map(|activity| activity.name()).collect();
    let operations: Vec<&str> = Operation::ALL.iter().map(|operation| operation.name()).collect();
    let events = all["traceEvents"].as_array().expect("events");
    let is = |kind: &'static str| move |event: &&serde_json::Value| event["ph"] == kind;
    let mut tracks = BTreeMap::new();
    for event in events.iter().filter(is("X")) {
        let number = |name: &str| event[name].as_f64().expect("a number");
        assert!(names.contains(&event["name"].as_str().expect("a name")), "{event}");
        assert!(operations.contains(&event["args"]["operation"].as_str().expect("a name")), "{event}");
        assert!(number("ts") >= 0.0 && number("dur") >= 0.0, "{event}");
        assert!(event["args"]["peer"].as_u64().is_none_or(|peer| peer < 2), "{event}");
        let track = (event["pid"].as_u64().expect("a rank"), event["tid"].as_u64().expect("a track"));
        tracks.entry(track).or_insert_with(Vec::new).push((number("ts"), number("ts") + number("dur")));
    }
    for (track, spans) in &mut tracks {
        spans.sort_by(|a, b| a.partial_cmp(b).expect("numbers"));
        // Nanoseconds as µs are not exact.
        assert!(spans.windows(2).all(|pair| pair[0].1 < pair[1].0 + 1e-6), "spans of {track:?} overlap");
    }
    for rank in 0..2 {
        let has = |kind, name: &str| {
            events.iter().filter(is(kind)).any(|event| event["pid"] == rank && event["name"] == name)
        };
        assert!(has("X", "send") && has("X", "wait for rows") && has("M", "process_name"));
    }
    let named = events.iter().filter(is("M")).filter(|event| event["name"] == "thread_name").count();
    assert_eq!(named, tracks.len(), "every track has a name");

    let (_, _, one) = trace("--operation combine --plain");
    let of_one = one["traceEvents"].as_array().expect("events").iter().filter(is("X"));
    let combines = of_one.inspect(|event| assert_eq!(event["args"]["operation"], "combine")).count();
    assert!(combines > 0);
    let (_, err, cut) = trace("--marks 50 --quiet");
    assert!(err.contains("had no room for the last"), "{err}");
    assert!(cut["otherData"]["lost_marks"][1].as_u64().expect("a number") > 0);
    let bad = tokenrail("trace --out nowhere/at/all.json --tokens 1 --hidden 128 --experts 8 --topk 3");
    fails(&bad, 1, &["--out: nowhere/at/all.json"]);
    fails(&tokenrail("trace --out x.json --marks 0 --tokens 1 --hidden 128"), 1, &["marks: 0"]);
}

/// A small measurement of latencies with these settings besides.
fn latency(args: &str) -> Output {
    tokenrail(&format!("latency --ranks 2 --hidden 144 --experts 8 --topk 3 --iterations 2 {args}"))
}

#[test]
fn latencies_are_of_every_part_and_checked() {
    let file = folder("latency").join("latency.json");
    for args in
        ["", "--dispatch bf16 --combine fp8 --summation by-slot", "--dispatch fp8-ue8m0 --combine log10"]
    {
        let output = latency(&format!("--tokens 0,6 --sms 2 {args} --json {}", file.display()));
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
        assert!(out.contains(&format!("ok: {} combined rows equal", 2 * 6)), "{out}");
        let json = json(&file);
        let rows = json["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 2);
        let median = |row: usize, part: &str| rows[row]["times"][part]["median"].as_f64().expect("a number");
        for row in rows {
            assert_eq!(row["times"].as_object().expect("times").len(), 12, "{row}");
        }
        // 6 tokens take longer than none.
        for part in ["send", "receive", "send back", "sum", "both"] {
            assert!(median(1, part) > median(0, part), "{part}: {json}");
        }
    }
    assert!(text(&latency("--tokens 2 --no-check").stdout).contains("nothing was compared"));
    fails(&latency("--tokens 2 --hidden 24"), 1, &["hidden = 24", "must be a multiple of 16"]);
    fails(&latency("--tokens 9000"), 1, &["low_latency.tokens = 9000", "must be 1 to 2730"]);
    fails(&latency("--tokens 2 --sms 500"), 1, &["sms: 500"]);
}

#[test]
fn a_sweep_may_check_nothing_and_says_so() {
    let output = sweep("--tokens 4 --sms 1,1000 --element bf16 --no-check");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(out.contains("nothing was compared") && !out.contains("ok:"), "{out}");
    assert!(err.contains("[1000] multiprocessors are left out"), "{err}");
}

#[test]
fn bad_sweeps_name_field_value_and_limit() {
    for (args, words) in [
        ("--sms 0,1000", ["sms = [0, 1000]", "1 to 132"]),
        ("--hidden 20", ["hidden = 20", "multiple of 16"]),
        ("--forms by-expert --alignment 0", ["alignment = 0", "1 to 4096"]),
        ("--gate deepseek-v3 --experts 12", ["experts = 12", "groups = 8"]),
        ("--tuning missing", ["missing", "No such file"]),
        ("--json missing/file --element bf16 --sms 1 --tokens 1", ["--json", "missing/file"]),
    ] {
        fails(&sweep(args), 1, &words);
    }
    fails(&sweep("--gate best"), 2, &["--gate", "best", "zipf"]);
    fails(&sweep("--quick"), 2, &["--quick", "--iterations"]);
}

#[test]
fn what_is_tuned_is_used() {
    let file = folder("tune").join("tuning.json");
    let shape = "--ranks 2 --hidden 64 --experts 16 --topk 3 --element bf16 --iterations 2";
    let tune = |more: &str| {
        tokenrail(&format!("tune {shape} --tokens 2,9 --sms 1,2,3 {more} --out {}", file.display()))
    };
    let output = tune("--forms rank-major,by-expert");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut tuned = json(&file);
    assert_eq!(tuned["device"], "emulated GPU");
    let entries = tuned["entries"].as_array_mut().expect("entries");
    assert_eq!(entries.len(), 6);
    // Numbers that nobody would choose show that they are used.
    for entry in entries {
        let combine = entry["operation"] == "combine";
        entry["sms"] = if combine { 5 } else { 7 }.into();
    }
    fs::write(&file, tuned.to_string()).expect("the file can be written");
    let used = format!("--ranks 2 --hidden 64 --experts 16 --topk 3 --tuning {}", file.display());
    let out = passes(&tokenrail(&format!("run {used} --tokens 6")));
    assert!(out.contains("7 SMs to dispatch, 5 to combine"), "{out}");
    let swept = folder("tuned-sweep").join("sweep.json");
    let output = tokenrail(&format!("sweep {used} --tokens 6 --element bf16 --json {}", swept.display()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let row = &json(&swept)["rows"][0];
    assert_eq!((&row["dispatch"]["sms"], &row["combine"]["sms"]), (&7.into(), &5.into()));

    fs::write(&file, tuned.to_string().replace("\"version\":1", "\"version\":9"))
        .expect("the file can be written");
    fails(&tokenrail(&format!("run {used} --tokens 6")), 1, &["tuning.json", "version = 9", "must be 1"]);
    fails(&tune("--forms cached"), 1, &["forms = cached", "rank-major and by-expert"]);
    fails(&tune("--gate uniform,zipf"), 1, &["gate = 2", "one routing"]);
}

#[test]
fn a_seed_decides() {
    let traffic = |seed| {
        let out = passes(&run(&format!("--tokens 40 --seed {seed}")));
        let from = out.find("tokens dispatched").expect("the traffic is printed");
        out[from..out.find("took").expect("the time is printed")].to_owned()
    };
    assert_eq!(traffic(1), traffic(1));
    assert_ne!(traffic(1), traffic(2));
}

#[test]
fn dump_has_the_shapes_that_others_expect() {
    let folder = folder("dump");
    passes(&run(&format!("--ranks 4 --dump {}", folder.display())));
    // A smaller group's dump leaves nothing of the larger's.
    passes(&run(&format!("--element fp8 --hidden 144 --uneven --dump {}", folder.display())));
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry can be read").file_name().into_string().expect("names are text"))
        .collect();
    names.sort();
    assert_eq!(names, ["rank0.safetensors", "rank1.safetensors", "rank2.safetensors"]);

    let mut rows_sent_to_each = vec![0; 3];
    for (rank, name) in names.iter().enumerate() {
        let bytes = fs::read(folder.join(name)).expect("the file can be read");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = metadata.metadata().clone().expect("metadata");
        for (key, value) in [
            ("format", "tokenrail-dump-1"),
            ("rank", &rank.to_string()),
            ("ranks", "3"),
            ("experts", "16"),
            ("topk", "3"),
            ("hidden", "144"),
            ("element", "fp8_e4m3"),
            ("gate", "deepseek-v3 experts=16 groups=8 top_groups=4 topk=3 scale=2.5"),
        ] {
            assert_eq!(metadata[key], value, "{key}");
        }
        assert!(metadata["expert_function"].starts_with("expert e maps x to"));

        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tokens = 3 * rank;
        let counts = file.tensor("recv_tokens_per_source").expect("counts");
        let counts: Vec<usize> =
            counts.data().as_chunks().0.iter().map(|&count| i32::from_le_bytes(count) as usize).collect();
        let rows: usize = counts.iter().sum();
        counts.iter().zip(&mut rows_sent_to_each).for_each(|(count, sum)| *sum += count);
        // Ranks own 6 experts each, the last what is left.
        let experts = [6, 6, 4][rank];
        for (name, dtype, shape) in [
            ("x", Dtype::F8_E4M3, vec![tokens, 144]),
            ("x_scales", Dtype::F32, vec![tokens, 2]),
            ("topk_idx", Dtype::I32, vec![tokens, 3]),
            ("topk_weights", Dtype::F32, vec![tokens, 3]),
            ("recv_x", Dtype::F8_E4M3, vec![rows, 144]),
            ("recv_scales", Dtype::F32, vec![rows, 2]),
            ("recv_topk_idx", Dtype::I32, vec![rows, 3]),
            ("recv_topk_weights", Dtype::F32, vec![rows, 3]),
            ("recv_source_rank", Dtype::I32, vec![rows]),
            ("recv_source_token", Dtype::I32, vec![rows]),
            ("recv_tokens_per_source", Dtype::I32, vec![3]),
            ("recv_tokens_per_expert", Dtype::I32, vec![experts]),
            ("expert_out", Dtype::BF16, vec![rows, 144]),
            ("combined", Dtype::BF16, vec![tokens, 144]),
        ] {
            let tensor = file.tensor(name).expect(name);
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape.as_slice()), "{name} of rank {rank}");
        }
        assert_eq!(file.len(), 14);
    }
    // Ranks have 0, 3 and 6 tokens, each of which goes to 1 to 3 ranks.
    assert_eq!(rows_sent_to_each[0], 0);
    assert!((3..=9).contains(&rows_sent_to_each[1]) && (6..=18).contains(&rows_sent_to_each[2]));
}

#[test]
fn dump_has_the_types_of_its_elements() {
    for (element, x, scales) in
        [("f16", Dtype::F16, None), ("fp8-ue8m0", Dtype::F8_E4M3, Some((Dtype::U32, 1)))]
    {
        let folder = folder(element);
        passes(&run(&format!("--element {element} --hidden 144 --dump {}", folder.display())));
        let bytes = fs::read(folder.join("rank0.safetensors")).expect("the file can be read");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        for name in ["x", "recv_x"] {
            assert_eq!(file.tensor(name).expect(name).dtype(), x, "{name}");
        }
        for name in ["x_scales", "recv_scales"] {
            let found = file.tensor(name).ok().map(|tensor| (tensor.dtype(), tensor.shape()[1]));
            assert_eq!(found, scales, "{name}");
        }
    }
}

#[test]
fn dump_replaces_nobody_elses_file() {
    let folder = folder("foreign");
    let theirs = folder.join("rank0.safetensors");
    fs::write(&theirs, "not ours").expect("the file can be written");
    fails(&run(&format!("--dump {}", folder.display())), 1, &["--dump", "rank0.safetensors", "earlier dump"]);
    assert_eq!(fs::read(&theirs).expect("still there"), b"not ours");
}

/// A tensor for an input file.
struct Tensor(&'static str, Dtype, Vec<usize>, Vec<u8>);

/// 5 tokens of 16 channels with 2 experts each.
fn tensors() -> [Tensor; 3] {
    let f32s = |count: usize| (0..count).flat_map(|at| (at as f32 * 0.25 - 3.0).to_le_bytes()).collect();
    let ids = [0i64, 3, 1, 2, -1, 0, 3, 2, -1, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    [
        Tensor("x", Dtype::F32, vec![5, 16], f32s(80)),
        Tensor("topk_idx", Dtype::I64, vec![5, 2], ids),
        Tensor("topk_weights", Dtype::F32, vec![5, 2], f32s(10)),
    ]
}

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|Tensor(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("shape and bytes agree"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("tensors can be written"))
        .expect("a file can be written");
}

fn run_input(path: &Path) -> Output {
    tokenrail(&format!("run --ranks 2 --experts 4 --input {}", path.display()))
}

#[test]
fn input_of_a_real_model() {
    let path = folder("input").join("routing.safetensors");
    write(&path, &tensors());
    let out = passes(&run_input(&path));
    // Blocks of 3 tokens: the second rank has what is left. Experts 0 and 1 are on rank 0.
    for words in [
        "note: x is F32 in the file; converted to bf16",
        "[3, 2], of 16 bf16",
        "rank 0          3       2    5",
        "rank 1          0       1    1",
    ] {
        assert!(out.contains(words), "{words:?} is not in: {out}");
    }
    passes(&tokenrail(&format!("run --ranks 7 --experts 4 --element fp8 --input {}", path.display())));

    let as_bf16 =
        |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().flat_map(|value| [value[2], value[3]]).collect();
    let [x, topk_idx, topk_weights] = tensors();
    let x = Tensor("x", Dtype::BF16, x.2, as_bf16(&x.3));
    let topk_weights = Tensor("topk_weights", Dtype::BF16, topk_weights.2, as_bf16(&topk_weights.3));
    write(&path, &[x, topk_idx, topk_weights]);
    let out = passes(&run_input(&path));
    assert!(out.contains("note: topk_weights is BF16") && !out.contains("note: x"), "{out}");
}

#[test]
fn input_that_is_none() {
    let folder = folder("bad-input");
    let path = folder.join("routing.safetensors");
    let with = |change: &dyn Fn(&mut [Tensor; 3])| {
        let mut tensors = tensors();
        change(&mut tensors);
        write(&path, &tensors);
        run_input(&path)
    };

    fails(&run_input(&folder.join("missing")), 1, &["missing", "No such file"]);
    fails(
        &with(&|tensors| tensors[1].0 = "topk"),
        1,
        &["topk_idx is missing", "\"topk\", \"topk_weights\", \"x\""],
    );
    fails(
        &with(&|tensors| tensors[0].1 = Dtype::I32),
        1,
        &["tensor x", "type is I32", "expected BF16, F16, F32"],
    );
    fails(
        &with(&|tensors| tensors[2].1 = Dtype::I32),
        1,
        &["topk_weights", "type is I32", "expected F32, BF16"],
    );
    fails(
        &with(&|tensors| tensors[1].2 = vec![10, 1]),
        1,
        &["topk_idx", "shape is [10, 1]", "expected [5, topk]"],
    );
    fails(
        &with(&|tensors| tensors[2].2 = vec![1, 5, 2]),
        1,
        &["topk_weights", "[1, 5, 2]", "[tokens, width]"],
    );
    fails(&with(&|tensors| tensors[0].2 = vec![20, 4]), 1, &["shape is [5, 2]", "expected [20, topk]"]);
    let out_of_range = with(&|tensors| tensors[1].3[8] = 4);
    fails(&out_of_range, 1, &["topk_idx[0, 1] = 4", "an expert id is −1 or below 4"]);
    let far_out_of_range = with(&|tensors| tensors[1].3[15] = 0x80);
    fails(&far_out_of_range, 1, &["topk_idx[0, 1] = -2147483648"]);

    write(&path, &tensors());
    let whole = fs::read(&path).expect("just written");
    for length in [whole.len() - 1, 100, 7, 0] {
        fs::write(&path, &whole[..length]).expect("the file can be written");
        fails(&run_input(&path), 1, &["routing.safetensors", "not a whole safetensors file"]);
    }
}

#[test]
fn bad_settings_name_field_value_and_limit() {
    for (args, words) in [
        ("--hidden 20", ["hidden = 20", "40 bytes", "multiple of 16"]),
        ("--hidden 24 --element fp8", ["hidden = 24", "24 bytes", "multiple of 16"]),
        ("--topk 17", ["topk = 17", "at most", "experts = 16"]),
        ("--topk 0", ["topk = 0", "1", "32"]),
        ("--experts 12", ["experts = 12", "multiple of", "groups = 8"]),
        ("--receive-rows 2", ["would receive", "receive_rows = 2", "nothing was sent"]),
        ("--receive-rows 19", ["receive_rows = 19", "ranks · tokens", "18"]),
        ("--ranks 0", ["ranks = 0", "1", "1024"]),
        ("--sms 1000", ["sms = 1000", "132", "rank 0, 1, 2"]),
        ("--timeout 0s", ["timeout = 0", "above 0", "a day"]),
        ("--tokens 400000000", ["tokens = 400000000", "must be", "below"]),
        ("--devices 1", ["devices = 1", "emulator", "--backend cuda"]),
        ("--lane llvm", ["lane = llvm", "emulator", "--backend cuda"]),
        ("--by-expert 5000", ["alignment = 5000", "1", "4096"]),
        ("--gate uniform --topk 17", ["topk = 17", "at most", "experts = 16"]),
    ] {
        fails(&run(args), 1, &words);
    }
}

#[test]
fn usage_errors_end_with_status_2() {
    fails(&run("--timeout 5h"), 2, &["--timeout", "5h", "ms, s or m"]);
    fails(&run("--element f64"), 2, &["--element", "f64", "bf16, f16, fp8, fp8-ue8m0"]);
    fails(&tokenrail("run --input file --tokens 3"), 2, &["--input", "--tokens"]);
    fails(&tokenrail(""), 2, &["Usage"]);
}

#[test]
fn without_gpus_their_backend_says_so() {
    if tokenrail::Backend::cuda_devices().is_ok() {
        skip::skipped("there are GPUs here");
        return;
    }
    fails(&run("--backend cuda"), 1, &["not available"]);
    if cfg!(not(feature = "cuda")) {
        fails(&run("--backend cuda"), 1, &["build with `--features cuda`"]);
    }
}

#[test]
fn proxy_measures_ring_and_thread() {
    let output = tokenrail("proxy --repeat 1");
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines.len() == 3 && lines[1].starts_with("by the host"), "{out}");
    // The emulator's round trip is in virtual time, and takes some.
    let trip = lines[2].split_whitespace().nth(5).and_then(|trip| trip.parse::<f64>().ok());
    assert!(trip.is_some_and(|trip| trip > 0.0), "{out}");
    fails(&tokenrail("proxy --repeat 0"), 2, &["--repeat"]);
}

#[test]
fn info_tells_what_there_is() {
    let output = tokenrail("info --no-measure");
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    assert!(
        out.contains(env!("CARGO_PKG_VERSION")) && out.contains("emulator") && out.contains("GPU"),
        "{out}"
    );
    assert!(out.contains("not measured: --no-measure"), "{out}");
    let emulated = text(&tokenrail("info --backend emulator").stdout);
    assert!(emulated.contains("not measured: the emulator"), "{emulated}");
    if tokenrail::Backend::cuda_devices().is_err() {
        let out = text(&tokenrail("info").stdout);
        assert!(out.contains("not measured: there is no GPU"), "{out}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn without_kernels_for_gpus_there_are_none_to_compare() {
    for args in ["ptx", "ptx --check docs/ptx.md"] {
        fails(&tokenrail(args), 1, &["build with `--features reference`"]);
    }
}

#[cfg(feature = "cuda")]
#[test]
fn ptx_prints_and_writes_what_it_compares() {
    let folder = folder("ptx");
    let [json, html] = ["ptx.json", "ptx.html"].map(|name| folder.join(name));
    let files = format!("--json {} --html {}", json.display(), html.display());
    let output = tokenrail(&format!("ptx --kernel tokenrail_copy {files}"));
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}{}", text(&output.stderr));
    assert!(
        out.contains("ok: the lanes agree") && out.contains("cp.async.bulk shared::cta to global"),
        "{out}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(json).expect("it was written")).expect("it is JSON");
    assert_eq!(json["kernels"][0]["name"], "tokenrail_copy");
    let html = fs::read_to_string(html).expect("it was written");
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("tokenrail_copy"), "{html}");

    fails(&tokenrail("ptx --kernel copy"), 1, &["--kernel copy", "tokenrail_copy"]);
    fails(&tokenrail("ptx --sm 75"), 1, &["--sm 75", "90"]);
    fails(&tokenrail("ptx --kernel tokenrail_copy --check docs/ptx.md"), 2, &["--check", "--kernel"]);
    fails(
        &tokenrail(&format!("ptx --check {}", folder.join("none.md").display())),
        1,
        &["--check", "none.md"],
    );
}
