//! libNVVM, loaded when the build runs: it may be missing, and that must be a reason to print and not a linker's error.

use crate::env::{Env, LIBNVVM};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::ptr;

const HOW_TO_GET: &str = "libNVVM comes with a CUDA toolkit of 13.3 or later (nvvm/lib64/libnvvm.so; point CUDA_PATH at \
                          the toolkit) or with the Python package nvidia-nvvm; NVVM_BUILDER_LIBNVVM names the file itself";

/// The functions of nvvm.h that are used here. `Program` is an opaque pointer, results are 0 for success.
type Program = *mut std::ffi::c_void;
type Create = unsafe extern "C" fn(*mut Program) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type AddModule = unsafe extern "C" fn(Program, *const c_char, usize, *const c_char) -> c_int;
type Run = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type LlvmVersion = unsafe extern "C" fn(*const c_char, *mut c_int) -> c_int;

/// A loaded libNVVM.
pub struct LibNvvm {
    library: Library,
    /// The file it was loaded from.
    pub path: PathBuf,
}

impl LibNvvm {
    /// Finds and loads libNVVM. The error is a reason to print.
    pub fn find(env: &Env) -> Result<Self, String> {
        let candidates: Vec<(String, PathBuf)> = match env.path(LIBNVVM) {
            Some(path) => vec![(format!("${LIBNVVM}"), path)],
            None => env
                .cuda_roots()
                .into_iter()
                .flat_map(|(how, root)| {
                    ["nvvm/lib64/libnvvm.so", "nvvm/lib64/libnvvm.so.4", "lib/libnvvm.so.4"]
                        .map(|file| (how.clone(), root.join(file)))
                })
                .collect(),
        };
        let mut tried = String::new();
        for (how, path) in candidates {
            if !path.is_file() {
                tried += &format!("  {} ({how}): no such file\n", path.display());
                continue;
            }
            // SAFETY: libNVVM's initialisers do nothing but set up LLVM; no other library of its name is loaded.
            match unsafe { Library::new(&path) } {
                Ok(library) => return Ok(Self { library, path }),
                Err(error) => tried += &format!("  {} ({how}): {error}\n", path.display()),
            }
        }
        Err(format!("libNVVM not found. Looked at:\n{tried}{HOW_TO_GET}"))
    }

    /// Whether this libNVVM can read IR of the given LLVM for `compute` (such as `compute_100`). The error is a reason
    /// to print.
    pub fn reads_llvm(&self, major: u32, compute: &str) -> Result<(), String> {
        let too_old = |what: String| {
            Err(format!(
                "{}: {what}, and the device compiler's IR is LLVM {major}. {HOW_TO_GET}",
                self.path.display()
            ))
        };
        // SAFETY: the type is nvvm.h's.
        let Ok(version) = (unsafe { self.library.get::<LlvmVersion>(c"nvvmLLVMVersion") }) else {
            return too_old("too old to tell the LLVM version it reads".into());
        };
        let arch = CString::new(compute).map_err(|error| error.to_string())?;
        let mut reads: c_int = 0;
        // SAFETY: a terminated string and a valid place for the result.
        match unsafe { version(arch.as_ptr(), &mut reads) } {
            0 if reads as u32 >= major => Ok(()),
            0 => too_old(format!("reads LLVM {reads} for {compute}")),
            code => too_old(format!("does not know {compute} ({})", self.message(code))),
        }
    }

    /// Compiles NVVM IR to PTX. Products and sums are never contracted. The error is libNVVM's message and log.
    pub fn compile(&self, ir: &str, compute: &str) -> Result<String, String> {
        let arch = CString::new(format!("-arch={compute}")).map_err(|error| error.to_string())?;
        let options = [arch.as_ptr(), c"-opt=3".as_ptr(), c"-fma=0".as_ptr()];

        // SAFETY: the types are nvvm.h's; every pointer is to a live, terminated string or a valid place, for as long
        // as the call lasts; the program is destroyed once, after its last use.
        unsafe {
            let verify = self.function::<Run>(c"nvvmVerifyProgram")?;
            let compile = self.function::<Run>(c"nvvmCompileProgram")?;
            let destroy = self.function::<Destroy>(c"nvvmDestroyProgram")?;
            let mut program = ptr::null_mut();
            self.check(self.function::<Create>(c"nvvmCreateProgram")?(&mut program), ptr::null_mut())?;
            let result = self
                .add(program, ir)
                .and_then(|()| self.check(verify(program, options.len() as c_int, options.as_ptr()), program))
                .and_then(|()| {
                    self.check(compile(program, options.len() as c_int, options.as_ptr()), program)
                })
                .and_then(|()| self.text(program, c"nvvmGetCompiledResultSize", c"nvvmGetCompiledResult"));
            destroy(&mut program);
            result
        }
    }

    /// # Safety
    /// `program` is live.
    unsafe fn add(&self, program: Program, ir: &str) -> Result<(), String> {
        // SAFETY: libNVVM copies the text before it returns.
        unsafe {
            let add = self.function::<AddModule>(c"nvvmAddModuleToProgram")?;
            self.check(add(program, ir.as_ptr().cast(), ir.len(), c"device".as_ptr()), program)
        }
    }

    /// Turns a result into the error's name and, where there is one, the program's log.
    ///
    /// # Safety
    /// `program` is live or null.
    unsafe fn check(&self, result: c_int, program: Program) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        let mut message = self.message(result);
        if !program.is_null() {
            // SAFETY: by the contract above.
            if let Ok(log) = unsafe { self.text(program, c"nvvmGetProgramLogSize", c"nvvmGetProgramLog") } {
                message = format!("{message}\n{log}");
            }
        }
        Err(message)
    }

    /// # Safety
    /// `program` is live, and the two functions are a size in bytes and a text of that size.
    unsafe fn text(&self, program: Program, size: &CStr, text: &CStr) -> Result<String, String> {
        // SAFETY: by the contract above; the buffer has the size that libNVVM asked for.
        unsafe {
            let mut bytes = 0;
            self.check(self.function::<Size>(size)?(program, &mut bytes), ptr::null_mut())?;
            let mut buffer = vec![0u8; bytes];
            self.check(self.function::<Text>(text)?(program, buffer.as_mut_ptr().cast()), ptr::null_mut())?;
            while buffer.last() == Some(&0) {
                buffer.pop();
            }
            Ok(String::from_utf8_lossy(&buffer).into_owned())
        }
    }

    fn message(&self, result: c_int) -> String {
        // SAFETY: the type is nvvm.h's; the string returned is static.
        unsafe {
            match self.function::<ErrorString>(c"nvvmGetErrorString") {
                Ok(name) => CStr::from_ptr(name(result)).to_string_lossy().into_owned(),
                Err(_) => format!("error {result}"),
            }
        }
    }

    /// # Safety
    /// `F` is the function's type in nvvm.h.
    unsafe fn function<F>(&self, name: &CStr) -> Result<Symbol<'_, F>, String> {
        // SAFETY: by the contract above.
        unsafe { self.library.get(name) }.map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_a_reason_with_places_and_a_way_to_get_it() {
        let env = Env::with(&[(LIBNVVM, "/nowhere/libnvvm.so")]);
        let reason = LibNvvm::find(&env).err().unwrap();
        assert!(reason.contains("/nowhere/libnvvm.so ($NVVM_BUILDER_LIBNVVM): no such file"), "{reason}");
        assert!(reason.contains("nvidia-nvvm"), "{reason}");
    }

    #[test]
    fn a_file_that_is_no_library_is_a_reason() {
        let env = Env::with(&[(LIBNVVM, concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))]);
        let reason = LibNvvm::find(&env).err().unwrap();
        assert!(reason.contains("Cargo.toml ($NVVM_BUILDER_LIBNVVM): "), "{reason}");
        assert!(!reason.contains("no such file"), "{reason}");
    }
}
