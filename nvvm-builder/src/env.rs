//! The variables that a build heeds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

pub const RUSTC: &str = "NVVM_BUILDER_RUSTC";
pub const CARGO: &str = "NVVM_BUILDER_CARGO";
pub const LANE: &str = "NVVM_BUILDER_LANE";
pub const LIBNVVM: &str = "NVVM_BUILDER_LIBNVVM";
pub const PTXAS: &str = "NVVM_BUILDER_PTXAS";
pub const NVCC: &str = "NVVM_BUILDER_NVCC";

/// Where a CUDA toolkit may be, most explicit first.
const CUDA_ROOTS: [&str; 4] = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];

/// A change of any of these changes the result.
pub const ALL: [&str; 10] =
    [RUSTC, CARGO, LANE, LIBNVVM, PTXAS, NVCC, CUDA_ROOTS[0], CUDA_ROOTS[1], CUDA_ROOTS[2], CUDA_ROOTS[3]];

/// The environment, with what the caller set on top.
#[derive(Debug, Clone, Default)]
pub struct Env {
    pub overrides: BTreeMap<String, OsString>,
}

impl Env {
    /// The value of a variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.overrides.get(name).cloned().or_else(|| std::env::var_os(name)).filter(|value| !value.is_empty())
    }

    /// The same, as a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// The folders that may hold a CUDA toolkit, each with how it was come by.
    pub fn cuda_roots(&self) -> Vec<(String, PathBuf)> {
        CUDA_ROOTS
            .iter()
            .filter_map(|name| Some((format!("${name}"), self.path(name)?)))
            .chain(["/usr/local/cuda", "/opt/cuda"].map(|root| ("default".to_owned(), root.into())))
            .collect()
    }
}

#[cfg(test)]
impl Env {
    /// An environment with these variables and no CUDA root but theirs.
    pub fn with(variables: &[(&str, &str)]) -> Self {
        let mut env = Self::default();
        for name in ALL {
            env.overrides.insert(name.into(), OsString::new());
        }
        for (name, value) in variables {
            env.overrides.insert((*name).into(), value.into());
        }
        env
    }
}
