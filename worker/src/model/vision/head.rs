//! What OpenCLIP puts behind a tower of timm's.

use ringmaster_manifest::model_config::VisionConfig;
use ringmaster_manifest::model_config::vision::TrunkProjection;
use tch::Tensor;

use super::super::compute::{Activation, Compute};
use super::super::layers::Linear;
use super::super::vars::Vars;

/// From the tower's pooled vector to the embedding.
#[derive(Debug)]
pub(super) enum Head {
    /// The vector itself.
    None,
    /// One layer.
    Linear(Linear),
    /// Two layers, GELU between.
    Mlp(Linear, Linear),
}

impl Head {
    /// Takes the parameters under `vars`, which is `visual.`; `classifier` is what the tower calls
    /// a head of its own.
    pub(super) fn new(
        vision: &VisionConfig,
        features: i64,
        embed_dim: i64,
        classifier: &str,
        vars: &Vars<'_>,
    ) -> Self {
        let head = vars.sub("head");
        match vision.timm_proj {
            TrunkProjection::None => Self::None,
            TrunkProjection::Classifier => {
                let vars = vars.sub("trunk").sub(classifier);
                Self::Linear(Linear::small(&vars, features, embed_dim))
            }
            TrunkProjection::Linear => Self::Linear(Linear::torch(
                &head.sub("proj"),
                features,
                embed_dim,
                vision.timm_proj_bias,
            )),
            TrunkProjection::Mlp => {
                let mlp = head.sub("mlp");
                let hidden = 2 * embed_dim;
                Self::Mlp(
                    Linear::torch(&mlp.sub("fc1"), features, hidden, true),
                    Linear::torch(&mlp.sub("fc2"), hidden, embed_dim, vision.timm_proj_bias),
                )
            }
        }
    }

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
