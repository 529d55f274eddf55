//! Lines over a number of something.

use super::chart::{FONT, FONT_SIZE, Look, Symbol, legend, legend_height, svg};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use std::error::Error;
use std::ops::Range;

/// Pixels of the plot itself, and of all of it at least.
const PLOT: i32 = 590;
const HEIGHT: u32 = 440;
/// Numbers on the axis that are nearer, of its length, are left out.
const NEAR: f64 = 0.035;

/// What stands on the horizontal axis.
#[derive(Clone, Copy, PartialEq)]
pub struct Across {
    /// Of what it is the number.
    pub name: &'static str,
    /// Twice as many are as far apart everywhere.
    pub is_log: bool,
}

impl Across {
    fn place(self, x: u32) -> f64 {
        if self.is_log { f64::from(x).log2() } else { x.into() }
    }

    fn number(self, place: f64) -> f64 {
        if self.is_log { place.exp2() } else { place }
    }
}

/// An axis with numbers where something was measured.
struct Axis {
    range: Range<f64>,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (left, right): (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        left + (f64::from(right - left) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// Measured at `x`.
#[derive(Clone, Copy)]
pub struct Point {
    /// At.
    pub x: u32,
    /// The value.
    pub y: f64,
    /// A tenth of all are below the first, and above the second.
    pub spread: Option<(f64, f64)>,
}

/// Points of a name.
#[derive(Clone)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// In the order of `x`.
    pub points: Vec<Point>,
    /// How it is drawn; limits are dashed.
    pub look: Look,
}

/// An SVG of lines, from 0 on. Something has to be there to be drawn.
///
/// # Errors
/// What drawing gives.
pub fn draw(across: Across, unit: &str, lines: &[Line]) -> Result<String, Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut places: Vec<f64> = points().map(|point| across.place(point.x)).collect();
    places.sort_by(f64::total_cmp);
    let (first, last) = (places.first().copied().unwrap_or(0.0), places.last().copied().unwrap_or(0.0));
    let margin = if last > first { 0.04 * (last - first) } else { 1.0 };
    let (left, right) = (first - margin, last + margin);
    // The numbers that were measured at.
    let mut marks: Vec<f64> = Vec::new();
    for place in places {
        if marks.last().is_none_or(|mark| place - mark > NEAR * (right - left)) {
            marks.push(place);
        }
    }
    let tops = points().flat_map(|point| [point.y, point.spread.map_or(point.y, |spread| spread.1)]);
    let most = tops.filter(|top| top.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let digits = if most < 2.0 { 2 } else { usize::from(most < 20.0) };

    let height = HEIGHT.max(legend_height(lines.iter().map(|line| line.name.as_str())));
    svg(height, |area| {
        let (area, names) = area.split_horizontally(PLOT);
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(Axis { range: left..right, marks }, 0.0..most * 1.08)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_desc(across.name)
            .y_desc(unit)
            .x_label_formatter(&|place| format!("{:.0}", across.number(*place)))
            .y_label_formatter(&|value| format!("{value:.digits$}"))
            .label_style((FONT, FONT_SIZE))
            .draw()?;
        for line in lines {
            let colour = line.look.colour();
            let at: Vec<_> = line.points.iter().map(|point| (across.place(point.x), point.y)).collect();
            if line.look == Look::Limit {
                // One number is a limit everywhere.
                let at = if let [(_, y)] = at[..] { vec![(left, y), (right, y)] } else { at };
                chart.draw_series(DashedLineSeries::new(at, 6, 4, colour.stroke_width(2)))?;
                continue;
            }
            for point in &line.points {
                let Some((low, high)) = point.spread else { continue };
                let place = across.place(point.x);
                let whisker = PathElement::new([(place, low), (place, high)], colour.stroke_width(1));
                chart.draw_series([whisker])?;
            }
            chart.draw_series(LineSeries::new(at.iter().copied(), colour.stroke_width(2)))?;
            // Hollow points hide the line.
            chart.draw_series(at.iter().map(|&at| Circle::new(at, 4, WHITE.filled())))?;
            chart.draw_series(at.iter().map(|&at| Circle::new(at, 4, line.look.style())))?;
        }
        let entries = lines.iter().map(|line| {
            let of_a_limit = line.look == Look::Limit;
            let symbol = if of_a_limit { Symbol::Dashes(line.look) } else { Symbol::Point(line.look) };
            (line.name.as_str(), symbol)
        });
        legend(&names, entries)
    })
}
