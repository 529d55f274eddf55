//! Who sends how much to whom.

use super::chart::{Area, is_dark, svg, text};
use super::numbers::measured;
use crate::bench::results::Traffic;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::error::Error;

/// Pixels that all cells have together, at most, each way; and that one has at most.
const CELLS: i32 = 560;
const CELL: i32 = 72;
/// Where the cells begin.
const LEFT: i32 = 96;
const TOP: i32 = 56;
/// A cell needs so many for a number; and one rank's number beside the cells.
const NUMBER: i32 = 44;
const RANK: i32 = 26;
/// Of the most that is sent.
const FULL: RGBColor = RGBColor(0, 72, 128);
/// Colours of the scale.
const STEPS: i32 = 64;

/// An SVG of a square.
///
/// # Errors
/// What drawing gives.
pub fn draw(traffic: &Traffic) -> Result<String, Box<dyn Error>> {
    let ranks = traffic.bytes.len() as i32;
    let cell = (CELLS / ranks.max(1)).clamp(1, CELL);
    let most = traffic.bytes.iter().flatten().copied().max().unwrap_or(0);
    let (unit, scale) = unit(most);
    let size = cell * ranks;
    let every = (RANK + cell - 1) / cell;
    svg((TOP + size.max(120) + 16) as u32, |area| {
        area.draw(&Text::new("to rank", (LEFT + size / 2, 14), text(area, HPos::Center)))?;
        area.draw(&Text::new("from rank", (8, TOP + size / 2), text(area, HPos::Left)))?;
        for (from, row) in (0..).zip(&traffic.bytes) {
            let y = TOP + cell * from;
            if from % every == 0 {
                let rank = from.to_string();
                area.draw(&Text::new(rank.clone(), (LEFT - 8, y + cell / 2), text(area, HPos::Right)))?;
                let place = (LEFT + cell * from + cell / 2, TOP - 14);
                area.draw(&Text::new(rank, place, text(area, HPos::Center)))?;
            }
            for (to, &bytes) in (0..).zip(row) {
                let x = LEFT + cell * to;
                let colour = colour(bytes as f64 / most.max(1) as f64);
                let gap = i32::from(cell > 4);
                area.draw(&Rectangle::new([(x, y), (x + cell - gap, y + cell - gap)], colour.filled()))?;
                if cell >= NUMBER {
                    let on = if is_dark(colour) { &WHITE } else { &BLACK };
                    let middle = (x + cell / 2, y + cell / 2);
                    let number = measured(bytes as f64 / scale);
                    area.draw(&Text::new(number, middle, text(area, HPos::Center).color(on)))?;
                }
            }
        }
        key(area, LEFT + size + 40, size.max(120), &measured(most as f64 / scale), unit)
    })
}

/// What colours mean.
fn key(area: &Area, x: i32, height: i32, most: &str, unit: &str) -> Result<(), Box<dyn Error>> {
    for step in 0..STEPS {
        let (top, bottom) = (TOP + height * step / STEPS, TOP + height * (step + 1) / STEPS);
        let colour = colour(1.0 - f64::from(step) / f64::from(STEPS - 1));
        area.draw(&Rectangle::new([(x, top), (x + 16, bottom)], colour.filled()))?;
    }
    area.draw(&Text::new(unit.to_owned(), (x, TOP - 14), text(area, HPos::Left)))?;
    area.draw(&Text::new(most.to_owned(), (x + 24, TOP + 6), text(area, HPos::Left)))?;
    area.draw(&Text::new("0", (x + 24, TOP + height - 6), text(area, HPos::Left)))?;
    Ok(())
}

fn colour(share: f64) -> RGBColor {
    let mix = |full: u8| (255.0 + (f64::from(full) - 255.0) * (0.04 + 0.96 * share)).round() as u8;
    RGBColor(mix(FULL.0), mix(FULL.1), mix(FULL.2))
}

/// In which numbers up to this are short, and what it is in bytes.
fn unit(most: u64) -> (&'static str, f64) {
    match most {
        0..10_000 => ("bytes", 1.0),
        10_000..10_000_000 => ("kB", 1e3),
        10_000_000..10_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    }
}
