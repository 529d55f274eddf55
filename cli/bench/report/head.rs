//! What was run, on what, when, and what the machine gives.

use super::html::{escape, table};
use super::numbers::{is_rate, limit_name, measured, or_none, percent};
use crate::bench::results::{Ceiling, Limit, Results};

/// Of the page.
pub fn title(results: &Results) -> String {
    let on = if results.devices.is_empty() { "no devices".to_owned() } else { results.devices.join(", ") };
    format!("tokenrail benchmark: {on}")
}

/// HTML above all sections.
pub fn head(results: &Results) -> String {
    let Results { hidden, experts, topk, .. } = results;
    let devices = if results.devices.is_empty() { "none".to_owned() } else { results.devices.join(", ") };
    let entries = [
        ("Devices", escape(&devices)),
        ("Driver", escape(results.driver.as_deref().unwrap_or("none"))),
        ("Backend", escape(&results.backend)),
        ("tokenrail", escape(&results.tokenrail)),
        ("Date", escape(&results.date)),
        ("Settings", format!("hidden {hidden}, {experts} experts, top-{topk}")),
        ("Took", duration(results.seconds)),
        ("Command", format!("<code>{}</code>", escape(&results.command))),
    ];
    let entries = entries.map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n")).concat();
    let warning = match results.backend.as_str() {
        "emulator" => {
            "<p class=\"warning\">Times of the emulator are virtual. They say nothing of a GPU.</p>\n"
        }
        _ => "",
    };
    format!("<div class=\"card\"><dl>\n{entries}</dl></div>\n{warning}")
}

/// A table of ceilings.
pub fn ceilings(ceilings: &[Ceiling]) -> String {
    let cells = |ceiling: &Ceiling| {
        let name = match ceiling.of {
            Limit::Flag => "a flag's flight to a peer",
            Limit::Launch => "a launch of a kernel that does nothing",
            of => limit_name(of),
        };
        let unit = if is_rate(ceiling.of) { "GB/s each way" } else { "µs" };
        vec![
            name.to_owned(),
            ceiling.ranks.to_string(),
            or_none(ceiling.sms, |sms| sms.to_string()),
            measured(ceiling.value),
            unit.to_owned(),
            percent(ceiling.noise),
        ]
    };
    let rows: Vec<_> = ceilings.iter().map(cells).collect();
    table(&format!("{} ceilings", rows.len()), &["what", "ranks", "SMs", "value", "unit", "noise, %"], &rows)
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let shown = [0.25, 59.4, 59.7, 61.0, 7384.0].map(duration);
        assert_eq!(shown, ["0.2 s", "59.4 s", "1 min 0 s", "1 min 1 s", "2 h 3 min"]);
    }
}
