//! Pools that attend: learned queries over an image's tokens.

use std::ops::Range;

use tch::Tensor;

use super::super::compute::{Activation, Compute, Mask, heads_first};
use super::super::init::Init;
use super::super::layers::{LayerNorm, Linear};
use super::super::vars::Vars;

/// OpenCLIP's `AttentionalPooler` (CoCa, arXiv:2205.01917): multi-head attention of learned
/// queries over all tokens.
#[derive(Debug)]
pub(super) struct AttentionalPooler {
    width: i64,
    queries: i64,
    heads: i64,
    query: Tensor,
    ln_q: LayerNorm,
    ln_k: LayerNorm,
    in_proj: InProj,
    in_proj_bias: Tensor,
    out_proj: Linear,
}

/// The matrices of torch's `MultiheadAttention`.
#[derive(Debug)]
enum InProj {
    /// Of queries, keys and values, one below the other: where all have the same width.
    Fused(Tensor),
    /// One each.
    Split([Tensor; 3]),
}

impl AttentionalPooler {
    /// Eps of its LayerNorms, which the tower's `norm_kwargs` do not reach.
    const EPS: f64 = 1e-5;

    /// Takes `queries` learned queries of `width` values over tokens of `context` values.
    pub(super) fn new(vars: &Vars<'_>, width: i64, context: i64, queries: i64, heads: i64) -> Self {
        let attn = vars.sub("attn");
        let matrix = |name: &str, outputs, inputs| {
            attn.tensor(name, &[outputs, inputs], Init::xavier_uniform(outputs, inputs))
        };
        let in_proj = if width == context {
            InProj::Fused(matrix("in_proj_weight", 3 * width, width))
        } else {
            InProj::Split([
                matrix("q_proj_weight", width, width),
                matrix("k_proj_weight", width, context),
                matrix("v_proj_weight", width, context),
            ])
        };
        let zero = Init::Constant(0.0);
        let out_proj = attn.sub("out_proj");
        Self {
            width,
            queries,
            heads,
            query: vars.tensor("query", &[queries, width], Init::Normal(1.0)),
            ln_q: LayerNorm::new(&vars.sub("ln_q"), width, Self::EPS),
            ln_k: LayerNorm::new(&vars.sub("ln_k"), context, Self::EPS),
            in_proj,
            in_proj_bias: attn.tensor("in_proj_bias", &[3 * width], zero),
            out_proj: Linear::new(&out_proj, width, width, Init::torch_default(width), Some(zero)),
        }
    }

    /// Returns how many queries there are.
    pub(super) fn queries(&self) -> i64 {
        self.queries
    }

    /// Computes the `queries` asked for. Shapes: tokens [N·T, C] of `batch` images -> [N, Q, W].
    pub(super) fn forward(
        &self,
        tokens: &Tensor,
        batch: i64,
        queries: Range<i64>,
        compute: &Compute,
    ) -> Tensor {
        let tokens = self.ln_k.forward(tokens, compute);
        let query = self.query.narrow(0, queries.start, queries.end - queries.start);
        let query = self.ln_q.forward(&query, compute); // [Q, W]
        let [q, k, v] = self.project([&query, &tokens, &tokens], compute);
        let q = heads_first(&q, 1, self.heads).expand([batch, -1, -1, -1], false);
        let (k, v) = (heads_first(&k, batch, self.heads), heads_first(&v, batch, self.heads));
        let attended = compute.attend(&q, &k, &v, &Mask::None); // [N, Q, W]
        self.out_proj.forward(&attended, compute)
    }

    fn project(&self, inputs: [&Tensor; 3], compute: &Compute) -> [Tensor; 3] {
        [0, 1, 2].map(|part: usize| {
            let from = part as i64 * self.width;
            let weight = match &self.in_proj {
                InProj::Fused(weight) => weight.narrow(0, from, self.width),
                InProj::Split(weights) => weights[part].shallow_clone(),
            };
            let bias = self.in_proj_bias.narrow(0, from, self.width);
            compute.linear(inputs[part], &weight, Some(&bias))
        })
    }
}

/// SigLIP's MAP head under timm's names (`AttentionPoolLatent`; arXiv:2106.04560, appendix): one
/// learned query attends to all tokens, then a residual MLP.
#[derive(Debug)]
pub(super) struct AttentionPoolLatent {
    width: i64,
    heads: i64,
    latent: Tensor,
    q: Linear,
    kv: Linear,
    proj: Linear,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

/// What an [`AttentionPoolLatent`] is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentShape {
    pub(super) width: i64,
    pub(super) heads: i64,
    pub(super) hidden: i64,
    pub(super) eps: f64,
    pub(super) activation: Activation,
}

impl AttentionPoolLatent {
    /// Takes the parameters under `vars`, usually `visual.trunk.attn_pool.`.
    pub(super) fn new(vars: &Vars<'_>, shape: &LatentShape) -> Self {
        let LatentShape { width, heads, hidden, eps, activation } = *shape;
        let deviation = (width as f64).powf(-0.5);
        let mlp = vars.sub("mlp");
        Self {
            width,
            heads,
            latent: vars.tensor("latent", &[1, 1, width], Init::TruncatedNormal(deviation)),
            q: Linear::small(&vars.sub("q"), width, width),
            kv: Linear::small(&vars.sub("kv"), width, 2 * width),
            proj: Linear::small(&vars.sub("proj"), width, width),
            norm: LayerNorm::new(&vars.sub("norm"), width, eps),
            fc1: Linear::small(&mlp.sub("fc1"), width, hidden),
            fc2: Linear::small(&mlp.sub("fc2"), hidden, width),
            activation,
        }
    }

    /// Shapes: tokens [N·T, W] of `batch` images -> [N, W] in the stream's kind.
    pub(super) fn forward(&self, tokens: &Tensor, batch: i64, compute: &Compute) -> Tensor {
        let q = self.q.forward(&self.latent.view([1, self.width]), compute); // [1, W]
        let q = heads_first(&q, 1, self.heads).expand([batch, -1, -1, -1], false);
        let kv = self.kv.forward(tokens, compute).chunk(2, -1); // two of [N·T, W]
        let part = |index: usize| heads_first(&kv[index], batch, self.heads);
        let attended = compute.attend(&q, &part(0), &part(1), &Mask::None).flatten(0, 1);
        let x = compute.widen(&self.proj.forward(&attended, compute)); // [N, W]
        let hidden = self.fc1.forward(&self.norm.forward(&x, compute), compute);
        &x + self.fc2.forward(&self.activation.apply(&hidden), compute)
    }
}

/// The pool of OpenAI's ResNets: the mean of all pixels attends to them and itself
/// (arXiv:2103.00020, section 2.4).
#[derive(Debug)]
pub(super) struct AttentionPool2d {
    heads: i64,
    positions: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    c: Linear,
}

impl AttentionPool2d {
    /// Takes the parameters under `vars`: pixels of a `side` × `side` map of `width` channels to
    /// `outputs` values.
    pub(super) fn new(vars: &Vars<'_>, side: i64, width: i64, heads: i64, outputs: i64) -> Self {
        let deviation = (width as f64).powf(-0.5);
        let linear = |name, outputs| {
            let bias = Some(Init::torch_default(width));
            Linear::new(&vars.sub(name), width, outputs, Init::Normal(deviation), bias)
        };
        let shape = [side * side + 1, width];
        Self {
            heads,
            positions: vars.embedding("positional_embedding", &shape, Init::Normal(deviation)),
            q: linear("q_proj", width),
            k: linear("k_proj", width),
            v: linear("v_proj", width),
            c: linear("c_proj", outputs),
        }
    }

    /// Shapes: x [N, C, S, S] -> [N, E] in the stream's kind.
    pub(super) fn forward(&self, x: &Tensor, compute: &Compute) -> Tensor {
        let batch = x.size()[0];
        let pixels = compute.widen(&x.flatten(2, 3).transpose(1, 2)); // [N, S², C]
        let mean = pixels.mean_dim([1_i64].as_slice(), true, None);
        let tokens = Tensor::cat(&[mean, pixels], 1) + &self.positions; // [N, S² + 1, C]
        let q = self.q.forward(&tokens.select(1, 0), compute); // [N, C]
        let tokens = tokens.flatten(0, 1);
        let part =
            |linear: &Linear| heads_first(&linear.forward(&tokens, compute), batch, self.heads);
        let q = heads_first(&q, batch, self.heads); // [N, H, 1, D]
        let attended = compute.attend(&q, &part(&self.k), &part(&self.v), &Mask::None);
        compute.widen(&self.c.forward(&attended.flatten(0, 1), compute))
    }
}
