//! The text tower: OpenCLIP's `TextTransformer`.

use ringmaster_manifest::model_config::{ModelConfig, TextConfig, TextPool};
use tch::{Kind, Tensor};

use super::layers::{Block, Compute, LayerNorm, parameter, pooled_by_last};
use super::packing::pack_text;
use super::params::Params;
use super::vision::look_up;
use super::{Error, shapes};

/// Transformer over token ids.
#[derive(Debug)]
pub(super) struct TextTower {
    config: TextConfig,
    token_embedding: Tensor,
    positional_embedding: Tensor,
    blocks: Vec<Block>,
    ln_final: LayerNorm,
    text_projection: Tensor,
}

impl TextTower {
    /// Takes the parameters at the root, or under `text.` with `custom_text`.
    pub(super) fn new(config: &ModelConfig, params: &Params) -> Self {
        let prefix = shapes::text_prefix(config);
        let config = config.text_cfg.clone();
        let part = |part: &str| parameter(params, &format!("{prefix}{part}"));
        let block = |index| format!("{prefix}transformer.resblocks.{index}");
        let heads = config.heads;
        Self {
            token_embedding: part("token_embedding.weight"),
            positional_embedding: part("positional_embedding"),
            blocks: (0..config.layers).map(|i| Block::new(params, &block(i), heads)).collect(),
            ln_final: LayerNorm::new(params, &format!("{prefix}ln_final")),
            text_projection: part("text_projection"),
            config,
        }
    }

    /// Shapes: tokens [N, L] i64 -> [N, E].
    pub(super) fn forward(&self, tokens: &Tensor, compute: &Compute) -> Result<Tensor, Error> {
        let length = self.config.context_length;
        let shape = tokens.size();
        if shape.len() != 2 || shape[1] != length || tokens.kind() != Kind::Int64 {
            let expected = format!("[N, {length}] of i64");
            return Err(Error::InputShape { input: "tokens", expected, found: shape });
        }
        let length = length as usize;
        let ids = self.checked_ids(tokens, length)?;
        let pooled_at: Vec<usize> = ids.chunks(length).map(|ids| self.pooled_at(ids)).collect();
        let causal = !self.config.no_causal_mask;
        let packed = pack_text(&ids, length, &pooled_at, causal, compute.product, compute.device);

        let x = look_up(&self.token_embedding, &packed.tokens, true)
            + look_up(&self.positional_embedding, &packed.positions, false); // [S, W]
        let pooled = pooled_by_last(&self.blocks, x, &packed.packing, compute); // [N, W]
        let pooled = self.ln_final.forward(&pooled.index_select(0, &packed.batch_order));
        Ok(compute.project(&pooled, &self.text_projection))
    }

    /// Copies the ids to the host, where captions are packed.
    fn checked_ids(&self, tokens: &Tensor, length: usize) -> Result<Vec<i64>, Error> {
        let mut ids = vec![0_i64; tokens.numel()];
        tokens.contiguous().copy_data(&mut ids, tokens.numel());
        let vocab_size = self.config.vocab_size;
        let outside = ids.iter().position(|id| !(0..vocab_size).contains(id));
        match outside {
            None => Ok(ids),
            Some(at) => {
                let (row, position) = (at / length, at % length);
                Err(Error::Token { row, position, id: ids[at], vocab_size })
            }
        }
    }

    /// Returns the position that becomes the embedding of a caption.
    fn pooled_at(&self, ids: &[i64]) -> usize {
        match self.config.pool_type {
            TextPool::First => 0,
            TextPool::Last => ids.len() - 1,
            // The first of equals, as torch's argmax on a CPU.
            TextPool::Argmax => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest).unwrap_or(0)
            }
        }
    }
}
