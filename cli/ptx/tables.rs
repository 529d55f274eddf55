//! Tables of the comparison, for whatever prints them: rows of cells, the first of headings.

use super::classes::{Agreement, Group};
use super::compare::{Comparison, Figures, Kernel, Verdict, beside};

/// Rows of cells.
pub type Table = Vec<Vec<String>>;

/// A figure of a kernel in a lane, and its heading.
pub struct Column(&'static str, fn(&Figures) -> Option<usize>);

pub const REGISTERS: Column = Column("registers", |figures| Some(figures.resources?.registers as usize));
pub const PTX_LINES: Column = Column("PTX lines", |figures| Some(figures.ptx_lines));
pub const PTX: Column = Column("PTX instructions", |figures| Some(figures.ptx_instructions));
pub const SASS: Column = Column("SASS instructions", |figures| figures.sass_instructions);
pub const SPILLED: Column =
    Column("spilled bytes", |figures| Some(figures.resources?.spilled_bytes as usize));
pub const SHARED: Column =
    Column("static shared bytes", |figures| Some(figures.resources?.shared_bytes as usize));
pub const BARRIERS: Column = Column("barriers", |figures| Some(figures.resources?.barriers as usize));

/// Figures of every kernel.
pub fn figures(comparison: &Comparison, columns: &[Column]) -> Table {
    let headings = columns.iter().map(|Column(heading, _)| *heading).collect();
    by_kernel(comparison, headings, |kernel| {
        let cell = |Column(_, figure): &Column| {
            let lanes: Vec<_> = kernel.figures.iter().map(|figures| figure(figures.as_ref()?)).collect();
            beside(&lanes)
        };
        columns.iter().map(cell).collect()
    })
}

/// Instructions of every kernel by what they are about, where there are any.
pub fn groups(comparison: &Comparison) -> Table {
    let occurs = |group: &Group| {
        comparison.kernels.iter().flat_map(|kernel| &kernel.mix).any(|row| row.group == *group)
    };
    let groups: Vec<Group> = Group::ALL.into_iter().filter(occurs).collect();
    let headings = groups.iter().map(|group| group.name()).collect();
    by_kernel(comparison, headings, |kernel| {
        groups.iter().map(|&group| beside(&kernel.of_group(group))).collect()
    })
}

/// A row for each kernel, its name first.
fn by_kernel(comparison: &Comparison, headings: Vec<&str>, cells: impl Fn(&Kernel) -> Vec<String>) -> Table {
    let row = |first: &str, rest: Vec<String>| [first.to_owned()].into_iter().chain(rest).collect();
    let headings = row("kernel", headings.into_iter().map(str::to_owned).collect());
    let kernels = comparison.kernels.iter().map(|kernel| row(&kernel.name, cells(kernel)));
    [headings].into_iter().chain(kernels).collect()
}

/// Instructions of a kernel by class.
pub fn classes(comparison: &Comparison, kernel: &Kernel) -> Table {
    let headings =
        ["class".to_owned(), "group".to_owned()].into_iter().chain(comparison.lanes.iter().cloned());
    let rows = kernel.mix.iter().map(|row| {
        let count = |count: &Option<usize>| beside(&[*count]);
        let group = row.group.name().to_owned();
        [row.class.clone(), group].into_iter().chain(row.counts.iter().map(count)).collect()
    });
    [headings.collect()].into_iter().chain(rows).collect()
}

/// Where lanes do not agree on what they must, and why they may.
pub fn allowed(comparison: &Comparison) -> Table {
    let mut table = vec![["kernel", "operation", "times", "reason"].map(str::to_owned).to_vec()];
    for kernel in &comparison.kernels {
        for row in &kernel.mix {
            if let Verdict::Allowed(reasons) = &row.verdict {
                let times = beside(&row.counts);
                table.push(vec![kernel.name.clone(), row.class.clone(), times, reasons.join("; ")]);
            }
        }
    }
    table
}

/// What lanes agree on: how often a kernel has what synchronises or goes on beside the thread, and which plain accesses it
/// has. A number that an allowance leaves open is left out.
pub fn agreed(kernel: &Kernel) -> [String; 2] {
    let rows = |agreement| kernel.mix.iter().filter(move |row| row.agreement == agreement);
    let operations = rows(Agreement::Count).map(|row| match row.verdict {
        Verdict::Agrees => format!("{} × {}", row.class, beside(&row.counts)),
        _ => row.class.clone(),
    });
    let accesses = rows(Agreement::Presence).filter(|row| row.verdict == Verdict::Agrees);
    let accesses = accesses.map(|row| row.class.clone());
    [operations.collect::<Vec<_>>().join(", "), accesses.collect::<Vec<_>>().join(", ")]
}
