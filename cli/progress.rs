//! How far a run has come, on standard error: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows the part of the run that is on, and its steps.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    /// What the parts are parts of.
    whole: String,
}

impl Progress {
    /// Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self::of(String::new(), quiet)
    }

    /// Of something that stands before the names of its parts.
    pub fn of(whole: String, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        // The template is a constant; should it be wrong, the default does.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
            bar.set_style(style);
        }
        Self { bar, quiet, whole }
    }

    /// A part of as many steps begins.
    pub fn part(&self, name: &str, steps: u32) {
        self.bar.reset();
        self.bar.set_length(steps.into());
        let name = format!("{}{name}", self.whole);
        if self.bar.is_hidden() && !self.quiet {
            eprintln!("{name} …");
        }
        self.bar.set_message(name);
    }

    /// One rank has done one step.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
