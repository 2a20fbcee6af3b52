//! Contrastive losses over the ring, with analytic gradients: no autograd over the pair matrix,
//! and no rank ever holds batch × batch.
//!
//! [`siglip`] passes text round the ring (arXiv:2303.15343, §3.3); [`infonce`] gathers it once.
//! Both take L2-normalised embeddings and return the loss of the *global* batch and this rank's
//! embedding gradients; the encoders' backward passes start from those. [`mod@reference`] is the
//! plain dense form the tests compare with.

pub mod cuda;
pub mod infonce;
#[doc(hidden)]
pub mod reference;
pub mod siglip;
mod tile;

#[cfg(test)]
mod tests;

use tch::Tensor;

use crate::collective;

/// A rank's part of the global batch.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Image embeddings, rows of unit length. Shape `[b_r, d]`, f32 or f64.
    pub image: &'a Tensor,
    /// Text embeddings of the same rows. Shape `[b_r, d]`, dtype of `image`.
    pub text: &'a Tensor,
    /// Rows every rank holds, by rank; Σ = B.
    pub counts: &'a [usize],
    /// t′; the logits are scaled by exp(t′).
    pub log_scale: f64,
    /// β, added to the logits; SigLIP only.
    pub bias: f64,
}

/// The loss of the global batch and its gradients.
#[derive(Debug)]
pub struct Output {
    /// Mean over the global batch: the same on every rank.
    pub loss: f64,
    /// ∂L/∂image of this rank's rows. Shape `[b_r, d]`.
    pub grad_image: Tensor,
    /// ∂L/∂text of this rank's rows. Shape `[b_r, d]`.
    pub grad_text: Tensor,
    /// ∂L/∂t′, summed over all ranks.
    pub grad_log_scale: f64,
    /// ∂L/∂β, summed over all ranks; zero for InfoNCE.
    pub grad_bias: f64,
}

/// Why a loss could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A peer or the ring failed.
    #[error("loss exchange failed")]
    Collective(#[from] collective::Error),
    /// libtorch refused an operation (out of memory, a shape).
    #[error("loss tile failed")]
    Tensor(#[from] tch::TchError),
    /// Inputs that do not belong together.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// What the counts demand.
        expected: String,
        /// What came.
        actual: String,
    },
}

impl Inputs<'_> {
    fn check(&self, rank: usize, world_size: usize) -> Result<(), Error> {
        let shape =
            |what, expected: String, actual: String| Error::Shape { what, expected, actual };
        if self.counts.len() != world_size {
            let (expected, actual) = (format!("{world_size} ranks"), format!("{:?}", self.counts));
            return Err(shape("counts", expected, actual));
        }
        let image = self.image.size();
        if image.len() != 2 || image[0] != self.counts[rank] as i64 {
            let expected = format!("[{}, d]", self.counts[rank]);
            return Err(shape("image embeddings", expected, format!("{image:?}")));
        }
        if self.text.size() != image || self.text.kind() != self.image.kind() {
            let expected = format!("{image:?} of {:?}", self.image.kind());
            let actual = format!("{:?} of {:?}", self.text.size(), self.text.kind());
            return Err(shape("text embeddings", expected, actual));
        }
        Ok(())
    }
}
