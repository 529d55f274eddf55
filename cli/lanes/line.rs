//! A line of the comparison: one operation of one size, as each lane's kernels do it.

use super::turns::Cell;
use serde::Serialize;

/// The lane that others are compared with.
pub const REFERENCE: &str = "nvcc";
/// How much longer than the reference a kernel may take.
pub const GOAL: f64 = 1.02;

/// What is the same of all lanes.
#[derive(Clone, Debug, Serialize)]
pub struct Subject {
    /// What is timed, such as `dispatch bf16 by-expert`.
    pub operation: String,
    /// The kernels that are in its time.
    pub kernels: Vec<&'static str>,
    /// Ranks.
    pub ranks: u32,
    /// Of what size.
    #[serde(flatten)]
    pub cell: Cell,
    /// What else is in its time, for which the host or a network is needed.
    pub beside: Option<&'static str>,
    /// Whether there is a verdict on it.
    pub judged: bool,
}

/// A line.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What was timed.
    #[serde(flatten)]
    pub subject: Subject,
    /// How long it took.
    pub lanes: Vec<Timed>,
}

/// A lane's time.
#[derive(Clone, Debug, Serialize)]
pub struct Timed {
    /// The lane.
    pub lane: String,
    /// µs, median of the repetitions.
    pub time: f64,
    /// Largest less smallest repetition, over the median.
    pub noise: f64,
    /// µs of each repetition, in which lanes took turns: the median of the slowest rank's times.
    pub repetitions: Vec<f64>,
    /// Beside the reference, if that was timed and this is another.
    pub against: Option<Against>,
}

/// A lane's time beside the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Against {
    /// This lane's time over the reference's in the same repetition: the median.
    pub ratio: f64,
    /// Of these ratios, upper less lower quartile.
    pub noise: f64,
    /// Whether that is good enough, where it is judged.
    pub verdict: Option<Verdict>,
}

/// What a ratio says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// At most [`GOAL`].
    Ok,
    /// Above it by no more than the noise.
    WithinNoise,
    /// Above it by more.
    Slower,
}

impl Line {
    /// From the repetitions of each lane; `None` without any.
    pub fn new(subject: Subject, lanes: &[(&str, Vec<f64>)]) -> Option<Self> {
        let reference = lanes.iter().find(|(name, _)| *name == REFERENCE);
        let timed = |(name, repetitions): &(&str, Vec<f64>)| {
            let [least, _, median, _, most] = quartiles(repetitions)?;
            let other = reference.filter(|(reference, _)| reference != name);
            let against = other.and_then(|(_, other)| Against::new(repetitions, other, subject.judged));
            Some(Timed {
                lane: (*name).to_owned(),
                time: median,
                noise: (most - least) / median,
                repetitions: repetitions.clone(),
                against,
            })
        };
        let lanes = lanes.iter().map(timed).collect::<Option<_>>()?;
        Some(Self { subject, lanes })
    }
}

impl Against {
    fn new(times: &[f64], reference: &[f64], judged: bool) -> Option<Self> {
        let ratios: Vec<f64> = times.iter().zip(reference).map(|(time, other)| time / other).collect();
        let [_, lower, ratio, upper, _] = quartiles(&ratios)?;
        let noise = upper - lower;
        let verdict = match ratio {
            _ if !judged => None,
            ratio if ratio <= GOAL => Some(Verdict::Ok),
            ratio if ratio - noise <= GOAL => Some(Verdict::WithinNoise),
            _ => Some(Verdict::Slower),
        };
        Some(Self { ratio, noise, verdict })
    }
}

/// The least, the quartiles, and the most; `None` of nothing. What lies between two values is interpolated.
fn quartiles(values: &[f64]) -> Option<[f64; 5]> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some([0, 1, 2, 3, 4].map(|quarters| {
        let (at, rest) = (last * quarters / 4, last * quarters % 4);
        let above = values[(at + 1).min(last)];
        values[at] + (above - values[at]) * rest as f64 / 4.0
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(judged: bool, nvvm: &[f64], nvcc: &[f64]) -> Line {
        let cell = Cell { tokens: 1, sms: None };
        let subject = Subject {
            operation: "copy".into(),
            kernels: vec!["tokenrail_copy"],
            ranks: 1,
            cell,
            beside: None,
            judged,
        };
        Line::new(subject, &[("nvvm", nvvm.to_vec()), ("nvcc", nvcc.to_vec())]).unwrap()
    }

    fn verdict(nvvm: &[f64], nvcc: &[f64]) -> Option<Verdict> {
        line(true, nvvm, nvcc).lanes[0].against.unwrap().verdict
    }

    #[test]
    fn ratios_are_of_the_same_repetition() {
        // Everything takes longer from turn to turn, and this lane a tenth more than the other.
        let line = line(false, &[1.1, 2.2, 4.4], &[1.0, 2.0, 4.0]);
        let against = line.lanes[0].against.unwrap();
        assert!((against.ratio - 1.1).abs() < 1e-9 && against.noise < 1e-9, "{line:?}");
        assert_eq!((against.verdict, line.lanes[1].against), (None, None));
        assert!((line.lanes[1].time, line.lanes[1].noise) == (2.0, 1.5), "{line:?}");
    }

    #[test]
    fn noise_is_taken_into_account() {
        assert_eq!(verdict(&[1.02; 3], &[1.0; 3]), Some(Verdict::Ok));
        assert_eq!(verdict(&[1.03; 3], &[1.0; 3]), Some(Verdict::Slower));
        assert_eq!(verdict(&[1.0, 1.01, 1.04, 1.05, 1.06], &[1.0; 5]), Some(Verdict::WithinNoise));
        assert_eq!(verdict(&[1.08, 1.09, 1.1, 1.11, 0.9], &[1.0; 5]), Some(Verdict::Slower));
    }

    #[test]
    fn nothing_is_no_line() {
        let subject = line(true, &[1.0], &[1.0]).subject;
        assert!(Line::new(subject, &[("nvvm", Vec::new())]).is_none());
        assert_eq!(quartiles(&[3.0, 1.0, 2.0]), Some([1.0, 1.5, 2.0, 2.5, 3.0]));
        assert_eq!(quartiles(&[]), None);
    }
}
