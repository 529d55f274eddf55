//! What can go wrong, each with what is missing, where it was looked for and how to get it.

use crate::{Arch, Lane};
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a build gave no PTX.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path given to [`NvvmBuilder::new`](crate::NvvmBuilder::new) is not a crate.
    #[error("no device crate at {}: it has no Cargo.toml", path.display())]
    NoCrate {
        /// The path given.
        path: PathBuf,
    },

    /// No compiler can build for `nvptx64-nvidia-cuda`.
    #[error(
        "no Rust compiler for nvptx64-nvidia-cuda found. Looked at:\n{tried}\
         To get one: `rustup component add rust-src` (rustc 1.96 or later), \
         or on Debian `apt-get install --no-install-recommends rustc-web cargo-web rust-web-src`; \
         or name one with NVVM_BUILDER_RUSTC"
    )]
    NoCompiler {
        /// One line for each place looked at: the place, and what it lacks.
        tried: String,
    },

    /// A variable names something that cannot be used.
    #[error("{name}={value}: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with that.
        reason: String,
    },

    /// The NVVM lane was asked for by name, and libNVVM is missing or too old.
    #[error("the NVVM lane was asked for and cannot be had: {reason}")]
    NoLibNvvm {
        /// What is missing, where it was looked for, how to get it.
        reason: String,
    },

    /// The nested cargo failed.
    #[error("building {} for {arch} with {} failed:\n{log}", path.display(), cargo.display())]
    Compile {
        /// The device crate.
        path: PathBuf,
        /// The architecture it was built for.
        arch: Arch,
        /// The cargo that was run.
        cargo: PathBuf,
        /// What it printed.
        log: String,
    },

    /// The compiler's LLVM IR has not the expected form.
    #[error("LLVM IR for {arch}: {reason}")]
    Ir {
        /// The architecture it was emitted for.
        arch: Arch,
        /// What is not as expected.
        reason: &'static str,
    },

    /// libNVVM refused the IR.
    #[error("libNVVM refused the IR for {arch}:\n{log}")]
    Nvvm {
        /// The architecture.
        arch: Arch,
        /// libNVVM's error and log.
        log: String,
    },

    /// There is no nvcc, and [`NvvmBuilder::reference`](crate::NvvmBuilder::reference) needs one.
    #[error(
        "no nvcc to compile the reference in CUDA C++ with. Looked at:\n{tried}It comes with a CUDA toolkit or with the \
         Python package nvidia-cuda-nvcc; NVVM_BUILDER_NVCC names the file itself"
    )]
    NoNvcc {
        /// One line for each place looked at.
        tried: String,
    },

    /// nvcc refused the reference.
    #[error("nvcc refused {} for {arch}:\n{log}", path.display())]
    Nvcc {
        /// The file of CUDA C++.
        path: PathBuf,
        /// The architecture.
        arch: Arch,
        /// What nvcc printed.
        log: String,
    },

    /// ptxas refused the PTX.
    #[error("ptxas refused the PTX of the {lane} lane for {arch}:\n{log}")]
    Ptxas {
        /// The architecture.
        arch: Arch,
        /// The lane that made the PTX.
        lane: Lane,
        /// What ptxas printed.
        log: String,
    },

    /// Kernels spill registers, and [`NvvmBuilder::allow_spills`](crate::NvvmBuilder::allow_spills) does not name them.
    #[error("register spills in the {lane} lane for {arch}: {kernels}")]
    Spills {
        /// The architecture.
        arch: Arch,
        /// The lane that made the PTX.
        lane: Lane,
        /// Each kernel with its bytes stored and loaded.
        kernels: String,
    },

    /// A file or a program could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or program.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The same text as for a reader: a build script that returns the error, or unwraps it, shows this form.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// For `map_err` after an operation on `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
