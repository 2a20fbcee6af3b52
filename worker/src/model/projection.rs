//! From a tower's pooled vector to the embedding, where OpenCLIP puts a projection behind a tower of
//! another library.

use tch::Tensor;

use super::compute::{Activation, Compute};
use super::layers::Linear;

/// What is behind the tower.
#[derive(Debug)]
pub(super) enum Projection {
    /// Nothing: the vector itself.
    None,
    /// One layer.
    Linear(Linear),
    /// Two layers, GELU between.
    Mlp(Linear, Linear),
}

impl Projection {
    /// Shapes: x [N, C] -> [N, E] in the stream's kind.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute) -> Tensor {
        match self {
            Self::None => compute.widen(x),
            Self::Linear(linear) => compute.widen(&linear.forward(x, compute)),
            Self::Mlp(first, second) => {
                let hidden = Activation::Gelu.apply(&first.forward(x, compute));
                compute.widen(&second.forward(&hidden, compute))
            }
        }
    }
}
