//! OpenCLIP's `TextTransformer`.

use ringmaster_manifest::model_config::{
    DEFAULT_EPS, ModelConfig, TextConfig, TextPool, TextProjection,
};
use tch::Tensor;

use super::super::block::{self, Block, pooled_by_last};
use super::super::compute::{Activation, Compute};
use super::super::init::Init;
use super::super::layers::{LayerNorm, Linear};
use super::super::mlp_width;
use super::super::packing::pack_text;
use super::super::vars::Vars;
use super::look_up;

/// Transformer over token ids.
#[derive(Debug)]
pub(super) struct TextTransformer {
    causal: bool,
    pool_type: TextPool,
    eos_id: i64,
    token_embedding: Tensor,
    positional_embedding: Tensor,
    blocks: Vec<Block>,
    ln_final: LayerNorm,
    projection: Projection,
}

/// From the pooled token to the embedding.
#[derive(Debug)]
enum Projection {
    /// x P, with P [W, E].
    Matrix(Tensor),
    /// x Wᵀ + b.
    Linear(Linear),
    /// x.
    None,
}

impl TextTransformer {
    /// Takes the parameters under `vars`.
    pub(super) fn new(config: &ModelConfig, vars: &Vars<'_>) -> Self {
        let text = &config.text_cfg;
        let width = text.width;
        let eps = text.norm_kwargs.map_or(DEFAULT_EPS, |kwargs| kwargs.eps);
        let tokens = [text.vocab_size, width];
        let positions = [text.context_length, width];
        Self {
            causal: !text.no_causal_mask,
            pool_type: text.pool_type,
            eos_id: text.eos_id,
            token_embedding: vars.sub("token_embedding").tensor(
                "weight",
                &tokens,
                Init::Normal(0.02),
            ),
            positional_embedding: vars.embedding(
                "positional_embedding",
                &positions,
                Init::Normal(0.01),
            ),
            blocks: blocks(config, eps, vars),
            ln_final: LayerNorm::new(&vars.sub("ln_final"), width, eps),
            projection: projection(text, config.embed_dim, vars),
        }
    }

    /// Computes captions of `length` ids each. Returns [N, E].
    pub(super) fn forward(&self, ids: &[i64], length: usize, compute: &Compute) -> Tensor {
        let pooled_at: Vec<usize> = ids.chunks(length).map(|ids| self.pooled_at(ids)).collect();
        let (product, device) = (compute.product, compute.device);
        let packed = pack_text(ids, length, &pooled_at, self.causal, product, device);
        let x = look_up(&self.token_embedding, &packed.tokens, true)
            + look_up(&self.positional_embedding, &packed.positions, false); // [S, W]
        let pooled = pooled_by_last(&self.blocks, x, &packed.packing, compute); // [N, W]
        let pooled = pooled.index_select(0, &packed.batch_order);
        let pooled = self.ln_final.forward(&pooled, compute);
        match &self.projection {
            Projection::Matrix(matrix) => compute.project(&pooled, matrix),
            Projection::Linear(linear) => compute.widen(&linear.forward(&pooled, compute)),
            Projection::None => pooled,
        }
    }

    /// Returns the position that becomes the embedding of a caption.
    fn pooled_at(&self, ids: &[i64]) -> usize {
        match self.pool_type {
            TextPool::First => 0,
            TextPool::Last => ids.len() - 1,
            // The first of equals, as torch's argmax on a CPU.
            TextPool::Argmax => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
            TextPool::Eos => ids.iter().position(|id| *id == self.eos_id).unwrap_or(0),
        }
    }
}

fn blocks(config: &ModelConfig, eps: f64, vars: &Vars<'_>) -> Vec<Block> {
    let text = &config.text_cfg;
    let width = text.width;
    let shape = block::Shape {
        width,
        heads: text.heads,
        hidden: mlp_width(width, text.mlp_ratio),
        eps,
        activation: Activation::of(config.quick_gelu, text.act_kwargs),
        layer_scale: text.ls_init_value,
    };
    let scale = (width as f64).powf(-0.5);
    let depth = (2.0 * text.layers as f64).powf(-0.5);
    let weights = block::Weights {
        in_proj: Init::Normal(scale),
        out_proj: Init::Normal(scale * depth),
        c_fc: Init::Normal((2.0 * width as f64).powf(-0.5)),
        c_proj: Init::Normal(scale * depth),
    };
    let vars = vars.sub("transformer").sub("resblocks");
    (0..text.layers).map(|index| Block::new(&vars.sub(index), &shape, &weights)).collect()
}

fn projection(text: &TextConfig, embed_dim: i64, vars: &Vars<'_>) -> Projection {
    let width = text.width;
    let init = Init::Normal((width as f64).powf(-0.5));
    match (text.proj_type, text.proj_bias) {
        (TextProjection::None, _) => Projection::None,
        (TextProjection::Linear, false) => {
            Projection::Matrix(vars.tensor("text_projection", &[width, embed_dim], init))
        }
        (TextProjection::Linear, true) => {
            let vars = vars.sub("text_projection");
            let zero = Some(Init::Constant(0.0));
            Projection::Linear(Linear::new(&vars, width, embed_dim, init, zero))
        }
    }
}
