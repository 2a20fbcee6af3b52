//! CLIP models: an image tower, a text tower and the two numbers that scale their products.
//!
//! [`Clip`] is built from a configuration in OpenCLIP's format and has OpenCLIP's parameter names,
//! shapes and initial values; [`Params`] keeps the parameters in one flat buffer. Modules in
//! reading order: `clip` (the model), `vision` and `text` (the towers, a family a file), `block`,
//! `layers`, `projection` and `compute` (what they share), `vars` (how constructors list and take
//! parameters), `init` (initial values), `params`.
//!
//! The forward pass computes OpenCLIP's function with less work, none of which changes a value
//! beyond rounding:
//! * tokens behind the one that is pooled cannot influence it under a causal mask, so captions are
//!   cut there and packed without padding (`packing`); padding that is masked is dropped;
//! * the last block computes queries, output and MLP of the pooled token only;
//! * dropped patches are dropped before they are embedded (`vision/patches`);
//! * the token table's gradient is a list of rows, not a matrix as large as the table.

mod block;
mod clip;
mod compute;
mod dropout;
mod init;
mod layers;
mod packing;
mod params;
mod projection;
mod text;
mod vars;
mod vision;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parameter_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod parity_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use clip::{Clip, LogitInit, Mode, normalize};
pub use params::{ALIGNMENT, Entry, Params, Role, Tower};

/// Returns the hidden width of an MLP, rounded down as OpenCLIP does.
fn mlp_width(width: i64, ratio: f64) -> i64 {
    (width as f64 * ratio) as i64
}

/// Why a model cannot be built or run.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration describes no model.
    #[error("model configuration: {reason}")]
    Config {
        /// The field, what it holds and what it must satisfy.
        reason: String,
    },
    /// An input has the wrong shape.
    #[error("{input} has shape {found:?}, expected {expected}")]
    InputShape {
        input: &'static str,
        /// Shape wanted, in words where a size is free.
        expected: String,
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
        id: i64,
        vocab_size: i64,
    },
    /// A caption of nothing but padding.
    #[error(
        "caption {row} holds nothing but padding (token id {pad_id}); a tower that masks padding \
         has nothing to make an embedding of: the tokenizer must give at least a start token"
    )]
    OnlyPadding {
        /// Row of the batch.
        row: usize,
        pad_id: i64,
    },
    /// Autograd refused.
    #[error("backward of the {tower:?} tower failed")]
    Backward {
        tower: Tower,
        #[source]
        source: tch::TchError,
    },
}
