//! Initial values, as OpenCLIP's modules set them.
//!
//! Draws are counter-based: a parameter's values are a function of the seed and its name, so every
//! rank computes the same model without a broadcast, whatever the order of construction.

use ringmaster_inputs::rng::{Site, Stream, key_of_name};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Init {
    /// Every element the same.
    Constant(f64),
    /// Normal, mean zero, with this standard deviation.
    Normal(f64),
    /// Normal, with draws beyond two deviations drawn again.
    TruncatedNormal(f64),
    /// A table's rows normal, but one of them zero: the row of padding.
    NormalWithZeroRow {
        /// Of the other rows.
        deviation: f64,
        /// Which row is zero.
        row: i64,
        /// Elements of a row.
        width: i64,
    },
    /// Uniform between minus and plus this bound.
    Uniform(f64),
    /// Sines and cosines of the row and column of each patch of a `grid` × `grid` image, after a
    /// row of zeros for the class token: MAE's and MoCo v3's positions (arXiv:2104.02057).
    SinCos2d {
        /// Patches along a side.
        grid: i64,
        /// Elements of a position; a multiple of four.
        width: i64,
    },
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
        let mut draw = |at: usize| match self {
            Self::Constant(value) => value,
            Self::Normal(deviation) => deviation * stream.normal(),
            Self::TruncatedNormal(deviation) => deviation * truncated(&mut stream),
            Self::NormalWithZeroRow { deviation, row, width } => {
                let value = deviation * stream.normal();
                if at as i64 / width == row { 0.0 } else { value }
            }
            Self::Uniform(bound) => stream.uniform(-bound, bound),
            Self::SinCos2d { grid, width } => sin_cos_2d(at as i64, grid, width),
        };
        (0..len).map(|at| draw(at) as f32).collect()
    }
}

fn truncated(stream: &mut Stream) -> f64 {
    loop {
        let value = stream.normal();
        if value.abs() <= 2.0 {
            return value;
        }
    }
}

/// Returns one element of the table: columns first, then rows; of each, sines, then cosines.
fn sin_cos_2d(at: i64, grid: i64, width: i64) -> f64 {
    let (position, element) = (at / width, at % width);
    let Some(patch) = position.checked_sub(1).filter(|patch| *patch >= 0) else { return 0.0 };
    let (half, quarter) = (width / 2, width / 4);
    let place = if element < half { patch % grid } else { patch / grid };
    let within = element % half;
    let angle = place as f64 / 10_000_f64.powf((within % quarter) as f64 / quarter as f64);
    if within < quarter { angle.sin() } else { angle.cos() }
}
