//! Builds the fixture crate through both lanes and looks at what comes out.

use nvvm_builder::{Arch, Built, Error, Lane, NvvmBuilder, ptx};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixture");

/// All tests build into one folder, so that `core` is built once: each has it for itself.
static FOLDER: Mutex<()> = Mutex::new(());

/// Says why a part does not run. Straight to standard error: what `println!` prints in a test that passes is never seen.
fn skipped(why: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

fn builder() -> NvvmBuilder {
    let out_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared");
    NvvmBuilder::new(FIXTURE).out_dir(out_dir).variable("NVVM_BUILDER_LANE", "")
}

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed leaves nothing that another relies on.
    FOLDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was built; `None`, said aloud, on a machine without a device compiler.
fn built(builder: NvvmBuilder) -> Option<Built> {
    match builder.build() {
        Ok(built) => Some(built),
        Err(error @ Error::NoCompiler { .. }) => {
            skipped(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn both_lanes_for_three_architectures() {
    let _alone = alone();
    let archs = [Arch::Sm80, Arch::Sm90, Arch::Sm100];
    let Some(built) = built(archs.into_iter().fold(builder(), NvvmBuilder::arch)) else { return };
    let lanes: &[Lane] = match built.lane {
        Lane::Nvvm => &[Lane::Nvvm, Lane::Llvm],
        _ => {
            skipped(format_args!("the NVVM lane: {:?}", built.warnings));
            &[Lane::Llvm]
        }
    };
    let found: Vec<_> = built.images.iter().map(|image| (image.arch, image.lane, image.preferred)).collect();
    let expected: Vec<_> = archs
        .iter()
        .flat_map(|&arch| lanes.iter().map(move |&lane| (arch, lane, lane == lanes[0])))
        .collect();
    assert_eq!(found, expected, "{:?}", built.warnings);

    for image in &built.images {
        let text = fs::read_to_string(&image.ptx).unwrap();
        let what = format!("{} {}:\n{text}", image.arch, image.lane);
        let (major, minor) = image.arch.ptx_version();
        assert!(text.contains(&format!("\n.version {major}.{minor}\n")), "{what}");
        assert!(text.contains(&format!("\n.target {}\n", image.arch)), "{what}");

        let module = ptx::Module::parse(&text);
        let names: Vec<_> = module.kernels().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names.len(), 4, "{what}");
        for kernel in &image.kernels {
            assert!(
                names.contains(&kernel.name.as_str()),
                "ptxas saw {}, the parser did not: {what}",
                kernel.name
            );
        }

        // Two roundings, and said so: ptxas contracts `mul.f32` and `add.f32`.
        let kernel = module.kernel("multiply_add").unwrap();
        assert_eq!(
            (kernel.count("mul.rn.f32"), kernel.count("add.rn.f32"), kernel.count("fma")),
            (1, 1, 0),
            "{what}"
        );

        // One barrier in the source, one in the kernel.
        let kernel = module.kernel("meet_between_branches").unwrap();
        assert_eq!(kernel.count("bar.") + kernel.count("barrier."), 1, "{what}");

        // The cfg is passed down.
        let body = text.split(".entry has_bulk_copy").nth(1).unwrap().split("ret;").next().unwrap();
        let stored = body.contains(&format!(", {};", image.arch.has_bulk_copy() as u32));
        assert!(stored, "{what}");

        match &image.cubin {
            Some(cubin) => {
                assert!(fs::read(cubin).unwrap().starts_with(b"\x7fELF"));
                let of = |name: &str| image.kernels.iter().find(|kernel| kernel.name == name).unwrap();
                let (meet, shared) = (of("meet_between_branches"), of("through_shared"));
                assert_eq!((meet.barriers, meet.shared_bytes, meet.spills()), (1, 0, false), "{meet:?}");
                assert_eq!((shared.barriers, shared.shared_bytes), (0, 64), "{shared:?}");
                assert!(meet.registers > 0, "{meet:?}");
            }
            None => skipped(format_args!("cubin of {} {}: {:?}", image.arch, image.lane, built.warnings)),
        }
    }
    generated_file_compiles(&built);
}

/// The generated file is a module that a library with strict lints can include, and holds what was built.
fn generated_file_compiles(built: &Built) {
    let main = built.source.with_file_name("main.rs");
    let program = format!(
        "//! Test.\n#![deny(warnings, missing_docs)]\n\
         /// The kernels.\npub mod kernels {{ include!({:?}); }}\n\
         fn main() {{ for image in kernels::KERNEL_IMAGES {{ println!(\"{{}} {{}} {{}} {{}} {{}} {{}}\", image.sm, image.lane, \
         image.preferred, image.ptx.len(), image.cubin.map_or(0, <[u8]>::len), image.kernels.len()) }} }}\n",
        built.source
    );
    fs::write(&main, program).unwrap();
    let binary = main.with_file_name("main");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let compiled =
        Command::new(rustc).args(["--edition=2024", "-o"]).args([&binary, &main]).status().unwrap();
    assert!(compiled.success());

    let printed = String::from_utf8(Command::new(&binary).output().unwrap().stdout).unwrap();
    let length = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let expected: String = built
        .images
        .iter()
        .map(|image| {
            format!(
                "{} {} {} {} {} {}\n",
                image.arch.sm(),
                image.lane,
                image.preferred,
                length(&image.ptx),
                image.cubin.as_ref().map_or(0, length),
                image.kernels.len()
            )
        })
        .collect();
    assert_eq!(printed, expected);
}

#[test]
fn without_libnvvm_the_llvm_lane_is_taken_and_the_reason_printed() {
    let _alone = alone();
    let without = || builder().variable("NVVM_BUILDER_LIBNVVM", "/nowhere/libnvvm.so");
    let Some(built) = built(without()) else { return };
    assert_eq!(built.lane, Lane::Llvm);
    let images: Vec<_> = built.images.iter().map(|image| (image.arch, image.lane, image.preferred)).collect();
    assert_eq!(images, [(Arch::Sm90, Lane::Llvm, true)]);
    assert!(
        built.warnings[0].contains("/nowhere/libnvvm.so ($NVVM_BUILDER_LIBNVVM): no such file"),
        "{built:?}"
    );

    // Asked for by name, the lane is not replaced.
    let demanded = without().lane(Lane::Nvvm).build().unwrap_err();
    assert!(
        matches!(&demanded, Error::NoLibNvvm { reason } if reason.contains("CUDA toolkit")),
        "{demanded}"
    );
}

#[test]
fn a_crate_that_does_not_compile_gives_the_compilers_words() {
    let _alone = alone();
    match builder().feature("broken").build() {
        Err(Error::NoCompiler { tried }) => skipped(tried),
        Err(Error::Compile { arch, log, .. }) => {
            assert_eq!(arch, Arch::Sm90);
            assert!(log.contains("asked to be broken"), "{log}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn missing_pieces_are_named() {
    let _alone = alone();
    let error = NvvmBuilder::new("/nowhere/device").out_dir("/nowhere").build().unwrap_err();
    assert_eq!(error.to_string(), "no device crate at /nowhere/device: it has no Cargo.toml");

    let error = NvvmBuilder::new(FIXTURE).variable("OUT_DIR", "").build().unwrap_err();
    assert!(error.to_string().contains("say with `out_dir` where the files go"), "{error}");

    let error = builder().variable("NVVM_BUILDER_RUSTC", "/nowhere/rustc").build().unwrap_err();
    assert!(error.to_string().contains("/nowhere/rustc ($NVVM_BUILDER_RUSTC)"), "{error}");
    assert!(error.to_string().contains("rustup component add rust-src"), "{error}");

    let error = builder().variable("NVVM_BUILDER_LANE", "fast").build().unwrap_err();
    let no_compiler = matches!(error, Error::NoCompiler { .. });
    assert!(no_compiler || error.to_string() == "NVVM_BUILDER_LANE=fast: expected nvvm or llvm", "{error}");
}

#[test]
fn a_reference_in_cuda_is_one_more_image() {
    let _alone = alone();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/kernels.cu");
    let both = builder().arch(Arch::Sm90).reference(source, &[Arch::Sm90]);
    let built = match both.clone().build() {
        Err(error @ (Error::NoCompiler { .. } | Error::NoNvcc { .. })) => return skipped(error),
        built => built.unwrap(),
    };
    let image = built.images.iter().find(|image| image.lane == Lane::Nvcc).unwrap();
    assert!(!image.preferred && image.arch == Arch::Sm90);
    let module = ptx::Module::parse(&fs::read_to_string(&image.ptx).unwrap());
    let kernel = module.kernel("multiply_add").unwrap();
    // Rounded twice, as in Rust.
    assert_eq!((kernel.count("mul.rn.f32"), kernel.count("fma.")), (1, 0));

    let error = both.variable("NVVM_BUILDER_NVCC", "/nowhere/nvcc").build().unwrap_err();
    assert!(matches!(&error, Error::NoNvcc { tried } if tried.contains("/nowhere/nvcc")), "{error}");
}
