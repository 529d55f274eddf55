//! NVIDIA's assembler: the judge of every module, and the source of what each kernel occupies.

use crate::env::{Env, PTXAS};
use crate::{Arch, Error, KernelResources};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A `ptxas` that is there.
pub struct Ptxas {
    pub path: PathBuf,
}

/// What ptxas said about a module.
#[derive(Debug)]
pub enum Verdict {
    /// Assembled: the kernels, and the device functions that were not inlined and spill.
    Accepted { kernels: Vec<KernelResources>, spilling_functions: Vec<KernelResources> },
    /// This ptxas is older than the architecture or the PTX version.
    TooOld(String),
    /// An error in the PTX.
    Refused(String),
}

impl Ptxas {
    /// Finds ptxas. `Ok(Err(reason))` if there is none; an error if the variable names something that is none.
    pub fn find(env: &Env) -> Result<Result<Self, String>, Error> {
        if let Some(path) = env.path(PTXAS) {
            if path.is_file() {
                return Ok(Ok(Self { path }));
            }
            return Err(Error::Variable {
                name: PTXAS,
                value: path.display().to_string(),
                reason: "no such file; unset it to search the CUDA toolkit and PATH, or to do without ptxas"
                    .into(),
            });
        }
        let path = env.get("PATH").unwrap_or_default();
        let places = env.cuda_roots().into_iter().map(|(_, root)| root.join("bin"));
        let places: Vec<_> =
            places.chain(std::env::split_paths(&path)).map(|place| place.join("ptxas")).collect();
        match places.iter().find(|place| place.is_file()) {
            Some(place) => Ok(Ok(Self { path: place.clone() })),
            None => Ok(Err(format!(
                "no ptxas: the PTX is embedded unchecked and without a cubin. Looked in bin under CUDA_PATH, CUDA_HOME, \
                 CUDA_ROOT, CUDA_TOOLKIT_ROOT_DIR, /usr/local/cuda and /opt/cuda, and in PATH. It comes with a CUDA \
                 toolkit or with the Python package nvidia-cuda-nvcc; {PTXAS} names the file itself"
            ))),
        }
    }

    /// Assembles a file of PTX.
    pub fn assemble(&self, ptx: &Path, arch: Arch, cubin: &Path) -> Result<Verdict, Error> {
        let run = Command::new(&self.path)
            .args(["-v", &format!("-arch={arch}"), "-o"])
            .args([cubin, ptx])
            .output()
            .map_err(Error::io(&self.path))?;
        // Information goes to one of the two streams, depending on the version.
        let log = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
        Ok(if run.status.success() {
            let (kernels, spilling_functions) = parse(&log);
            Verdict::Accepted { kernels, spilling_functions }
        } else if log.contains("is not defined for option 'gpu-name'") || log.contains("Unsupported .version")
        {
            Verdict::TooOld(log.trim().to_owned())
        } else {
            Verdict::Refused(log.into_owned())
        })
    }
}

/// Reads what `ptxas -v` prints: the kernels, and the other functions that spill.
fn parse(log: &str) -> (Vec<KernelResources>, Vec<KernelResources>) {
    let mut kernels: Vec<KernelResources> = Vec::new();
    let mut spilling = Vec::new();
    // The function that the next line of properties is about.
    let mut function = "";
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            kernels.push(KernelResources { name: name.to_owned(), ..KernelResources::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim();
        } else if line.contains("bytes spill stores") {
            let found = KernelResources {
                name: function.to_owned(),
                stack_bytes: number_before(line, "bytes stack frame"),
                spill_store_bytes: number_before(line, "bytes spill stores"),
                spill_load_bytes: number_before(line, "bytes spill loads"),
                ..KernelResources::default()
            };
            match kernels.last_mut() {
                Some(kernel) if kernel.name == function => *kernel = found,
                _ if found.spills() => spilling.push(found),
                _ => {}
            }
        } else if let (true, Some(kernel)) = (line.contains(": Used "), kernels.last_mut()) {
            kernel.registers = number_before(line, "registers");
            kernel.barriers = number_before(line, "barriers");
            kernel.shared_bytes = number_before(line, "bytes smem");
        }
    }
    (kernels, spilling)
}

/// The number in front of `unit`; 0 where ptxas does not mention the unit.
fn number_before(line: &str, unit: &str) -> u32 {
    line.split_once(unit)
        .and_then(|(before, _)| before.split_whitespace().next_back()?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ptxas 13.5 prints it, for a kernel that calls a function, and one that was made to spill.
    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compile time = 2.164 ms
ptxas info    : Function properties for callee
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for spilling_callee
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Compiling entry function 'spilly' for 'sm_90'
ptxas info    : Function properties for spilly
    944 bytes stack frame, 1584 bytes spill stores, 2052 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 944 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compile time = 32.400 ms
";

    #[test]
    fn resources_of_each_kernel() {
        let (kernels, functions) = parse(LOG);
        assert_eq!(
            kernels,
            [
                KernelResources { name: "plain".into(), registers: 8, ..KernelResources::default() },
                KernelResources {
                    name: "spilly".into(),
                    registers: 32,
                    stack_bytes: 944,
                    spill_store_bytes: 1584,
                    spill_load_bytes: 2052,
                    shared_bytes: 128,
                    barriers: 1,
                },
            ]
        );
        let functions: Vec<_> = functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(functions, ["spilling_callee"]);
    }

    #[test]
    fn older_text_without_barriers_counts_none() {
        let (kernels, _) = parse(
            "ptxas info    : Compiling entry function 'k' for 'sm_80'\n\
             ptxas info    : Used 10 registers, 360 bytes cmem[0]\n",
        );
        assert_eq!((kernels[0].registers, kernels[0].barriers, kernels[0].shared_bytes), (10, 0, 0));
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let error = Ptxas::find(&Env::with(&[(PTXAS, "/nowhere/ptxas")])).err().unwrap().to_string();
        assert!(error.starts_with("NVVM_BUILDER_PTXAS=/nowhere/ptxas: no such file"), "{error}");
    }

    #[test]
    fn without_ptxas_there_is_a_reason() {
        let mut env = Env::with(&[]);
        env.overrides.insert("PATH".into(), "/nowhere".into());
        match Ptxas::find(&env).unwrap() {
            Err(reason) => assert!(reason.contains("nvidia-cuda-nvcc"), "{reason}"),
            Ok(found) => println!("skipped: {} is where every search ends", found.path.display()),
        }
    }
}
