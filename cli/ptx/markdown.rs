//! The comparison as a page of the documentation, and whether such a page is still right.

use super::compare::Comparison;
use super::tables::{self, Table};
use similar::TextDiff;

/// The part that holds whatever the compilers' versions are.
const AGREED: &str = "## What lanes agree on";
/// The part that names the versions, and all behind it.
const MADE: &str = "## What compilers make of it";

/// The page.
pub fn page(comparison: &Comparison) -> String {
    let lanes = comparison.lanes.join("/");
    let tools: String =
        comparison.tools.iter().map(|(tool, version)| format!("- {tool}: {version}\n")).collect();
    let mut agreed: Table = vec![
        ["kernel", "spilled bytes", "barriers", "operations", "plain accesses"].map(str::to_owned).to_vec(),
    ];
    let figures = tables::figures(comparison, &[tables::SPILLED, tables::BARRIERS]);
    agreed.extend(comparison.kernels.iter().zip(figures.into_iter().skip(1)).map(|(kernel, mut row)| {
        row.extend(tables::agreed(kernel));
        row
    }));
    let columns = [tables::REGISTERS, tables::PTX_LINES, tables::PTX, tables::SASS, tables::SHARED];
    format!(
        "# Kernels beside CUDA C++\n\n\
         Every kernel of sm_{} as the lanes {lanes} make it: nvvm and llvm from the Rust in `device/`, by NVIDIA's libNVVM and by\n\
         LLVM's own backend; nvcc from the CUDA C++ in `reference/`. This page is made by\n\n\
         ```sh\n\
         cargo run --features reference -- ptx --markdown docs/ptx.md\n\
         ```\n\n\
         and CI checks it (`--check docs/ptx.md`). Cells with several values have those of {lanes}.\n\n\
         {AGREED}\n\n\
         Operations that synchronise, or that go on beside the thread, and how often the PTX has them: every lane as often, but for\n\
         those without a number, whose numbers are below. Plain accesses: every lane has the same, however often.\n\n\
         {}\n\
         {MADE}\n\n\
         {tools}\n\
         ### Size\n\n{}\n\
         ### Where lanes need not agree\n\n\
         They need not for the reason given; anything else fails.\n\n{}\n\
         ### Instructions of PTX by what they are about\n\n{}",
        comparison.sm,
        table(&agreed),
        table(&tables::figures(comparison, &columns)),
        table(&tables::allowed(comparison)),
        table(&tables::groups(comparison)),
    )
}

fn table(rows: &Table) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let rule = format!("|{}\n", " --- |".repeat(rows.first().map_or(0, Vec::len)));
    lines.insert(1.min(lines.len()), rule);
    lines.concat()
}

/// How a page has drifted.
#[derive(Debug, PartialEq, Eq)]
pub struct Drift {
    /// Lines that are no more, behind `-`, and new ones, behind `+`; empty if there are none.
    pub lines: String,
    /// Whether only what holds for all versions of the compilers was compared.
    pub in_part: bool,
}

/// Compares the page that was with the page that is; in part, if `in_part` or if other compilers made it.
pub fn drift(was: &str, is: &str, in_part: bool) -> Drift {
    let tools = |page: &str| -> Vec<String> {
        let behind = page.split_once(MADE).map_or("", |(_, behind)| behind);
        behind.lines().filter(|line| line.starts_with("- ")).map(str::to_owned).collect()
    };
    let in_part = in_part || tools(was) != tools(is);
    let part = |page: &str| match page.split_once(MADE) {
        Some((before, _)) if in_part => before.to_owned(),
        _ => page.to_owned(),
    };
    let (was, is) = (part(was), part(is));
    let lines = if was == is {
        String::new()
    } else {
        TextDiff::from_lines(&was, &is).unified_diff().context_radius(0).to_string()
    };
    Drift { lines, in_part }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_page(tool: &str, barriers: u32, registers: u32) -> String {
        format!("# Kernels\n\n{AGREED}\n\n| k | {barriers} |\n\n{MADE}\n\n- {tool}\n\n| k | {registers} |\n")
    }

    #[test]
    fn the_same_page_has_not_drifted() {
        let page = a_page("nvcc: 13.5", 1, 40);
        assert_eq!(drift(&page, &page, false), Drift { lines: String::new(), in_part: false });
    }

    #[test]
    fn what_changed_is_told() {
        let drifted = drift(&a_page("nvcc: 13.5", 1, 40), &a_page("nvcc: 13.5", 1, 41), false);
        assert!(!drifted.in_part && drifted.lines.contains("-| k | 40 |\n+| k | 41 |\n"), "{drifted:?}");
    }

    #[test]
    fn other_compilers_may_make_something_else_but_not_something_wrong() {
        let was = a_page("nvcc: 13.5", 1, 40);
        let other = drift(&was, &a_page("nvcc: 13.6", 1, 41), false);
        assert_eq!(other, Drift { lines: String::new(), in_part: true });
        let wrong = drift(&was, &a_page("nvcc: 13.6", 2, 41), false);
        assert!(wrong.in_part && wrong.lines.contains("-| k | 1 |\n+| k | 2 |\n"), "{wrong:?}");
        // Figures are missing here.
        assert_eq!(drift(&was, &a_page("nvcc: 13.5", 1, 0), true).lines, "");
    }

    #[test]
    fn a_page_of_something_else_has_drifted() {
        assert!(drift("# Notes\n", &a_page("nvcc: 13.5", 1, 40), false).lines.contains("-# Notes\n"));
    }
}
