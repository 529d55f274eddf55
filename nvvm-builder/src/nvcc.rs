//! CUDA C++ to PTX, by NVIDIA's own compiler: what kernels in Rust are compared with.

use crate::env::{Env, NVCC};
use crate::{Arch, Error};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An `nvcc` that is there.
pub struct Nvcc {
    pub path: PathBuf,
}

impl Nvcc {
    /// Finds nvcc.
    pub fn find(env: &Env) -> Result<Self, Error> {
        let places: Vec<_> = match env.path(NVCC) {
            Some(path) => vec![path],
            None => {
                let path = env.get("PATH").unwrap_or_default();
                let roots = env.cuda_roots().into_iter().map(|(_, root)| root.join("bin"));
                roots.chain(std::env::split_paths(&path)).map(|place| place.join("nvcc")).collect()
            }
        };
        match places.iter().find(|place| place.is_file()) {
            Some(place) => Ok(Self { path: place.clone() }),
            None => {
                let tried: String = places.iter().map(|place| format!("  {}\n", place.display())).collect();
                Err(Error::NoNvcc { tried })
            }
        }
    }

    /// Compiles a file to PTX. Products and sums are not contracted, as in Rust.
    pub fn compile(&self, source: &Path, arch: Arch, ptx: &Path) -> Result<String, Error> {
        let run = Command::new(&self.path)
            .args([
                "-ptx",
                "-std=c++17",
                "-O3",
                "--fmad=false",
                &format!("-arch=compute_{}", arch.sm()),
                "-o",
            ])
            .args([ptx, source])
            .output()
            .map_err(Error::io(&self.path))?;
        if !run.status.success() {
            let log = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
            return Err(Error::Nvcc { path: source.to_owned(), arch, log: log.into_owned() });
        }
        std::fs::read_to_string(ptx).map_err(Error::io(ptx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_variable_is_named() {
        let error = Nvcc::find(&Env::with(&[(NVCC, "/nowhere/nvcc")])).err().unwrap().to_string();
        assert!(error.contains("  /nowhere/nvcc\n") && error.contains("nvidia-cuda-nvcc"), "{error}");
    }
}
