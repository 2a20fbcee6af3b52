//! Hugging Face's RoBERTa and XLM-RoBERTa (arXiv:1907.11692, arXiv:1911.02116), as OpenCLIP's
//! `HFTextEncoder` uses them.
//!
//! Padding is neither attended to, nor counted in positions, nor pooled; so it is dropped, and
//! captions lie packed. The towers' dropout is not applied in training.

use ringmaster_manifest::model_config::TextConfig;
use ringmaster_manifest::model_config::hugging_face::HfConfig;
use ringmaster_manifest::model_config::text::{HfPooler, HfProjection};
use tch::{Device, Tensor};

use super::super::Error;
use super::super::block::attend_within;
use super::super::compute::{Activation, Compute};
use super::super::init::Init;
use super::super::layers::{LayerNorm, Linear};
use super::super::packing::{PackedText, pack_unpadded};
use super::super::projection::Projection;
use super::super::vars::Vars;
use super::look_up;

/// Deviation of initial weights (`initializer_range`).
const DEVIATION: f64 = 0.02;

/// Post-norm transformer over token ids, its pooling and projection.
#[derive(Debug)]
pub(super) struct Roberta {
    pad_token_id: i64,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Pooler,
    projection: Projection,
}

/// x = LN(x + attention(x)), then LN(x + MLP(x)).
#[derive(Debug)]
struct Layer {
    heads: i64,
    qkv: [Linear; 3],
    out: Linear,
    norm_1: LayerNorm,
    expand: Linear,
    contract: Linear,
    norm_2: LayerNorm,
}

#[derive(Debug)]
enum Pooler {
    /// The mean of the tokens.
    Mean,
    /// The first token, and what follows it.
    First(Option<Linear>),
}

impl Roberta {
    /// Takes the parameters under `vars`, usually `text.`.
    pub(super) fn new(
        tower: &HfConfig,
        text: &TextConfig,
        embed_dim: i64,
        vars: &Vars<'_>,
    ) -> Self {
        let (width, pad) = (tower.hidden_size, tower.pad_token_id);
        let transformer = vars.sub("transformer");
        let embeddings = transformer.sub("embeddings");
        // The row of padding starts, and stays, at zero.
        let padded = Init::NormalWithZeroRow { deviation: DEVIATION, row: pad, width };
        let rows = tower.max_position_embeddings;
        let layers = transformer.sub("encoder").sub("layer");
        let pooler = match text.hf_pooler_type.unwrap_or(HfPooler::Mean) {
            HfPooler::Mean => Pooler::Mean,
            HfPooler::ClsLastHiddenState => Pooler::First(None),
            HfPooler::Cls => {
                let dense = transformer.sub("pooler").sub("dense");
                Pooler::First(Some(Linear::small(&dense, width, width)))
            }
        };
        Self {
            pad_token_id: pad,
            word_embeddings: embeddings.sub("word_embeddings").tensor(
                "weight",
                &[tower.vocab_size, width],
                padded,
            ),
            position_embeddings: embeddings.sub("position_embeddings").embedding(
                "weight",
                &[rows, width],
                padded,
            ),
            token_type_embeddings: embeddings.sub("token_type_embeddings").embedding(
                "weight",
                &[tower.type_vocab_size, width],
                Init::Normal(DEVIATION),
            ),
            norm: LayerNorm::new(&embeddings.sub("LayerNorm"), width, tower.layer_norm_eps),
            layers: (0..tower.num_hidden_layers)
                .map(|index| Layer::new(&layers.sub(index), tower))
                .collect(),
            pooler,
            projection: projection(&vars.sub("proj"), text.hf_proj_type, width, embed_dim),
        }
    }

    /// Computes captions of `length` ids each. Returns [N, E].
    pub(super) fn forward(
        &self,
        ids: &[i64],
        length: usize,
        compute: &Compute,
    ) -> Result<Tensor, Error> {
        // A launch per group costs a GPU more than the padding saved.
        let filled = compute.device != Device::Cpu;
        Ok(self.embed(&self.pack(ids, length, filled, compute)?, compute))
    }

    /// Computes packed captions. Returns [N, E].
    fn embed(&self, packed: &PackedText, compute: &Compute) -> Tensor {
        let kinds = self.token_type_embeddings.select(0, 0); // [W]
        let x = look_up(&self.word_embeddings, &packed.tokens, true)
            + look_up(&self.position_embeddings, &packed.positions, false)
            + kinds;
        let x = self.norm.forward(&x, compute); // [S, W]
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(&x, packed, compute));
        let pooled = self.pool(&x, packed, compute).index_select(0, &packed.batch_order);
        self.projection.forward(&pooled, compute)
    }

    /// Packs the tokens that are no padding; positions count from the one behind the padding's.
    fn pack(
        &self,
        ids: &[i64],
        length: usize,
        filled: bool,
        compute: &Compute,
    ) -> Result<PackedText, Error> {
        let mut rows = Vec::with_capacity(ids.len() / length.max(1));
        for (row, ids) in ids.chunks(length).enumerate() {
            let kept = ids.iter().copied().filter(|id| *id != self.pad_token_id);
            let kept: Vec<(i64, i64)> = kept.zip(self.pad_token_id + 1..).collect();
            if kept.is_empty() {
                return Err(Error::OnlyPadding { row, pad_id: self.pad_token_id });
            }
            rows.push(kept);
        }
        let padding = (self.pad_token_id, self.pad_token_id);
        Ok(pack_unpadded(&rows, padding, filled, compute.product, compute.device))
    }

    /// Returns one vector per caption, in packed order. Shapes: x [S, W] -> [N, W].
    fn pool(&self, x: &Tensor, packed: &PackedText, compute: &Compute) -> Tensor {
        let packing = &packed.packing;
        match &self.pooler {
            Pooler::Mean => {
                let means = packing.split(x).into_iter().zip(packing.groups()).map(|(x, group)| {
                    let x = x.view([group.rows, group.len, -1]);
                    match &group.key_mask {
                        None => x.mean_dim([1_i64].as_slice(), false, None),
                        Some(mask) => {
                            // 1 where a token counts: the mask adds 0 there, -inf elsewhere.
                            let counts = mask.exp().to_kind(x.kind()).view([group.rows, -1, 1]);
                            let sum =
                                |x: Tensor| x.sum_dim_intlist([1_i64].as_slice(), false, None);
                            sum(x * &counts) / sum(counts.to_kind(compute.stream))
                        }
                    }
                });
                Tensor::cat(&means.collect::<Vec<_>>(), 0)
            }
            Pooler::First(dense) => {
                let first = packing.pooled(x);
                match dense {
                    None => first,
                    Some(dense) => compute.widen(&dense.forward(&first, compute)).tanh(),
                }
            }
        }
    }
}

impl Layer {
    fn new(vars: &Vars<'_>, tower: &HfConfig) -> Self {
        let (width, hidden) = (tower.hidden_size, tower.intermediate_size);
        let eps = tower.layer_norm_eps;
        let attention = vars.sub("attention");
        let own = attention.sub("self");
        let (output, mlp) = (attention.sub("output"), vars.sub("output"));
        Self {
            heads: tower.num_attention_heads,
            qkv: ["query", "key", "value"].map(|name| Linear::small(&own.sub(name), width, width)),
            out: Linear::small(&output.sub("dense"), width, width),
            norm_1: LayerNorm::new(&output.sub("LayerNorm"), width, eps),
            expand: Linear::small(&vars.sub("intermediate").sub("dense"), width, hidden),
            contract: Linear::small(&mlp.sub("dense"), hidden, width),
            norm_2: LayerNorm::new(&mlp.sub("LayerNorm"), width, eps),
        }
    }

    /// Shapes: x [S, W] -> [S, W].
    fn forward(&self, x: &Tensor, packed: &PackedText, compute: &Compute) -> Tensor {
        let qkv = self.qkv.each_ref().map(|linear| linear.forward(x, compute));
        let qkv = Tensor::cat(&qkv, 1); // [S, 3W]
        let attended = attend_within(&qkv, &packed.packing, self.heads, compute);
        let x = self.norm_1.forward(&(x + self.out.forward(&attended, compute)), compute);
        let hidden = Activation::Gelu.apply(&self.expand.forward(&x, compute));
        self.norm_2.forward(&(&x + self.contract.forward(&hidden, compute)), compute)
    }
}

/// Takes the projection's parameters under `vars`.
fn projection(
    vars: &Vars<'_>,
    kind: Option<HfProjection>,
    width: i64,
    embed_dim: i64,
) -> Projection {
    match kind {
        None => Projection::None,
        Some(HfProjection::Linear) => {
            Projection::Linear(Linear::torch(vars, width, embed_dim, false))
        }
        Some(HfProjection::Mlp) => {
            let hidden = i64::midpoint(width, embed_dim);
            Projection::Mlp(
                Linear::torch(&vars.sub(0), width, hidden, false),
                Linear::torch(&vars.sub(2), hidden, embed_dim, false),
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_manifest::model_config::hugging_face::HfModelType;
    use tch::Kind;

    use super::super::super::Tower;
    use super::super::super::params::Params;
    use super::super::super::vars;
    use super::*;

    #[test]
    fn captions_filled_up_give_what_captions_grouped_by_length_give() {
        let tower = HfConfig {
            model_type: HfModelType::Roberta,
            vocab_size: 20,
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 12,
            max_position_embeddings: 10,
            type_vocab_size: 1,
            layer_norm_eps: 1e-5,
            pad_token_id: 1,
        };
        let ids = [0, 5, 6, 2, 1, 1, 0, 7, 2, 1, 1, 1, 0, 8, 9, 4, 3, 2];
        for pooler in [HfPooler::Mean, HfPooler::ClsLastHiddenState] {
            let text = TextConfig { hf_pooler_type: Some(pooler), ..TextConfig::default() };
            let make = |vars: &Vars<'_>| Roberta::new(&tower, &text, 6, &vars.of(Tower::Text));
            let specs = vars::list(|vars| drop(make(vars)));
            let params = Params::new(specs, Kind::Double, Device::Cpu, 3);
            let roberta = vars::build(&params, make);
            let kind = Kind::Double;
            let compute = Compute { product: kind, stream: kind, device: Device::Cpu };
            let embed =
                |filled| roberta.embed(&roberta.pack(&ids, 6, filled, &compute).unwrap(), &compute);
            let difference = (embed(true) - embed(false)).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "{pooler:?}: {difference}");
        }
        let compute = Compute { product: Kind::Float, stream: Kind::Float, device: Device::Cpu };
        let text = TextConfig::default();
        let make = |vars: &Vars<'_>| Roberta::new(&tower, &text, 6, &vars.of(Tower::Text));
        let params = Params::new(vars::list(|vars| drop(make(vars))), Kind::Float, Device::Cpu, 3);
        let error = vars::build(&params, make).forward(&[1; 6], 6, &compute).unwrap_err();
        assert!(matches!(error, Error::OnlyPadding { row: 0, pad_id: 1 }), "{error}");
    }
}
