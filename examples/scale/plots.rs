//! The plots: SVG with a generic font and nothing fetched.

use crate::scale::published::Source;
use crate::scale::settings::{MODES, Settings};
use crate::scale::tables::{logical_gbs, mode_name};
use crate::scale::time::{Estimate, Mode, Payload};
use crate::scale::validation::checks;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (860, 460);
const FONT: &str = "sans-serif";
/// Colours that differ in brightness too, and for the colour-blind (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Points of a name, in a colour, hollow or filled.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    colour: RGBColor,
    filled: bool,
}

/// Draws all into a folder.
pub fn draw(settings: &Settings, folder: &Path) -> Result<(), Box<dyn Error>> {
    for mode in MODES {
        let slug = mode_name(mode).replace(' ', "-");
        let title = |what: &str| format!("{} among EP ranks, {what}", mode_name(mode));
        let time = of_ranks(settings, mode, |_, estimate| estimate.total());
        chart(&folder.join(format!("{slug}-time.svg")), &title("µs"), "µs", None, &time)?;
        let gbs =
            of_ranks(settings, mode, |payload, estimate| logical_gbs(settings, payload, mode, estimate));
        chart(
            &folder.join(format!("{slug}-bandwidth.svg")),
            &title("GB/s as DeepEP counts"),
            "GB/s",
            None,
            &gbs,
        )?;
    }
    posts(settings, folder)?;
    errors(folder)
}

/// A line for each way to choose experts, for FP8 dispatch and for combine.
fn of_ranks(settings: &Settings, mode: Mode, value: impl Fn(Payload, &Estimate) -> f64) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, (gating, name)) in settings.gatings().into_iter().enumerate() {
        for payload in [Payload::Fp8Dispatch, Payload::Combine] {
            let point = |&ranks: &u32| {
                let estimate = settings.estimate(ranks, gating, payload, mode);
                (f64::from(ranks).log2(), value(payload, &estimate))
            };
            lines.push(Line {
                name: format!("{}, {name}", payload.name()),
                points: settings.ranks.iter().map(point).collect(),
                colour: COLOURS[at],
                filled: payload == Payload::Combine,
            });
        }
    }
    lines
}

/// Writes a second that keep the NIC busy, beside what ring and proxy are to do.
fn posts(settings: &Settings, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut lines = Vec::new();
    for (at, mode) in MODES.into_iter().enumerate() {
        for payload in [Payload::Fp8Dispatch, Payload::Combine] {
            let gating = settings.gatings()[0].0;
            let point = |&ranks: &u32| {
                let needed = settings.estimate(ranks, gating, payload, mode).posts_needed();
                (f64::from(ranks).log2(), needed)
            };
            lines.push(Line {
                name: format!("{}, {}", mode_name(mode), payload.name()),
                points: settings.ranks.iter().map(point).collect(),
                colour: COLOURS[at],
                filled: payload == Payload::Combine,
            });
        }
    }
    let limits = settings.machine.proxy.map(|proxy| {
        [("the proxy's target", proxy.posts * proxy.threads), ("the ring's target", proxy.ring)]
    });
    let title = "writes a second below which the proxy holds up the rest, in millions";
    chart(&folder.join("proxy.svg"), title, "M writes/s", limits, &lines)
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(least, most), value| (least.min(value), most.max(value)))
}

/// Lines over the number of ranks, which is logarithmic.
fn chart(
    path: &Path,
    title: &str,
    unit: &str,
    limits: Option<[(&str, f64); 2]>,
    lines: &[Line],
) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let limit_values = limits.iter().flatten().map(|limit| limit.1);
    let (left, right) = ends(points().map(|point| point.0));
    let (_, most) = ends(points().map(|point| point.1).chain(limit_values));
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    // Names stand beside the chart, where they hide nothing.
    let (area, names) = area.split_horizontally(600);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d(left - 0.1..right + 0.1, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .x_desc("EP: ranks")
        .y_desc(unit)
        .x_labels((right - left).round() as usize + 1)
        .x_label_formatter(&|power| format!("{:.0}", power.exp2()))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style((FONT, 13))
        .draw()?;
    for line in lines {
        chart.draw_series(LineSeries::new(line.points.iter().copied(), line.colour.stroke_width(2)))?;
        let style = if line.filled { line.colour.filled() } else { line.colour.stroke_width(2) };
        chart.draw_series(line.points.iter().map(|&point| Circle::new(point, 4, style)))?;
    }
    for (name, value) in limits.into_iter().flatten() {
        let ends = [(left - 0.1, value), (right + 0.1, value)];
        chart.draw_series(LineSeries::new(ends, BLACK.stroke_width(1)))?;
        let above = (FONT, 13).into_font().into_text_style(&area).pos(Pos::new(HPos::Left, VPos::Bottom));
        chart.draw_series([Text::new(name.to_string(), (left, value + most * 0.01), above)])?;
    }
    legend(&names, lines.iter().map(|line| (line.name.as_str(), line.colour, line.filled)))?;
    area.present()?;
    Ok(())
}

/// How far the model is off, over what was measured.
fn errors(folder: &Path) -> Result<(), Box<dyn Error>> {
    let path = folder.join("validation.svg");
    let checks = checks();
    let (least, most) = ends(checks.iter().map(|check| check.measured));
    let (_, worst) = ends(checks.iter().map(|check| 100.0 * check.error().abs()));
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (area, names) = area.split_horizontally(560);
    let mut chart = ChartBuilder::on(&area)
        .caption("error of the model (hollow: rows that constants were fitted to)", (FONT, 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d((least / 1.2..most * 1.2).log_scale(), -1.2 * worst..1.2 * worst)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .x_desc("measured, µs")
        .y_desc("model over measured, less 1, in percent")
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:+.0}"))
        .label_style((FONT, 13))
        .draw()?;
    let zero = [(least / 1.2, 0.0), (most * 1.2, 0.0)];
    chart.draw_series(LineSeries::new(zero, BLACK.stroke_width(1)))?;
    for (source, colour) in Source::ALL.into_iter().zip(COLOURS) {
        for check in checks.iter().filter(|check| check.row.source == source) {
            let style = if check.row.fitted { colour.stroke_width(2) } else { colour.filled() };
            chart.draw_series([Circle::new((check.measured, 100.0 * check.error()), 4, style)])?;
        }
    }
    legend(
        &names,
        Source::ALL.into_iter().zip(COLOURS).map(|(source, colour)| (source.name(), colour, true)),
    )?;
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn legend<'a>(
    area: &Area,
    names: impl Iterator<Item = (&'a str, RGBColor, bool)>,
) -> Result<(), Box<dyn Error>> {
    for (at, (name, colour, filled)) in names.enumerate() {
        let y = 60 + 26 * at as i32;
        let style = if filled { colour.filled() } else { colour.stroke_width(2) };
        area.draw(&Circle::new((16, y), 4, style))?;
        area.draw(&Text::new(name.to_string(), (28, y - 7), (FONT, 13).into_font()))?;
    }
    Ok(())
}
