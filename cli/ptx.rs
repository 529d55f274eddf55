//! `tokenrail ptx`: what compilers made of the kernels, beside what nvcc makes of the same in CUDA C++.

mod allowed;
mod classes;
mod compare;
mod html;
mod images;
mod markdown;
mod print;
mod sass;
mod tables;

use clap::Args;
use std::error::Error;
use std::path::{Path, PathBuf};

/// What `tokenrail ptx` can be told.
#[derive(Args, Debug)]
pub struct PtxArgs {
    /// The compute capability of the images; those of CUDA C++ are of 90
    #[arg(long, value_name = "NUMBER", default_value_t = 90)]
    sm: u32,
    /// Only this kernel, and its instructions by class; may be given several times
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Write all of it to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write it to FILE, as a web page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write it to FILE, as Markdown
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernels", "check"])]
    markdown: Option<PathBuf>,
    /// Compare with FILE, which --markdown has written; of other versions' compilers only what does not depend on them
    #[arg(long, value_name = "FILE", conflicts_with = "kernels")]
    check: Option<PathBuf>,
}

/// Compares, prints and writes; true if lanes agree on all that they must, and the file to check says what is so.
///
/// # Errors
/// Kernels that this build does not have, files that cannot be read or written.
pub fn ptx(args: &PtxArgs) -> Result<bool, Box<dyn Error>> {
    let comparison = images::compare(args.sm, &args.kernels)?;
    print!("{}", print::print(&comparison, !args.kernels.is_empty()));
    if !comparison.has_all_figures() {
        eprintln!(
            "note: –: there was no ptxas when this was built, or there is no nvdisasm in bin under CUDA_PATH or in PATH"
        );
    }
    if let Some(path) = &args.json {
        write("--json", path, &(serde_json::to_string_pretty(&comparison)? + "\n"))?;
    }
    if let Some(path) = &args.html {
        write("--html", path, &html::page(&comparison))?;
    }
    if let Some(path) = &args.markdown {
        write("--markdown", path, &markdown::page(&comparison))?;
    }
    let failures = comparison.failures();
    for failure in &failures {
        eprintln!("error: {failure}");
    }
    let drifted = args.check.as_deref().map(|path| check(path, &comparison)).transpose()?.unwrap_or(false);
    match (failures.is_empty(), drifted) {
        (true, false) => println!("ok: the lanes agree on what they must"),
        _ => println!("FAILED: see above"),
    }
    Ok(failures.is_empty() && !drifted)
}

/// Says how a page has drifted; true if it has.
fn check(path: &Path, comparison: &compare::Comparison) -> Result<bool, Box<dyn Error>> {
    let was =
        std::fs::read_to_string(path).map_err(|error| format!("--check: {}: {error}", path.display()))?;
    let lanes = comparison.lanes.join("/");
    if !was.contains(&format!(" {lanes} ")) {
        let why = "not of this build's lanes";
        return Err(format!(
            "--check: {}: {why}, {lanes}; that of CUDA C++ is there with `--features reference` and --sm 90",
            path.display()
        )
        .into());
    }
    let incomplete = !comparison.has_all_figures();
    let drift = markdown::drift(&was, &markdown::page(comparison), incomplete);
    if drift.in_part {
        let why = if incomplete { "figures are missing here" } else { "compilers of other versions made it" };
        eprintln!("note: {}: {why}: only what does not depend on versions is compared", path.display());
    }
    if !drift.lines.is_empty() {
        eprintln!(
            "error: {} is not what the kernels are; `tokenrail ptx --markdown` makes it anew:\n{}",
            path.display(),
            drift.lines
        );
    }
    Ok(!drift.lines.is_empty())
}

/// Writes a file that an option named.
fn write(option: &str, path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    Ok(std::fs::write(path, text).map_err(|error| format!("{option}: {}: {error}", path.display()))?)
}
