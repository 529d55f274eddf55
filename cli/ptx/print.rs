//! The comparison in the terminal.

use super::compare::Comparison;
use super::tables;
use crate::report::table;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Figures of all kernels, and where lanes do not agree; of each kernel its instructions too, if `whole`.
pub fn print(comparison: &Comparison, whole: bool) -> String {
    let columns = [
        tables::REGISTERS,
        tables::PTX_LINES,
        tables::PTX,
        tables::SASS,
        tables::SPILLED,
        tables::SHARED,
        tables::BARRIERS,
    ];
    let mut text = format!("sm_{}, {}\n", comparison.sm, comparison.lanes.join("/"));
    for (tool, version) in &comparison.tools {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {tool:<5} {version}");
    }
    text += &table(&tables::figures(comparison, &columns));
    for kernel in comparison.kernels.iter().filter(|_| whole) {
        let _ = write!(text, "{}\n{}", kernel.name, table(&tables::classes(comparison, kernel)));
    }
    let mut reasons: BTreeMap<String, tables::Table> = BTreeMap::new();
    for mut row in tables::allowed(comparison).into_iter().skip(1) {
        if let Some(reason) = row.pop() {
            reasons.entry(reason).or_default().push(row);
        }
    }
    for (reason, rows) in &reasons {
        let _ = write!(text, "lanes need not agree: {reason}\n{}", table(rows));
    }
    text
}
