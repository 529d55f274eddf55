//! What all plots share: SVG with a generic font and nothing fetched.

use super::html::clean;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;

/// Pixels from left to right.
pub const WIDTH: u32 = 860;
/// The font of all text.
pub const FONT: &str = "sans-serif";
/// Of all text.
pub const FONT_SIZE: i32 = 15;
/// Characters of a line of a name beside a plot.
const NAME_CHARACTERS: usize = 32;
/// From a line of text to the next.
pub const LINE: i32 = 16;
/// Where the names begin.
const TOP: i32 = 24;

/// Colours that differ in brightness too, and for the colour-blind (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Where to draw.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How something looks.
#[derive(Clone, Copy, PartialEq)]
pub enum Look {
    /// One of [`Look::COUNT`]: a colour, filled or hollow.
    Nth(usize),
    /// A limit.
    Limit,
    /// What is left.
    Rest,
}

impl Look {
    /// How many can be told apart.
    pub const COUNT: usize = 2 * COLOURS.len();

    /// One of a few, filled.
    pub fn filled(at: usize) -> Self {
        Self::Nth(at % COLOURS.len())
    }

    /// Of lines, and of bars.
    pub fn colour(self) -> RGBColor {
        match self {
            Self::Nth(at) => COLOURS[at % COLOURS.len()],
            Self::Limit => BLACK,
            Self::Rest => RGBColor(190, 190, 190),
        }
    }

    /// Of points, and of bars.
    pub fn style(self) -> ShapeStyle {
        match self {
            Self::Nth(at) if at % Self::COUNT >= COLOURS.len() => self.colour().stroke_width(2),
            _ => self.colour().filled(),
        }
    }
}

/// What stands for a name in a legend.
#[derive(Clone, Copy)]
pub enum Symbol {
    /// A point of a line.
    Point(Look),
    /// A piece of a line without points.
    Dashes(Look),
    /// A piece of a bar.
    Bar(Look),
    /// A bar's limit.
    Tick,
    /// A bar's spread.
    Whisker,
}

/// An SVG of this height.
///
/// # Errors
/// What drawing gives.
pub fn svg(
    height: u32,
    draw: impl FnOnce(&Area) -> Result<(), Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(out)
}

/// From what a tenth is below to what a tenth is above.
///
/// # Errors
/// What drawing gives.
pub fn whisker(area: &Area, low: (i32, i32), high: (i32, i32)) -> Result<(), Box<dyn Error>> {
    area.draw(&PathElement::new([low, high], BLACK.stroke_width(1)))?;
    for (x, y) in [low, high] {
        area.draw(&PathElement::new([(x, y - 4), (x, y + 4)], BLACK.stroke_width(1)))?;
    }
    Ok(())
}

/// Text at this side of its place, and at its height.
pub fn text<'a>(area: &Area, side: HPos) -> TextStyle<'a> {
    (FONT, FONT_SIZE).into_font().into_text_style(area).pos(Pos::new(side, VPos::Center))
}

/// Whether white reads better on it than black.
pub fn is_dark(RGBColor(red, green, blue): RGBColor) -> bool {
    // Rec. 709.
    0.2126 * f64::from(red) + 0.7152 * f64::from(green) + 0.0722 * f64::from(blue) < 128.0
}

/// A name in as few lines as it takes; a word that fits no line is cut.
pub fn wrap(name: &str, characters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in clean(name).split(' ').filter(|word| !word.is_empty()) {
        let word = match word.char_indices().nth(characters) {
            None => word.to_owned(),
            Some(_) => word.chars().take(characters - 1).chain(['…']).collect(),
        };
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= characters => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// The height that a legend takes.
pub fn legend_height<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    let height = |name| LINE * wrap(name, NAME_CHARACTERS).len() as i32 + LINE / 2;
    (TOP + names.map(height).sum::<i32>()) as u32
}

/// Names stand beside the plot, where they hide nothing.
///
/// # Errors
/// What drawing gives.
pub fn legend<'a>(
    area: &Area,
    entries: impl Iterator<Item = (&'a str, Symbol)>,
) -> Result<(), Box<dyn Error>> {
    let mut y = TOP;
    for (name, symbol) in entries {
        match symbol {
            Symbol::Point(look) => area.draw(&Circle::new((16, y), 4, look.style()))?,
            Symbol::Dashes(look) => {
                for x in [7, 17] {
                    area.draw(&PathElement::new([(x, y), (x + 6, y)], look.colour().stroke_width(2)))?;
                }
            }
            Symbol::Bar(look) => area.draw(&Rectangle::new([(10, y - 6), (22, y + 6)], look.style()))?,
            Symbol::Tick => {
                let line = [(16, y - 7), (16, y + 7)];
                area.draw(&PathElement::new(line, Look::Limit.colour().stroke_width(2)))?;
            }
            Symbol::Whisker => whisker(area, (8, y), (24, y))?,
        }
        for line in wrap(name, NAME_CHARACTERS) {
            area.draw(&Text::new(line, (30, y), text(area, HPos::Left)))?;
            y += LINE;
        }
        y += LINE / 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("  one  two", 20), ["one two"]);
        assert_eq!(wrap("ünïcödë-wörd x", 6), ["ünïcö…", "x"]);
        assert_eq!(wrap("", 6), [""; 0]);
        assert_eq!(wrap("a\u{1}b", 6), ["a\u{fffd}b"]);
    }
}
