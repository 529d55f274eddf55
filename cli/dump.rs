//! Everything that was sent, received and combined, as one safetensors file a rank.

use crate::rank::Outcome;
use crate::workload::Workload;
use safetensors::tensor::{Dtype, View};
use safetensors::{SafeTensorError, SafeTensors};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fs, io};
use tokenrail::oracle::EXPERT_FUNCTION;
use tokenrail::{Element, Half};

/// Names the names and meanings of tensors and metadata, for whoever reads them.
const FORMAT: &str = "tokenrail-dump-1";

/// A folder to dump into.
pub struct Dump {
    folder: PathBuf,
    /// Files of an earlier dump, which this one replaces.
    earlier: Vec<PathBuf>,
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The folder or a file cannot be read or written.
    #[error("--dump: {path}: {error}", path = path.display())]
    Io {
        /// Folder or file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file that the dump would replace is someone else's.
    #[error("--dump: {path} is not of an earlier dump; move it away or choose another folder", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("--dump: {path}: {error}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the library says.
        error: SafeTensorError,
    },
}

impl Dump {
    /// Creates the folder, or finds what an earlier dump has left there.
    ///
    /// # Errors
    /// [`DumpError`] if that is not possible, or the folder has files that only look like an earlier dump's.
    pub fn open(folder: &Path) -> Result<Self, DumpError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| DumpError::Io { path, error }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let mut earlier = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let path = entry.map_err(failed(folder))?.path();
            if !is_rank_file(&path) {
                continue;
            }
            let bytes = fs::read(&path).map_err(failed(&path))?;
            if !is_dump(&bytes) {
                return Err(DumpError::Foreign { path });
            }
            earlier.push(path);
        }
        Ok(Self { folder: folder.to_owned(), earlier })
    }

    /// Writes one file a rank; none of them is ever there in part.
    ///
    /// # Errors
    /// [`DumpError`] with the file that cannot be written.
    pub fn write(self, workload: &Workload, outcomes: &[&Outcome]) -> Result<(), DumpError> {
        // All of them first: files of a larger group must not be taken for ranks of this one.
        for path in self.earlier {
            fs::remove_file(&path).map_err(|error| DumpError::Io { path, error })?;
        }
        for (rank, outcome) in outcomes.iter().enumerate() {
            let path = self.folder.join(format!("rank{rank}.safetensors"));
            let (tensors, metadata) = (tensors(workload, rank, outcome), metadata(workload, rank));
            // Writes to a temporary name and renames.
            safetensors::serialize_to_file(tensors, Some(metadata), &path)
                .map_err(|error| DumpError::Write { path, error })?;
        }
        Ok(())
    }
}

/// Whether readers of a dump would take the file for one of its.
fn is_rank_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("rank") && name.ends_with(".safetensors")
}

fn is_dump(bytes: &[u8]) -> bool {
    let metadata =
        SafeTensors::read_metadata(bytes).ok().and_then(|(_, metadata)| metadata.metadata().clone());
    metadata.is_some_and(|metadata| metadata.get("format").is_some_and(|format| format == FORMAT))
}

fn metadata(workload: &Workload, rank: usize) -> HashMap<String, String> {
    let element = match workload.config.element {
        Element::Bf16 => "bf16",
        Element::F16 => "f16",
        Element::Fp8E4m3 => "fp8_e4m3",
        Element::Fp8E4m3Ue8m0 => "fp8_e4m3_ue8m0",
        Element::Opaque { .. } => "opaque",
    };
    let entries = [
        ("format", FORMAT.to_owned()),
        ("rank", rank.to_string()),
        ("ranks", workload.ranks.to_string()),
        ("experts", workload.config.experts.to_string()),
        ("topk", workload.config.topk.to_string()),
        ("hidden", workload.config.hidden.to_string()),
        ("element", element.to_owned()),
        ("expert_function", EXPERT_FUNCTION.to_owned()),
        ("gate", workload.gate.clone()),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A tensor as it is written.
struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn tensors<'a>(workload: &'a Workload, rank: usize, outcome: &'a Outcome) -> Vec<(&'static str, Tensor<'a>)> {
    let (batch, received) = (&workload.batches[rank], &outcome.received);
    let (tokens, rows, hidden, topk) = (batch.tokens, received.tokens(), batch.hidden, batch.topk);
    let (element, width) = match batch.element {
        Element::Bf16 => (Dtype::BF16, hidden),
        Element::F16 => (Dtype::F16, hidden),
        Element::Fp8E4m3 | Element::Fp8E4m3Ue8m0 => (Dtype::F8_E4M3, hidden),
        Element::Opaque { .. } => (Dtype::U8, batch.row_bytes()),
    };
    let raw =
        |bytes: &'a [u8], rows| Tensor { dtype: element, shape: vec![rows, width], bytes: bytes.into() };
    let half = workload.config.combined;
    let mut tensors = vec![
        ("x", raw(&outcome.x.rows, tokens)),
        ("topk_idx", i32s(&batch.topk_idx, vec![tokens, topk])),
        ("topk_weights", f32s(&batch.topk_weights, vec![tokens, topk])),
        ("recv_x", raw(&received.rows, rows)),
        ("recv_topk_idx", i32s(&received.topk_idx, vec![rows, topk])),
        ("recv_topk_weights", f32s(&received.topk_weights, vec![rows, topk])),
        ("recv_source_rank", i32s(&received.source_rank, vec![rows])),
        ("recv_source_token", i32s(&received.source_token, vec![rows])),
        ("recv_tokens_per_source", counts(&received.tokens_per_source)),
        ("recv_tokens_per_expert", counts(&received.tokens_per_expert)),
        ("expert_out", halves(half, &outcome.outputs, vec![rows, hidden])),
        ("combined", halves(half, &outcome.combined, vec![tokens, hidden])),
    ];
    let words = batch.scale_words();
    if words > 0 {
        let scales = |scales, rows| scales_of(batch.element, scales, vec![rows, words]);
        tensors.push(("x_scales", scales(&outcome.x.scales, tokens)));
        tensors.push(("recv_scales", scales(&received.scales, rows)));
    }
    tensors
}

/// f32 scales as such, others as the words that they are packed in.
fn scales_of(element: Element, words: &[u32], shape: Vec<usize>) -> Tensor<'static> {
    let dtype = if element == Element::Fp8E4m3 { Dtype::F32 } else { Dtype::U32 };
    Tensor { dtype, shape, bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect() }
}

fn i32s(values: &[i32], shape: Vec<usize>) -> Tensor<'static> {
    Tensor { dtype: Dtype::I32, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
}

/// Counts are i32 in the file, as other software has them. They are far below its limit.
fn counts(values: &[u32]) -> Tensor<'static> {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { dtype: Dtype::I32, shape: vec![values.len()], bytes }
}

fn f32s(values: &[f32], shape: Vec<usize>) -> Tensor<'static> {
    Tensor { dtype: Dtype::F32, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
}

fn halves(half: Half, values: &[u16], shape: Vec<usize>) -> Tensor<'static> {
    let dtype = match half {
        Half::Bf16 => Dtype::BF16,
        Half::F16 => Dtype::F16,
    };
    Tensor { dtype, shape, bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect() }
}
