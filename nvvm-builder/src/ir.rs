//! What libNVVM wants different in rustc's LLVM IR.

/// The one data layout that libNVVM accepts (NVVM IR specification, "Data layout", 64 bits).
const DATA_LAYOUT: &str = "e-p:64:64:64-p6:32:32:32-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-\
                           f32:32:32-f64:64:64-f128:128:128-v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64-a:8:8";

/// NVVM IR 2.0 with debug metadata 3.2 (NVVM IR specification, "nvvmir.version").
const NVVM_IR_VERSION: &str = "i32 2, i32 0, i32 3, i32 2";

/// Intrinsics that libNVVM refuses under LLVM's name and takes under NVVM's. (What it refuses under both, such as
/// `llvm.round` and `llvm.exp2`, has no PTX instruction of the same meaning.)
const RENAMED: [(&str, &str); 4] = [
    ("@llvm.fabs.f32(", "@llvm.nvvm.fabs.f("),
    ("@llvm.fabs.f64(", "@llvm.nvvm.fabs.d("),
    // To nearest, ties to even.
    ("@llvm.rint.f32(", "@llvm.nvvm.round.f("),
    ("@llvm.rint.f64(", "@llvm.nvvm.round.d("),
];

/// Turns the IR of rustc's nvptx64 target into NVVM IR: its data layout, the version that it claims, and the names of
/// some intrinsics.
pub fn for_libnvvm(ir: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(ir.len() + 512);
    let mut layouts = 0;
    for line in ir.lines() {
        if line.starts_with("target datalayout = ") {
            layouts += 1;
            out.push_str(&format!("target datalayout = \"{DATA_LAYOUT}\"\n"));
        } else {
            match RENAMED.iter().find(|(llvm, _)| line.contains(llvm)) {
                Some((llvm, nvvm)) => out.push_str(&line.replace(llvm, nvvm)),
                None => out.push_str(line),
            }
            out.push('\n');
        }
    }
    if layouts != 1 {
        return Err("expected one `target datalayout` line");
    }
    let node = unused_metadata(ir);
    out.push_str(&format!("\n!nvvmir.version = !{{!{node}}}\n!{node} = !{{{NVVM_IR_VERSION}}}\n"));
    Ok(out)
}

/// A number that no metadata node of the module has.
fn unused_metadata(ir: &str) -> u64 {
    ir.lines()
        .filter_map(|line| line.strip_prefix('!')?.split_once(" = ")?.0.parse::<u64>().ok())
        .max()
        .map_or(0, |highest| highest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IR: &str = r#"; ModuleID = 'k'
target datalayout = "e-p6:32:32-i64:64-i128:128-i256:256-v16:16-v32:32-n16:32:64"
target triple = "nvptx64-nvidia-cuda"

define ptx_kernel void @k() {
  tail call void asm sideeffect "!7 = nothing", ""(), !srcloc !2
  ret void
}

!llvm.module.flags = !{!0}

!0 = !{i32 8, !"PIC Level", i32 2}
!11 = distinct !{}
!2 = !{i64 6841882904100}
"#;

    #[test]
    fn layout_and_version_are_the_only_changes() {
        let edited = for_libnvvm(IR).unwrap();
        let changed: Vec<_> = edited.lines().filter(|line| !IR.lines().any(|old| old == *line)).collect();
        assert_eq!(
            changed,
            [
                format!("target datalayout = \"{DATA_LAYOUT}\"").as_str(),
                "!nvvmir.version = !{!12}",
                "!12 = !{i32 2, i32 0, i32 3, i32 2}"
            ]
        );
        assert!(!edited.contains("i256"));
    }

    #[test]
    fn calls_and_declarations_are_renamed_alike() {
        let ir = "target datalayout = \"e\"\n\
                  %1 = tail call float @llvm.fabs.f32(float %0)\n\
                  %2 = tail call double @llvm.rint.f64(double %1)\n\
                  declare float @llvm.fabs.f32(float) #1\n\
                  declare float @llvm.fabs.f16(half) #1\n";
        let edited = for_libnvvm(ir).unwrap();
        assert_eq!(edited.matches("float @llvm.nvvm.fabs.f(float").count(), 2, "{edited}");
        assert_eq!(edited.matches("@llvm.nvvm.round.d(double").count(), 1, "{edited}");
        assert!(edited.contains("@llvm.fabs.f16(half)"), "{edited}");
    }

    #[test]
    fn a_module_without_metadata_starts_at_zero() {
        let edited = for_libnvvm("target datalayout = \"e\"\n").unwrap();
        assert!(edited.ends_with("!nvvmir.version = !{!0}\n!0 = !{i32 2, i32 0, i32 3, i32 2}\n"));
    }

    #[test]
    fn a_module_without_a_layout_is_refused() {
        assert!(for_libnvvm("target triple = \"nvptx64-nvidia-cuda\"\n").is_err());
    }
}
