//! Bars, each of one part or several.

use super::chart::{
    Area, FONT, FONT_SIZE, LINE, Look, Symbol, is_dark, legend, legend_height, svg, text, whisker, wrap,
};
use super::numbers::measured;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::error::Error;

/// Pixels of names to the left, and characters that these have room for.
const NAMES: i32 = 220;
const NAME_CHARACTERS: usize = 28;
/// Pixels of the bars, with their axis.
const PLOT: i32 = 410;
/// From a bar to the next, and of the axis below.
const BAR: u32 = 44;
const AXIS: u32 = 44;
/// A part needs so many pixels for its number.
const NUMBER: i32 = 38;
/// The number at its end as many.
const END_NUMBER: i32 = 52;

/// A bar.
pub struct Bar {
    /// What it is.
    pub name: String,
    /// From left to right.
    pub parts: Vec<(f64, Look)>,
    /// The number at its end.
    pub whole: f64,
    /// A tenth of all are below the first, and above the second.
    pub spread: Option<(f64, f64)>,
    /// Where a limit is, if there is one.
    pub limit: Option<f64>,
}

/// An SVG of bars from 0 on, the first on top, with what looks mean.
///
/// # Errors
/// What drawing gives.
pub fn draw(unit: &str, bars: &[Bar], looks: &[(String, Symbol)]) -> Result<String, Box<dyn Error>> {
    let ends = bars.iter().flat_map(|bar| {
        let sum = bar.parts.iter().map(|part| part.0).sum::<f64>();
        [Some(sum), Some(bar.whole), bar.spread.map(|spread| spread.1), bar.limit]
    });
    let most = ends.flatten().filter(|end| end.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let digits = if most < 2.0 { 2 } else { usize::from(most < 20.0) };
    let names = looks.iter().map(|look| look.0.as_str());
    let height = (BAR * bars.len() as u32 + AXIS + 12).max(legend_height(names));
    svg(height, |all| {
        let (left, right) = all.split_horizontally(NAMES + PLOT);
        let (_, plot) = left.split_horizontally(NAMES);
        let (plot, _) = plot.split_vertically(BAR * bars.len() as u32 + AXIS + 12);
        let mut chart = ChartBuilder::on(&plot)
            .margin_top(12)
            .margin_right(8)
            .x_label_area_size(AXIS)
            // Room for the numbers at the ends.
            .build_cartesian_2d(0.0..most * 1.18, 0.0..bars.len() as f64)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .x_labels(6)
            .x_desc(unit)
            .x_label_formatter(&|value| format!("{value:.digits$}"))
            .label_style((FONT, FONT_SIZE))
            .draw()?;
        let pixel = |value: f64, row: f64| chart.backend_coord(&(value, bars.len() as f64 - row));
        for (at, bar) in bars.iter().enumerate() {
            let row = at as f64;
            let (_, middle) = pixel(0.0, row + 0.5);
            name(all, &bar.name, middle)?;
            let mut end = 0.0;
            for &(value, look) in &bar.parts {
                let (from, to) = (pixel(end, row + 0.22), pixel(end + value, row + 0.78));
                all.draw(&Rectangle::new([from, to], look.style()))?;
                if bar.parts.len() > 1 && to.0 - from.0 >= NUMBER {
                    let colour = if is_dark(look.colour()) { &WHITE } else { &BLACK };
                    let style = text(all, HPos::Center).color(colour);
                    all.draw(&Text::new(measured(value), ((from.0 + to.0) / 2, middle), style))?;
                }
                end += value;
            }
            if let Some((low, high)) = bar.spread {
                whisker(all, pixel(low, row + 0.5), pixel(high, row + 0.5))?;
                end = end.max(high);
            }
            if let Some(limit) = bar.limit {
                let (from, to) = (pixel(limit, row + 0.1), pixel(limit, row + 0.9));
                all.draw(&PathElement::new([from, to], Look::Limit.colour().stroke_width(2)))?;
            }
            let (mut x, _) = pixel(end, row);
            if let Some((limit, _)) = bar.limit.map(|limit| pixel(limit, row)) {
                // Not across the limit.
                x = if (x..x + END_NUMBER).contains(&limit) { limit } else { x };
            }
            all.draw(&Text::new(measured(bar.whole), (x + 6, middle), text(all, HPos::Left)))?;
        }
        legend(&right, looks.iter().map(|(name, symbol)| (name.as_str(), *symbol)))
    })
}

/// A name to the left of a bar, in two lines if it has to be.
fn name(area: &Area, name: &str, middle: i32) -> Result<(), Box<dyn Error>> {
    let lines = wrap(name, NAME_CHARACTERS);
    let mut y = middle - LINE * (lines.len() as i32 - 1) / 2;
    for line in lines {
        area.draw(&Text::new(line, (NAMES - 10, y), text(area, HPos::Right)))?;
        y += LINE;
    }
    Ok(())
}
