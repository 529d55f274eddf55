//! With feature `cuda`: device/ to PTX, which the library then embeds. Without it there is nothing to do.

#[cfg(feature = "cuda")]
fn main() -> Result<(), nvvm_builder::Error> {
    use nvvm_builder::{Arch, NvvmBuilder};
    let mut builder = NvvmBuilder::new("device").arch(Arch::Sm80).arch(Arch::Sm90).arch(Arch::Sm100);
    if cfg!(feature = "trace") {
        builder = builder.feature("trace");
    }
    if cfg!(feature = "reference") {
        builder = builder.reference("reference/kernels.cu", &[Arch::Sm90]);
    }
    builder.build()?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
