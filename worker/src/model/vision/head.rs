//! What OpenCLIP puts behind a tower of timm's.

use ringmaster_manifest::model_config::VisionConfig;
use ringmaster_manifest::model_config::vision::TrunkProjection;

use super::super::layers::Linear;
use super::super::projection::Projection;
use super::super::vars::Vars;

/// Takes the projection's parameters under `vars`, which is `visual.`; `classifier` is what the tower
/// calls a head of its own.
pub(super) fn head(
    vision: &VisionConfig,
    features: i64,
    embed_dim: i64,
    classifier: &str,
    vars: &Vars<'_>,
) -> Projection {
    let head = vars.sub("head");
    let bias = vision.timm_proj_bias;
    match vision.timm_proj {
        TrunkProjection::None => Projection::None,
        TrunkProjection::Classifier => {
            let vars = vars.sub("trunk").sub(classifier);
            Projection::Linear(Linear::small(&vars, features, embed_dim))
        }
        TrunkProjection::Linear => {
            Projection::Linear(Linear::torch(&head.sub("proj"), features, embed_dim, bias))
        }
        TrunkProjection::Mlp => {
            let mlp = head.sub("mlp");
            let hidden = 2 * embed_dim;
            Projection::Mlp(
                Linear::torch(&mlp.sub("fc1"), features, hidden, true),
                Linear::torch(&mlp.sub("fc2"), hidden, embed_dim, bias),
            )
        }
    }
}
