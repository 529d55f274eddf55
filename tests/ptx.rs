//! What the compilers made of the kernels: every image that is built in, read as PTX, and with feature `reference` that of
//! CUDA C++ too. It pins what a compiler gets wrong without a word: barriers that it copies into branches, orderings and
//! scopes that it drops, 16-byte accesses that it splits, products and sums that it contracts. That lanes agree with each
//! other is for `tokenrail ptx` to say.
#![cfg(feature = "cuda")]

mod skip;

use nvvm_builder::ptx::{Function, Module};
use tokenrail::gpu::images::{KERNEL_IMAGES, KernelImage};

/// What the source of a kernel says, with every call inlined.
struct Source {
    name: &'static str,
    /// `block::barrier()`.
    barriers: usize,
    /// `block::barrier_or()`.
    barriers_or: usize,
    /// Flags that tell a peer something (`store_release_sys_u64`, apart from the reports of failures).
    flags_set: usize,
    /// Loops that wait for a peer's flag (`wait_at_least_acquire_sys`).
    flags_awaited: usize,
    /// Moves of rows from global to shared memory by bulk copy, and from shared to global.
    bulk: Option<[bool; 2]>,
    /// Places that wait until bulk copies are written, and not only read, where there are any to global memory.
    completed: usize,
    /// 16-byte loads and stores of rows in global memory.
    quads: [bool; 2],
    /// Whether it reads packets, and whether it writes them or a proxy's commands.
    packets: [bool; 2],
    /// Warps of a block, at most.
    warps: u32,
}

const NOTHING: Source = Source {
    name: "",
    barriers: 0,
    barriers_or: 0,
    flags_set: 0,
    flags_awaited: 0,
    bulk: None,
    completed: 1,
    quads: [false, false],
    packets: [false, false],
    warps: 16,
};

/// Loops that wait for a place in the ring, for each command that is put into it.
const RING: usize = 3;

/// `barriers`: 4 in `count`, 1 in `arrive`'s sums of counts, 1 in each of two meetings. `barriers_or`: 1 each in `count`,
/// `announce` and `arrive`, 2 in `plan`, 1 in each meeting. Flags: `count_flags`, behind counts and behind a handle's
/// name, and `data_flags`.
const DISPATCH: Source = Source { barriers: 7, barriers_or: 7, flags_set: 3, flags_awaited: 2, ..NOTHING };

/// Beside that: `barriers`: 1 before `count` places pairs, 2 in `plan`, and no sums of counts. Flags: `chunk_flags`.
const BY_EXPERT: Source = Source { barriers: 9, flags_set: 4, flags_awaited: 3, ..DISPATCH };

/// Beside that: `barriers`: 1 behind what goes to other nodes of counts and of a handle's name each. `barriers_or`: 1 in
/// `pack`, 1 in `finish`. Awaited: the own counts and the rail's words in `pack`, others' counts, the rail's messages to
/// forward them and in `finish`. Commands: both kinds of counts, messages, their signals, words.
const DISPATCH_ACROSS: Source = Source {
    barriers: 9,
    barriers_or: 9,
    flags_awaited: 2 + 5 + 5 * RING,
    completed: 2,
    quads: [true, true],
    packets: [false, true],
    ..DISPATCH
};

/// Complete: what was sent and what was forwarded, each by the chunk and in the end; what was expanded.
const BY_EXPERT_ACROSS: Source =
    Source { barriers: 11, flags_set: 5, flags_awaited: 3 + 5 + 5 * RING, completed: 5, ..DISPATCH_ACROSS };

/// Beside `COMBINE`: awaited: all partials in the end, those of a token for its slots and for each of four forms.
/// Commands: partials of two formats, and their signals there and in the end.
const COMBINE_ACROSS: Source = Source {
    flags_awaited: 1 + 1 + 1 + 4 + 5 * RING,
    quads: [true, true],
    packets: [false, true],
    ..COMBINE
};

/// `barriers`: 1 in the meeting. `barriers_or`: 1 after the wait, 1 in the meeting. Flags: `ready_flags`.
const COMBINE: Source = Source { barriers: 1, barriers_or: 2, flags_set: 1, flags_awaited: 1, ..NOTHING };

/// All but one for each of two formats. `barriers`: 1 after the counting, 3 around that of further summaries, 1 before rows
/// are received; once, 1 between the halves. `barriers_or`: 2 after the routing, 1 after the summaries. Flags: those of
/// earlier reads are awaited, and set behind a fence.
const LOW_LATENCY_DISPATCH: Source = Source {
    name: "tokenrail_low_latency_dispatch",
    barriers: 2 * 5 + 1,
    barriers_or: 2 * 3,
    flags_awaited: 2,
    quads: [true, true],
    packets: [true, true],
    ..NOTHING
};

/// Beside that, for each format: `barriers`: 1 in the meeting, 1 behind the puts. `barriers_or`: 1 in the meeting; once, 1
/// behind the last wait.
const LOW_LATENCY_DISPATCH_ACROSS: Source = Source {
    name: "tokenrail_low_latency_dispatch_across",
    barriers: 2 * 7 + 1,
    barriers_or: 2 * 4 + 1,
    flags_awaited: 15 + 10 * RING,
    ..LOW_LATENCY_DISPATCH
};

/// `barriers`: 1 between the halves, 1 after the receiving one. `barriers_or`: 1 after the wait.
const LOW_LATENCY_COMBINE: Source = Source {
    name: "tokenrail_low_latency_combine",
    barriers: 2,
    barriers_or: 1,
    flags_awaited: 1,
    quads: [true, true],
    packets: [true, true],
    warps: 10,
    ..NOTHING
};

/// Beside that: `barriers`: 1 in the meeting, 1 behind the puts. `barriers_or`: 1 in the meeting.
const LOW_LATENCY_COMBINE_ACROSS: Source = Source {
    name: "tokenrail_low_latency_combine_across",
    barriers: 4,
    barriers_or: 2,
    flags_awaited: 4 + 4 * RING,
    ..LOW_LATENCY_COMBINE
};

const KERNELS: [Source; 32] = [
    // The flag before a round trip, and behind it; two kinds of commands.
    Source { name: "tokenrail_commands", flags_awaited: 2 + 2 * RING, packets: [false, true], ..NOTHING },
    LOW_LATENCY_DISPATCH_ACROSS,
    LOW_LATENCY_COMBINE_ACROSS,
    Source { name: "tokenrail_low_latency_combine_fp8_across", warps: 8, ..LOW_LATENCY_COMBINE_ACROSS },
    Source { name: "tokenrail_low_latency_combine_log10_across", warps: 8, ..LOW_LATENCY_COMBINE_ACROSS },
    Source { name: "tokenrail_dispatch_across", bulk: Some([true, true]), ..DISPATCH_ACROSS },
    Source { name: "tokenrail_dispatch_across_plain", warps: 12, ..DISPATCH_ACROSS },
    Source { name: "tokenrail_dispatch_by_expert_across", bulk: Some([true, true]), ..BY_EXPERT_ACROSS },
    Source { name: "tokenrail_dispatch_by_expert_across_plain", warps: 12, ..BY_EXPERT_ACROSS },
    // A token's partials are awaited where its rows are pulled ahead at first, where they are pulled further, and where
    // they are counted: in each of four forms.
    Source {
        name: "tokenrail_combine_across",
        bulk: Some([true, false]),
        flags_awaited: COMBINE_ACROSS.flags_awaited + 8,
        ..COMBINE_ACROSS
    },
    Source { name: "tokenrail_combine_across_plain", ..COMBINE_ACROSS },
    LOW_LATENCY_DISPATCH,
    LOW_LATENCY_COMBINE,
    Source { name: "tokenrail_low_latency_combine_fp8", warps: 8, ..LOW_LATENCY_COMBINE },
    Source { name: "tokenrail_low_latency_combine_log10", warps: 8, ..LOW_LATENCY_COMBINE },
    Source { name: "tokenrail_delay", flags_awaited: 1, ..NOTHING },
    Source { name: "tokenrail_flag", flags_set: 1, flags_awaited: 1, ..NOTHING },
    Source { name: "tokenrail_stream", quads: [true, false], ..NOTHING },
    Source { name: "tokenrail_dispatch", bulk: Some([true, true]), ..DISPATCH },
    Source { name: "tokenrail_dispatch_plain", quads: [true, true], ..DISPATCH },
    // Padding is zeroed 16 bytes at a time. Complete: a chunk, the last of them, and what was expanded.
    Source {
        name: "tokenrail_dispatch_by_expert",
        bulk: Some([true, true]),
        completed: 3,
        quads: [false, true],
        ..BY_EXPERT
    },
    Source { name: "tokenrail_dispatch_by_expert_plain", quads: [true, true], ..BY_EXPERT },
    // `arrive` alone.
    Source {
        name: "tokenrail_arrive",
        barriers: 1,
        barriers_or: 1,
        flags_set: 1,
        flags_awaited: 1,
        ..NOTHING
    },
    // Biases are loaded 16 bytes at a time.
    Source { name: "tokenrail_combine", bulk: Some([true, false]), quads: [true, true], ..COMBINE },
    Source { name: "tokenrail_combine_plain", quads: [true, true], ..COMBINE },
    Source { name: "tokenrail_reduce", quads: [true, true], ..NOTHING },
    // Around the counting: after the zeroing, and before the sums are read.
    Source { name: "tokenrail_layout", barriers: 2, ..NOTHING },
    Source { name: "tokenrail_copy", bulk: Some([true, true]), ..NOTHING },
    Source { name: "tokenrail_experts", ..NOTHING },
    Source { name: "tokenrail_experts_by_expert", ..NOTHING },
    Source { name: "tokenrail_quantize", ..NOTHING },
    // One of its barriers has a number. Its compare-and-swap and its release pass for a report's, its acquire for a
    // wait.
    Source {
        name: "tokenrail_probe",
        barriers: 2,
        barriers_or: 1,
        flags_awaited: 1,
        quads: [true, true],
        ..NOTHING
    },
];

/// Registers of an SM.
const REGISTERS: u32 = 65536;

/// Calls `check` with every kernel of every image; `what` names both in messages.
fn each_kernel(check: impl Fn(&str, &KernelImage, &Source, &Function)) {
    for image in KERNEL_IMAGES {
        let module = Module::parse(image.ptx);
        for kernel in module.kernels() {
            let what = format!("{} (sm_{}, {} lane)", kernel.name, image.sm, image.lane);
            let source = KERNELS.iter().find(|source| source.name == kernel.name);
            check(&what, image, source.unwrap_or_else(|| panic!("{what} is not in the table")), kernel);
        }
    }
}

/// The instructions that `is_one` picks, in a form to be compared with none.
fn instructions(kernel: &Function, is_one: impl Fn(&str) -> bool) -> Vec<&str> {
    kernel.instructions.iter().map(String::as_str).filter(|opcode| is_one(opcode)).collect()
}

fn begins_with_any(opcode: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| opcode.starts_with(prefix))
}

const NONE: [&str; 0] = [];

#[test]
fn every_image_has_its_kernels() {
    let preferred = KERNEL_IMAGES[0].lane;
    if preferred == "llvm" {
        skip::skipped("the nvvm lane, which this build was made without");
    }
    let lanes: &[&str] = if preferred == "nvvm" { &["nvvm", "llvm"] } else { &["llvm"] };
    let images: Vec<_> = KERNEL_IMAGES.iter().map(|image| (image.sm, image.lane)).collect();
    let mut expected: Vec<_> =
        [80, 90, 100].iter().flat_map(|&sm| lanes.iter().map(move |&lane| (sm, lane))).collect();
    if cfg!(feature = "reference") {
        expected.insert(2 * lanes.len(), (90, "nvcc"));
    }
    assert_eq!(images, expected);

    for image in KERNEL_IMAGES {
        let module = Module::parse(image.ptx);
        let mut names: Vec<_> = module.kernels().map(|kernel| kernel.name.as_str()).collect();
        names.sort_unstable();
        let in_image = |source: &&Source| image.sm >= 90 || source.bulk.is_none();
        let mut expected: Vec<_> = KERNELS.iter().filter(in_image).map(|source| source.name).collect();
        expected.sort_unstable();
        assert_eq!(names, expected, "sm_{}, {} lane", image.sm, image.lane);
    }
}

#[test]
fn block_barriers_are_those_of_the_source() {
    each_kernel(|what, _, source, kernel| {
        let barriers = instructions(kernel, |opcode| {
            begins_with_any(opcode, &["bar.", "barrier."]) && !opcode.starts_with("bar.warp.")
        });
        let (reducing, plain): (Vec<_>, Vec<_>) =
            barriers.into_iter().partition(|opcode| opcode.contains(".red."));
        assert_eq!((plain.len(), reducing.len()), (source.barriers, source.barriers_or), "{what}");
    });
}

#[test]
fn atomics_have_an_ordering_and_a_scope() {
    each_kernel(|what, _, _, kernel| {
        let lacking = instructions(kernel, |opcode| {
            let mut parts = opcode.split('.');
            matches!(parts.next(), Some("atom" | "red"))
                && !(matches!(parts.next(), Some("relaxed" | "acquire" | "release" | "acq_rel"))
                    && matches!(parts.next(), Some("cta" | "gpu" | "sys")))
        });
        assert_eq!(lacking, NONE, "{what}");
    });
}

#[test]
fn flags_are_released_and_acquired_across_the_system() {
    each_kernel(|what, _, source, kernel| {
        // Every report of a failure is claimed by one compare-and-swap and released by one store. How many there are
        // is the compiler's to say: the loop that checks expert ids is unrolled.
        let reports = kernel.count("atom.acq_rel.gpu.global.cas.b32");
        let released = kernel.count("st.release.sys.global.u64");
        // A compiler may write one store out twice, where ways part; none may go.
        assert!(released >= source.flags_set + reports, "{what}: {released}, {reports} of them reports");
        assert_eq!(kernel.count("ld.acquire.sys.global.u64"), source.flags_awaited, "{what}");
        // Nothing that others write is read through the cache that is not kept coherent.
        let incoherent = instructions(kernel, |opcode| opcode.split('.').any(|part| part == "nc"));
        assert_eq!(incoherent, NONE, "{what}");
    });
}

#[test]
fn rows_move_by_bulk_copies_or_16_bytes_at_a_time() {
    const LOAD: &str = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
    const STORE: &str = "cp.async.bulk.global.shared::cta.bulk_group";
    each_kernel(|what, _, source, kernel| {
        let has = |prefix| kernel.count(prefix) > 0;
        assert_eq!([has(LOAD), has(STORE)], source.bulk.unwrap_or_default(), "{what}");
        assert_eq!(has("cp.async.bulk") || has("mbarrier"), source.bulk.is_some(), "{what}");
        assert_eq!([has("ld.global.v4.u32"), has("st.global.v4.u32")], source.quads, "{what}");
        if has(STORE) {
            // Written, and not only read, before anyone is told.
            let complete = |opcode: &str| opcode == "cp.async.bulk.wait_group";
            assert_eq!(instructions(kernel, complete).len(), source.completed, "{what}");
        }
    });
}

#[test]
fn packets_are_read_and_written_at_once() {
    each_kernel(|what, _, source, kernel| {
        let has = |prefix| kernel.count(prefix) > 0;
        let both = [has("ld.relaxed.sys.global.b128"), has("st.relaxed.sys.global.b128")];
        assert_eq!(both, source.packets, "{what}");
    });
}

#[test]
fn floats_are_rounded_after_every_operation() {
    each_kernel(|what, image, _, kernel| {
        // Without `.rn`, ptxas may make one operation of a product and a sum.
        let contractible = instructions(kernel, |opcode| {
            let arithmetic = begins_with_any(opcode, &["add.", "sub.", "mul.", "div."]);
            let float = opcode.contains(".f32") || opcode.contains(".f16") || opcode.contains(".bf16");
            begins_with_any(opcode, &["fma.", "mad.rn", "mad.f"])
                || opcode.contains(".ftz")
                || opcode.contains(".approx")
                || arithmetic && float && !opcode.split('.').any(|part| part == "rn")
        });
        assert_eq!(contractible, NONE, "{what}");

        let has = |prefix| kernel.count(prefix) > 0;
        let is = |names: &[&str]| names.iter().any(|name| kernel.name.starts_with(name));
        let to_half = is(&["tokenrail_experts", "tokenrail_combine", "tokenrail_reduce", "tokenrail_probe"]);
        let to_bf16 = to_half || is(&["tokenrail_low_latency_combine"]);
        let low_latency_fp8 = is(&["tokenrail_low_latency_dispatch", "tokenrail_low_latency_combine_fp8"]);
        let to_e4m3 = is(&["tokenrail_quantize", "tokenrail_probe"]) || low_latency_fp8;
        assert_eq!(has("cvt.rn.bf16x2.f32"), to_bf16, "{what}");
        assert_eq!([has("cvt.rn.f16x2.f32"), has("cvt.f32.f16")], [to_half; 2], "{what}");
        assert_eq!(has("cvt.rn.satfinite.e4m3x2.f32"), to_e4m3 && image.sm >= 90, "{what}");
        // Also `add.rn.f32x2`, two such sums. Without an instruction for e4m3 an addition rounds.
        assert_eq!(has("add.rn.f32"), to_bf16 || to_e4m3 && image.sm < 90, "{what}");
    });
}

#[test]
fn kernels_use_no_local_memory() {
    each_kernel(|what, _, _, kernel| {
        assert_eq!(instructions(kernel, |opcode| opcode.contains(".local")), NONE, "{what}");
    });
}

/// No panic is within reach, and nothing was left out of line.
#[test]
fn kernels_neither_call_nor_trap() {
    each_kernel(|what, _, _, kernel| {
        assert_eq!(instructions(kernel, |opcode| begins_with_any(opcode, &["call", "trap"])), NONE, "{what}");
    });
}

#[test]
fn kernels_fit_their_blocks() {
    for image in KERNEL_IMAGES {
        if image.kernels.is_empty() {
            skip::skipped(format_args!("sm_{}, {} lane: built without ptxas", image.sm, image.lane));
        }
        for kernel in image.kernels {
            let what = format!("sm_{}, {} lane: {kernel:?}", image.sm, image.lane);
            let warps =
                KERNELS.iter().find(|source| source.name == kernel.name).map_or(16, |source| source.warps);
            assert!((1..=REGISTERS / (32 * warps)).contains(&kernel.registers), "{what}");
            assert_eq!(
                (kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes),
                (0, 0, 0),
                "{what}"
            );
        }
    }
}
