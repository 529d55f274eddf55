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

use super::results::{Results, Traffic, VERSION};
use clap::Args;
use serde::Deserialize;
use std::error::Error;
use std::fmt::Display;
use std::fs;
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
/// Those of [`read`] and [`write()`].
pub fn report(args: &ReportArgs) -> Result<bool, Box<dyn Error>> {
    write(&args.out, &read(&args.results)?)?;
    println!("report: {}", args.out.display());
    Ok(true)
}

/// Reads results.
///
/// # Errors
/// A file that cannot be read, is no such JSON, is of another version, or has traffic that is not from each rank to each.
pub fn read(path: &Path) -> Result<Results, Box<dyn Error>> {
    /// What all versions have.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let named = |error: &dyn Display| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| named(&error))?;
    let no_results = |error| named(&format_args!("no results of a benchmark: {error}"));
    let Any { version } = serde_json::from_str(&text).map_err(no_results)?;
    if version != VERSION {
        return Err(named(&format_args!("version = {version}: must be {VERSION}")).into());
    }
    let results: Results = serde_json::from_str(&text).map_err(no_results)?;
    for Traffic { name, bytes } in &results.traffic {
        let ranks = bytes.len();
        if let Some((from, row)) = bytes.iter().enumerate().find(|(_, row)| row.len() != ranks) {
            let numbers = row.len();
            let error = format!("traffic, {name}: bytes[{from}] has {numbers} numbers, must have {ranks}");
            return Err(named(&error).into());
        }
    }
    Ok(results)
}

/// Writes a report of these results.
///
/// # Errors
/// A path that cannot be written.
pub fn write(path: &Path, results: &Results) -> Result<(), Box<dyn Error>> {
    let page = page(results)?;
    Ok(fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// The report.
///
/// # Errors
/// What drawing gives.
fn page(results: &Results) -> Result<String, Box<dyn Error>> {
    let sections = sections::all(results)?;
    Ok(html::page(&head::title(results), &head::head(results), &sections))
}
