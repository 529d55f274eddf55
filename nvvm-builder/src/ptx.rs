//! Just enough of PTX to check it: which functions a module has, and which instructions stand in each.
//!
//! ```
//! let ptx = ".visible .entry k(.param .u64 p) { @%p1 bra $L; bar.sync 0; $L: st.global.v4.u32 [%rd1], {%r1, %r2, %r3, %r4}; ret; }";
//! let module = nvvm_builder::ptx::Module::parse(ptx);
//! let kernel = module.kernel("k").unwrap();
//! assert_eq!(kernel.instructions, ["bra", "bar.sync", "st.global.v4.u32", "ret"]);
//! assert_eq!(kernel.count("bar."), 1);
//! ```

use crate::Arch;

/// A module of PTX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Every function with a body, in the order of the text.
    pub functions: Vec<Function>,
}

/// A function of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Whether the host can launch it (`.entry`).
    pub kernel: bool,
    /// The opcode of each instruction with all its modifiers and without operands and predicate, in the order of the
    /// text: `ld.acquire.sys.global.u64`.
    pub instructions: Vec<String>,
    /// Lines of its body, without comments and blank ones.
    pub lines: usize,
}

impl Module {
    /// Reads a module. What is no function is passed over.
    pub fn parse(ptx: &str) -> Self {
        let text = without_comments(ptx);
        let mut functions = Vec::new();
        let mut rest = text.as_str();
        while let Some((kernel, after)) = next_function(rest) {
            let Some(open) = after.find(['{', ';']) else { break };
            let (head, body) = after.split_at(open);
            // A declaration.
            if let Some(after) = body.strip_prefix(';') {
                rest = after;
                continue;
            }
            let end = matching_brace(body);
            let inner = &body[1..end];
            functions.push(Function {
                name: function_name(head).to_owned(),
                kernel,
                instructions: inner.split(';').filter_map(opcode).map(str::to_owned).collect(),
                lines: inner.lines().filter(|line| !line.trim().is_empty()).count(),
            });
            rest = &body[end..];
        }
        Self { functions }
    }

    /// The functions that the host can launch.
    pub fn kernels(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| function.kernel)
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Function> {
        self.kernels().find(|kernel| kernel.name == name)
    }
}

impl Function {
    /// How many instructions begin with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.instructions.iter().filter(|opcode| opcode.starts_with(prefix)).count()
    }
}

/// Sets the `.version` and `.target` of a module. Whether it uses nothing newer is for ptxas to say.
pub(crate) fn retarget(ptx: &str, arch: Arch) -> String {
    let (major, minor) = arch.ptx_version();
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        if line.starts_with(".version ") {
            out.push_str(&format!(".version {major}.{minor}"));
        } else if line.starts_with(".target ") {
            out.push_str(&format!(".target {arch}"));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

fn without_comments(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    let mut rest = ptx;
    while let Some(at) = rest.find('/') {
        let (before, comment) = rest.split_at(at);
        out.push_str(before);
        let length = if comment.starts_with("//") {
            comment.find('\n')
        } else if comment.starts_with("/*") {
            comment.find("*/").map(|end| end + 2)
        } else {
            out.push('/');
            Some(1)
        };
        rest = &comment[length.unwrap_or(comment.len())..];
    }
    out + rest
}

/// Whether the next function is a kernel, and the text behind the word that says so.
fn next_function(text: &str) -> Option<(bool, &str)> {
    let find = |word: &str| {
        text.match_indices(word)
            .map(|(at, _)| at)
            .find(|at| text[at + word.len()..].starts_with(|next: char| next.is_whitespace() || next == '('))
            .map(|at| (at, &text[at + word.len()..]))
    };
    match (find(".entry"), find(".func")) {
        (Some((entry, after)), function) if function.is_none_or(|(function, _)| entry < function) => {
            Some((true, after))
        }
        (_, Some((_, after))) => Some((false, after)),
        _ => None,
    }
}

/// The name in `name(parameters)` or `(return value) name(parameters)`.
fn function_name(head: &str) -> &str {
    let head = head.trim_start();
    let named = match head.strip_prefix('(') {
        Some(returned) => returned.split_once(')').map_or("", |(_, after)| after).trim_start(),
        None => head,
    };
    named.split(|end: char| end == '(' || end.is_whitespace()).next().unwrap_or_default()
}

/// Where the brace that `body` begins with is closed.
fn matching_brace(body: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    body.len()
}

/// The opcode of a statement; `None` for directives and for what is left of empty ones.
fn opcode(statement: &str) -> Option<&str> {
    let mut rest = statement.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '}');
    // Labels may stand before the instruction.
    loop {
        let word_end = rest.find(|c: char| !(c.is_alphanumeric() || "_$%".contains(c))).unwrap_or(rest.len());
        match rest[word_end..].trim_start().strip_prefix(':') {
            Some(after) if word_end > 0 && !after.starts_with(':') => {
                rest = after.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '}');
            }
            _ => break,
        }
    }
    if rest.starts_with('@') {
        rest = rest.split_once(char::is_whitespace)?.1.trim_start();
    }
    let opcode = rest.split_whitespace().next()?;
    (!opcode.starts_with('.')).then_some(opcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = r#"
//
// Generated by LLVM NVPTX Back-End
//
.version 9.5
.target sm_100
.address_size 64
.extern .shared .align 16 .b8 dyn_smem[];
.extern .func (.param .b32 out) outside(.param .b32 in);
	// .globl	k
.func  (.param .b32 func_retval0) callee(
	.param .b32 callee_param_0
)
{
	mul.rn.f32 	%r1, %r2, %r2;
	ret;
}
.visible .entry k(
	.param .u64 .ptr .align 1 k_param_0 // .entry not_me(
)
.maxntid 1024, 1, 1
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<12>;
	ld.param.b64 	%rd2, [k_param_0];
	@%p1 bra 	$L__BB0_2;
	bra.uni 	$L__BB0_1;
$L__BB0_2:
	// begin inline asm
	{ .reg .pred done; mbarrier.try_wait.parity.shared.b64 done, [%r1], %r2; selp.u32 %r3, 1, 0, done; }
	// end inline asm
	ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd4];
	cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];
$L__BB0_1: bar.sync 	0;
	@!%p1 atom.acq_rel.sys.global.add.u32 %r1, [%rd1], 1; /* barrier.sync 0; */
	ret;

}
.entry second ( ) { exit; }
"#;

    #[test]
    fn functions_and_instructions() {
        let module = Module::parse(PTX);
        let names: Vec<_> = module.functions.iter().map(|f| (f.name.as_str(), f.kernel)).collect();
        assert_eq!(names, [("callee", false), ("k", true), ("second", true)]);
        assert_eq!(
            module.kernel("k").unwrap().instructions,
            [
                "ld.param.b64",
                "bra",
                "bra.uni",
                "mbarrier.try_wait.parity.shared.b64",
                "selp.u32",
                "ld.global.v4.u32",
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
                "bar.sync",
                "atom.acq_rel.sys.global.add.u32",
                "ret",
            ]
        );
        assert_eq!(module.kernel("second").unwrap().instructions, ["exit"]);
        let lines: Vec<_> = module.functions.iter().map(|f| f.lines).collect();
        assert_eq!(lines, [2, 12, 1]);
        assert_eq!(module.kernel("callee"), None);
    }

    #[test]
    fn counts_by_prefix() {
        let module = Module::parse(PTX);
        let kernel = module.kernel("k").unwrap();
        assert_eq!((kernel.count("bar.sync"), kernel.count("bra"), kernel.count("barrier")), (1, 2, 0));
    }

    #[test]
    fn text_that_ends_early_is_no_panic() {
        for cut in 0..PTX.len() {
            Module::parse(&PTX[..cut]);
        }
    }

    #[test]
    fn retargeting_touches_two_lines() {
        let out = retarget(PTX, Arch::Sm90);
        let changed: Vec<_> = out.lines().filter(|line| !PTX.lines().any(|old| old == *line)).collect();
        assert_eq!(changed, [".version 8.4", ".target sm_90"]);
        assert_eq!(out.lines().count(), PTX.lines().count());
    }
}
