//! OpenCLIP's `VisionTransformer`.

use ringmaster_manifest::model_config::{
    DEFAULT_EPS, Layers, ModelConfig, PositionEmbedding, VisionConfig, VisionPool,
};
use tch::Tensor;

use super::super::block::{self, Block, all_tokens, pooled_by_last};
use super::super::clip::Mode;
use super::super::compute::{Activation, Compute};
use super::super::init::Init;
use super::super::layers::LayerNorm;
use super::super::mlp_width;
use super::super::packing::Packing;
use super::super::vars::Vars;
use super::embed::{Embed, mean_of_patches};
use super::pool::AttentionalPooler;

/// ViT with a class token.
#[derive(Debug)]
pub(super) struct VisionTransformer {
    pool_type: VisionPool,
    final_ln_after_pool: bool,
    embed: Embed,
    ln_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    attn_pool: Option<AttentionalPooler>,
    ln_post: LayerNorm,
    proj: Tensor,
}

impl VisionTransformer {
    /// Takes the parameters under `vars`, usually `visual.`.
    pub(super) fn new(config: &ModelConfig, vars: &Vars<'_>) -> Self {
        let (vision, embed_dim) = (&config.vision_cfg, config.embed_dim);
        let width = vision.width;
        let eps = vision.norm_kwargs.map_or(DEFAULT_EPS, |kwargs| kwargs.eps);
        let layers = match vision.layers {
            Layers::Blocks(layers) => layers,
            Layers::Stages(_) => unreachable!("four stages make a ResNet"),
        };
        let embed = embed(vision, vars);
        let ln_pre = (!vision.no_ln_pre).then(|| LayerNorm::new(&vars.sub("ln_pre"), width, eps));
        let attn_pool = vision.attentional_pool.then(|| {
            let (queries, heads) = (vision.attn_pooler_queries, vision.attn_pooler_heads);
            AttentionalPooler::new(&vars.sub("attn_pool"), embed_dim, width, queries, heads)
        });
        let pooled = if vision.attentional_pool { embed_dim } else { width };
        Self {
            pool_type: vision.pool_type,
            final_ln_after_pool: vision.final_ln_after_pool,
            embed,
            ln_pre,
            blocks: blocks(config, layers, eps, vars),
            attn_pool,
            ln_post: LayerNorm::new(&vars.sub("ln_post"), pooled, eps),
            proj: vars.tensor("proj", &[pooled, embed_dim], normal(width)),
        }
    }

    /// Shapes: images [N, 3, H, H] -> [N, E].
    pub(super) fn forward(&self, images: &Tensor, mode: &Mode<'_>, compute: &Compute) -> Tensor {
        let (tokens, packing) = self.embed.forward(images, mode, compute); // [N·T, W]
        let tokens = match &self.ln_pre {
            Some(norm) => norm.forward(&tokens, compute),
            None => tokens,
        };
        let pooled = self.pool(tokens, &packing, compute); // [N, W]
        compute.project(&pooled, &self.proj)
    }

    /// Runs the blocks and returns one vector per image, after the final LayerNorm.
    fn pool(&self, tokens: Tensor, packing: &Packing, compute: &Compute) -> Tensor {
        if let Some(pooler) = &self.attn_pool {
            let tokens = all_tokens(&self.blocks, tokens, packing, compute);
            return self.pool_queries(pooler, &tokens, packing, compute);
        }
        match self.pool_type {
            // One row each: before or after the LayerNorm is the same.
            VisionPool::Tok => {
                let pooled = pooled_by_last(&self.blocks, tokens, packing, compute);
                self.ln_post.forward(&pooled, compute)
            }
            VisionPool::Avg => {
                let x = all_tokens(&self.blocks, tokens, packing, compute);
                if self.final_ln_after_pool {
                    self.ln_post.forward(&mean_of_patches(&x, packing, 1), compute)
                } else {
                    mean_of_patches(&self.ln_post.forward(&x, compute), packing, 1)
                }
            }
        }
    }

    /// Pools by attention, then normalises, then takes the first query or the mean of the others:
    /// OpenCLIP's order, whatever `final_ln_after_pool` says.
    fn pool_queries(
        &self,
        pooler: &AttentionalPooler,
        tokens: &Tensor,
        packing: &Packing,
        compute: &Compute,
    ) -> Tensor {
        let batch = packing.groups()[0].rows;
        let queries = match self.pool_type {
            VisionPool::Tok => 0..1,
            VisionPool::Avg => 1..pooler.queries(),
        };
        let pooled = pooler.forward(tokens, batch, queries, compute); // [N, Q, E]
        self.ln_post.forward(&pooled, compute).mean_dim([1_i64].as_slice(), false, None)
    }
}

fn embed(vision: &VisionConfig, vars: &Vars<'_>) -> Embed {
    let VisionConfig { width, patch_size, image_size, patch_dropout, .. } = *vision;
    let grid = image_size / patch_size;
    let shape = [grid * grid + 1, width];
    let class = vars.embedding("class_embedding", &[width], normal(width));
    let positions = match vision.pos_embed_type {
        PositionEmbedding::Learnable => {
            vars.embedding("positional_embedding", &shape, normal(width))
        }
        PositionEmbedding::SinCos2d => {
            vars.fixed("positional_embedding", &shape, Init::SinCos2d { grid, width })
        }
    };
    let fan_in = 3 * patch_size * patch_size;
    let filters = [width, 3, patch_size, patch_size];
    Embed {
        patch_size,
        grid,
        width,
        dropout: patch_dropout,
        filters: vars.sub("conv1").tensor("weight", &filters, Init::torch_default(fan_in)),
        bias: None,
        class: Some(class),
        positions,
    }
}

fn blocks(config: &ModelConfig, layers: i64, eps: f64, vars: &Vars<'_>) -> Vec<Block> {
    let vision = &config.vision_cfg;
    let width = vision.width;
    let hidden = mlp_width(width, vision.mlp_ratio);
    let shape = block::Shape {
        width,
        heads: width / vision.head_width,
        hidden,
        eps,
        activation: Activation::of(config.quick_gelu, vision.act_kwargs),
        layer_scale: vision.ls_init_value,
    };
    let weights = block::Weights {
        in_proj: Init::xavier_uniform(3 * width, width),
        out_proj: Init::torch_default(width),
        c_fc: Init::torch_default(width),
        c_proj: Init::torch_default(hidden),
    };
    let vars = vars.sub("transformer").sub("resblocks");
    (0..layers).map(|index| Block::new(&vars.sub(index), &shape, &weights)).collect()
}

fn normal(width: i64) -> Init {
    Init::Normal((width as f64).powf(-0.5))
}
