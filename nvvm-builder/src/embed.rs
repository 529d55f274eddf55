//! The generated file that puts the images into a library.

use crate::Image;
use std::fmt::Write;
use std::path::Path;

const TYPES: &str = r#"/// The kernels for one architecture, as one lane of the compiler made them.
#[derive(Debug, Clone, Copy)]
pub struct KernelImage {
    /// The compute capability as one number: 90 for `sm_90`.
    pub sm: u32,
    /// `"nvvm"`, `"llvm"` or `"nvcc"`.
    pub lane: &'static str,
    /// Whether this is the lane to load; the others are there to be compared with.
    pub preferred: bool,
    /// The module as PTX, for any GPU of this compute capability or later.
    pub ptx: &'static str,
    /// The module as machine code for GPUs of this major compute capability and this minor one or later.
    pub cubin: Option<&'static [u8]>,
    /// What each kernel occupies, as `ptxas` counted; empty where it was not there.
    pub kernels: &'static [KernelResources],
}

/// What a kernel occupies on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelResources {
    /// The name to launch it by.
    pub name: &'static str,
    /// Registers for each thread.
    pub registers: u32,
    /// Bytes of stack for each thread.
    pub stack_bytes: u32,
    /// Bytes of registers stored to memory for want of registers, for each thread.
    pub spill_store_bytes: u32,
    /// Bytes loaded back.
    pub spill_load_bytes: u32,
    /// Bytes of static shared memory for each block.
    pub shared_bytes: u32,
    /// Barriers of a block in use.
    pub barriers: u32,
}
"#;

/// The text of `kernels.rs`. Its files lie beside it.
pub fn source(images: &[Image], compiler: &str) -> String {
    let mut out = format!("// Made by nvvm-builder.\n\n{TYPES}\n");
    out += "/// The device compiler that made the images.\n";
    out += &format!("pub static KERNEL_COMPILER: &str = {compiler:?};\n\n");
    out += "/// Every image, the preferred lane of each architecture first.\n";
    out += "pub static KERNEL_IMAGES: &[KernelImage] = &[\n";
    for image in images {
        let cubin = match &image.cubin {
            Some(path) => format!("Some(include_bytes!({:?}))", file_name(path)),
            None => "None".to_owned(),
        };
        // The types here and there differ only in the name's, and its literal fits both.
        let kernels: String =
            image.kernels.iter().map(|kernel| format!("            {kernel:?},\n")).collect();
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "    KernelImage {{\n        sm: {},\n        lane: {:?},\n        preferred: {},\n        \
             ptx: include_str!({:?}),\n        cubin: {cubin},\n        kernels: &[\n{kernels}        ],\n    }},\n",
            image.arch.sm(),
            image.lane.name(),
            image.preferred,
            file_name(&image.ptx),
        );
    }
    out + "];\n"
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, KernelResources, Lane};

    #[test]
    fn images_become_literals() {
        let image = Image {
            arch: Arch::Sm90,
            lane: Lane::Nvvm,
            preferred: true,
            ptx: "/out/device-sm_90-nvvm.ptx".into(),
            cubin: Some("/out/device-sm_90-nvvm.cubin".into()),
            kernels: vec![KernelResources { name: "k".into(), registers: 8, ..KernelResources::default() }],
        };
        let source = source(&[image], "rustc 1.96.0");
        for part in [
            r#"KERNEL_COMPILER: &str = "rustc 1.96.0";"#,
            "sm: 90,",
            r#"lane: "nvvm","#,
            r#"include_str!("device-sm_90-nvvm.ptx")"#,
            r#"Some(include_bytes!("device-sm_90-nvvm.cubin"))"#,
            r#"KernelResources { name: "k", registers: 8, stack_bytes: 0, "#,
        ] {
            assert!(source.contains(part), "{part} is missing in: {source}");
        }
    }
}
