//! Classes of PTX instructions: what can be told from an opcode of what it does.

use serde::Serialize;

/// What an instruction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Loads and stores of global memory.
    Global,
    /// Loads and stores of shared memory.
    Shared,
    /// Copies that go on beside the thread, in bulk above all.
    AsyncCopy,
    /// Barriers in shared memory that such copies complete on.
    Mbarrier,
    /// Atomic read-modify-writes.
    Atomic,
    /// Fences.
    Fence,
    /// Barriers of a block or of a warp.
    Barrier,
    /// Exchanges between the threads of a warp.
    Warp,
    /// Integer arithmetic.
    Integer,
    /// Floating-point arithmetic.
    Float,
    /// Conversions.
    Conversion,
    /// Moves and selections.
    Move,
    /// Comparisons, and what is made of their results.
    Predicate,
    /// Branches, calls and ends.
    Control,
    /// Loads of parameters.
    Parameter,
    /// Loads and stores of a thread's own memory.
    Local,
    /// What this table does not know.
    Other,
}

impl Group {
    /// In the order of tables.
    pub const ALL: [Self; 17] = [
        Self::Global,
        Self::Shared,
        Self::AsyncCopy,
        Self::Mbarrier,
        Self::Atomic,
        Self::Fence,
        Self::Barrier,
        Self::Warp,
        Self::Integer,
        Self::Float,
        Self::Conversion,
        Self::Move,
        Self::Predicate,
        Self::Control,
        Self::Parameter,
        Self::Local,
        Self::Other,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::Shared => "shared",
            Self::AsyncCopy => "async copy",
            Self::Mbarrier => "mbarrier",
            Self::Atomic => "atomic",
            Self::Fence => "fence",
            Self::Barrier => "barrier",
            Self::Warp => "warp",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Conversion => "conversion",
            Self::Move => "move",
            Self::Predicate => "predicate",
            Self::Control => "control",
            Self::Parameter => "parameter",
            Self::Local => "local",
            Self::Other => "other",
        }
    }
}

/// What lanes must agree on about a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Agreement {
    /// How often it occurs: what synchronises, or goes on beside the thread.
    Count,
    /// Whether it occurs: plain accesses, which a compiler may write out as often as it likes.
    Presence,
    /// Nothing.
    Nothing,
}

/// A class of instructions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// What it is about.
    pub group: Group,
    /// The opcode as far as it matters: of plain arithmetic little, of a memory operation all but how its bytes are
    /// named (`ld.global.v4.u32` and `ld.global.v2.u64` are `ld.global 16 B`).
    pub name: String,
}

impl Class {
    /// Of an opcode with all its modifiers, such as `ld.acquire.sys.global.u64`.
    pub fn of(opcode: &str) -> Self {
        let parts: Vec<&str> = opcode.split('.').collect();
        let (head, kind) = (parts[0], parts[parts.len() - 1]);
        let group = match head {
            "ld" | "ldu" | "st" | "prefetch" | "prefetchu" => memory(&parts),
            "cp" => Group::AsyncCopy,
            "mbarrier" => Group::Mbarrier,
            "atom" | "red" => Group::Atomic,
            "fence" | "membar" => Group::Fence,
            "bar" | "barrier" => Group::Barrier,
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => Group::Warp,
            "cvt" | "cvta" => Group::Conversion,
            "setp" | "set" => Group::Predicate,
            "and" | "or" | "xor" | "not" | "mov" if kind == "pred" => Group::Predicate,
            "mov" | "selp" | "slct" => Group::Move,
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "nanosleep" => Group::Control,
            "add" | "addc" | "sub" | "subc" | "mul" | "mad" | "madc" | "fma" | "div" | "rem" | "abs"
            | "neg" | "min" | "max" | "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl" | "shr"
            | "shf" | "bfe" | "bfi" | "bfind" | "brev" | "popc" | "clz" | "fns" | "prmt" | "sad" | "dp4a"
            | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" | "testp" => {
                if is_float(kind) {
                    Group::Float
                } else {
                    Group::Integer
                }
            }
            _ => Group::Other,
        };
        Self { group, name: name(group, opcode, &parts) }
    }

    /// What lanes must agree on about it.
    pub fn agreement(&self) -> Agreement {
        let orders = |part: &str| ["relaxed", "acquire", "release", "volatile", "mmio"].contains(&part);
        match self.group {
            Group::AsyncCopy | Group::Mbarrier | Group::Atomic | Group::Fence | Group::Barrier => {
                Agreement::Count
            }
            Group::Global | Group::Shared if self.name.split(['.', ' ']).any(orders) => Agreement::Count,
            Group::Global | Group::Shared | Group::Local | Group::Other => Agreement::Presence,
            _ => Agreement::Nothing,
        }
    }
}

/// The memory that a load or a store is of. Without a name it may be any, global memory too.
fn memory(parts: &[&str]) -> Group {
    let has = |space: &str| parts.iter().any(|part| part.split("::").next() == Some(space));
    if has("shared") {
        Group::Shared
    } else if has("param") || has("const") {
        Group::Parameter
    } else if has("local") {
        Group::Local
    } else {
        Group::Global
    }
}

fn name(group: Group, opcode: &str, parts: &[&str]) -> String {
    let (head, kind) = (parts[0], parts[parts.len() - 1]);
    match group {
        Group::Global | Group::Shared | Group::Local => with_bytes(parts),
        Group::AsyncCopy => copy(opcode, parts),
        Group::Barrier => barrier(opcode, parts),
        Group::Integer => format!("integer, {} bits", bits(kind)),
        Group::Float => format!("float, {kind}"),
        Group::Conversion if head == "cvta" => "cvta".into(),
        Group::Conversion if !parts[1..].iter().any(|part| is_float(part)) => "cvt, integers".into(),
        Group::Move => head.into(),
        Group::Predicate if head == "setp" || head == "set" => "comparison".into(),
        Group::Predicate => "of predicates".into(),
        Group::Control if head == "bra" || head == "brx" => "branch".into(),
        Group::Control => head.into(),
        Group::Parameter => "parameter".into(),
        _ => opcode.into(),
    }
}

/// A load's or store's opcode with its bytes in place of vector and type.
fn with_bytes(parts: &[&str]) -> String {
    let is_vector = |part: &str| matches!(part, "v2" | "v4" | "v8");
    let elements: u32 = parts
        .iter()
        .filter(|part| is_vector(part))
        .filter_map(|part| part[1..].parse::<u32>().ok())
        .product();
    let Some((kind, modifiers)) = parts.split_last().filter(|(kind, _)| bits(kind) > 0) else {
        return parts.join(".");
    };
    let kept: Vec<&str> = modifiers.iter().copied().filter(|part| !is_vector(part)).collect();
    format!("{} {} B", kept.join("."), elements * bits(kind) / 8)
}

/// An asynchronous copy's opcode; of one in bulk, from where to where.
fn copy(opcode: &str, parts: &[&str]) -> String {
    let space = |part: &&&str| ["global", "shared"].contains(&part.split("::").next().unwrap_or_default());
    let spaces: Vec<&str> = parts.iter().filter(space).copied().collect();
    match (opcode.strip_prefix("cp.async.bulk."), &spaces[..]) {
        (Some(_), [to, from]) => format!("cp.async.bulk {from} to {to}"),
        _ => opcode.into(),
    }
}

/// A barrier's opcode; the two names of an aligned one of the block are one.
fn barrier(opcode: &str, parts: &[&str]) -> String {
    if parts[0] == "barrier" && parts.contains(&"aligned") {
        let kept: Vec<&str> =
            parts[1..].iter().copied().filter(|part| !["aligned", "cta"].contains(part)).collect();
        return format!("bar.{}", kept.join("."));
    }
    opcode.into()
}

/// Of a type such as `b128`, `f16x2`; 0 if it is none.
fn bits(kind: &str) -> u32 {
    let digits = kind.trim_start_matches(|letter: char| letter.is_ascii_lowercase());
    let (each, elements) = digits.split_once('x').unwrap_or((digits, "1"));
    each.parse::<u32>().unwrap_or(0) * elements.parse::<u32>().unwrap_or(0)
}

/// Whether the type is one of floating point.
fn is_float(kind: &str) -> bool {
    let names = ["f16", "f32", "f64", "bf16", "tf32", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "ue8m0"];
    names.iter().any(|name| kind.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_have_classes() {
        use Agreement::{Count, Nothing, Presence};
        for (opcode, group, name, agreement) in [
            ("ld.global.u8", Group::Global, "ld.global 1 B", Presence),
            ("st.global.v2.u16", Group::Global, "st.global 4 B", Presence),
            ("ld.global.v4.u32", Group::Global, "ld.global 16 B", Presence),
            ("ld.global.v2.b64", Group::Global, "ld.global 16 B", Presence),
            (
                "ld.global.nc.L1::no_allocate.v4.f32",
                Group::Global,
                "ld.global.nc.L1::no_allocate 16 B",
                Presence,
            ),
            ("st.global.cs.b32", Group::Global, "st.global.cs 4 B", Presence),
            ("ld.acquire.sys.global.u64", Group::Global, "ld.acquire.sys.global 8 B", Count),
            ("st.relaxed.sys.global.b128", Group::Global, "st.relaxed.sys.global 16 B", Count),
            ("ld.volatile.global.u32", Group::Global, "ld.volatile.global 4 B", Count),
            // Which memory, only the GPU knows.
            ("ld.u32", Group::Global, "ld 4 B", Presence),
            ("prefetch.global.L2", Group::Global, "prefetch.global.L2", Presence),
            ("ld.shared.v4.u32", Group::Shared, "ld.shared 16 B", Presence),
            ("st.shared::cta.b64", Group::Shared, "st.shared::cta 8 B", Presence),
            ("st.local.v2.f32", Group::Local, "st.local 8 B", Presence),
            ("ld.param.b64", Group::Parameter, "parameter", Nothing),
            (
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes",
                Group::AsyncCopy,
                "cp.async.bulk global to shared::cluster",
                Count,
            ),
            (
                "cp.async.bulk.global.shared::cta.bulk_group",
                Group::AsyncCopy,
                "cp.async.bulk shared::cta to global",
                Count,
            ),
            ("cp.async.bulk.commit_group", Group::AsyncCopy, "cp.async.bulk.commit_group", Count),
            ("cp.async.bulk.wait_group.read", Group::AsyncCopy, "cp.async.bulk.wait_group.read", Count),
            ("cp.async.cg.shared.global", Group::AsyncCopy, "cp.async.cg.shared.global", Count),
            (
                "mbarrier.try_wait.parity.shared.b64",
                Group::Mbarrier,
                "mbarrier.try_wait.parity.shared.b64",
                Count,
            ),
            ("atom.acq_rel.gpu.global.cas.b32", Group::Atomic, "atom.acq_rel.gpu.global.cas.b32", Count),
            ("red.relaxed.cta.shared.add.u32", Group::Atomic, "red.relaxed.cta.shared.add.u32", Count),
            ("fence.proxy.async", Group::Fence, "fence.proxy.async", Count),
            ("bar.sync", Group::Barrier, "bar.sync", Count),
            ("barrier.cta.sync.aligned", Group::Barrier, "bar.sync", Count),
            ("barrier.red.or.aligned.pred", Group::Barrier, "bar.red.or.pred", Count),
            // Not aligned: threads may come by different ways.
            ("barrier.sync", Group::Barrier, "barrier.sync", Count),
            ("bar.warp.sync", Group::Barrier, "bar.warp.sync", Count),
            ("shfl.sync.idx.b32", Group::Warp, "shfl.sync.idx.b32", Nothing),
            ("redux.sync.add.s32", Group::Warp, "redux.sync.add.s32", Nothing),
            ("mul.wide.u32", Group::Integer, "integer, 32 bits", Nothing),
            ("lop3.b32", Group::Integer, "integer, 32 bits", Nothing),
            ("add.s64", Group::Integer, "integer, 64 bits", Nothing),
            ("mul.rn.f32", Group::Float, "float, f32", Nothing),
            ("add.rn.f32x2", Group::Float, "float, f32x2", Nothing),
            ("fma.rn.bf16x2", Group::Float, "float, bf16x2", Nothing),
            ("cvt.u64.u32", Group::Conversion, "cvt, integers", Nothing),
            ("cvt.rn.satfinite.e4m3x2.f32", Group::Conversion, "cvt.rn.satfinite.e4m3x2.f32", Nothing),
            ("cvta.to.global.u64", Group::Conversion, "cvta", Nothing),
            ("mov.b32", Group::Move, "mov", Nothing),
            ("selp.f32", Group::Move, "selp", Nothing),
            ("mov.pred", Group::Predicate, "of predicates", Nothing),
            ("xor.pred", Group::Predicate, "of predicates", Nothing),
            ("setp.ltu.f32", Group::Predicate, "comparison", Nothing),
            ("bra.uni", Group::Control, "branch", Nothing),
            ("ret", Group::Control, "ret", Nothing),
            ("call.uni", Group::Control, "call", Nothing),
            ("wgmma.fence.sync.aligned", Group::Other, "wgmma.fence.sync.aligned", Presence),
        ] {
            let class = Class::of(opcode);
            let what = (class.group, class.name.as_str(), class.agreement());
            assert_eq!(what, (group, name, agreement), "{opcode}");
        }
    }

    #[test]
    fn groups_are_in_order() {
        assert!(Group::ALL.is_sorted());
    }
}
