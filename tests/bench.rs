//! The benchmark, run as a user runs it, on the emulator.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A small benchmark with these settings besides.
fn bench(args: &str) -> Output {
    let shape = "bench --quick --hidden 144 --experts 12 --topk 3 --tokens 5 --few-tokens 3 --repeat 2";
    let args = shape.split_whitespace().chain(args.split_whitespace());
    Command::new(env!("CARGO_BIN_EXE_tokenrail")).args(args).output().expect("the command starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn passes(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    out
}

/// It ends with status `code`, says all of `words` on either output, and claims no success.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let both = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{both}");
    assert!(!both.contains("ok:") && !both.contains("panicked"), "{both}");
    for word in words {
        assert!(both.contains(word), "{word:?} is not in: {both}");
    }
}

/// An empty folder of the test's own.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{test}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an earlier run's folder can go");
    }
    fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the file can be read")).expect("it is JSON")
}

fn rows(results: &Value) -> &Vec<Value> {
    results["rows"].as_array().expect("rows")
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

#[test]
fn everything_is_measured_written_and_compared() {
    let folder = folder("all");
    let out = passes(&bench(&format!("--ranks 2,3 --out {}", folder.display())));
    let results = json(&folder.join("bench.json"));
    assert_eq!((&results["version"], &results["backend"]), (&1.into(), &"emulator".into()));
    assert_eq!(results["devices"], Value::from(vec!["emulated GPU"]));
    assert_eq!(
        (&results["hidden"], &results["experts"], &results["topk"]),
        (&144.into(), &12.into(), &3.into())
    );

    let measured: BTreeSet<(&str, &str, u64)> = rows(&results)
        .iter()
        .map(|row| {
            let name = |field: &str| row[field].as_str().expect("a name");
            (name("section"), name("operation"), row["ranks"].as_u64().expect("a number"))
        })
        .collect();
    let mut expected = BTreeSet::new();
    for ranks in [2, 3] {
        expected.extend(["dispatch", "combine"].map(|name| ("throughput", name, ranks)));
        expected.extend(["dispatch", "combine", "both", "graph"].map(|name| ("low-latency", name, ranks)));
        let overlap = ["send", "receive", "send back", "sum", "weights", "beside dispatch", "beside combine"];
        expected.extend(overlap.map(|name| ("overlap", name, ranks)));
    }
    expected.extend(["dispatch", "combine"].map(|name| ("copy-engine", name, 2)));
    // The emulator takes no commands out of a ring by themselves, but for the host's.
    expected.extend(["taken", "posted", "round trip"].map(|name| ("proxy", name, 1)));
    assert_eq!(measured, expected);

    let ceiling = |of: &str, ranks: &Value, sms: &Value| {
        let ceilings = results["ceilings"].as_array().expect("ceilings");
        let is = |it: &&Value| it["of"] == of && it["ranks"] == *ranks && it["sms"] == *sms;
        float(&ceilings.iter().find(is).unwrap_or_else(|| panic!("{of} of {ranks}"))["value"])
    };
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs();
    for row in rows(&results) {
        let (ranks, time) = (&row["ranks"], &row["time"]);
        let median = float(&time["median"]);
        assert!(float(&time["p10"]) <= median && median <= float(&time["p90"]) && median > 0.0, "{row}");
        let wanted = match (row["section"].as_str(), row["operation"].as_str()) {
            (Some("throughput"), _) => {
                let rate = float(&row["bytes"]) / median / 1e3;
                assert!(near(rate, float(&row["gb_per_s"])), "{row}");
                assert!(near(rate / float(&row["ceiling"]), float(&row["ratio"])), "{row}");
                ceiling("copy", ranks, &row["sms"])
            }
            (Some("low-latency"), Some("dispatch" | "combine")) => {
                ceiling("launch", ranks, &Value::Null) + ceiling("flag", ranks, &Value::Null)
            }
            (Some("overlap"), Some("send" | "receive" | "send back" | "sum")) => {
                assert!(near(float(&row["ceiling"]) / median, float(&row["ratio"])), "{row}");
                ceiling("launch", ranks, &Value::Null)
            }
            _ => continue,
        };
        assert!(near(float(&row["ceiling"]), wanted), "{row}");
    }

    let budgets = results["budgets"].as_array().expect("budgets");
    assert_eq!(budgets.len(), 2);
    for budget in budgets {
        let parts = budget["parts"].as_array().expect("parts");
        assert_eq!(parts.len(), 5);
        assert!(parts.iter().all(|part| float(&part[1]) >= 0.0), "{budget}");
        assert!(near(float(&budget["whole"]), parts.iter().map(|part| float(&part[1])).sum()), "{budget}");
    }

    let traffic = results["traffic"].as_array().expect("traffic");
    assert_eq!(traffic.len(), 4);
    for traffic in traffic {
        let name = traffic["name"].as_str().expect("a name");
        let ranks = if name.contains("2 ranks") { 2 } else { 3 };
        // fp8 has two scales for 144 elements.
        let row = if name.contains("fp8") { 144 + 8 } else { 288 };
        let bytes = traffic["bytes"].as_array().expect("a matrix");
        assert_eq!(bytes.len(), ranks);
        for from in bytes {
            let to: Vec<u64> = from.as_array().expect("a row").iter().filter_map(Value::as_u64).collect();
            assert!(to.len() == ranks && to.iter().all(|bytes| bytes % row == 0), "{name}: {from}");
            // 3 experts of each of 5 tokens, on 1 to all ranks.
            let rows = to.iter().sum::<u64>() / row;
            assert!((5..=5 * ranks as u64).contains(&rows), "{name}: {from}");
        }
    }

    let csv = fs::read_to_string(folder.join("bench.csv")).expect("the file can be read");
    assert_eq!(csv.lines().count(), 1 + rows(&results).len());
    assert!(csv.starts_with("section,operation,variant,ranks,tokens,sms,"), "{csv}");
    let report = fs::read_to_string(folder.join("report.html")).expect("the file can be read");
    assert!(report.contains("<title>") && !report.contains("<script src"), "{report}");

    // Of each rank 5 tokens of 2 elements with 2 numbers of multiprocessors, and by copy engines; 3 of low latency; twice.
    let compared = 2 * ((2 + 3) * 5 * 4 + 2 * 5 * 2 + (2 + 3) * 3);
    assert!(out.contains(&format!("ok: {compared} combined rows equal")), "{out}");
}

#[test]
fn a_baseline_tells_what_has_changed_and_nothing_else() {
    let folder = folder("baseline");
    let what = "--ranks 2 --sections throughput";
    let out = passes(&bench(&format!("{what} --out {} --no-check", folder.display())));
    assert!(out.contains("nothing was compared") && !out.contains("ok:"), "{out}");
    let file = folder.join("bench.json");
    let again = || passes(&bench(&format!("{what} --baseline {}", file.display())));
    let out = again();
    assert!(
        out.contains("0 of 8 rows changed beyond noise; 0 in the baseline only, 0 in this run only"),
        "{out}"
    );
    assert!(!out.contains("quicker") && !out.contains("slower"), "{out}");

    let mut doctored = json(&file);
    let row = &mut doctored["rows"][5];
    let name = format!("{} {}", row["section"], row["variant"]).replace('"', "");
    row["time"]["median"] = (3.0 * float(&row["time"]["median"])).into();
    doctored["rows"].as_array_mut().expect("rows").remove(0);
    fs::write(&file, doctored.to_string()).expect("the file can be written");
    let out = again();
    assert!(
        out.contains("1 of 7 rows changed beyond noise; 0 in the baseline only, 1 in this run only"),
        "{out}"
    );
    let changed: Vec<&str> = out.lines().filter(|line| line.contains("quicker")).collect();
    assert!(
        changed.len() == 1 && changed[0].contains(&name) && changed[0].contains("66.7 %"),
        "{name}: {out}"
    );
    assert!(!out.contains("slower"), "{out}");
}

#[test]
fn baselines_that_say_nothing_are_refused() {
    let folder = folder("refused");
    let file = folder.join("bench.json");
    let what = "--ranks 1 --sections proxy";
    passes(&bench(&format!("{what} --out {}", folder.display())));
    let good = fs::read_to_string(&file).expect("the file can be read");
    for (from, to, words) in [
        ("\"version\": 1", "\"version\": 9", "version = 9: must be 1"),
        ("\"backend\": \"emulator\"", "\"backend\": \"cuda\"", "backend = cuda: must be emulator"),
        ("\"emulated GPU\"", "\"a GPU\"", "devices = a GPU: must be emulated GPU"),
        ("\"hidden\": 144", "\"hidden\": 128", "hidden = 128: must be 144"),
        ("\"rows\"", "\"columns\"", "missing field `rows`"),
        ("{", "", "not what `tokenrail bench` writes"),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good, "{from}");
        fs::write(&file, changed).expect("the file can be written");
        fails(&bench(&format!("{what} --baseline {}", file.display())), 1, &["--baseline", words]);
    }
    fails(&bench(&format!("{what} --baseline missing")), 1, &["--baseline: missing", "No such file"]);
}

#[test]
fn what_there_is_no_time_for_is_named() {
    let folder = folder("limit");
    let output =
        bench(&format!("--ranks 2,3 --sections throughput,proxy --limit 0s --out {}", folder.display()));
    fails(&output, 1, &["LEFT OUT", "throughput, 2 ranks; proxy; throughput, 3 ranks"]);
    assert!(rows(&json(&folder.join("bench.json"))).is_empty());
}

#[test]
fn bad_settings_name_field_value_and_limit() {
    for (args, words) in [
        ("--ranks 0", ["ranks = 0", "1 to 1024"]),
        ("--hidden 20", ["hidden = 20", "multiple of 16"]),
        ("--sms 1000", ["sms = [1000]", "1 to 132"]),
        ("--few-tokens 9000", ["low_latency.tokens = 9000", "must be 1 to"]),
        ("--sections proxy --out /dev/null/here", ["--out: /dev/null/here", "Not a directory"]),
        ("--sections proxy --html missing/file", ["--html", "missing/file"]),
    ] {
        fails(&bench(&format!("{args} --limit 0s")), 1, &words);
    }
    fails(&bench("--sections best"), 2, &["--sections", "best", "low-latency"]);
    fails(&bench("--repeat 0"), 2, &["--repeat", "1..=100"]);
}
