//! Which rows go into one plot, and what they are called there.

use super::chart::Look;
use super::lines::{Line, Point};
use crate::bench::results::Row;

/// What rows differ in.
#[derive(Clone, Copy, PartialEq)]
pub enum Field {
    Operation,
    Variant,
    Ranks,
    Tokens,
    Sms,
}

impl Field {
    const ALL: [Self; 5] = [Self::Operation, Self::Variant, Self::Ranks, Self::Tokens, Self::Sms];

    /// As people say it; nothing where it does not matter.
    fn of(self, row: &Row) -> String {
        let count = |count: Option<u32>, unit: &str| {
            count.map_or_else(String::new, |count| match count {
                1 => format!("1 {unit}"),
                _ => format!("{count} {unit}s"),
            })
        };
        match self {
            Self::Operation => row.operation.clone(),
            Self::Variant => row.variant.clone(),
            Self::Ranks => count(Some(row.ranks), "rank"),
            Self::Tokens => count(row.tokens, "token"),
            Self::Sms => count(row.sms, "SM"),
        }
    }

    /// As on an axis.
    pub fn number(self, row: &Row) -> Option<u32> {
        match self {
            Self::Operation | Self::Variant => None,
            Self::Ranks => Some(row.ranks),
            Self::Tokens => row.tokens,
            Self::Sms => row.sms,
        }
    }
}

/// Rows with the same key, in the order in which they come.
pub fn grouped<'a, T, K: PartialEq>(rows: &[&'a T], key: impl Fn(&T) -> K) -> Vec<Vec<&'a T>> {
    let mut groups: Vec<(K, Vec<&T>)> = Vec::new();
    for &row in rows {
        let key = key(row);
        match groups.iter_mut().find(|group| group.0 == key) {
            Some(group) => group.1.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    groups.into_iter().map(|group| group.1).collect()
}

/// What rows have in common, and what each is called beside that; nothing of the axis.
pub fn names(rows: &[&Row], axis: Option<Field>) -> (String, Vec<String>) {
    let fields = Field::ALL.into_iter().filter(|field| Some(*field) != axis);
    let (common, own): (Vec<Field>, Vec<Field>) =
        fields.partition(|field| rows.iter().all(|row| field.of(row) == field.of(rows[0])));
    let say = |fields: &[Field], row: &Row| {
        let said = fields.iter().map(|field| field.of(row)).filter(|said| !said.is_empty());
        said.collect::<Vec<_>>().join(", ")
    };
    let title = rows.first().map_or_else(String::new, |row| say(&common, row));
    let names = rows.iter().map(|row| match own[..] {
        [] => say(&[Field::Operation, Field::Variant], row),
        _ => say(&own, row),
    });
    (title, names.collect())
}

/// What lines show.
pub struct Shown {
    /// Over what.
    pub axis: Field,
    /// Which number.
    pub value: fn(&Row) -> Option<f64>,
    /// Where a tenth is below, and above.
    pub spread: fn(&Row) -> Option<(f64, f64)>,
    /// What it cannot pass, and the number.
    pub limit: fn(&Row) -> Option<(&'static str, f64)>,
}

impl Shown {
    /// Rows that there is something to show of.
    pub fn of<'a>(&self, rows: &[&'a Row]) -> Vec<&'a Row> {
        let has = |row: &Row| {
            self.axis.number(row).is_some_and(|x| x > 0) && (self.value)(row).is_some_and(f64::is_finite)
        };
        rows.iter().copied().filter(|row| has(row)).collect()
    }

    /// Rows of one plot as lines, limits last, and its title.
    pub fn lines(&self, rows: &[&Row]) -> (String, Vec<Line>) {
        let (title, names) = names(rows, Some(self.axis));
        let mut lines: Vec<Line> = Vec::new();
        let mut limits: Vec<Line> = Vec::new();
        for (row, name) in rows.iter().zip(names) {
            let (Some(x), Some(y)) = (self.axis.number(row), (self.value)(row)) else { continue };
            let look = Look::Nth(lines.len());
            add(&mut lines, name, look, Point { x, y, spread: (self.spread)(row) });
            if let Some((name, y)) = (self.limit)(row).filter(|limit| limit.1.is_finite()) {
                add(&mut limits, name.to_owned(), Look::Limit, Point { x, y, spread: None });
            }
        }
        for limit in &mut limits {
            limit.points.dedup_by(|next, first| next.x == first.x);
        }
        lines.append(&mut limits);
        (title, lines)
    }
}

/// Adds a point to the line of this name. Of points at the same place, the lowest comes first.
fn add(lines: &mut Vec<Line>, name: String, look: Look, point: Point) {
    let at = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
        lines.push(Line { name, points: Vec::new(), look });
        lines.len() - 1
    });
    let points = &mut lines[at].points;
    points.push(point);
    points.sort_by(|a, b| a.x.cmp(&b.x).then(a.y.total_cmp(&b.y)));
}

/// Of each operation and variant, the rows that differ in nothing but the ranks: where there are most ranks, then most
/// tokens, then most multiprocessors. Nothing of what was measured with one number of ranks.
pub fn like_for_like<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    let of_one = |rows: Vec<&'a Row>| {
        let alike = grouped(&rows, |row| (row.tokens, row.sms)).into_iter();
        alike.max_by_key(|rows| (grouped(rows, |row| row.ranks).len(), rows[0].tokens, rows[0].sms))
    };
    let best = grouped(rows, |row| (row.section, row.operation.clone(), row.variant.clone()));
    let best = best.into_iter().filter_map(of_one);
    best.filter(|rows| grouped(rows, |row| row.ranks).len() > 1).flatten().collect()
}
