//! `tokenrail report`, run as a user runs it.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Results without a single measurement.
const RESULTS: &str = r#"{"version": 1, "tokenrail": "0.1.0", "date": "2026-11-24T16:00:00Z", "backend": "cuda",
    "driver": null, "devices": ["a GPU & more"], "command": "bench", "hidden": 64, "experts": 8, "topk": 2,
    "seconds": 1.0, "ceilings": [], "rows": [], "traffic": [], "budgets": []}"#;

fn report(results: &Path, out: &Path) -> Output {
    let command = Command::new(env!("CARGO_BIN_EXE_tokenrail"))
        .arg("report")
        .arg(results)
        .arg("--out")
        .arg(out)
        .output();
    command.expect("the command starts")
}

/// A file of the test's own with this in it.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}"));
    fs::write(&path, text).expect("a file can be written");
    path
}

#[test]
fn a_report_is_made_of_a_file() {
    let out = file("good.html", "of an earlier run");
    let output = report(&file("good.json", RESULTS), &out);
    let (said, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("report-good.html"), "{said}{err}");
    let page = fs::read_to_string(out).expect("the report is there");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("a GPU &amp; more"), "{page}");
}

#[test]
fn errors_name_the_file() {
    let good = file("results.json", RESULTS);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let html = folder.join("report-errors.html");
    let older = RESULTS.replace("\"version\": 1", "\"version\": 7");
    let without_rows = RESULTS.replace("\"rows\": [],", "");
    let ragged = RESULTS.replace("\"traffic\": []", r#""traffic": [{"name": "t", "bytes": [[1, 2], [3]]}]"#);
    for (results, out, words) in [
        (file("none.json", "{"), &html, ["none.json", "not what `tokenrail bench` writes"]),
        (file("rows.json", &without_rows), &html, ["rows.json", "missing field `rows`"]),
        (file("older.json", &older), &html, ["older.json", "version = 7: must be 1"]),
        (file("ragged.json", &ragged), &html, ["ragged.json", "bytes[1] has 1 numbers, must have 2"]),
        (folder.join("report-nowhere.json"), &html, ["report-nowhere.json", "No such file"]),
        (good.clone(), &folder.join("no folder/r.html"), ["no folder/r.html", "No such file"]),
        (good, &folder.to_path_buf(), [folder.to_str().expect("a name"), "directory"]),
    ] {
        let output = report(&results, out);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {err}");
        words.iter().for_each(|word| assert!(err.contains(word), "{word} is not in: {err}"));
    }
    assert!(!html.exists());
}
