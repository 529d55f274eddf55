//! The Rust compiler that builds for the GPU: which one, and how it is run.

use crate::env::{CARGO, Env, RUSTC};
use crate::{Arch, Error};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "nvptx64-nvidia-cuda";

/// Where Debian's packages `rustc-web` and `cargo-web` put theirs.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build for the GPU.
#[derive(Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    /// The first line of `rustc -vV`.
    pub version: String,
    /// The LLVM whose IR it emits.
    pub llvm_major: u32,
    /// `core` has to be built from source.
    build_core: bool,
}

/// What one build of the device crate gives.
pub struct DeviceCode {
    /// The whole module as LLVM IR, optimised.
    pub ir: String,
    /// The same, through LLVM's own backend.
    pub ptx: String,
}

impl Compiler {
    /// Finds a compiler: the one that is named, else the current one, else the system's.
    pub fn find(env: &Env) -> Result<Self, Error> {
        let candidates = match env.path(RUSTC) {
            Some(rustc) => vec![(format!("${RUSTC}"), rustc)],
            None => vec![
                ("current".to_owned(), env.path("RUSTC").unwrap_or_else(|| "rustc".into())),
                ("Debian's".to_owned(), SYSTEM_RUSTC.into()),
            ],
        };
        let mut tried = String::new();
        for (how, rustc) in candidates {
            match Self::probe(&rustc, env) {
                Ok(compiler) => return Ok(compiler),
                Err(lacks) => tried += &format!("  {} ({how}): {lacks}\n", rustc.display()),
            }
        }
        Err(Error::NoCompiler { tried })
    }

    /// Looks at one rustc. The error is what it lacks.
    fn probe(rustc: &Path, env: &Env) -> Result<Self, String> {
        let version = ask(rustc, &["-vV"])?;
        let llvm_major = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
            .ok_or("`rustc -vV` names no LLVM version")?;
        let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?.trim());

        let ready_made = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        let source = sysroot.join("lib/rustlib/src/rust/library/core");
        let has_core = std::fs::read_dir(&ready_made)
            .is_ok_and(|entries| entries.flatten().any(|entry| is_libcore(&entry.file_name())));
        if !has_core && !source.is_dir() {
            return Err(format!(
                "has neither `core` for {TARGET} ({}/libcore-*.rlib) nor its source ({})",
                ready_made.display(),
                source.display()
            ));
        }

        // A bare `rustc` has the empty path as its parent, and no neighbour.
        let beside = |rustc: &Path| {
            let folder = rustc.parent().filter(|folder| folder.is_absolute())?;
            Some(folder.join("cargo")).filter(|cargo| cargo.is_file())
        };
        let cargo = env
            .path(CARGO)
            .or_else(|| beside(rustc))
            .or_else(|| beside(&sysroot.join("bin/rustc")))
            .unwrap_or_else(|| "cargo".into());
        ask(&cargo, &["--version"]).map_err(|error| format!("its cargo, {}: {error}", cargo.display()))?;

        Ok(Self {
            rustc: rustc.to_owned(),
            cargo,
            version: version.lines().next().unwrap_or_default().to_owned(),
            llvm_major,
            build_core: !has_core,
        })
    }

    /// Builds the crate for one architecture; `locked` if it has a lock file to go by.
    pub fn build(
        &self,
        crate_dir: &Path,
        features: &[String],
        locked: bool,
        arch: Arch,
        target_dir: &Path,
    ) -> Result<DeviceCode, Error> {
        std::fs::create_dir_all(target_dir).map_err(Error::io(target_dir))?;
        let (ir, ptx) = (target_dir.join("module.ll"), target_dir.join("module.ptx"));

        let mut cargo = self.cargo_command();
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", rustc_flags(arch).join("\x1f"))
            // Fat LTO puts `core` and all dependencies into one module.
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false")
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
            .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "false")
            .args(["rustc", "--lib", "--crate-type=cdylib", "--release", "--target", TARGET])
            .arg("--manifest-path")
            .arg(crate_dir.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target_dir);
        if self.build_core {
            cargo.arg("-Zbuild-std=core");
        }
        if !features.is_empty() {
            cargo.arg("--features").arg(features.join(","));
        }
        if locked {
            cargo.arg("--locked");
        }
        cargo.arg("--").arg(format!("--emit=asm={},llvm-ir={}", ptx.display(), ir.display()));

        let run = cargo.output().map_err(Error::io(&self.cargo))?;
        let log = String::from_utf8_lossy(&run.stderr);
        if !run.status.success() {
            return Err(Error::Compile {
                path: crate_dir.to_owned(),
                arch,
                cargo: self.cargo.clone(),
                log: log.into_owned(),
            });
        }
        eprint!("{log}");
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::io(path));
        Ok(DeviceCode { ir: read(&ir)?, ptx: read(&ptx)? })
    }

    /// The lock file that the crate is built with, if there is one.
    pub fn lock_file(&self, manifest: &Path) -> Option<PathBuf> {
        let run = self
            .cargo_command()
            .args(["locate-project", "--workspace", "--message-format=plain", "--manifest-path"])
            .arg(manifest)
            .output()
            .ok()?;
        let root = String::from_utf8(run.stdout).ok()?;
        Some(Path::new(root.trim()).with_file_name("Cargo.lock")).filter(|lock| lock.is_file())
    }

    /// A cargo that knows nothing of the cargo around it.
    fn cargo_command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_outer_cargos(name)) {
            command.env_remove(name);
        }
        // Empty wrappers switch off those of a configuration file, too.
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_WRAPPER", "")
            .env("RUSTC_WORKSPACE_WRAPPER", "")
            // The target and its instructions are unstable features of every stable compiler.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }
}

/// The flags for the whole crate graph.
fn rustc_flags(arch: Arch) -> Vec<String> {
    let (major, minor) = arch.ptx_version();
    let mut flags = vec![
        format!("-Ctarget-cpu={arch}"),
        format!("-Ctarget-feature=+ptx{major}{minor}"),
        // After fat LTO there is nothing to link.
        "-Clinker-flavor=llbc".to_owned(),
        "-Clinker=true".to_owned(),
        "-Zunstable-options".to_owned(),
        // It makes copies of a barrier for the branches before it, and threads that take different branches then wait
        // at different barriers.
        "-Zmir-enable-passes=-JumpThreading".to_owned(),
        // Never contract a product and a sum: results are the same bits as on a CPU.
        "-Cllvm-args=-nvptx-fma-level=0".to_owned(),
        "--check-cfg=cfg(bulk_copy)".to_owned(),
    ];
    if arch.has_bulk_copy() {
        flags.push("--cfg=bulk_copy".to_owned());
    }
    flags
}

fn is_libcore(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("libcore-") && name.ends_with(".rlib")
}

/// Variables that cargo sets for a build script, or that steer the build of the host. Where crates come from (the
/// home, the network, registries) and how many jobs may run (`-j`, a jobserver) is the same for both builds.
fn is_outer_cargos(name: &OsString) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTRY_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const REMOVED: [&str; 4] = ["CARGO", "RUSTC", "RUSTFLAGS", "DEP_"];
    const REMOVED_WHOLE: [&str; 8] =
        ["OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS", "CLIPPY_ARGS"];
    let name = name.to_string_lossy();
    REMOVED_WHOLE.contains(&name.as_ref())
        || (REMOVED.iter().any(|prefix| name.starts_with(prefix))
            && !KEPT.iter().any(|prefix| name.starts_with(prefix)))
}

/// Runs a program for its output.
fn ask(program: &Path, args: &[&str]) -> Result<String, String> {
    let run = Command::new(program).args(args).output().map_err(|error| error.to_string())?;
    if !run.status.success() {
        return Err(format!("`{}` failed: {}", args.join(" "), String::from_utf8_lossy(&run.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_names_the_place_and_both_ways_to_get_one() {
        let error = Compiler::find(&Env::with(&[(RUSTC, "/nowhere/rustc")])).unwrap_err().to_string();
        for part in
            ["/nowhere/rustc ($NVVM_BUILDER_RUSTC)", "rustup component add rust-src", "rustc-web", RUSTC]
        {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn only_sm_90_and_later_have_bulk_copies() {
        let has = |arch| rustc_flags(arch).contains(&"--cfg=bulk_copy".to_owned());
        assert_eq!([Arch::Sm80, Arch::Sm89, Arch::Sm90, Arch::Sm100].map(has), [false, false, true, true]);
    }

    #[test]
    fn the_outer_build_is_kept_out() {
        let removed = |name: &str| is_outer_cargos(&name.into());
        for name in
            ["CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WORKSPACE_WRAPPER", "OUT_DIR", "CARGO"]
        {
            assert!(removed(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "PATH", "RUSTUP_TOOLCHAIN", "HOSTNAME"]
        {
            assert!(!removed(name), "{name}");
        }
    }
}
