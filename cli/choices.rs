//! What can be named on the command line.

use clap::{Args, ValueEnum};
use tokenrail::gpu::CudaOptions;
use tokenrail::oracle::{Draw, Gate, OracleError, Router, Routing, Spread};
use tokenrail::{Backend, Element, Error, Half};

/// Ways to choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GateName {
    /// Sigmoid scores with bias, 4 of 8 groups by their two best, weights that sum to 2.5
    #[value(name = "deepseek-v3")]
    DeepSeekV3,
    /// The best of softmax scores, weights that sum to 1
    Softmax,
    /// Distinct experts at random, all equally likely
    Uniform,
    /// Distinct experts at random, the i-th of a seeded order with the chance 1 / (i + 1) of the first
    Zipf,
    /// The first experts for every token: rank 0's, if it owns as many
    One,
}

/// Chooses the experts of tokens.
pub enum Chooser {
    /// From scores of the hidden states.
    Scores(Router),
    /// At random.
    Draw(Draw),
}

impl GateName {
    /// Ready to choose.
    ///
    /// # Errors
    /// What of the numbers is not possible.
    pub fn chooser(self, experts: u32, topk: u32, hidden: u32, seed: u64) -> Result<Chooser, OracleError> {
        let (experts, topk, hidden) = (experts as usize, topk as usize, hidden as usize);
        let draw = |spread| Draw::new(spread, experts, topk, seed).map(Chooser::Draw);
        let gate = match self {
            Self::DeepSeekV3 => Gate::DeepSeekV3 { experts, groups: 8, top_groups: 4, topk, scale: 2.5 },
            Self::Softmax => Gate::Softmax { experts, topk },
            Self::Uniform => return draw(Spread::Uniform),
            Self::Zipf => return draw(Spread::Zipf),
            Self::One => return draw(Spread::One),
        };
        Router::new(gate, hidden, seed).map(Chooser::Scores)
    }
}

impl Chooser {
    /// The experts of rows `x` of `tokens` tokens.
    ///
    /// # Errors
    /// [`OracleError::Length`] if `x` is not whole rows.
    pub fn route(&self, x: &[half::bf16], tokens: usize, seed: u64) -> Result<Routing, OracleError> {
        match self {
            Self::Scores(router) => router.route(x),
            Self::Draw(draw) => Ok(draw.route(seed, tokens)),
        }
    }

    /// As a dump records it.
    pub fn describe(&self) -> String {
        match self {
            Self::Scores(router) => router.gate().to_string(),
            Self::Draw(draw) => draw.to_string(),
        }
    }
}

/// Element types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ElementName {
    /// 2 bytes
    Bf16,
    /// 2 bytes
    F16,
    /// e4m3 with one f32 scale per 128 channels
    Fp8,
    /// e4m3 with one power of two (UE8M0) per 128 channels
    Fp8Ue8m0,
}

impl ElementName {
    /// As the library has it.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::F16 => Element::F16,
            Self::Fp8 => Element::Fp8E4m3,
            Self::Fp8Ue8m0 => Element::Fp8E4m3Ue8m0,
        }
    }
}

/// Types of experts' outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HalfName {
    /// 8 bits of exponent
    Bf16,
    /// 5 bits of exponent
    F16,
}

impl HalfName {
    /// As the library has it.
    pub fn half(self) -> Half {
        match self {
            Self::Bf16 => Half::Bf16,
            Self::F16 => Half::F16,
        }
    }
}

/// Backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The kernels on the CPU
    Emulator,
    /// NVIDIA GPUs
    Cuda,
}

/// What ranks run on.
#[derive(Args, Clone, Debug)]
pub struct BackendArgs {
    /// What ranks run on
    #[arg(long, value_enum, default_value = "emulator")]
    pub backend: BackendName,
    /// GPUs to spread the ranks over, by the driver's numbers [default: all]
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<usize>,
    /// Compiler lane whose kernels are loaded [default: the build's]
    #[arg(long, value_parser = ["nvvm", "llvm", "nvcc"])]
    pub lane: Option<String>,
}

impl BackendArgs {
    /// The backend; the emulator's interleavings follow from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] for a setting of GPUs without GPUs.
    pub fn open(&self, seed: u64) -> Result<Backend, Error> {
        let only_cuda = |field, value: String| Error::Config {
            field,
            value,
            limit: "the emulator has no such setting; it goes with --backend cuda".into(),
        };
        match (self.backend, self.devices.first(), &self.lane) {
            (BackendName::Cuda, ..) => {
                Ok(Backend::Cuda(CudaOptions { devices: self.devices.clone(), lane: self.lane.clone() }))
            }
            (BackendName::Emulator, Some(device), _) => Err(only_cuda("devices", device.to_string())),
            (BackendName::Emulator, None, Some(lane)) => Err(only_cuda("lane", lane.clone())),
            (BackendName::Emulator, None, None) => Ok(Backend::emulator(seed)),
        }
    }

    /// Whether times are a GPU's.
    pub fn is_gpu(&self) -> bool {
        self.backend == BackendName::Cuda
    }
}
