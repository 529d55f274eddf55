//! Defects by name.
