//! Numbers as people read them, and every number behind a plot.

use super::html;
use crate::bench::results::{Limit, Row};

/// In place of a number that there is not.
const NONE: &str = "–";

/// A measured number, with the digits that may say something.
pub fn measured(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => NONE.into(),
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A share of one.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}", 100.0 * share) } else { NONE.into() }
}

/// A number, if there is one.
pub fn or_none<T>(value: Option<T>, shown: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.into(), shown)
}

/// What a call is compared with.
pub fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Copy => "a plain copy",
        Limit::CopyEngine => "copy engines",
        Limit::Flag => "flights and launches",
        Limit::Launch => "a launch",
        Limit::Alone => "the same alone",
    }
}

/// Whether it is GB/s, and not µs.
pub fn is_rate(limit: Limit) -> bool {
    matches!(limit, Limit::Copy | Limit::CopyEngine)
}

/// Of a limit's value.
fn unit(limit: Limit) -> String {
    if is_rate(limit) { "GB/s".into() } else { "µs".into() }
}

/// A table of rows.
pub fn table(rows: &[&Row]) -> String {
    let heads = [
        "operation",
        "variant",
        "ranks",
        "tokens",
        "SMs",
        "p10, µs",
        "median, µs",
        "p90, µs",
        "noise, %",
        "bytes",
        "GB/s",
        "compared with",
        "ceiling",
        "unit",
        "ratio",
    ];
    let cells = |row: &&Row| {
        vec![
            row.operation.clone(),
            row.variant.clone(),
            row.ranks.to_string(),
            or_none(row.tokens, |tokens| tokens.to_string()),
            or_none(row.sms, |sms| sms.to_string()),
            measured(row.time.p10),
            measured(row.time.median),
            measured(row.time.p90),
            percent(row.noise),
            or_none(row.bytes, |bytes| bytes.to_string()),
            or_none(row.gb_per_s, measured),
            or_none(row.limit, |limit| limit_name(limit).to_owned()),
            or_none(row.ceiling, measured),
            or_none(row.limit, unit),
            or_none(row.ratio, measured),
        ]
    };
    html::table(&format!("{} rows", rows.len()), &heads, &rows.iter().map(cells).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_say_something() {
        let shown = [12345.6, 123.45, 12.345, 0.05612, 0.0, f64::NAN].map(measured);
        assert_eq!(shown, ["12346", "123.5", "12.35", "0.0561", "0.0000", "–"]);
        assert_eq!(percent(0.0234), "2.3");
        assert_eq!(percent(f64::INFINITY), "–");
    }
}
