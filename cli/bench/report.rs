//! `tokenrail report`: one HTML file with plots and every number behind them. No scripts, and nothing is fetched.

mod bars;
mod chart;
mod head;
mod heat;
mod html;
mod lines;
mod numbers;
mod sections;
mod select;
#[cfg(test)]
mod tests;

use super::results::{self, Results};
use crate::files;
use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};

/// What to make it of, and where.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Results of a benchmark, as JSON
    #[arg(value_name = "FILE")]
    pub results: PathBuf,
    /// Where to write the report
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Writes a report; true.
///
/// # Errors
/// Those of [`results::read`] and [`write()`].
pub fn report(args: &ReportArgs) -> Result<bool, Box<dyn Error>> {
    write("--out", &args.out, &results::read(&args.results)?)?;
    println!("report: {}", args.out.display());
    Ok(true)
}

/// Writes a report of these results to the file that `option` has named.
///
/// # Errors
/// A path that cannot be written.
pub fn write(option: &str, path: &Path, results: &Results) -> Result<(), Box<dyn Error>> {
    files::write(option, path, &page(results)?)
}

/// The report.
///
/// # Errors
/// What drawing gives.
fn page(results: &Results) -> Result<String, Box<dyn Error>> {
    let sections = sections::all(results)?;
    Ok(html::page(&head::title(results), &head::head(results), &sections))
}
