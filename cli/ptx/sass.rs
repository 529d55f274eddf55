//! Machine code: what nvdisasm says of a cubin.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An nvdisasm that is there.
pub struct Disassembler(PathBuf);

impl Disassembler {
    /// That of the toolkit at CUDA_PATH, or else the first in PATH.
    pub fn find() -> Option<Self> {
        let toolkit = std::env::var_os("CUDA_PATH").map(|root| Path::new(&root).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = toolkit.into_iter().chain(std::env::split_paths(&path));
        places.find_map(|place| Some(place.join("nvdisasm")).filter(|file| file.is_file())).map(Self)
    }

    /// How many instructions each kernel has.
    ///
    /// # Errors
    /// A temporary file that cannot be written, or an nvdisasm that does not know the architecture.
    pub fn count(&self, cubin: &[u8]) -> Result<BTreeMap<String, usize>, Box<dyn Error>> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(cubin)?;
        let named = |why: &dyn std::fmt::Display| format!("{}: {why}", self.0.display());
        let run = Command::new(&self.0).arg("-c").arg(file.path()).output().map_err(|error| named(&error))?;
        if !run.status.success() {
            let log = String::from_utf8_lossy(&run.stderr);
            return Err(named(&format!("{}: {}", run.status, log.trim())).into());
        }
        Ok(instructions(&String::from_utf8_lossy(&run.stdout)))
    }
}

/// Instructions of each function, without what fills it up behind its end.
fn instructions(text: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut function = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|line| line.strip_suffix(':')) {
            function = Some(counts.entry(name.to_owned()).or_insert(0));
        } else if let (Some(count), Some(instruction)) = (&mut function, instruction(line)) {
            **count += usize::from(!instruction.starts_with("NOP"));
        }
    }
    counts
}

/// The instruction behind an address, as in `/*0010*/  @P0 EXIT ;`.
fn instruction(line: &str) -> Option<&str> {
    let (address, instruction) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    address.chars().all(|digit| digit.is_ascii_hexdigit()).then(|| instruction.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nvdisasm 13.5 prints it.
    const TEXT: &str = "\
	.target	sm_90

//--------------------- .text.first    --------------------------
	.section	.text.first,\"ax\",@progbits
        .type           first,@function
first:
.text.first:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/              @!P0 LDG.E.128 R8, desc[UR12][R8.64] ;
        /*0020*/                   EXIT ;
        /*0030*/                   BRA `(.L_x_0);
        /*0040*/                   NOP;
.L_x_1:

.text.second:
        /*0000*/                   EXIT ;
";

    #[test]
    fn instructions_are_counted_by_function() {
        assert_eq!(instructions(TEXT), BTreeMap::from([("first".into(), 4), ("second".into(), 1)]));
    }
}
