//! The kernels that were built into the library, and which of them a GPU is given.

// The build script's: `KernelImage`, `KernelResources`, `KERNEL_IMAGES`.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What a GPU is given to load.
#[derive(Clone, Copy, Debug)]
pub enum Code<'a> {
    /// Machine code for it.
    Cubin(&'a [u8]),
    /// PTX, which the driver compiles.
    Ptx(&'a str),
}

/// The newest image of `lane` (`None`: the preferred one) that a GPU of compute capability `capability` can run:
/// machine code of its own major version, else PTX. `None` if every image is for a newer GPU.
pub fn select<'a>(
    images: &'a [KernelImage],
    capability: u32,
    lane: Option<&str>,
) -> Option<(&'a KernelImage, Code<'a>)> {
    let wanted = |image: &&KernelImage| lane.map_or(image.preferred, |lane| image.lane == lane);
    let image =
        images.iter().filter(wanted).filter(|image| image.sm <= capability).max_by_key(|image| image.sm)?;
    let code = match image.cubin {
        Some(cubin) if image.sm / 10 == capability / 10 => Code::Cubin(cubin),
        _ => Code::Ptx(image.ptx),
    };
    Some((image, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(
        sm: u32,
        lane: &'static str,
        preferred: bool,
        cubin: Option<&'static [u8]>,
    ) -> KernelImage {
        KernelImage { sm, lane, preferred, ptx: "ptx", cubin, kernels: &[] }
    }

    static IMAGES: &[KernelImage] = &[
        image(80, "nvvm", true, Some(&[80])),
        image(80, "llvm", false, Some(&[80])),
        image(90, "nvvm", true, Some(&[90])),
        image(90, "llvm", false, None),
    ];

    fn chosen(capability: u32, lane: Option<&str>) -> Option<(u32, &'static str, bool)> {
        select(IMAGES, capability, lane)
            .map(|(image, code)| (image.sm, image.lane, matches!(code, Code::Cubin(_))))
    }

    #[test]
    fn newest_that_runs() {
        assert_eq!(chosen(90, None), Some((90, "nvvm", true)));
        assert_eq!(chosen(89, None), Some((80, "nvvm", true)));
        // Machine code does not cross major versions; PTX does.
        assert_eq!(chosen(100, None), Some((90, "nvvm", false)));
    }

    #[test]
    fn lane_on_request() {
        assert_eq!(chosen(90, Some("llvm")), Some((90, "llvm", false)));
        assert_eq!(chosen(90, Some("other")), None);
    }

    #[test]
    fn nothing_for_an_older_gpu() {
        assert_eq!(chosen(75, None), None);
    }
}
