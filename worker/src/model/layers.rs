//! What both towers are made of: linear layers, LayerNorm and pre-norm transformer blocks.
//!
//! Tokens of a batch are the rows of one matrix [S, W]; [`Packing`] says which rows form a
//! sequence. So every linear layer is one matrix product, and only attention looks at sequences.

use tch::{Device, Kind, Tensor};

use super::packing::Packing;
use super::params::Params;

/// torch's default, which OpenCLIP keeps for CLIP.
const LAYER_NORM_EPS: f64 = 1e-5;

/// In which arithmetic a tower computes.
#[derive(Debug)]
pub(super) struct Compute {
    /// Kind of the inputs of matrix products: the parameters' own, or bf16 under `amp_bf16`.
    pub(super) product: Kind,
    /// Kind of the parameters, the residual stream and the results.
    pub(super) stream: Kind,
    /// Device of the parameters.
    pub(super) device: Device,
    /// x·sigmoid(1.702x) instead of exact GELU.
    pub(super) quick_gelu: bool,
}

impl Compute {
    /// Returns `x` in the kind of matrix products; no copy where it has it already.
    pub(super) fn cast(&self, x: &Tensor) -> Tensor {
        if x.kind() == self.product { x.shallow_clone() } else { x.to_kind(self.product) }
    }

    /// Returns x Wᵀ + b in the kind of products. Shapes: x [S, I], weight [O, I], bias [O] -> [S, O].
    pub(super) fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.cast(x).linear(&self.cast(weight), bias.map(|bias| self.cast(bias)))
    }

    /// Returns x P in the stream's kind. Shapes: x [N, I], projection [I, O] -> [N, O].
    pub(super) fn project(&self, x: &Tensor, projection: &Tensor) -> Tensor {
        self.cast(x).mm(&self.cast(projection)).to_kind(self.stream)
    }

    fn activate(&self, x: &Tensor) -> Tensor {
        if self.quick_gelu { x * (x * 1.702).sigmoid() } else { x.gelu("none") }
    }

    /// Whether attention is written out instead of fused: libtorch's fused CPU kernel is several
    /// times slower than three batched products in bf16 (26 ms against 4.3 ms for 128 sequences of
    /// 17 tokens and two heads of 64, forward and backward on one core), and in f32 the faster of
    /// the two (6.8 ms against 7.1 ms; 29 ms against 40 ms for 65 tokens).
    fn writes_attention_out(&self) -> bool {
        self.device == Device::Cpu && self.product == Kind::BFloat16
    }

    /// Returns softmax(q kᵀ / √d + mask) v.
    ///
    /// Shapes: q [N, H, Q, D], k and v [N, H, T, D] -> [N, Q, H·D].
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Tensor {
        let (sequences, heads, queries, head_width) = q.size4().expect("q is [N, H, Q, D]");
        let attended = if self.writes_attention_out() {
            let scale = (head_width as f64).powf(-0.5);
            let scores = q.matmul(&k.transpose(-2, -1)) * scale; // [N, H, Q, T]
            let scores = match mask {
                Mask::None => scores,
                Mask::Causal => scores + self.causal_mask(queries),
                Mask::Additive(mask) => scores + mask,
            };
            scores.softmax(-1, None).matmul(v)
        } else {
            let additive = match mask {
                Mask::Additive(mask) => Some(mask),
                Mask::None | Mask::Causal => None,
            };
            let causal = matches!(mask, Mask::Causal);
            Tensor::scaled_dot_product_attention(q, k, v, additive, 0.0, causal, None, false)
        };
        attended.transpose(1, 2).reshape([sequences, queries, heads * head_width])
    }

    /// Returns zero where a token may look and -inf above the diagonal. Shape: [length, length].
    fn causal_mask(&self, length: i64) -> Tensor {
        Tensor::full([length, length], f64::NEG_INFINITY, (self.product, self.device)).triu(1)
    }
}

/// Which keys a query sees.
enum Mask {
    /// All of its sequence.
    None,
    /// Those up to its own position.
    Causal,
    /// Those where this is zero and not -inf; broadcast to [N, H, Q, T].
    Additive(Tensor),
}

/// Scale and shift after normalising each row.
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Takes `<name>.weight` and `<name>.bias` of `params`.
    pub(super) fn new(params: &Params, name: &str) -> Self {
        let part = |part: &str| parameter(params, &format!("{name}.{part}"));
        Self { weight: part("weight"), bias: part("bias") }
    }

    /// Normalises the last dimension, in the stream's kind whatever the products' is.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.layer_norm(self.weight.size(), weight, bias, LAYER_NORM_EPS, false)
    }
}

/// x + attention(LN(x)), then x + MLP(LN(x)).
#[derive(Debug)]
pub(super) struct Block {
    heads: i64,
    ln_1: LayerNorm,
    in_proj: (Tensor, Tensor),
    out_proj: (Tensor, Tensor),
    ln_2: LayerNorm,
    c_fc: (Tensor, Tensor),
    c_proj: (Tensor, Tensor),
}

impl Block {
    /// Takes the parameters that begin with `prefix`, such as `visual.transformer.resblocks.0`.
    pub(super) fn new(params: &Params, prefix: &str, heads: i64) -> Self {
        let part = |part: &str| parameter(params, &format!("{prefix}.{part}"));
        let linear = |name: &str| (part(&format!("{name}.weight")), part(&format!("{name}.bias")));
        Self {
            heads,
            ln_1: LayerNorm::new(params, &format!("{prefix}.ln_1")),
            in_proj: (part("attn.in_proj_weight"), part("attn.in_proj_bias")),
            out_proj: linear("attn.out_proj"),
            ln_2: LayerNorm::new(params, &format!("{prefix}.ln_2")),
            c_fc: linear("mlp.c_fc"),
            c_proj: linear("mlp.c_proj"),
        }
    }

    /// Computes every token. Shapes: x [S, W] -> [S, W].
    pub(super) fn forward(&self, x: &Tensor, packing: &Packing, compute: &Compute) -> Tensor {
        let normed = self.ln_1.forward(x);
        let qkv = compute.linear(&normed, &self.in_proj.0, Some(&self.in_proj.1)); // [S, 3W]
        let mut attended = Vec::with_capacity(packing.groups().len());
        for (group, qkv) in packing.groups().iter().zip(packing.split(&qkv)) {
            let parts = qkv.chunk(3, -1); // three of [rows·len, W]
            let part = |index: usize| self.heads_first(&parts[index], group.rows);
            let mask = if packing.causal() { Mask::Causal } else { Mask::None };
            let group = compute.attend(&part(0), &part(1), &part(2), &mask); // [rows, len, W]
            attended.push(group.flatten(0, 1));
        }
        self.finish(x, &concatenate(attended), compute)
    }

    /// Computes only the token of each sequence that `packing` pools: the same values as picking
    /// those rows of [`Self::forward`]. Shapes: x [S, W] -> [N, W].
    pub(super) fn forward_pooled(
        &self,
        x: &Tensor,
        packing: &Packing,
        compute: &Compute,
    ) -> Tensor {
        let width = self.out_proj.1.size()[0];
        let normed = compute.cast(&self.ln_1.forward(x));
        let weights = self.in_proj.0.split_with_sizes([width, 2 * width], 0);
        let biases = self.in_proj.1.split_with_sizes([width, 2 * width], 0);
        let q = compute.linear(&packing.pooled(&normed), &weights[0], Some(&biases[0])); // [N, W]
        let kv = compute.linear(&normed, &weights[1], Some(&biases[1])); // [S, 2W]
        let queries = packing.split_rows(&q);
        let mut attended = Vec::with_capacity(packing.groups().len());
        for ((group, kv), q) in packing.groups().iter().zip(packing.split(&kv)).zip(queries) {
            let parts = kv.chunk(2, -1); // two of [rows·len, W]
            let q = self.heads_first(&q, group.rows); // [rows, H, 1, D]
            let part = |index: usize| self.heads_first(&parts[index], group.rows);
            let mask = match &group.pooled_mask {
                Some(mask) => Mask::Additive(mask.shallow_clone()),
                None => Mask::None,
            };
            attended.push(compute.attend(&q, &part(0), &part(1), &mask).flatten(0, 1));
        }
        self.finish(&packing.pooled(x), &concatenate(attended), compute)
    }

    /// Returns rows of tokens as heads. Shapes: x [rows·len, W] -> [rows, H, len, D].
    fn heads_first(&self, x: &Tensor, rows: i64) -> Tensor {
        let (tokens, width) = x.size2().expect("tokens are rows of a matrix");
        x.view([rows, tokens / rows, self.heads, width / self.heads]).transpose(1, 2)
    }

    /// Adds the attention's output, then the MLP's. Shapes: x and attended [S, W] -> [S, W].
    fn finish(&self, x: &Tensor, attended: &Tensor, compute: &Compute) -> Tensor {
        let x = x + compute.linear(attended, &self.out_proj.0, Some(&self.out_proj.1));
        let hidden = compute.linear(&self.ln_2.forward(&x), &self.c_fc.0, Some(&self.c_fc.1));
        let hidden = compute.activate(&hidden);
        &x + compute.linear(&hidden, &self.c_proj.0, Some(&self.c_proj.1))
    }
}

/// Runs all blocks and returns the pooled token of each sequence. Shapes: x [S, W] -> [N, W].
pub(super) fn pooled_by_last(
    blocks: &[Block],
    x: Tensor,
    packing: &Packing,
    compute: &Compute,
) -> Tensor {
    let (last, earlier) = blocks.split_last().expect("a tower has at least one block");
    let mut x = x;
    for block in earlier {
        x = block.forward(&x, packing, compute);
    }
    last.forward_pooled(&x, packing, compute)
}

/// Returns the parameter called `name`.
pub(super) fn parameter(params: &Params, name: &str) -> Tensor {
    params
        .get(name)
        .expect("towers and parameter list are made from one configuration")
        .shallow_clone()
}

fn concatenate(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0) }
}
