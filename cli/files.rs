//! Files that are there whole, or not at all.

use serde::Serialize;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::path::Path;

/// Writes results for which `option` has named a file.
///
/// # Errors
/// A path that cannot be written, with the option.
pub fn write_json(option: &str, path: &Path, results: &impl Serialize) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(results).map_err(|error| named(option, path, &error))?;
    write(option, path, &(text + "\n"))
}

/// Writes a text for which `option` has named a file.
///
/// # Errors
/// As [`write_json`].
pub fn write(option: &str, path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    fs::write(&temporary, text).map_err(|error| named(option, path, &error))?;
    Ok(fs::rename(&temporary, path).map_err(|error| named(option, path, &error))?)
}

fn named(option: &str, path: &Path, error: &dyn Display) -> String {
    format!("{option}: {}: {error}", path.display())
}
