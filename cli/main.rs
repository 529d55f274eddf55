//! The `tokenrail` command.
fn main() {}
