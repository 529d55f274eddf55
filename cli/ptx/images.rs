//! What is compared: the images in this program.

use super::allowed::ALLOWED;
use super::compare::{Comparison, Figures, Resources};
use super::sass::Disassembler;
use nvvm_builder::ptx::{Function, Module};
use std::collections::BTreeMap;
use std::error::Error;
use tokenrail::gpu::images::{KERNEL_COMPILER, KERNEL_IMAGES, KernelImage};

/// Lanes of a build that has all of them.
const LANES: usize = 3;

/// Compares the images for `sm`: all their kernels, or those of these names.
///
/// # Errors
/// A number or a name that this build has no kernels for, and what goes wrong with the disassembler.
pub fn compare(sm: u32, names: &[String]) -> Result<Comparison, Box<dyn Error>> {
    let images: Vec<&KernelImage> = KERNEL_IMAGES.iter().filter(|image| image.sm == sm).collect();
    if images.is_empty() {
        let mut built: Vec<u32> = KERNEL_IMAGES.iter().map(|image| image.sm).collect();
        built.dedup();
        return Err(format!("--sm {sm}: this build has {built:?}").into());
    }
    let modules: Vec<Module> = images.iter().map(|image| Module::parse(image.ptx)).collect();
    let mut kernels: Vec<&str> = Vec::new();
    for function in modules.iter().flat_map(Module::kernels) {
        if !kernels.contains(&function.name.as_str()) {
            kernels.push(&function.name);
        }
    }
    if let Some(unknown) = names.iter().find(|name| !kernels.contains(&name.as_str())) {
        return Err(format!("--kernel {unknown}: sm_{sm} has {}", kernels.join(", ")).into());
    }
    kernels.retain(|kernel| names.is_empty() || names.iter().any(|name| name == kernel));

    let lanes = images.iter().zip(&modules).map(|(image, module)| Lane::new(image, module));
    let lanes = lanes.collect::<Result<Vec<_>, _>>()?;
    let made: Vec<_> = kernels
        .iter()
        .map(|&kernel| (kernel, lanes.iter().map(|lane| lane.kernel(kernel)).collect()))
        .collect();
    let complete = lanes.len() == LANES && names.is_empty();
    let lane_names: Vec<&str> = images.iter().map(|image| image.lane).collect();
    Ok(Comparison::new(sm, &lane_names, tools(&images), &made, ALLOWED, complete))
}

/// An image, read and disassembled.
struct Lane<'a> {
    image: &'static KernelImage,
    module: &'a Module,
    /// Instructions of machine code of each kernel; empty without a cubin or a disassembler.
    sass: BTreeMap<String, usize>,
}

impl<'a> Lane<'a> {
    fn new(image: &'static KernelImage, module: &'a Module) -> Result<Self, Box<dyn Error>> {
        let sass = match (image.cubin, Disassembler::find()) {
            (Some(cubin), Some(disassembler)) => disassembler.count(cubin)?,
            _ => BTreeMap::new(),
        };
        Ok(Self { image, module, sass })
    }

    fn kernel(&self, name: &str) -> Option<(Figures, &'a Function)> {
        let function = self.module.kernel(name)?;
        let resources = self.image.kernels.iter().find(|kernel| kernel.name == name);
        let figures = Figures {
            ptx_lines: function.lines,
            ptx_instructions: function.instructions.len(),
            sass_instructions: self.sass.get(name).copied(),
            resources: resources.map(|resources| Resources {
                registers: resources.registers,
                spilled_bytes: resources.spill_store_bytes + resources.spill_load_bytes,
                shared_bytes: resources.shared_bytes,
                barriers: resources.barriers,
            }),
        };
        Some((figures, function))
    }
}

/// What made the images, name and version.
fn tools(images: &[&KernelImage]) -> Vec<(String, String)> {
    let of_cuda = |text: &[u8]| release(text).unwrap_or_else(|| "unknown".to_owned());
    let lanes = images.iter().map(|image| {
        let version = match image.lane {
            "llvm" => KERNEL_COMPILER.to_owned(),
            "nvvm" => format!("{KERNEL_COMPILER}, libNVVM of CUDA {}", of_cuda(image.ptx.as_bytes())),
            _ => format!("CUDA {}", of_cuda(image.ptx.as_bytes())),
        };
        (image.lane.to_owned(), version)
    });
    let cubin = images.iter().find_map(|image| image.cubin);
    let ptxas = cubin.map(|cubin| ("ptxas".to_owned(), format!("CUDA {}", of_cuda(cubin))));
    lanes.chain(ptxas).collect()
}

/// The release of CUDA that NVIDIA's tools note in what they make: `13.5.37` of `Cuda compilation tools, release 13.5,
/// V13.5.37`.
fn release(made: &[u8]) -> Option<String> {
    const NOTE: &[u8] = b"Cuda compilation tools, release ";
    let at = made.windows(NOTE.len()).position(|window| window == NOTE)?;
    let behind = &made[at + NOTE.len()..];
    let version = &behind[behind.iter().position(|&byte| byte == b'V')? + 1..];
    let digits = version.iter().take_while(|&&byte| byte.is_ascii_digit() || byte == b'.');
    Some(digits.map(|&byte| char::from(byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_of_cuda() {
        let note = b"\x7fELF\0Cuda compilation tools, release 13.5, V13.5.37\0Build cuda_13.5.r13.5";
        assert_eq!(release(note).as_deref(), Some("13.5.37"));
        assert_eq!(release(b"// Generated by LLVM NVPTX Back-End"), None);
    }

    #[test]
    fn what_is_not_built_is_named() {
        let error = compare(70, &[]).unwrap_err().to_string();
        assert!(error.starts_with("--sm 70: this build has [80, 90, 100]"), "{error}");
        let error = compare(90, &["tokenrail_nothing".into()]).unwrap_err().to_string();
        assert!(error.contains("--kernel tokenrail_nothing") && error.contains("tokenrail_copy"), "{error}");
    }

    /// Of an instruction that the table of classes does not know, nothing can be told.
    #[test]
    fn every_instruction_has_a_class() {
        use crate::ptx::classes::{Class, Group};
        for image in KERNEL_IMAGES {
            for function in Module::parse(image.ptx).functions {
                for opcode in &function.instructions {
                    assert_ne!(Class::of(opcode).group, Group::Other, "{opcode} in {}", function.name);
                }
            }
        }
    }
}
