//! The kernels that were built into the library, and which of them a GPU is given.

use super::Description;
use crate::Error;

// The build script's: `KernelImage`, `KernelResources`, `KERNEL_COMPILER`, `KERNEL_IMAGES`.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What a GPU is given to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code<'a> {
    /// Machine code for it, which a driver older than the compiler may not know.
    pub cubin: Option<&'a [u8]>,
    /// PTX, which the driver compiles.
    pub ptx: &'a str,
}

/// The lanes of this build that a GPU of this compute capability (90 for sm_90) can run kernels of, the preferred first.
pub fn lanes(capability: u32) -> Vec<&'static str> {
    lanes_of(KERNEL_IMAGES, capability)
}

fn lanes_of(images: &[KernelImage], capability: u32) -> Vec<&'static str> {
    let mut runs: Vec<_> = images.iter().filter(|image| image.sm <= capability).collect();
    runs.sort_by_key(|image| !image.preferred);
    let mut lanes = Vec::new();
    for lane in runs.into_iter().map(|image| image.lane) {
        if !lanes.contains(&lane) {
            lanes.push(lane);
        }
    }
    lanes
}

/// The newest image of `lane` (`None`: the preferred one) that `device` can run: PTX, and machine code if that is of
/// its own major version.
///
/// # Errors
/// [`Error::Architecture`] if every image is for a newer GPU, [`Error::Config`] if the lane was not built.
pub fn select<'a>(
    images: &'a [KernelImage],
    device: &Description,
    lane: Option<&str>,
) -> Result<Code<'a>, Error> {
    let capability = device.capability;
    let wanted = |image: &&KernelImage| lane.map_or(image.preferred, |lane| image.lane == lane);
    if !images.iter().any(|image| wanted(&image)) {
        let limit = format!("this build has {:?}", lanes_of(images, u32::MAX));
        return Err(Error::Config { field: "lane", value: lane.unwrap_or("the preferred").into(), limit });
    }
    let runs = |image: &&KernelImage| image.sm <= capability;
    let newest = images.iter().filter(wanted).filter(runs).max_by_key(|image| image.sm);
    let image = newest.ok_or_else(|| Error::Architecture {
        device: device.name.clone(),
        major: capability / 10,
        minor: capability % 10,
        built: images
            .iter()
            .filter(wanted)
            .map(|image| format!("sm_{}", image.sm))
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    let cubin = image.cubin.filter(|_| image.sm / 10 == capability / 10);
    Ok(Code { cubin, ptx: image.ptx })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(
        sm: u32,
        lane: &'static str,
        cubin: Option<&'static [u8]>,
        ptx: &'static str,
    ) -> KernelImage {
        KernelImage { sm, lane, preferred: lane.as_bytes()[0] == b'n', ptx, cubin, kernels: &[] }
    }

    static IMAGES: &[KernelImage] = &[
        image(80, "nvvm", Some(&[80]), "nvvm 80"),
        image(80, "llvm", Some(&[180]), "llvm 80"),
        image(90, "nvvm", Some(&[90]), "nvvm 90"),
        image(90, "llvm", None, "llvm 90"),
    ];

    fn gpu(capability: u32) -> Description {
        Description {
            name: "a GPU".into(),
            ordinal: 0,
            pci: None,
            dma_buf: false,
            capability,
            multiprocessors: 1,
            shared_bytes: 0,
            bulk_copy: false,
            memory: 0,
            ranks: 1,
            default_sms: 1,
            warps: 1,
        }
    }

    fn chosen(capability: u32, lane: Option<&str>) -> String {
        match select(IMAGES, &gpu(capability), lane) {
            Ok(Code { cubin: Some(cubin), .. }) => format!("cubin {cubin:?}"),
            Ok(Code { cubin: None, ptx }) => format!("ptx {ptx}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn newest_that_runs() {
        assert_eq!(chosen(90, None), "cubin [90]");
        assert_eq!(chosen(89, None), "cubin [80]");
        // Machine code does not cross major versions; PTX does.
        assert_eq!(chosen(100, None), "ptx nvvm 90");
    }

    #[test]
    fn lane_on_request() {
        assert_eq!(chosen(80, Some("llvm")), "cubin [180]");
        assert_eq!(chosen(90, Some("llvm")), "ptx llvm 90");
        assert_eq!(chosen(90, Some("other")), r#"lane = other: this build has ["nvvm", "llvm"]"#);
    }

    #[test]
    fn lanes_that_run() {
        let newer = image(90, "clang", None, "clang 90");
        let images = [newer, IMAGES[1], IMAGES[0]];
        assert_eq!(lanes_of(&images, 90), ["nvvm", "clang", "llvm"]);
        assert_eq!(lanes_of(&images, 80), ["nvvm", "llvm"]);
        assert!(lanes_of(&images, 75).is_empty());
    }

    #[test]
    fn kernels_for_newer_gpus_only() {
        assert_eq!(
            chosen(75, None),
            "no kernels for a GPU (sm_75): this build has sm_80, sm_90; the smallest of them needs a newer GPU"
        );
    }
}
