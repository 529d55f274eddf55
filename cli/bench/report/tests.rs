//! Reports of made-up results.

use super::*;
use crate::bench::results::{Budget, Ceiling, Limit, Row, Section, Traffic};
use crate::sweep::Spread;
use roxmltree::{Document, Node, ParsingOptions};

/// What no name should be, but may.
const HOSTILE: &str = "<b>&\"']]>\u{1}";

fn row(section: Section, operation: &str, variant: &str, ranks: u32, median: f64) -> Row {
    Row {
        section,
        operation: operation.into(),
        variant: variant.into(),
        ranks,
        tokens: None,
        sms: None,
        time: Spread { p10: 0.96 * median, median, p90: 1.07 * median },
        noise: 0.013,
        bytes: None,
        gb_per_s: None,
        limit: None,
        ceiling: None,
        ratio: None,
    }
}

fn throughput(operation: &str, variant: &str, ranks: u32, sms: u32, share: f64) -> Row {
    let bytes = 58_720_256 / if variant.starts_with("fp8") { 2 } else { 1 };
    let (ceiling, gb_per_s) = (copy(sms), share * copy(sms));
    Row {
        tokens: Some(4096),
        sms: Some(sms),
        bytes: Some(bytes),
        gb_per_s: Some(gb_per_s),
        limit: Some(Limit::Copy),
        ceiling: Some(ceiling),
        ratio: Some(share),
        ..row(Section::Throughput, operation, variant, ranks, bytes as f64 / gb_per_s / 1e3)
    }
}

fn copy(sms: u32) -> f64 {
    (32.5 * f64::from(sms)).min(371.5)
}

fn low_latency(operation: &str, variant: &str, ranks: u32, tokens: u32) -> Row {
    let base = if operation == "combine" { 12.9 } else { 14.7 };
    let each = if variant.starts_with("bf16") { 0.1731 } else { 0.1103 };
    let median = base + f64::from(ranks) / 3.0 + each * f64::from(tokens);
    let floor = 5.93;
    Row {
        tokens: Some(tokens),
        limit: Some(Limit::Flag),
        ceiling: Some(floor),
        ratio: Some(floor / median),
        ..row(Section::LowLatency, operation, variant, ranks, median)
    }
}

/// Something of everything.
fn results() -> Results {
    let mut rows = Vec::new();
    for ranks in [2, 4, 8] {
        for (at, form) in ["rank-major", "by-expert", "cached"].into_iter().enumerate() {
            for (nth, element) in ["bf16", "fp8", "fp8-ue8m0"].into_iter().enumerate() {
                for operation in ["dispatch", "combine"] {
                    for sms in [4, 8, 12, 16, 24, 32] {
                        let share =
                            0.963 - 0.11 * at as f64 - 0.023 * nth as f64 - 0.004 * f64::from(sms + ranks);
                        rows.push(throughput(
                            operation,
                            &format!("{element} {form} uniform"),
                            ranks,
                            sms,
                            share,
                        ));
                    }
                }
            }
        }
        for (operation, variant) in [
            ("dispatch", "fp8"),
            ("dispatch", "bf16"),
            ("combine", "bf16 by-rank"),
            ("combine", "log10 by-rank"),
            ("both", "fp8, bf16 by-rank"),
        ] {
            rows.extend(
                [1, 8, 32, 64, 128, 256].map(|tokens| low_latency(operation, variant, ranks, tokens)),
            );
        }
    }
    for (operation, median) in [
        ("send", 10.74),
        ("receive", 8.63),
        ("send back", 9.61),
        ("sum", 7.42),
        ("weights", 88.13),
        ("beside dispatch", 88.72),
        ("beside combine", 89.24),
    ] {
        let tokens = Some(128);
        rows.push(Row { tokens, ..row(Section::Overlap, operation, "fp8, bf16 by-rank", 2, median) });
    }
    for (operation, gb_per_s) in [("dispatch", 281.7), ("combine", 262.4)] {
        rows.push(Row {
            tokens: Some(4096),
            bytes: Some(58_720_256),
            gb_per_s: Some(gb_per_s),
            limit: Some(Limit::CopyEngine),
            ceiling: Some(391.8),
            ratio: Some(gb_per_s / 391.8),
            ..row(Section::CopyEngine, operation, HOSTILE, 2, 208.5)
        });
    }
    rows.push(row(Section::Proxy, "post", "by a kernel", 1, 0.0453));
    rows.push(row(Section::Proxy, "round trip", "by a kernel", 1, f64::NAN));
    let ceiling = |of, sms, value| Ceiling { of, ranks: 2, sms, value, noise: 0.0071 };
    let parts = [("launch", 4.12), ("announce", 2.31), ("send rows", 6.53), (HOSTILE, 1.87), ("copy", 3.29)];
    let budget = |name: &str, scale: f64| Budget {
        name: name.into(),
        parts: parts.map(|(name, time)| (name.into(), scale * time)).to_vec(),
        whole: 19.85 * scale,
    };
    let traffic = |name: &str, ranks: u64| Traffic {
        name: name.into(),
        bytes: (0..ranks)
            .map(|from| (0..ranks).map(|to| 1_048_576 * (3 + (7 * from + 5 * to) % 11)).collect())
            .collect(),
    };
    Results {
        version: crate::bench::results::VERSION,
        tokenrail: "0.1.0".into(),
        date: "2026-11-24T16:00:00Z".into(),
        backend: "cuda".into(),
        driver: Some("580.159".into()),
        devices: vec!["NVIDIA H100 80GB HBM3".into()],
        command: format!("tokenrail bench --backend cuda --ranks 2,4,8 --name {HOSTILE}"),
        hidden: 7168,
        experts: 256,
        topk: 8,
        seconds: 342.7,
        ceilings: vec![
            ceiling(Limit::Copy, Some(8), copy(8)),
            ceiling(Limit::Copy, Some(16), copy(16)),
            ceiling(Limit::CopyEngine, None, 391.8),
            ceiling(Limit::Flag, None, 0.961),
            ceiling(Limit::Launch, None, 4.012),
        ],
        rows,
        traffic: vec![
            traffic("dispatch fp8, 4096 tokens, uniform", 8),
            traffic(HOSTILE, 2),
            traffic("dispatch fp8, 4096 tokens, zipf", 64),
        ],
        budgets: vec![budget("dispatch fp8, 128 tokens, 2 ranks", 1.0), budget(HOSTILE, 1.4)],
    }
}

fn without_data() -> Results {
    Results {
        driver: None,
        devices: Vec::new(),
        ceilings: Vec::new(),
        rows: Vec::new(),
        traffic: Vec::new(),
        budgets: Vec::new(),
        ..results()
    }
}

/// What a reader sees: the text of every element of this name, of a page that is XML, too.
fn texts(page: &str, element: &str) -> Vec<String> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).expect("the page is well-formed");
    let of = document.descendants().filter(|node| node.tag_name().name() == element);
    let text = |node: Node| {
        node.descendants().filter(|part| part.is_text()).filter_map(|part| part.text()).collect()
    };
    of.map(text).collect()
}

/// The cells of all rows of all tables.
fn table_rows(page: &str) -> Vec<Vec<String>> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(page, options).expect("the page is well-formed");
    let of = document.descendants().filter(|node| node.has_tag_name("tr"));
    of.map(|row| row.children().map(|cell| cell.text().unwrap_or("").to_owned()).collect()).collect()
}

#[test]
fn every_plot_has_its_title() {
    let page = page(&results()).expect("a page");
    let titles = texts(&page, "figcaption");
    for title in [
        "Bandwidth over SMs: dispatch, 2 ranks, 4096 tokens",
        "Bandwidth over SMs: combine, 8 ranks, 4096 tokens",
        "Ratio to the ceiling: combine, 4 ranks, 4096 tokens",
        "Latency over tokens: dispatch, 2 ranks",
        "Latency over tokens: both, fp8, bf16 by-rank, 8 ranks",
        "Bandwidth over ranks: dispatch, 4096 tokens, 32 SMs",
        "Latency over ranks: combine, 256 tokens",
        "Halves: fp8, bf16 by-rank, 2 ranks, 128 tokens",
        "Reading weights, alone and beside calls: fp8, bf16 by-rank, 2 ranks, 128 tokens",
        "Traffic from rank to rank: dispatch fp8, 4096 tokens, uniform",
        "Budget: what the time of a call is made of",
    ] {
        assert!(titles.iter().any(|is| is == title), "{title} is not among {titles:#?}");
    }
    assert_eq!(titles.len(), texts(&page, "svg").len());
    assert!(!page.contains("left out"));
}

#[test]
fn plots_name_their_lines_and_limits() {
    let page = page(&results()).expect("a page");
    let plot = |title: &str| {
        let at = texts(&page, "figcaption").iter().position(|is| is == title).expect("its title");
        texts(&page, "svg")[at].clone()
    };
    let says = |plot: &str, words: &[&str]| {
        words.iter().for_each(|word| assert!(plot.contains(word), "{word} is not in {plot}"));
    };
    let bandwidth = plot("Bandwidth over SMs: dispatch, 2 ranks, 4096 tokens");
    says(
        &bandwidth,
        &["bf16 rank-major uniform", "fp8-ue8m0 cached uniform", "a plain copy", "GB/s", "SMs of a rank"],
    );
    says(&plot("Ratio to the ceiling: dispatch, 2 ranks, 4096 tokens"), &["the ceiling"]);
    let latency = plot("Latency over tokens: dispatch, 2 ranks");
    says(&latency, &["flights and launches", "µs", "1", "8", "32", "64", "128", "256"]);
    says(&plot("Halves: fp8, bf16 by-rank, 2 ranks, 128 tokens"), &["send back", "9.61"]);
    says(
        &plot("Budget: what the time of a call is made of"),
        &["dispatch fp8,", "send rows", "rest", "19.85"],
    );
    let traffic = plot("Traffic from rank to rank: dispatch fp8, 4096 tokens, uniform");
    says(&traffic, &["from rank", "to rank", "MB", "3.15", "13.63"]);
}

#[test]
fn every_number_has_its_row() {
    let results = results();
    let page = page(&results).expect("a page");
    let rows = table_rows(&page);
    let has = |cells: &[String]| {
        let is = |row: &&Vec<String>| cells.iter().all(|cell| row.contains(cell));
        assert!(rows.iter().any(|row| is(&row)), "{cells:?}");
    };
    for row in &results.rows {
        let numbers = [row.time.p10, row.time.median, row.time.p90].into_iter().chain(row.gb_per_s);
        let mut cells: Vec<String> = numbers.chain(row.ceiling).map(numbers::measured).collect();
        cells.extend([html::clean(&row.operation), html::clean(&row.variant), row.ranks.to_string()]);
        cells.extend(row.bytes.map(|bytes| bytes.to_string()));
        has(&cells);
    }
    for ceiling in &results.ceilings {
        has(&[numbers::measured(ceiling.value), "0.7".into()]);
    }
    for traffic in &results.traffic {
        for (from, bytes) in traffic.bytes.iter().enumerate() {
            let cells: Vec<String> = bytes.iter().map(u64::to_string).collect();
            has(&[vec![format!("from {from}")], cells].concat());
        }
    }
    for budget in &results.budgets {
        for (part, time) in &budget.parts {
            has(&[html::clean(&budget.name), html::clean(part), numbers::measured(*time)]);
        }
        has(&[html::clean(&budget.name), "rest".into(), numbers::measured(1.73 * budget.whole / 19.85)]);
    }
}

#[test]
fn the_head_says_what_was_run() {
    let results = results();
    let page = page(&results).expect("a page");
    let said = texts(&page, "dd");
    for what in [
        "NVIDIA H100 80GB HBM3",
        "580.159",
        "2026-11-24T16:00:00Z",
        "hidden 7168, 256 experts, top-8",
        "5 min 43 s",
        &html::clean(&results.command),
    ] {
        assert!(said.iter().any(|is| is == what), "{what} is not among {said:#?}");
    }
    assert!(!page.contains("virtual"));
    let emulated = Results { backend: "emulator".into(), ..results };
    assert!(super::page(&emulated).expect("a page").contains("virtual"));
}

#[test]
fn names_are_text_and_nothing_is_fetched_or_run() {
    let page = page(&results()).expect("a page");
    assert!(page.contains("&lt;b&gt;&amp;&quot;") && !page.contains("<b>"));
    for element in ["script", "link", "img", "iframe", "object", "image", "use"] {
        assert_eq!(texts(&page, element).len(), 0, "{element}");
    }
    // But for the name of a namespace, which nobody fetches.
    let without_name = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for word in ["http:", "https:", "url(", "@import", "src=", "onload"] {
        assert!(!without_name.contains(word), "{word}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let page = page(&without_data()).expect("a page");
    assert_eq!(texts(&page, "svg").len(), 0);
    let said: Vec<String> =
        texts(&page, "p").into_iter().filter(|text| text.contains("left out, as ")).collect();
    for what in [
        "Ceilings",
        "Bandwidth over SMs",
        "Ratio to the ceiling",
        "Latency over tokens",
        "Bandwidth over ranks",
        "Latency over ranks",
        "Halves and overlap",
        "Copy engines",
        "Ring and proxy",
        "Traffic",
        "Budget of a low-latency call",
    ] {
        let lines = said.iter().filter(|text| text.starts_with(&format!("{what}: left out"))).count();
        assert_eq!(lines, 1, "{what}: {said:#?}");
    }
}

#[test]
fn numbers_that_are_none_are_not_drawn() {
    let mut results = results();
    for row in &mut results.rows {
        (row.time.median, row.gb_per_s) = (f64::NAN, Some(f64::INFINITY));
        (row.ceiling, row.ratio) = (Some(f64::NAN), Some(f64::NAN));
    }
    for budget in &mut results.budgets {
        (budget.whole, budget.parts[0].1) = (f64::NAN, f64::INFINITY);
    }
    results.traffic.truncate(1);
    results.traffic[0].bytes = vec![vec![0]];
    let page = page(&results).expect("a page");
    for word in ["NaN", "inf"] {
        assert_eq!(page.find(word).map(|at| &page[at.saturating_sub(200)..at + 20]), None);
    }
}

#[test]
fn many_lines_are_several_plots() {
    let mut results = without_data();
    let names = (0..30).map(|at| format!("variant {at}"));
    results.rows = names.map(|name| throughput("dispatch", &name, 2, 16, 0.5)).collect();
    let page = page(&results).expect("a page");
    let titles = texts(&page, "figcaption");
    let title = "Bandwidth over SMs: dispatch, 2 ranks, 4096 tokens";
    let of: Vec<_> = titles.iter().filter_map(|is| is.strip_prefix(title)).collect();
    assert_eq!(of, [" (1 of 3)", " (2 of 3)", " (3 of 3)"]);
    let plots = texts(&page, "svg");
    (0..30).for_each(|at| {
        assert!(plots.iter().any(|plot| plot.contains(&format!("variant {at}"))), "variant {at}");
    });
}

#[test]
fn scaling_is_of_the_same_settings() {
    let rows = [(2, 8, 0.5), (4, 8, 0.6), (2, 16, 0.7), (8, 32, 0.8), (4, 16, 0.75)]
        .map(|(ranks, sms, share)| throughput("dispatch", "fp8", ranks, sms, share));
    let chosen = select::like_for_like(&rows.iter().collect::<Vec<_>>());
    let chosen: Vec<_> = chosen.iter().map(|row| (row.ranks, row.sms)).collect();
    assert_eq!(chosen, [(2, Some(16)), (4, Some(16))]);
    let alone: Vec<&Row> = rows[3..4].iter().collect();
    assert_eq!(select::like_for_like(&alone).len(), 0);
}
