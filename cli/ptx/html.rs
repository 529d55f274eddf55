//! The comparison as a web page in one file.

use super::classes::Agreement;
use super::compare::{Comparison, Kernel, Row, Verdict, beside};
use super::tables::{self, Table};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = "\
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1d232b; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e3e7ec; }
th { background: #f3f5f8; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; }
tr.must td:first-child { font-weight: 600; }
tr.allowed { background: #fdf4dc; } tr.differs, .failures { background: #fbdcdc; }
.failures { padding: .8rem 2rem; } .well { color: #1c6b36; }
summary { cursor: pointer; padding: .2rem 0; font-family: ui-monospace, monospace; }
";

/// The page.
pub fn page(comparison: &Comparison) -> String {
    let lanes = comparison.lanes.join("/");
    let failures = comparison.failures();
    let columns = [
        tables::REGISTERS,
        tables::SPILLED,
        tables::SHARED,
        tables::BARRIERS,
        tables::PTX_LINES,
        tables::PTX,
        tables::SASS,
    ];
    let title = format!("Kernels of sm_{}: {lanes}", comparison.sm);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p { "tokenrail " (comparison.tokenrail) ". Cells with several values have those of " (lanes) "." }
                ul { @for (tool, version) in &comparison.tools { li { (tool) ": " (version) } } }
                @if failures.is_empty() {
                    p.well { "Lanes agree on what they must, or there is a reason." }
                } @else {
                    ul.failures { @for failure in &failures { li { (failure) } } }
                }
                h2 { "Figures" }
                (table(&tables::figures(comparison, &columns)))
                h2 { "Where lanes need not agree" }
                (table(&tables::allowed(comparison)))
                h2 { "Instructions of PTX by what they are about" }
                (table(&tables::groups(comparison)))
                h2 { "Instructions of PTX by class" }
                p {
                    "Bold: lanes must agree, on the number of what synchronises or goes on beside the thread, on the "
                    "presence of a plain access. Yellow: they do not, for the reason given. Red: for none."
                }
                @for kernel in &comparison.kernels { (classes(comparison, kernel)) }
            }
        }
    }
    .into_string()
}

fn table(rows: &Table) -> Markup {
    html! {
        div.scroll {
            table {
                @for (at, row) in rows.iter().enumerate() {
                    tr { @for cell in row { @if at == 0 { th { (cell) } } @else { td { (cell) } } } }
                }
            }
        }
    }
}

fn classes(comparison: &Comparison, kernel: &Kernel) -> Markup {
    let class = |row: &Row| match (&row.verdict, row.agreement) {
        (Verdict::Differs, _) => "must differs",
        (Verdict::Allowed(_), _) => "must allowed",
        (Verdict::Agrees, Agreement::Nothing) => "",
        (Verdict::Agrees, _) => "must",
    };
    html! {
        details {
            summary { (kernel.name) }
            div.scroll {
                table {
                    tr {
                        th { "class" } th { "group" }
                        @for lane in &comparison.lanes { th { (lane) } }
                        th.text { "reason" }
                    }
                    @for row in &kernel.mix {
                        tr class=(class(row)) {
                            td { (row.class) } td { (row.group.name()) }
                            @for count in &row.counts { td { (beside(&[*count])) } }
                            td.text { @if let Verdict::Allowed(reasons) = &row.verdict { (reasons.join("; ")) } }
                        }
                    }
                }
            }
        }
    }
}
