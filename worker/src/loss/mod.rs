//! Contrastive losses over the ring, with analytic gradients: no autograd over the pair matrix,
//! and no rank ever holds batch × batch.
//!
//! [`siglip`] passes text round the ring (arXiv:2303.15343, §3.3); [`infonce`] gathers it once, or
//! passes it round twice where even the gathered text is too much. All take L2-normalised
//! embeddings and return the loss of the *global* batch and this rank's embedding gradients; the
//! encoders' backward passes start from those. [`mod@reference`] is the plain dense form the tests
//! compare with.
//!
//! The way of a text row: `ring` carries it from rank to rank and its gradient behind it; `tile`
//! multiplies it with this rank's images; `epilogue` turns the tile of dot products into the loss
//! and the gradient's weights in one pass; `tile` multiplies those back into both gradients.

pub mod cuda;
mod epilogue;
pub mod infonce;
mod inputs;
mod pool;
#[doc(hidden)]
pub mod reference;
mod ring;
pub mod siglip;
mod tile;

#[cfg(test)]
mod tests;

pub use inputs::{Inputs, Positives};
pub use tile::Tiling;
pub use tile::{dot_products_into, multiply_into, operand};

use tch::Tensor;

use crate::collective;

/// The loss of the global batch and its gradients.
#[derive(Debug)]
pub struct Output {
    /// Mean over the global batch: the same on every rank.
    pub loss: f64,
    /// ∂L/∂image of this rank's rows. Shape `[b_r, d]`; f32 for bf16 inputs, else their dtype.
    pub grad_image: Tensor,
    /// ∂L/∂text of this rank's rows. Shape `[c_r, d]`; dtype as above.
    pub grad_text: Tensor,
    /// ∂L/∂t′, summed over all ranks.
    pub grad_log_scale: f64,
    /// ∂L/∂β, summed over all ranks; zero for InfoNCE.
    pub grad_bias: f64,
}

/// Why a loss could not be computed.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer or the ring failed.
    #[error("loss exchange failed")]
    Collective(#[from] collective::Error),
    /// libtorch refused an operation (out of memory, a shape).
    #[error("loss tile failed")]
    Tensor(#[from] tch::TchError),
    /// The passes over a tile failed on the GPU.
    #[error("loss kernel failed")]
    Cuda(#[from] cuda::Error),
    /// Inputs that do not belong together.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        what: &'static str,
        /// What the counts demand.
        expected: String,
        actual: String,
    },
    /// Inputs or options that this loss cannot work with.
    #[error("{what}")]
    Unsupported {
        /// What, and what to do instead.
        what: String,
    },
}
