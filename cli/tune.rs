//! `tokenrail tune`: sweeps, and keeps the fewest multiprocessors that come close to the best.

use crate::progress::Progress;
use crate::report::table;
use crate::sweep::args::{Form, TuneArgs};
use crate::sweep::{Row, Sweep, verdict};
use clap::ValueEnum;
use std::error::Error;
use tokenrail::tuning::{Entry, Operation, Tuning};

/// How close to the best is close enough: less than times differ from run to run.
const CLOSE: f64 = 1.02;

/// Sweeps and writes; true if all went well.
///
/// # Errors
/// Settings, devices or files that are not usable.
pub fn tune(args: &TuneArgs) -> Result<bool, Box<dyn Error>> {
    let gates = args.shape.gate.len();
    if gates != 1 {
        let (value, limit) = (format!("{gates} of them"), "one routing is tuned for at a time".into());
        return Err(tokenrail::Error::Config { field: "gate", value, limit }.into());
    }
    if let Some(form) = args.shape.forms.iter().find(|form| !matches!(form, Form::RankMajor | Form::ByExpert))
    {
        let limit = "rank-major and by-expert are tuned".into();
        return Err(tokenrail::Error::Config { field: "forms", value: form.name().into(), limit }.into());
    }
    let mut sweep = Sweep::new(&args.shape, 1, Progress::new(args.shape.quiet))?;
    let well = sweep.all(None, &mut |_| Ok(()))?;
    if well {
        let entries = entries(args, &sweep.results.rows);
        print!("{}", print(&entries));
        let tuning = Tuning { device: sweep.device().name.clone(), entries };
        tuning.save(&args.out).map_err(|error| format!("--out: {error}"))?;
    }
    Ok(verdict(&sweep, well))
}

/// The best of each operation, element and number of tokens.
fn entries(args: &TuneArgs, rows: &[Row]) -> Vec<Entry> {
    let shape = &args.shape;
    let mut entries = Vec::new();
    for &element in &shape.element {
        let name = element.to_possible_value();
        let is = |row: &&Row| name.as_ref().is_some_and(|name| name.get_name() == row.element);
        for &tokens in &shape.tokens {
            for (form, operation) in [
                (Form::RankMajor, Operation::Dispatch),
                (Form::ByExpert, Operation::DispatchByExpert),
                (Form::RankMajor, Operation::Combine),
            ] {
                let rows = rows.iter().filter(is).filter(|row| row.tokens == tokens && row.form == form);
                let tried = rows.map(|row| match operation {
                    Operation::Combine => (row.combine.sms, row.combine.time.median),
                    _ => (row.dispatch.sms, row.dispatch.time.median),
                });
                let Some((sms, microseconds)) = pick(&tried.collect::<Vec<_>>()) else { continue };
                entries.push(Entry {
                    operation,
                    ranks: shape.ranks,
                    hidden: shape.hidden,
                    element: element.element(),
                    experts: shape.experts,
                    topk: shape.topk,
                    tokens,
                    sms,
                    microseconds,
                });
            }
        }
    }
    entries
}

/// Of (multiprocessors, time): the fewest that are close to the best.
fn pick(tried: &[(u32, f64)]) -> Option<(u32, f64)> {
    let best = tried.iter().map(|&(_, time)| time).min_by(f64::total_cmp)?;
    tried.iter().copied().filter(|&(_, time)| time <= CLOSE * best).min_by_key(|&(sms, _)| sms)
}

fn print(entries: &[Entry]) -> String {
    let mut rows = vec![["operation", "element", "tokens", "SMs", "µs"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        vec![
            format!("{:?}", entry.operation),
            format!("{:?}", entry.element),
            entry.tokens.to_string(),
            entry.sms.to_string(),
            format!("{:.1}", entry.microseconds),
        ]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_close_to_the_best_are_picked() {
        assert_eq!(pick(&[(24, 100.0), (8, 103.0), (12, 101.9), (16, 100.5)]), Some((12, 101.9)));
        assert_eq!(pick(&[(4, 9.0)]), Some((4, 9.0)));
        assert_eq!(pick(&[]), None);
    }
}
