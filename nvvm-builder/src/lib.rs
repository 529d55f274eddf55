#![doc = include_str!("../README.md")]

mod compiler;
mod embed;
mod env;
mod error;
mod ir;
mod libnvvm;
mod nvcc;
pub mod ptx;
mod ptxas;

pub use error::Error;

use compiler::{Compiler, DeviceCode};
use env::Env;
use libnvvm::LibNvvm;
use nvcc::Nvcc;
use ptxas::{Ptxas, Verdict};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An architecture to build for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// A100. No bulk copies.
    Sm80,
    /// GeForce 30, A10. No bulk copies.
    Sm86,
    /// GeForce 40, L4, L40. No bulk copies.
    Sm89,
    /// H100, H200.
    Sm90,
    /// B200, GB200.
    Sm100,
    /// B300, GB300.
    Sm103,
    /// GeForce 50, RTX PRO Blackwell.
    Sm120,
}

impl Arch {
    /// The compute capability as one number: 90 for `sm_90`.
    pub fn sm(self) -> u32 {
        match self {
            Self::Sm80 => 80,
            Self::Sm86 => 86,
            Self::Sm89 => 89,
            Self::Sm90 => 90,
            Self::Sm100 => 100,
            Self::Sm103 => 103,
            Self::Sm120 => 120,
        }
    }

    /// The PTX version that modules for it ask for. The lower, the older the driver that loads them: 8.4 is CUDA 12.4,
    /// and the first with 16-byte accesses of system scope;
    /// Blackwell's chips came with 8.6, 8.7 and 8.8 (PTX ISA, "Release history").
    pub fn ptx_version(self) -> (u32, u32) {
        match self {
            Self::Sm80 | Self::Sm86 | Self::Sm89 | Self::Sm90 => (8, 4),
            Self::Sm100 => (8, 6),
            Self::Sm120 => (8, 7),
            Self::Sm103 => (8, 8),
        }
    }

    /// Whether it has `cp.async.bulk`; device code sees it as `cfg(bulk_copy)`.
    pub fn has_bulk_copy(self) -> bool {
        self >= Self::Sm90
    }

    /// What libNVVM compiles for. It reads current LLVM IR only for Blackwell and later; PTX for older chips is
    /// retargeted.
    fn compute(self) -> String {
        format!("compute_{}", self.sm().max(100))
    }
}

/// As NVIDIA's tools name it: `sm_90`.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.sm())
    }
}

/// A way to PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// NVIDIA's libNVVM.
    Nvvm,
    /// LLVM's own backend, inside rustc.
    Llvm,
    /// nvcc, from [a reference in CUDA C++](NvvmBuilder::reference). Only to be compared with.
    Nvcc,
}

impl Lane {
    /// `"nvvm"`, `"llvm"` or `"nvcc"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvvm => "nvvm",
            Self::Llvm => "llvm",
            Self::Nvcc => "nvcc",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// From the name of a lane that kernels in Rust can go through.
impl FromStr for Lane {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "nvvm" => Ok(Self::Nvvm),
            "llvm" => Ok(Self::Llvm),
            _ => Err("expected nvvm or llvm"),
        }
    }
}

/// What a kernel occupies on the GPU, as `ptxas -v` counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// The name to launch it by.
    pub name: String,
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

impl KernelResources {
    /// Whether registers are spilled to memory.
    pub fn spills(&self) -> bool {
        self.spill_store_bytes + self.spill_load_bytes > 0
    }
}

/// The kernels for one architecture, as one lane made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The architecture.
    pub arch: Arch,
    /// The lane.
    pub lane: Lane,
    /// Whether this is the lane to load; the others are there to be compared with.
    pub preferred: bool,
    /// The file of PTX.
    pub ptx: PathBuf,
    /// The file of machine code, where there is a `ptxas` that knows the architecture.
    pub cubin: Option<PathBuf>,
    /// What each kernel occupies; empty without a cubin.
    pub kernels: Vec<KernelResources>,
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Every image: for each architecture the preferred lane first.
    pub images: Vec<Image>,
    /// The lane to load.
    pub lane: Lane,
    /// The generated Rust file to `include!`.
    pub source: PathBuf,
    /// The device compiler: its path and version.
    pub compiler: String,
    /// What was done without, and why. Printed as warnings too.
    pub warnings: Vec<String>,
}

/// Builds a crate of kernels to PTX. See the crate's documentation for what it needs and what it makes.
#[derive(Debug, Clone)]
#[must_use = "nothing is built before `build`"]
pub struct NvvmBuilder {
    crate_dir: PathBuf,
    archs: Vec<Arch>,
    lane: Option<Lane>,
    features: Vec<String>,
    allowed_spills: Vec<String>,
    reference: Option<(PathBuf, Vec<Arch>)>,
    out_dir: Option<PathBuf>,
    env: Env,
}

impl NvvmBuilder {
    /// A builder for the crate in the folder `crate_dir`, relative to the current folder (in a build script: that of
    /// the package).
    pub fn new(crate_dir: impl Into<PathBuf>) -> Self {
        Self {
            crate_dir: crate_dir.into(),
            archs: Vec::new(),
            lane: None,
            features: Vec::new(),
            allowed_spills: Vec::new(),
            reference: None,
            out_dir: None,
            env: Env::default(),
        }
    }

    /// Adds an architecture. Without any, the build is for [`Arch::Sm90`].
    pub fn arch(mut self, arch: Arch) -> Self {
        if !self.archs.contains(&arch) {
            self.archs.push(arch);
        }
        self
    }

    /// Demands a lane: the build fails where it cannot be had. Without this, NVVM is preferred, and LLVM is taken with
    /// a warning where libNVVM is missing or too old. `NVVM_BUILDER_LANE` wins over this.
    pub fn lane(mut self, lane: Lane) -> Self {
        self.lane = Some(lane);
        self
    }

    /// Enables a cargo feature of the device crate.
    pub fn feature(mut self, name: impl Into<String>) -> Self {
        self.features.push(name.into());
        self
    }

    /// Excepts a kernel (or a device function) from the rule that nothing spills registers.
    pub fn allow_spills(mut self, kernel: impl Into<String>) -> Self {
        self.allowed_spills.push(kernel.into());
        self
    }

    /// Has nvcc compile a file of CUDA C++ with the same kernels, for these of the architectures: images of
    /// [`Lane::Nvcc`], never preferred. The folder of the file is watched.
    pub fn reference(mut self, source: impl Into<PathBuf>, archs: &[Arch]) -> Self {
        self.reference = Some((source.into(), archs.to_vec()));
        self
    }

    /// Where the files go; `OUT_DIR` without this.
    pub fn out_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.out_dir = Some(dir.into());
        self
    }

    /// Sets one of the variables that the build heeds, for this build only; wins over the environment. An empty value
    /// unsets it.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.env.overrides.insert(name.into(), value.into());
        self
    }

    /// Builds every architecture through both lanes, the reference if there is one, and writes the PTX, the cubins and `kernels.rs`.
    /// For clippy, no image at all.
    ///
    /// # Errors
    /// A missing piece, a failed compilation, and whatever is wrong with the lane to load. A failure of the other lane
    /// is a warning, and its image is left out.
    pub fn build(self) -> Result<Built, Error> {
        let mut warnings = Vec::new();
        let built = self.build_noting(&mut warnings);
        // They are printed for a failure, too: what was done without may be its cause.
        warnings.iter().for_each(|warning| warn(warning));
        Ok(Built { warnings, ..built? })
    }

    fn build_noting(&self, warnings: &mut Vec<String>) -> Result<Built, Error> {
        let crate_dir = std::path::absolute(&self.crate_dir).map_err(Error::io(&self.crate_dir))?;
        let manifest = crate_dir.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(Error::NoCrate { path: crate_dir });
        }
        let out_dir = self.out_dir.clone().or_else(|| self.env.path("OUT_DIR")).ok_or(Error::Variable {
            name: "OUT_DIR",
            value: String::new(),
            reason: "not set, so this is no build script: say with `out_dir` where the files go".into(),
        })?;
        let out_dir = std::path::absolute(&out_dir).map_err(Error::io(&out_dir))?;
        let source = out_dir.join("kernels.rs");
        if in_build_script() && std::env::var_os("CLIPPY_ARGS").is_some() {
            // Clippy has build scripts run for itself alone, and runs nothing of what it makes.
            std::fs::write(&source, embed::source(&[], "")).map_err(Error::io(&source))?;
            let (lane, compiler) = (self.lane.unwrap_or(Lane::Nvvm), String::new());
            return Ok(Built { images: Vec::new(), lane, source, compiler, warnings: Vec::new() });
        }
        let archs = if self.archs.is_empty() { &[Arch::Sm90][..] } else { &self.archs };

        let compiler = Compiler::find(&self.env)?;
        let libnvvm = self.libnvvm(&compiler, archs);
        let lane = self.preferred(&libnvvm, warnings)?;
        let libnvvm = libnvvm.ok();
        let ptxas = Ptxas::find(&self.env)?.map_err(|reason| warnings.push(reason)).ok();

        let reference = self.reference.as_ref();
        let reference =
            reference.map(|(source, archs)| Reference::find(&self.env, source, archs)).transpose()?;

        let lock_file = compiler.lock_file(&manifest);
        let locked = lock_file.is_some();

        let mut watched = vec![crate_dir.clone()];
        watched.extend(lock_file);
        // A bare `rustc` is the outer build's own, and a change of that one makes everything anew.
        watched.extend(Some(compiler.rustc.clone()).filter(|rustc| rustc.is_absolute()));
        watched.extend(libnvvm.as_ref().map(|libnvvm| libnvvm.path.clone()));
        watched.extend(ptxas.as_ref().map(|ptxas| ptxas.path.clone()));
        watched.extend(reference.iter().flat_map(Reference::watched));
        rerun_if_changed(&watched);

        // Architectures have nothing in common, not even `core`: each is a build of its own, beside the others.
        let modules: Vec<Result<DeviceCode, Error>> = std::thread::scope(|scope| {
            let build = |arch| {
                let target_dir = out_dir.join(format!("device-{arch}"));
                compiler.build(&crate_dir, &self.features, locked, arch, &target_dir)
            };
            let threads: Vec<_> = archs.iter().map(|&arch| scope.spawn(move || build(arch))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });

        let mut made: Vec<(Lane, Result<Image, Error>)> = Vec::new();
        for (&arch, module) in archs.iter().zip(modules) {
            let DeviceCode { ir, ptx } = module?;
            let through_llvm = (Lane::Llvm, Ok(ptx));
            let through_nvvm = libnvvm.as_ref().map(|lib| (Lane::Nvvm, through_libnvvm(lib, &ir, arch)));
            let mut lanes: Vec<_> = through_nvvm.into_iter().chain([through_llvm]).collect();
            lanes.sort_by_key(|(made_by, _)| *made_by != lane);
            for (made_by, ptx) in lanes {
                let image = ptx.and_then(|text| {
                    let ptx = out_dir.join(format!("kernels-{arch}-{made_by}.ptx"));
                    std::fs::write(&ptx, text).map_err(Error::io(&ptx))?;
                    let preferred = made_by == lane;
                    Ok(Image { arch, lane: made_by, preferred, ptx, cubin: None, kernels: Vec::new() })
                });
                made.push((made_by, image));
            }
            if let Some(reference) = reference.as_ref().filter(|reference| reference.archs.contains(&arch)) {
                made.push((Lane::Nvcc, Ok(reference.compile(arch, &out_dir)?)));
            }
        }
        // What takes longest, all at once.
        let ptxas = ptxas.as_ref();
        let judge = &|image| {
            let mut warnings = Vec::new();
            (self.judge(image, ptxas, &mut warnings), warnings)
        };
        let judged: Vec<_> = std::thread::scope(|scope| {
            let start = |(made_by, image): (Lane, Result<Image, Error>)| {
                (made_by, image.map(|image| scope.spawn(move || judge(image))))
            };
            let threads: Vec<_> = made.into_iter().map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(|(made_by, thread)| (made_by, thread.map(join))).collect()
        });
        let mut images = Vec::new();
        for (made_by, judged) in judged {
            let image = judged.and_then(|(image, of_image)| {
                warnings.extend(of_image);
                image
            });
            match image {
                Ok(image) => images.push(image),
                Err(error) if made_by != lane && made_by != Lane::Nvcc => {
                    warnings.push(format!("the {made_by} lane is left out: {error}"));
                }
                Err(error) => return Err(error),
            }
        }

        std::fs::write(&source, embed::source(&images, &compiler.version)).map_err(Error::io(&source))?;
        let compiler = format!("{}: {}", compiler.rustc.display(), compiler.version);
        Ok(Built { images, lane, source, compiler, warnings: Vec::new() })
    }

    /// libNVVM, if it reads the compiler's IR for every architecture.
    fn libnvvm(&self, compiler: &Compiler, archs: &[Arch]) -> Result<LibNvvm, String> {
        let libnvvm = LibNvvm::find(&self.env)?;
        for arch in archs {
            libnvvm.reads_llvm(compiler.llvm_major, &arch.compute())?;
        }
        Ok(libnvvm)
    }

    /// The lane to load.
    fn preferred(
        &self,
        libnvvm: &Result<LibNvvm, String>,
        warnings: &mut Vec<String>,
    ) -> Result<Lane, Error> {
        let demanded = match self.env.get(env::LANE) {
            Some(value) => {
                let value = value.to_string_lossy().into_owned();
                let lane = value.parse().map_err(|reason: &str| Error::Variable {
                    name: env::LANE,
                    value,
                    reason: reason.into(),
                })?;
                Some(lane)
            }
            None => self.lane,
        };
        match (demanded, libnvvm) {
            (Some(Lane::Nvvm), Err(reason)) => Err(Error::NoLibNvvm { reason: reason.clone() }),
            (Some(lane), _) => Ok(lane),
            (None, Ok(_)) => Ok(Lane::Nvvm),
            (None, Err(reason)) => {
                warnings.push(format!("the kernels go through LLVM's own backend: {reason}"));
                Ok(Lane::Llvm)
            }
        }
    }

    /// Has ptxas check an image and make its cubin.
    fn judge(&self, image: Image, ptxas: Option<&Ptxas>, warnings: &mut Vec<String>) -> Result<Image, Error> {
        let (arch, lane) = (image.arch, image.lane);
        let Some(ptxas) = ptxas else { return Ok(image) };
        let cubin = image.ptx.with_extension("cubin");
        let (kernels, functions) = match ptxas.assemble(&image.ptx, arch, &cubin)? {
            Verdict::Accepted { kernels, spilling_functions } => (kernels, spilling_functions),
            Verdict::TooOld(log) => {
                warnings.push(format!("{} cannot judge {arch} ({lane} lane): {log}", ptxas.path.display()));
                return Ok(image);
            }
            Verdict::Refused(log) => return Err(Error::Ptxas { arch, lane, log }),
        };
        let spills: Vec<_> = kernels
            .iter()
            .chain(&functions)
            .filter(|kernel| kernel.spills() && !self.allowed_spills.contains(&kernel.name))
            .map(|kernel| {
                let KernelResources { name, spill_store_bytes, spill_load_bytes, .. } = kernel;
                format!("{name} ({spill_store_bytes} bytes stored, {spill_load_bytes} loaded)")
            })
            .collect();
        if !spills.is_empty() {
            let error = Error::Spills { arch, lane, kernels: spills.join(", ") };
            if image.preferred {
                return Err(error);
            }
            warnings.push(error.to_string());
        }
        Ok(Image { cubin: Some(cubin), kernels, ..image })
    }
}

/// The same kernels in CUDA C++.
struct Reference {
    source: PathBuf,
    archs: Vec<Arch>,
    nvcc: Nvcc,
}

impl Reference {
    fn find(env: &Env, source: &Path, archs: &[Arch]) -> Result<Self, Error> {
        let source = std::path::absolute(source).map_err(Error::io(source))?;
        Ok(Self { source, archs: archs.to_vec(), nvcc: Nvcc::find(env)? })
    }

    fn watched(&self) -> [PathBuf; 2] {
        [self.source.parent().unwrap_or(&self.source).to_owned(), self.nvcc.path.clone()]
    }

    /// The image, not yet judged.
    fn compile(&self, arch: Arch, out_dir: &Path) -> Result<Image, Error> {
        let lane = Lane::Nvcc;
        let ptx = out_dir.join(format!("kernels-{arch}-{lane}.ptx"));
        let text = ptx::retarget(&self.nvcc.compile(&self.source, arch, &ptx)?, arch);
        std::fs::write(&ptx, text).map_err(Error::io(&ptx))?;
        Ok(Image { arch, lane, preferred: false, ptx, cubin: None, kernels: Vec::new() })
    }
}

/// One module through libNVVM, retargeted.
fn through_libnvvm(libnvvm: &LibNvvm, ir: &str, arch: Arch) -> Result<String, Error> {
    let ir = ir::for_libnvvm(ir).map_err(|reason| Error::Ir { arch, reason })?;
    let ptx = libnvvm.compile(&ir, &arch.compute()).map_err(|log| Error::Nvvm { arch, log })?;
    Ok(ptx::retarget(&ptx, arch))
}

/// Whether cargo reads what this process prints.
fn in_build_script() -> bool {
    ["OUT_DIR", "TARGET", "HOST"].iter().all(|name| std::env::var_os(name).is_some())
}

fn rerun_if_changed(files: &[PathBuf]) {
    if in_build_script() {
        files
            .iter()
            .map(PathBuf::as_path)
            .map(Path::display)
            .for_each(|file| println!("cargo::rerun-if-changed={file}"));
        env::ALL.iter().for_each(|name| println!("cargo::rerun-if-env-changed={name}"));
    }
}

fn warn(warning: &str) {
    if in_build_script() {
        // A warning is one line to cargo.
        warning.lines().for_each(|line| println!("cargo::warning={line}"));
    } else {
        eprintln!("warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that may use 24 registers and keeps 40 values at once.
    fn spilling_ptx() -> String {
        let each = |line: fn(usize) -> String| (0..40).map(line).collect::<String>();
        format!(
            ".version 8.3\n.target sm_90\n.address_size 64\n.visible .entry greedy(.param .u64 p)\n.maxnreg 24\n{{\n\
             .reg .u64 %rd<2>;\n.reg .u32 %r<40>;\nld.param.u64 %rd1, [p];\n{}{}ret;\n}}\n",
            each(|i| format!("ld.volatile.global.u32 %r{i}, [%rd1+{}];\n", 4 * i)),
            each(|i| format!("st.volatile.global.u32 [%rd1+{}], %r{i};\n", 4 * (39 - i))),
        )
    }

    fn judged(
        builder: NvvmBuilder,
        preferred: bool,
        ptx: &str,
        name: &str,
    ) -> Option<(Result<Image, Error>, Vec<String>)> {
        let ptxas = match Ptxas::find(&Env::default()).unwrap() {
            Ok(ptxas) => ptxas,
            Err(reason) => {
                println!("skipped: {reason}");
                return None;
            }
        };
        let path = std::env::temp_dir().join(format!("nvvm-builder-{}-{name}.ptx", std::process::id()));
        std::fs::write(&path, ptx).unwrap();
        let image = Image {
            arch: Arch::Sm90,
            lane: Lane::Nvvm,
            preferred,
            ptx: path.clone(),
            cubin: None,
            kernels: Vec::new(),
        };
        let mut warnings = Vec::new();
        let result = builder.judge(image, Some(&ptxas), &mut warnings);
        std::fs::remove_file(&path).unwrap();
        // Not there where ptxas refused.
        let _ = std::fs::remove_file(path.with_extension("cubin"));
        Some((result, warnings))
    }

    #[test]
    fn spills_fail_unless_excepted_by_name() {
        let builder = NvvmBuilder::new("device");
        let Some((result, _)) = judged(builder.clone(), true, &spilling_ptx(), "spills") else { return };
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("register spills in the nvvm lane for sm_90: greedy ("), "{error}");

        let other = builder.clone().allow_spills("modest");
        assert!(judged(other, true, &spilling_ptx(), "other").unwrap().0.is_err());

        let excepted = builder.clone().allow_spills("greedy");
        let (result, warnings) = judged(excepted, true, &spilling_ptx(), "excepted").unwrap();
        assert!(result.unwrap().kernels[0].spill_store_bytes > 0);
        assert_eq!(warnings, Vec::<String>::new());

        let (result, warnings) = judged(builder, false, &spilling_ptx(), "other-lane").unwrap();
        assert!(result.unwrap().cubin.is_some());
        assert!(warnings[0].contains("greedy"), "{warnings:?}");
    }

    #[test]
    fn what_is_newer_than_the_target_is_refused() {
        let ptx = ".version 8.3\n.target sm_80\n.address_size 64\n\
                   .visible .entry k()\n{\ncp.async.bulk.commit_group;\nret;\n}\n";
        let Some((result, _)) = judged(NvvmBuilder::new("device"), true, ptx, "newer") else { return };
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Ptxas { log, .. } if log.contains("sm_90")), "{error}");
    }
}
