//! Hugging Face's RoBERTa and XLM-RoBERTa (arXiv:1907.11692, arXiv:1911.02116), as OpenCLIP's
//! `HFTextEncoder` uses them.
//!
//! Padding is neither attended to, nor counted in positions, nor pooled; so it is dropped, and
//! captions lie packed. In training a share of the values falls behind the embeddings, behind attention
//! and behind the MLP, and a share of attention's weights.

use ringmaster_manifest::model_config::TextConfig;
use ringmaster_manifest::model_config::hugging_face::HfConfig;
use ringmaster_manifest::model_config::text::{HfPooler, HfProjection};
use tch::{Device, Tensor};

use super::super::Error;
use super::super::block::{attend_within, concatenate, mask_of};
use super::super::clip::Mode;
use super::super::compute::{Activation, Compute, heads_first};
use super::super::dropout::{Dropout, Rates, token_key};
use super::super::init::Init;
use super::super::layers::{LayerNorm, Linear};
use super::super::packing::{PackedText, PackedToken, Packing, pack_unpadded};
use super::super::projection::Projection;
use super::super::vars::Vars;
use super::look_up;

/// Deviation of initial weights (`initializer_range`).
const DEVIATION: f64 = 0.02;

/// Post-norm transformer over token ids, its pooling and projection.
#[derive(Debug)]
pub(super) struct Roberta {
    pad_token_id: i64,
    rates: Rates,
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
            rates: Rates {
                hidden: tower.hidden_dropout_prob,
                attention: tower.attention_probs_dropout_prob,
            },
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
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<Tensor, Error> {
        // A launch per group costs a GPU more than the padding saved.
        let filled = compute.device != Device::Cpu;
        let packed = self.pack(ids, length, filled, mode, compute)?;
        let keys = packed.keys.as_ref().filter(|_| !self.rates.are_idle(mode));
        let dropout = keys.map(|keys| Dropout::new(keys, self.rates));
        Ok(self.embed(&packed, dropout.as_ref(), compute))
    }

    /// Computes packed captions. Returns [N, E].
    fn embed(&self, packed: &PackedText, dropout: Option<&Dropout>, compute: &Compute) -> Tensor {
        let kinds = self.token_type_embeddings.select(0, 0); // [W]
        let x = look_up(&self.word_embeddings, &packed.tokens, true)
            + look_up(&self.position_embeddings, &packed.positions, false)
            + kinds;
        let mut x = thin_out(self.norm.forward(&x, compute), dropout, 0); // [S, W]
        for (index, layer) in self.layers.iter().enumerate() {
            // A site of its own for attention's weights and each of the two branches.
            x = layer.forward(&x, packed, dropout, 1 + 3 * index as u64, compute);
        }
        let pooled = self.pool(&x, packed, compute).index_select(0, &packed.batch_order);
        self.projection.forward(&pooled, compute)
    }

    /// Packs the tokens that are no padding; positions count from the one behind the padding's.
    fn pack(
        &self,
        ids: &[i64],
        length: usize,
        filled: bool,
        mode: &Mode<'_>,
        compute: &Compute,
    ) -> Result<PackedText, Error> {
        let idle = self.rates.are_idle(mode);
        let mut rows = Vec::with_capacity(ids.len() / length.max(1));
        for (row, ids) in ids.chunks(length).enumerate() {
            let kept = ids.iter().copied().filter(|id| *id != self.pad_token_id);
            let packed = |(index, token): (usize, i64)| PackedToken {
                token,
                position: self.pad_token_id + 1 + index as i64,
                key: if idle { 0 } else { token_key(mode, row, index) },
            };
            let kept: Vec<PackedToken> = kept.enumerate().map(packed).collect();
            if kept.is_empty() {
                return Err(Error::OnlyPadding { row, pad_id: self.pad_token_id });
            }
            rows.push(kept);
        }
        let padding = PackedToken { token: self.pad_token_id, position: self.pad_token_id, key: 0 };
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

    /// Shapes: x [S, W] -> [S, W]. `site` is the first of three that are its own.
    fn forward(
        &self,
        x: &Tensor,
        packed: &PackedText,
        dropout: Option<&Dropout>,
        site: u64,
        compute: &Compute,
    ) -> Tensor {
        let qkv = self.qkv.each_ref().map(|linear| linear.forward(x, compute));
        let qkv = Tensor::cat(&qkv, 1); // [S, 3W]
        let attended = match dropout {
            None => attend_within(&qkv, &packed.packing, self.heads, compute),
            Some(dropout) => self.attend_dropping(&qkv, &packed.packing, dropout, site, compute),
        };
        let branch = thin_out(self.out.forward(&attended, compute), dropout, site + 1);
        let x = self.norm_1.forward(&(x + branch), compute);
        let hidden = Activation::Gelu.apply(&self.expand.forward(&x, compute));
        let branch = thin_out(self.contract.forward(&hidden, compute), dropout, site + 2);
        self.norm_2.forward(&(&x + branch), compute)
    }

    /// As [`attend_within`], written out, as the fused kernels draw masks of their own. Shapes:
    /// qkv [S, 3W] -> [S, W].
    fn attend_dropping(
        &self,
        qkv: &Tensor,
        packing: &Packing,
        dropout: &Dropout,
        site: u64,
        compute: &Compute,
    ) -> Tensor {
        let mut attended = Vec::with_capacity(packing.groups().len());
        let mut begin = 0;
        for (group, qkv) in packing.groups().iter().zip(packing.split(qkv)) {
            let parts = qkv.chunk(3, -1); // three of [rows·len, W]
            let part = |index: usize| heads_first(&parts[index], group.rows, self.heads);
            let tokens = begin..begin + group.rows * group.len;
            begin = tokens.end;
            let dropped = |weights: &Tensor| dropout.attention(weights, tokens.clone(), site);
            let qkv = [&part(0), &part(1), &part(2)];
            let group = compute.attend_with(qkv, &mask_of(group, packing), dropped);
            attended.push(group.flatten(0, 1));
        }
        concatenate(attended)
    }
}

/// Returns `x` with a share of its values dropped, where there is dropout.
fn thin_out(x: Tensor, dropout: Option<&Dropout>, site: u64) -> Tensor {
    match dropout {
        None => x,
        Some(dropout) => dropout.hidden(&x, site),
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

    const IDS: [i64; 18] = [0, 5, 6, 2, 1, 1, 0, 7, 2, 1, 1, 1, 0, 8, 9, 4, 3, 2];

    fn tower() -> HfConfig {
        HfConfig {
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
            hidden_dropout_prob: 0.2,
            attention_probs_dropout_prob: 0.3,
        }
    }

    /// A tower in f64.
    fn roberta(tower: &HfConfig, pooler: HfPooler) -> (Params, Roberta) {
        let text = TextConfig { hf_pooler_type: Some(pooler), ..TextConfig::default() };
        let make = |vars: &Vars<'_>| Roberta::new(tower, &text, 6, &vars.of(Tower::Text));
        let specs = vars::list(|vars| drop(make(vars)));
        let params = Params::new(specs, Kind::Double, Device::Cpu, 3);
        let roberta = vars::build(&params, make);
        (params, roberta)
    }

    const F64: Compute =
        Compute { product: Kind::Double, stream: Kind::Double, device: Device::Cpu };

    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn captions_filled_up_give_what_captions_grouped_by_length_give() {
        let train = Mode::Train { seed: 1, step: 2, rows: &[7, 8, 9] };
        for pooler in [HfPooler::Mean, HfPooler::ClsLastHiddenState] {
            for mode in [Mode::Eval, train] {
                let (_params, roberta) = roberta(&tower(), pooler);
                let embed = |filled| {
                    let packed = roberta.pack(&IDS, 6, filled, &mode, &F64).unwrap();
                    let dropout = Dropout::new(packed.keys.as_ref().unwrap(), roberta.rates);
                    let dropout = Some(&dropout).filter(|_| !roberta.rates.are_idle(&mode));
                    roberta.embed(&packed, dropout, &F64)
                };
                let difference = difference(&embed(true), &embed(false));
                assert!(difference < 1e-12, "{pooler:?} {mode:?}: {difference}");
            }
        }
    }

    #[test]
    fn dropout_belongs_to_step_and_row_and_is_for_training_alone() {
        let (_params, trained) = roberta(&tower(), HfPooler::Mean);
        let embed = |roberta: &Roberta, ids: &[i64], mode: Mode<'_>| {
            roberta.forward(ids, 6, &mode, &F64).unwrap()
        };
        let at = |step| Mode::Train { seed: 1, step, rows: &[7, 8, 9] };
        let together = embed(&trained, &IDS, at(4));
        assert_eq!(together, embed(&trained, &IDS, at(4)), "a second pass finds the same masks");
        assert!(difference(&together, &embed(&trained, &IDS, at(5))) > 1e-4);
        assert!(difference(&together, &embed(&trained, &IDS, Mode::Eval)) > 1e-4);
        for (index, row) in [7, 8, 9].into_iter().enumerate() {
            let mode = Mode::Train { seed: 1, step: 4, rows: &[row] };
            let alone = embed(&trained, &IDS[index * 6..][..6], mode);
            let together = together.narrow(0, index as i64, 1);
            assert!(difference(&alone, &together) < 1e-12, "row {row} in a batch of its own");
        }
        let still =
            HfConfig { hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0, ..tower() };
        let (_params, still) = roberta(&still, HfPooler::Mean);
        assert_eq!(embed(&still, &IDS, at(4)), embed(&still, &IDS, Mode::Eval));
    }

    #[test]
    fn both_kinds_of_dropout_are_applied() {
        let eval = |tower: &HfConfig, mode: &Mode<'_>| {
            let (_params, roberta) = roberta(tower, HfPooler::Mean);
            roberta.forward(&IDS, 6, mode, &F64).unwrap()
        };
        let train = Mode::Train { seed: 1, step: 4, rows: &[7, 8, 9] };
        let only = |hidden, attention| HfConfig {
            hidden_dropout_prob: hidden,
            attention_probs_dropout_prob: attention,
            ..tower()
        };
        let plain = eval(&tower(), &Mode::Eval);
        for tower in [only(0.2, 0.0), only(0.0, 0.3)] {
            assert!(difference(&eval(&tower, &train), &plain) > 1e-4);
        }
        // No layer at all: only the embeddings' own dropout is left.
        let bare = HfConfig { num_hidden_layers: 0, ..only(0.2, 0.0) };
        assert!(difference(&eval(&bare, &train), &eval(&bare, &Mode::Eval)) > 1e-4);
    }

    #[test]
    fn a_caption_of_padding_alone_is_refused() {
        let (_params, roberta) = roberta(&tower(), HfPooler::Mean);
        let error = roberta.forward(&[1; 6], 6, &Mode::Eval, &F64).unwrap_err();
        assert!(matches!(error, Error::OnlyPadding { row: 0, pad_id: 1 }), "{error}");
    }
}
