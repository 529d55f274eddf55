//! A test that cannot run here says so aloud.

use std::io::Write;

/// Says why a test, or a part of one, does not run. Straight to standard error: what `println!` prints in a test that
/// passes is never seen.
pub fn skipped(why: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
