//! What lanes made of each kernel, side by side, and where they do not agree although they must.

use super::allowed::{Allowance, Extent};
use super::classes::{Agreement, Class, Group};
use nvvm_builder::ptx::Function;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Of the JSON.
const VERSION: u32 = 1;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Of this format.
    pub version: u32,
    /// Of the library.
    pub tokenrail: &'static str,
    /// The compute capability as one number: 90 for `sm_90`.
    pub sm: u32,
    /// Names of lanes. Whatever is said of each lane is in this order.
    pub lanes: Vec<String>,
    /// What the lanes and their assembler were made with: name and version.
    pub tools: Vec<(String, String)>,
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// Allowances that nothing needs: where all lanes and kernels were compared, there must be none.
    pub stale: Vec<Allowance>,
}

/// A kernel in every lane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kernel {
    /// The name to launch it by.
    pub name: String,
    /// What it takes in each lane; `None` where the lane is without it.
    pub figures: Vec<Option<Figures>>,
    /// Its instructions by class.
    pub mix: Vec<Row>,
}

/// What a kernel takes in one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Lines of PTX.
    pub ptx_lines: usize,
    /// Instructions of PTX.
    pub ptx_instructions: usize,
    /// Instructions of machine code; `None` without a disassembler.
    pub sass_instructions: Option<usize>,
    /// What the assembler counted; `None` where it was not there.
    pub resources: Option<Resources>,
}

/// What a kernel occupies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Registers for each thread.
    pub registers: u32,
    /// Bytes of registers stored to memory for want of registers and loaded back, for each thread.
    pub spilled_bytes: u32,
    /// Bytes of static shared memory for each block.
    pub shared_bytes: u32,
    /// Barriers of a block in use.
    pub barriers: u32,
}

/// How often instructions of a class occur in a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What the class is about.
    pub group: Group,
    /// The class.
    pub class: String,
    /// In each lane that has the kernel.
    pub counts: Vec<Option<usize>>,
    /// What lanes must agree on.
    pub agreement: Agreement,
    /// Whether they do.
    pub verdict: Verdict,
}

/// Whether counts are as they must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Lanes agree on what they must.
    Agrees,
    /// They do not, for these reasons.
    Allowed(Vec<&'static str>),
    /// They do not.
    Differs,
}

/// A kernel's name, its figures and its functions, lane by lane.
pub type Lanes<'a> = (&'a str, Vec<Option<(Figures, &'a Function)>>);

impl Comparison {
    /// Compares `kernels` under these allowances, all of which should be needed if `complete`.
    pub fn new(
        sm: u32,
        lanes: &[&str],
        tools: Vec<(String, String)>,
        kernels: &[Lanes<'_>],
        allowed: &[Allowance],
        complete: bool,
    ) -> Self {
        let mut needed = BTreeSet::new();
        let kernels = kernels
            .iter()
            .map(|(name, made)| Kernel {
                name: (*name).to_owned(),
                figures: made.iter().map(|made| made.as_ref().map(|(figures, _)| *figures)).collect(),
                mix: mix(name, lanes, made, allowed, &mut needed),
            })
            .collect();
        let stale = allowed.iter().enumerate().filter(|(at, _)| complete && !needed.contains(at));
        Self {
            version: VERSION,
            tokenrail: env!("CARGO_PKG_VERSION"),
            sm,
            lanes: lanes.iter().map(|&lane| lane.to_owned()).collect(),
            tools,
            kernels,
            stale: stale.map(|(_, allowance)| *allowance).collect(),
        }
    }

    /// Whether there was an assembler and a disassembler for every kernel.
    pub fn has_all_figures(&self) -> bool {
        let mut figures = self.kernels.iter().flat_map(|kernel| &kernel.figures).flatten();
        figures.all(|figures| figures.sass_instructions.is_some() && figures.resources.is_some())
    }

    /// Everything that lanes differ in although they must not, for people; empty if all is well.
    pub fn failures(&self) -> Vec<String> {
        let lanes = self.lanes.join("/");
        let mut failures = Vec::new();
        for kernel in &self.kernels {
            let without = self.lanes.iter().zip(&kernel.figures).filter(|(_, figures)| figures.is_none());
            failures.extend(without.map(|(lane, _)| format!("{}: not in lane {lane}", kernel.name)));
            let differ = kernel.mix.iter().filter(|row| row.verdict == Verdict::Differs);
            failures.extend(differ.map(|row| {
                format!("{}: {}: {} times ({lanes})", kernel.name, row.class, beside(&row.counts))
            }));
        }
        failures.extend(self.stale.iter().map(|allowance| {
            let Allowance { kernels, class, lanes, .. } = allowance;
            format!("the allowance for {class} in {kernels}, lanes {lanes:?}, allows nothing: take it out")
        }));
        failures
    }
}

impl Kernel {
    /// Instructions of a group, lane by lane.
    pub fn of_group(&self, group: Group) -> Vec<Option<usize>> {
        let mut sums: Vec<_> = self.figures.iter().map(|figures| figures.map(|_| 0)).collect();
        for row in self.mix.iter().filter(|row| row.group == group) {
            for (sum, count) in sums.iter_mut().zip(&row.counts) {
                *sum = sum.zip(*count).map(|(sum, count)| sum + count);
            }
        }
        sums
    }
}

/// What lanes have, one beside the other; once if all have the same.
pub fn beside<T: ToString + PartialEq>(values: &[Option<T>]) -> String {
    let cell = |value: &Option<T>| value.as_ref().map_or_else(|| "–".to_owned(), T::to_string);
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => cell(first),
        _ => values.iter().map(cell).collect::<Vec<_>>().join("/"),
    }
}

/// A kernel's instructions by class. The places of allowances that it needs are put into `needed`.
fn mix(
    kernel: &str,
    lanes: &[&str],
    made: &[Option<(Figures, &Function)>],
    allowed: &[Allowance],
    needed: &mut BTreeSet<usize>,
) -> Vec<Row> {
    let none: Vec<Option<usize>> = made.iter().map(|made| made.map(|_| 0)).collect();
    let mut classes: BTreeMap<Class, Vec<Option<usize>>> = BTreeMap::new();
    for (lane, (_, function)) in made.iter().enumerate().filter_map(|(lane, made)| Some((lane, (*made)?))) {
        for opcode in &function.instructions {
            let counts = classes.entry(Class::of(opcode)).or_insert_with(|| none.clone());
            counts[lane] = counts[lane].map(|count| count + 1);
        }
    }
    classes
        .into_iter()
        .map(|(class, counts)| {
            let agreement = class.agreement();
            let covering: Vec<(usize, &Allowance)> = allowed
                .iter()
                .enumerate()
                .filter(|(_, allowance)| allowance.covers(kernel, &class.name))
                .collect();
            let verdict = judge(lanes, &counts, agreement, &covering, needed);
            Row { group: class.group, class: class.name, counts, agreement, verdict }
        })
        .collect()
}

/// Whether each lane that has more than the fewest may have.
fn judge(
    lanes: &[&str],
    counts: &[Option<usize>],
    agreement: Agreement,
    covering: &[(usize, &Allowance)],
    needed: &mut BTreeSet<usize>,
) -> Verdict {
    let most = match agreement {
        Agreement::Count => usize::MAX,
        Agreement::Presence => 1,
        Agreement::Nothing => 0,
    };
    let counts: Vec<(&str, usize)> = lanes
        .iter()
        .zip(counts)
        .filter_map(|(&lane, count)| Some((lane, count.as_ref()?.min(&most).to_owned())))
        .collect();
    let fewest = counts.iter().map(|&(_, count)| count).min().unwrap_or(0);
    let with_more = counts.iter().filter(|&&(_, count)| count > fewest);
    let mut reasons = Vec::new();
    for &(lane, _) in with_more {
        let may = |allowance: &Allowance| {
            allowance.lanes.contains(&lane) && (fewest > 0 || allowance.extent == Extent::Additions)
        };
        let Some((at, allowance)) = covering.iter().find(|(_, allowance)| may(allowance)) else {
            return Verdict::Differs;
        };
        needed.insert(*at);
        if !reasons.contains(&allowance.reason) {
            reasons.push(allowance.reason);
        }
    }
    if reasons.is_empty() { Verdict::Agrees } else { Verdict::Allowed(reasons) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvvm_builder::ptx::Module;

    const UNROLLS: Allowance = Allowance {
        kernels: "a*",
        class: "fence.acq_rel.sys",
        lanes: &["one"],
        extent: Extent::Copies,
        reason: "one unrolls",
    };

    /// Kernel `name` of two lanes, with these bodies.
    fn compared(name: &str, bodies: [Option<&str>; 2], allowed: &[Allowance]) -> Comparison {
        let modules = bodies.map(|body| {
            Module::parse(&body.map_or_else(String::new, |body| format!(".entry {name}() {{ {body} ret; }}")))
        });
        let made = modules.each_ref().map(|module| Some((Figures::default(), module.kernel(name)?)));
        Comparison::new(90, &["one", "two"], Vec::new(), &[(name, made.to_vec())], allowed, true)
    }

    fn failures(bodies: [&str; 2], allowed: &[Allowance]) -> Vec<String> {
        compared("a_kernel", bodies.map(Some), allowed).failures()
    }

    const FENCE: &str = "fence.acq_rel.sys; ";
    const NONE: [String; 0] = [];

    #[test]
    fn what_need_not_agree_does_not_fail() {
        assert_eq!(
            failures(
                ["add.s32 %r1; add.s32 %r1; ld.global.u32 %r1;", "ld.global.b32 %r1; ld.global.u32 %r1;"],
                &[]
            ),
            NONE
        );
        let kernel = &compared("k", [Some("add.s32 %r1; add.s64 %rd1;"), Some("")], &[]).kernels[0];
        assert_eq!(kernel.of_group(Group::Integer), [Some(2), Some(0)]);
        assert_eq!(kernel.of_group(Group::Fence), [Some(0), Some(0)]);
    }

    #[test]
    fn counts_of_what_synchronises_must_agree() {
        assert_eq!(failures([FENCE, FENCE], &[]), NONE);
        let twice = FENCE.repeat(2);
        assert_eq!(failures([&twice, FENCE], &[]), ["a_kernel: fence.acq_rel.sys: 2/1 times (one/two)"]);
        assert_eq!(failures([&twice, FENCE], &[UNROLLS]), NONE);
        let mix = &compared("a", [Some(&twice), Some(FENCE)], &[UNROLLS]).kernels[0].mix;
        let fence = mix.iter().find(|row| row.group == Group::Fence).expect("it is there");
        assert_eq!(fence.verdict, Verdict::Allowed(vec!["one unrolls"]));
    }

    #[test]
    fn an_allowance_is_for_its_lanes_and_kernels() {
        let twice = FENCE.repeat(2);
        // The other lane has more; the allowance is not needed, either.
        assert_eq!(failures([FENCE, &twice], &[UNROLLS]).len(), 2);
        let other = compared("other", [Some(&twice), Some(FENCE)], &[UNROLLS]);
        assert_eq!(other.failures().len(), 2);
    }

    #[test]
    fn copies_are_of_something() {
        assert_eq!(failures([FENCE, ""], &[UNROLLS])[0], "a_kernel: fence.acq_rel.sys: 1/0 times (one/two)");
        let addition = Allowance { extent: Extent::Additions, ..UNROLLS };
        assert_eq!(failures([FENCE, ""], &[addition]), NONE);
        assert_eq!(failures([&FENCE.repeat(2), FENCE], &[addition]), NONE);
    }

    #[test]
    fn widths_and_cache_operators_of_plain_accesses_must_agree() {
        assert_eq!(
            failures(
                ["ld.global.v4.u32 %r1; st.global.u32 %r1;", "ld.global.u32 %r1; st.global.cs.u32 %r1;"],
                &[]
            ),
            [
                "a_kernel: ld.global 16 B: 1/0 times (one/two)",
                "a_kernel: ld.global 4 B: 0/1 times (one/two)",
                "a_kernel: st.global 4 B: 1/0 times (one/two)",
                "a_kernel: st.global.cs 4 B: 0/1 times (one/two)",
            ]
        );
    }

    #[test]
    fn an_allowance_that_nothing_needs_fails() {
        assert_eq!(
            failures([FENCE, FENCE], &[UNROLLS]),
            ["the allowance for fence.acq_rel.sys in a*, lanes [\"one\"], allows nothing: take it out"]
        );
    }

    #[test]
    fn every_lane_has_every_kernel() {
        let comparison = compared("k", [Some(FENCE), None], &[]);
        assert_eq!(comparison.failures(), ["k: not in lane two"]);
        assert_eq!(comparison.kernels[0].mix[0].counts, [Some(1), None]);
    }
}
