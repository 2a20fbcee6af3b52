//! CLIP models: an image tower, a text tower and the two numbers that scale their products.
//!
//! [`Clip`] is built from a configuration in OpenCLIP's format and has OpenCLIP's parameter names,
//! shapes and initial values (`shapes`, `init`); [`Params`] keeps the parameters in one flat
//! buffer. `vision` and `text` are the towers, `layers` what they share.
//!
//! The forward pass computes OpenCLIP's function with less work, none of which changes a value
//! beyond rounding:
//! * tokens behind the one that is pooled cannot influence it under a causal mask, so captions are
//!   cut there and packed without padding (`packing`);
//! * the last block computes queries, output and MLP of the pooled token only;
//! * dropped patches are dropped before they are embedded (`patches`);
//! * the token table's gradient is a list of rows, not a matrix as large as the table.

mod clip;
mod init;
mod layers;
mod packing;
mod params;
mod patches;
mod shapes;
mod text;
mod vision;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parameter_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parity;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod reference;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use clip::{Clip, LogitInit, Mode, normalize};
pub use params::{ALIGNMENT, Entry, Params, Tower};

/// Why a model cannot be built or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration describes no model.
    #[error("model configuration: {field} is {value}, but {constraint}")]
    Config {
        /// Field of the JSON file, with its section.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it must satisfy.
        constraint: String,
    },
    /// An input has the wrong shape.
    #[error("{input} has shape {found:?}, expected {expected}")]
    InputShape {
        /// Which input.
        input: &'static str,
        /// Shape wanted, in words where a size is free.
        expected: String,
        /// Shape given.
        found: Vec<i64>,
    },
    /// The number of row numbers differs from the batch.
    #[error("{rows} global rows are given for a batch of {batch} images")]
    Rows {
        /// Length of [`Mode::Train`]'s `rows`.
        rows: usize,
        /// Images in the batch.
        batch: i64,
    },
    /// A token id lies outside the table.
    #[error(
        "caption {row} has token id {id} at position {position}, but vocab_size is {vocab_size}: \
         the tokenizer does not belong to this model"
    )]
    Token {
        /// Row of the batch.
        row: usize,
        /// Position in the caption.
        position: usize,
        /// The id.
        id: i64,
        /// Size of the table.
        vocab_size: i64,
    },
    /// There is no parameter of that name.
    #[error("the model has no parameter {name}")]
    UnknownParameter {
        /// The name.
        name: String,
    },
    /// Values do not fit the parameter.
    #[error("parameter {name} has shape {expected:?}, not {found:?} ({values} values)")]
    ParameterShape {
        /// The parameter.
        name: String,
        /// Its shape.
        expected: Vec<i64>,
        /// Shape given.
        found: Vec<i64>,
        /// Number of values given.
        values: usize,
    },
    /// Autograd refused.
    #[error("backward of the {tower:?} tower failed")]
    Backward {
        /// The tower.
        tower: Tower,
        /// What libtorch said.
        #[source]
        source: tch::TchError,
    },
}
