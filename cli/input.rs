//! Tokens and routing of a real model, from a safetensors file.

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::fmt;
use std::path::{Path, PathBuf};
use tokenrail::oracle::{OracleError, Routing, f32_to_bf16};

/// The contents of a file.
pub struct Input {
    /// Elements of a token.
    pub hidden: usize,
    /// `[tokens, hidden]`.
    pub x: Vec<bf16>,
    /// The experts of every token.
    pub routing: Routing,
    /// What was converted, in words.
    pub notes: Vec<String>,
}

/// A file that is no input.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}", path = path.display())]
pub struct InputError {
    path: PathBuf,
    problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Read(#[from] std::io::Error),
    #[error("not a whole safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    #[error("tensor {tensor} is missing; the file has {}", list(.found))]
    Missing { tensor: &'static str, found: Vec<String> },
    #[error("tensor {tensor}: type is {found:?}, expected {}", list(.expected))]
    Type { tensor: &'static str, found: Dtype, expected: Vec<Dtype> },
    #[error("tensor {tensor}: shape is {found:?}, expected {expected}")]
    Shape { tensor: &'static str, found: Vec<usize>, expected: String },
    #[error("tensor {0}")]
    Content(#[from] OracleError),
}

fn list(items: &[impl fmt::Debug]) -> String {
    match items {
        [] => "none".into(),
        items => items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", "),
    }
}

/// Reads `x` `[tokens, hidden]`, `topk_idx` and `topk_weights` `[tokens, topk]`, for a model with as many experts.
///
/// # Errors
/// [`InputError`], naming file and tensor.
pub fn load(path: &Path, experts: u32) -> Result<Input, InputError> {
    let bytes = std::fs::read(path).map_err(Problem::from);
    bytes
        .and_then(|bytes| parse(&bytes, experts))
        .map_err(|problem| InputError { path: path.into(), problem })
}

fn parse(bytes: &[u8], experts: u32) -> Result<Input, Problem> {
    let file = SafeTensors::deserialize(bytes)?;
    let x = Matrix::new(&file, "x")?;
    let topk_idx = Matrix::new(&file, "topk_idx")?;
    let topk_weights = Matrix::new(&file, "topk_weights")?;
    topk_idx.demand_shape(x.rows, None)?;
    topk_weights.demand_shape(x.rows, Some(topk_idx.columns))?;

    let mut notes = Vec::new();
    let hidden = x.columns;
    let x = x.bf16s(&mut notes)?;
    let topk = topk_idx.columns;
    let topk_idx = topk_idx.experts(experts)?;
    let topk_weights = topk_weights.f32s(&mut notes)?;
    Ok(Input { hidden, x, routing: Routing { topk, topk_idx, topk_weights }, notes })
}

/// A tensor of two dimensions.
struct Matrix<'a> {
    name: &'static str,
    rows: usize,
    columns: usize,
    view: TensorView<'a>,
}

impl<'a> Matrix<'a> {
    fn new(file: &SafeTensors<'a>, name: &'static str) -> Result<Self, Problem> {
        let missing = |_| {
            let mut found: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            found.sort();
            Problem::Missing { tensor: name, found }
        };
        let view = file.tensor(name).map_err(missing)?;
        match *view.shape() {
            [rows, columns] => Ok(Self { name, rows, columns, view }),
            _ => Err(Self::shape(name, &view, "[tokens, width]".into())),
        }
    }

    fn shape(tensor: &'static str, view: &TensorView, expected: String) -> Problem {
        Problem::Shape { tensor, found: view.shape().to_vec(), expected }
    }

    /// As many rows as `x` has, and as many columns as the other tensor of its kind.
    fn demand_shape(&self, rows: usize, columns: Option<usize>) -> Result<(), Problem> {
        if self.rows == rows && columns.is_none_or(|columns| self.columns == columns) {
            return Ok(());
        }
        let width = columns.map_or("topk".to_owned(), |columns| columns.to_string());
        Err(Self::shape(self.name, &self.view, format!("[{rows}, {width}] to go with x")))
    }

    fn wrong_type(&self, expected: &[Dtype]) -> Problem {
        Problem::Type { tensor: self.name, found: self.view.dtype(), expected: expected.to_vec() }
    }

    /// Little-endian elements of `N` bytes.
    fn elements<const N: usize, T>(&self, from: fn([u8; N]) -> T) -> Vec<T> {
        // The parser has seen to it that there are whole elements.
        self.view.data().as_chunks::<N>().0.iter().map(|&bytes| from(bytes)).collect()
    }

    fn converted(&self, to: &str, notes: &mut Vec<String>) {
        notes.push(format!("{} is {:?} in the file; converted to {to}", self.name, self.view.dtype()));
    }

    fn bf16s(&self, notes: &mut Vec<String>) -> Result<Vec<bf16>, Problem> {
        let values = match self.view.dtype() {
            Dtype::BF16 => return Ok(self.elements(bf16::from_le_bytes)),
            Dtype::F16 => self.elements(|bytes| f32_to_bf16(f16::from_le_bytes(bytes).to_f32())),
            Dtype::F32 => self.elements(|bytes| f32_to_bf16(f32::from_le_bytes(bytes))),
            _ => return Err(self.wrong_type(&[Dtype::BF16, Dtype::F16, Dtype::F32])),
        };
        self.converted("bf16", notes);
        Ok(values)
    }

    fn f32s(&self, notes: &mut Vec<String>) -> Result<Vec<f32>, Problem> {
        match self.view.dtype() {
            Dtype::F32 => Ok(self.elements(f32::from_le_bytes)),
            Dtype::BF16 => {
                self.converted("f32", notes);
                Ok(self.elements(|bytes| bf16::from_le_bytes(bytes).to_f32()))
            }
            _ => Err(self.wrong_type(&[Dtype::F32, Dtype::BF16])),
        }
    }

    fn experts(&self, experts: u32) -> Result<Vec<i32>, Problem> {
        let ids: Vec<i64> = match self.view.dtype() {
            Dtype::I32 => self.elements(|bytes| i32::from_le_bytes(bytes).into()),
            Dtype::I64 => self.elements(i64::from_le_bytes),
            _ => return Err(self.wrong_type(&[Dtype::I32, Dtype::I64])),
        };
        let checked = ids.into_iter().enumerate().map(|(index, id)| {
            if (-1..i64::from(experts)).contains(&id) {
                return Ok(id as i32);
            }
            Err(OracleError::ExpertOutOfRange {
                token: index / self.columns,
                slot: index % self.columns,
                value: id.clamp(i32::MIN.into(), i32::MAX.into()) as i32,
                experts: experts as usize,
            })
        });
        Ok(checked.collect::<Result<_, _>>()?)
    }
}
