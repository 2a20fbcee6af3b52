//! OpenCLIP's forward pass written out plainly, for tests: a convolution, full-length captions,
//! every token of every block, explicit softmax, dense gradients.

use ringmaster_manifest::model_config::{Layers, ModelConfig, TextPool, VisionPool};
use tch::{Kind, Tensor};

use crate::model::{Mode, Params, vision};

/// A model's parameters under another forward pass.
pub(super) struct Reference<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) params: &'a Params,
}

impl Reference<'_> {
    pub(super) fn encode_image(&self, images: &Tensor, mode: &Mode<'_>) -> Tensor {
        let cfg = &self.config.vision_cfg;
        let batch = images.size()[0];
        let x = images.conv2d::<Tensor>(
            &self.get("visual.conv1.weight"),
            None,
            [cfg.patch_size; 2],
            [0, 0],
            [1, 1],
            1,
        );
        let x = x.flatten(2, 3).transpose(1, 2); // [N, g², W]
        let class = self.get("visual.class_embedding").expand([batch, 1, cfg.width], false);
        let x = Tensor::cat(&[class, x], 1) + self.get("visual.positional_embedding");
        let grid = (cfg.image_size / cfg.patch_size).pow(2);
        let x = match vision::kept(mode, grid, cfg.patch_dropout) {
            None => x,
            Some(kept) => {
                let rows = kept.iter().zip(0..).map(|(kept, row)| {
                    let places: Vec<i64> =
                        std::iter::once(0).chain(kept.iter().map(|place| place + 1)).collect();
                    x.select(0, row).index_select(0, &Tensor::from_slice(&places))
                });
                Tensor::stack(&rows.collect::<Vec<_>>(), 0)
            }
        };
        let x = if cfg.no_ln_pre { x } else { self.layer_norm(&x, "visual.ln_pre") };
        let heads = cfg.width / cfg.head_width;
        let Layers::Blocks(layers) = cfg.layers else {
            panic!("{:?} is no transformer", cfg.layers)
        };
        let x = self.blocks(x, "visual.", layers, heads, false);
        let pool = |x: &Tensor| match cfg.pool_type {
            VisionPool::Tok => x.select(1, 0),
            VisionPool::Avg => {
                x.narrow(1, 1, x.size()[1] - 1).mean_dim([1_i64].as_slice(), false, None)
            }
        };
        let pooled = if cfg.final_ln_after_pool {
            self.layer_norm(&pool(&x), "visual.ln_post")
        } else {
            pool(&self.layer_norm(&x, "visual.ln_post"))
        };
        pooled.matmul(&self.get("visual.proj"))
    }

    pub(super) fn encode_text(&self, tokens: &Tensor) -> Tensor {
        let text = &self.config.text_cfg;
        let prefix = if self.config.has_text_prefix() { "text." } else { "" };
        let name = |part: &str| format!("{prefix}{part}");
        let table = self.get(&name("token_embedding.weight"));
        let x = table.index_select(0, &tokens.flatten(0, 1)).view([
            tokens.size()[0],
            text.context_length,
            text.width,
        ]);
        let x = x + self.get(&name("positional_embedding"));
        let x = self.blocks(x, prefix, text.layers, text.heads, !text.no_causal_mask);
        let x = self.layer_norm(&x, &name("ln_final"));
        let pooled = match text.pool_type {
            TextPool::First => x.select(1, 0),
            TextPool::Last => x.select(1, -1),
            TextPool::Eos => panic!("the golden files cover this"),
            TextPool::Argmax => {
                let places = tokens.argmax(-1, false).view([-1, 1, 1]);
                x.gather(1, &places.expand([-1, 1, text.width], false), false).squeeze_dim(1)
            }
        };
        pooled.matmul(&self.get(&name("text_projection")))
    }

    fn blocks(&self, x: Tensor, prefix: &str, layers: i64, heads: i64, causal: bool) -> Tensor {
        (0..layers).fold(x, |x, index| {
            self.block(&x, &format!("{prefix}transformer.resblocks.{index}"), heads, causal)
        })
    }

    fn block(&self, x: &Tensor, prefix: &str, heads: i64, causal: bool) -> Tensor {
        let (batch, length, width) = x.size3().unwrap();
        let name = |part: &str| format!("{prefix}.{part}");
        let normed = self.layer_norm(x, &name("ln_1"));
        let qkv = normed.matmul(&self.get(&name("attn.in_proj_weight")).tr())
            + self.get(&name("attn.in_proj_bias"));
        let qkv = qkv.view([batch, length, 3, heads, width / heads]).permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2));
        let scores = q.matmul(&k.transpose(-2, -1)) / ((width / heads) as f64).sqrt();
        let scores = if causal {
            let mask = Tensor::ones([length, length], (Kind::Bool, x.device())).triu(1);
            scores.masked_fill(&mask, f64::NEG_INFINITY)
        } else {
            scores
        };
        let attended = scores.softmax(-1, None).matmul(&v);
        let attended = attended.transpose(1, 2).reshape([batch, length, width]);
        let x = x + self.linear(&attended, &name("attn.out_proj"));
        let hidden = self.linear(&self.layer_norm(&x, &name("ln_2")), &name("mlp.c_fc"));
        let hidden = if self.config.quick_gelu {
            &hidden * (&hidden * 1.702).sigmoid()
        } else {
            &hidden * 0.5 * (1.0 + (&hidden / 2.0_f64.sqrt()).erf())
        };
        &x + self.linear(&hidden, &name("mlp.c_proj"))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Tensor {
        x.matmul(&self.get(&format!("{name}.weight")).tr()) + self.get(&format!("{name}.bias"))
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Tensor {
        let mean = x.mean_dim([-1_i64].as_slice(), true, None);
        let centred = x - mean;
        let variance = centred.square().mean_dim([-1_i64].as_slice(), true, None);
        centred / (variance + 1e-5).sqrt() * self.get(&format!("{name}.weight"))
            + self.get(&format!("{name}.bias"))
    }

    fn get(&self, name: &str) -> Tensor {
        self.params.get(name).unwrap().shallow_clone()
    }
}
