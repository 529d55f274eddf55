//! `tokenrail lanes`, run as a user runs it, on the emulator.
#![cfg(feature = "cli")]

mod skip;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use tokenrail::device::KERNELS;

fn lanes(args: &str) -> Output {
    let args = args.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_tokenrail"))
        .arg("lanes")
        .args(args)
        .output()
        .expect("the command starts")
}

/// What it prints and writes with these settings, if it ends well.
fn results(name: &str, args: &str) -> (String, serde_json::Value) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = lanes(&format!("{args} --json {}", file.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let json = fs::read(&file).expect("the file can be read");
    (out, serde_json::from_slice(&json).expect("it is JSON"))
}

fn list<'a>(of: &'a serde_json::Value, name: &str) -> &'a Vec<serde_json::Value> {
    of[name].as_array().unwrap_or_else(|| panic!("{name} is no list"))
}

fn string(of: &serde_json::Value) -> String {
    of.as_str().expect("a string").to_owned()
}

#[test]
fn every_kernel_is_timed_or_left_out_for_a_reason() {
    let (out, json) = results("lanes.json", "--strict");
    let lines = list(&json, "lines");
    let timed: BTreeSet<String> = lines.iter().flat_map(|line| list(line, "kernels")).map(string).collect();
    let left_out: BTreeSet<String> =
        list(&json, "left_out").iter().map(|left_out| string(&left_out["kernel"])).collect();
    assert!(timed.is_disjoint(&left_out), "{left_out:?}");
    let all: BTreeSet<String> = KERNELS.iter().map(|&kernel| kernel.to_owned()).collect();
    assert_eq!(&timed | &left_out, all);
    for left_out in list(&json, "left_out") {
        assert!(!string(&left_out["why"]).is_empty());
    }

    let key =
        |line: &serde_json::Value| ["operation", "ranks", "tokens", "sms"].map(|name| line[name].to_string());
    assert_eq!(lines.iter().map(key).collect::<BTreeSet<_>>().len(), lines.len(), "a line is there twice");
    for line in lines {
        let [lane] = &list(line, "lanes")[..] else { panic!("{line}") };
        assert_eq!(lane["lane"], "emulator");
        assert_eq!(list(lane, "repetitions").len(), 2);
        assert!(lane["time"].as_f64().is_some_and(|time| time > 0.0), "{line}");
        assert!(lane["against"].is_null(), "there is nothing to compare with");
        assert_eq!(line["judged"] == false, string(&line["operation"]).contains("across"));
    }
    for words in ["no ratios", "of 1 lanes are equal, bit for bit", "not timed: tokenrail_probe"] {
        assert!(out.contains(words), "{words:?} is not in: {out}");
    }
}

#[test]
fn more_tokens_take_longer() {
    let (_, json) = results("lanes-dispatch.json", "--only dispatch,tokenrail_experts --repeat 1 --ranks 3");
    let lines = list(&json, "lines");
    let timed = |operation: &str| -> Vec<f64> {
        let of = lines.iter().filter(|line| line["operation"] == operation);
        of.map(|line| line["lanes"][0]["time"].as_f64().expect("a number")).collect()
    };
    let dispatch = timed("dispatch bf16");
    assert!(dispatch.len() == 2 && dispatch[0] < dispatch[1], "{dispatch:?}");
    assert_eq!((timed("experts").len(), timed("combine").len()), (1, 0));
    assert!(lines.iter().all(|line| line["ranks"] == 3 || line["operation"] == "experts"));
}

#[test]
fn bad_settings_name_field_value_and_limit() {
    for (args, code, words) in [
        ("--lanes nvvm", 1, ["lanes = nvvm", "emulator"]),
        ("--lanes emulator,emulator", 1, ["lanes = emulator", "once"]),
        ("--only dispatched", 1, ["only = dispatched", "low_latency_combine_log10"]),
        ("--only probe", 1, ["only = probe", "not timed"]),
        ("--devices 1", 1, ["devices = 1", "--backend cuda"]),
        ("--ranks 0", 1, ["ranks = 0", "must be 1 to 1024"]),
        ("--repeat 0", 2, ["--repeat", "1..=1000"]),
        ("--json missing/file --only copy", 1, ["--json", "missing/file"]),
    ] {
        let output = lanes(args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(words.iter().all(|word| err.contains(word)) && !err.contains("panicked"), "{words:?}: {err}");
    }
}

#[test]
fn without_gpus_their_backend_says_so() {
    if tokenrail::Backend::cuda_devices().is_ok() {
        skip::skipped("there are GPUs here");
        return;
    }
    let output = lanes("--backend cuda");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("not available"), "{err}");
}
