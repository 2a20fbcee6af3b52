//! Initial values, as OpenCLIP's modules set them.
//!
//! Draws are counter-based: a parameter's values are a function of the seed and its name, so every
//! rank computes the same model without a broadcast, whatever the order of construction.

use crate::rng::{Site, Stream, key_of_name};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal, mean zero, with this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
}

impl Init {
    /// torch's default for the weight and bias of a linear or convolution layer:
    /// `kaiming_uniform_(a=sqrt(5))`, which is uniform within 1/sqrt(fan_in).
    pub(super) fn torch_default(fan_in: i64) -> Self {
        Self::Uniform((fan_in as f64).powf(-0.5))
    }

    /// `xavier_uniform_` (Glorot and Bengio 2010) of a matrix [fan_out, fan_in].
    pub(super) fn xavier_uniform(fan_out: i64, fan_in: i64) -> Self {
        Self::Uniform((6.0 / (fan_in + fan_out) as f64).sqrt())
    }

    /// Returns the `len` values of the parameter called `name`, rounded to f32.
    pub(super) fn values(self, seed: u64, name: &str, len: usize) -> Vec<f32> {
        let mut stream = Stream::new(seed, Site::Init, &[key_of_name(name)]);
        let mut draw = || match self {
            Self::Constant(value) => value,
            Self::Normal(deviation) => deviation * stream.normal(),
            Self::Uniform(bound) => stream.uniform(-bound, bound),
        };
        (0..len).map(|_| draw() as f32).collect()
    }
}
