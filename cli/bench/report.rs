//! The report as a page.

use super::print::print;
use super::results::Results;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Writes the tables as HTML.
///
/// # Errors
/// A path that cannot be written.
pub fn write(path: &Path, results: &Results) -> Result<(), Box<dyn Error>> {
    let text = print(results).replace('&', "&amp;").replace('<', "&lt;");
    let page =
        format!("<!doctype html><meta charset=\"utf-8\"><title>tokenrail bench</title><pre>{text}</pre>\n");
    Ok(fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?)
}
