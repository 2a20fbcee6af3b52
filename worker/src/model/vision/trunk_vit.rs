//! timm's `VisionTransformer`: SigLIP's image tower, and plain ViTs.

use ringmaster_manifest::model_config::VisionConfig;
use ringmaster_manifest::model_config::trunk::{self, TrunkPool};
use ringmaster_manifest::model_config::vision::TrunkProjection;
use tch::Tensor;

use super::super::block::{self, Block, all_tokens, pooled_by_last};
use super::super::clip::Mode;
use super::super::compute::Compute;
use super::super::init::Init;
use super::super::layers::LayerNorm;
use super::super::mlp_width;
use super::super::projection::Projection;
use super::super::vars::Vars;
use super::embed::{Embed, mean_of_patches};
use super::head::head;
use super::pool::{AttentionPoolLatent, LatentShape};

/// timm's eps for vision transformers.
const EPS: f64 = 1e-6;

/// A vision transformer under timm's names.
#[derive(Debug)]
pub(super) struct TrunkVit {
    prefix: i64,
    embed: Embed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// Whether the norm comes behind the pooling.
    norm_after_pool: bool,
    pool: Pool,
    head: Projection,
}

#[derive(Debug)]
enum Pool {
    Map(Box<AttentionPoolLatent>),
    Token,
    Avg,
}

impl TrunkVit {
    /// Takes the parameters under `vars`, usually `visual.`.
    pub(super) fn new(
        vision: &VisionConfig,
        vit: &trunk::TrunkVit,
        embed_dim: i64,
        vars: &Vars<'_>,
    ) -> Self {
        let width = vit.width;
        let hidden = mlp_width(width, vit.mlp_ratio);
        let (heads, activation) = (vit.heads, vit.act.into());
        let shape = block::Shape { width, heads, hidden, eps: EPS, activation, layer_scale: None };
        let trunk = vars.sub("trunk");
        let blocks = trunk.sub("blocks");
        let pool = match vit.pool {
            TrunkPool::Map => {
                let shape = LatentShape { width, heads, hidden, eps: EPS, activation };
                Pool::Map(Box::new(AttentionPoolLatent::new(&trunk.sub("attn_pool"), &shape)))
            }
            TrunkPool::Token => Pool::Token,
            TrunkPool::Avg => Pool::Avg,
        };
        // timm moves the norm only in a tower that is made to average; OpenCLIP makes one so where
        // it adds no projection of its own.
        let own_head =
            matches!(vision.timm_proj, TrunkProjection::None | TrunkProjection::Classifier);
        let norm_after_pool = vit.pool == TrunkPool::Avg && own_head;
        let norm = if norm_after_pool { "fc_norm" } else { "norm" };
        Self {
            prefix: i64::from(vit.class_token),
            embed: embed(vision, vit, &trunk),
            blocks: (0..vit.depth).map(|index| Block::timm(&blocks.sub(index), &shape)).collect(),
            norm: LayerNorm::new(&trunk.sub(norm), width, EPS),
            norm_after_pool,
            pool,
            head: head(vision, width, embed_dim, "head", vars),
        }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(&self, images: &Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let batch = images.size()[0];
        let (tokens, packing) = self.embed.forward(images, mode, compute); // [N·T, W]
        let blocks = &self.blocks;
        let pooled = match &self.pool {
            Pool::Token => {
                let pooled = pooled_by_last(blocks, tokens, &packing, compute);
                self.norm.forward(&pooled, compute)
            }
            Pool::Map(pool) => {
                let x = all_tokens(blocks, tokens, &packing, compute);
                pool.forward(&self.norm.forward(&x, compute), batch, compute)
            }
            Pool::Avg => {
                let x = all_tokens(blocks, tokens, &packing, compute);
                if self.norm_after_pool {
                    self.norm.forward(&mean_of_patches(&x, &packing, self.prefix), compute)
                } else {
                    mean_of_patches(&self.norm.forward(&x, compute), &packing, self.prefix)
                }
            }
        }; // [N, W]
        self.head.forward(&pooled, compute)
    }
}

fn embed(vision: &VisionConfig, vit: &trunk::TrunkVit, trunk: &Vars<'_>) -> Embed {
    let trunk::TrunkVit { width, patch_size, class_token, .. } = *vit;
    let grid = vision.image_size / patch_size;
    let tokens = grid * grid + i64::from(class_token);
    let init = Init::torch_default(3 * patch_size * patch_size);
    let proj = trunk.sub("patch_embed").sub("proj");
    Embed {
        patch_size,
        grid,
        width,
        dropout: vision.patch_dropout,
        filters: proj.tensor("weight", &[width, 3, patch_size, patch_size], init),
        bias: Some(proj.tensor("bias", &[width], init)),
        class: class_token
            .then(|| trunk.embedding("cls_token", &[1, 1, width], Init::Normal(1e-6))),
        positions: trunk.embedding("pos_embed", &[1, tokens, width], Init::Normal(0.02)),
    }
}
