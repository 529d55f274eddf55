//! How long dispatch and combine take among many ranks, by arithmetic alone: docs/scale.md says it in words.

pub mod constants;
pub mod published;
pub mod routing;
pub mod settings;
pub mod tables;
pub mod time;
pub mod validation;
