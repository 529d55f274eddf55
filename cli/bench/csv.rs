//! The rows for a spreadsheet.

use super::results::{Limit, Results, Section};
use serde::Serialize;
use std::error::Error;

/// A [`Row`](super::results::Row) without anything nested.
#[derive(Serialize)]
struct Line<'a> {
    section: Section,
    operation: &'a str,
    variant: &'a str,
    ranks: u32,
    tokens: Option<u32>,
    sms: Option<u32>,
    p10_us: f64,
    median_us: f64,
    p90_us: f64,
    noise: f64,
    bytes: Option<u64>,
    gb_per_s: Option<f64>,
    limit: Option<Limit>,
    ceiling: Option<f64>,
    ratio: Option<f64>,
}

/// All rows below their names.
///
/// # Errors
/// None that memory does not have.
pub fn csv(results: &Results) -> Result<String, Box<dyn Error>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in &results.rows {
        writer.serialize(Line {
            section: row.section,
            operation: &row.operation,
            variant: &row.variant,
            ranks: row.ranks,
            tokens: row.tokens,
            sms: row.sms,
            p10_us: row.time.p10,
            median_us: row.time.median,
            p90_us: row.time.p90,
            noise: row.noise,
            bytes: row.bytes,
            gb_per_s: row.gb_per_s,
            limit: row.limit,
            ceiling: row.ceiling,
            ratio: row.ratio,
        })?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}
