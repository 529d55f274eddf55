//! How far a run has come, on standard error: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows the part of the run that is on, and its steps.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
}

impl Progress {
    /// Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        // The template is a constant; should it be wrong, the default does.
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
            bar.set_style(style);
        }
        Self { bar, quiet }
    }

    /// A part of as many steps begins.
    pub fn part(&self, name: &'static str, steps: u32) {
        self.bar.set_length(steps.into());
        self.bar.set_message(name);
        if self.bar.is_hidden() && !self.quiet {
            eprintln!("{name} …");
        }
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
