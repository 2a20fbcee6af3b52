//! Pre-norm transformer blocks.
//!
//! Tokens of a batch are the rows of one matrix [S, W]; [`Packing`] says which rows form a
//! sequence. So every linear layer is one matrix product, and only attention looks at sequences.

use tch::Tensor;

use super::compute::{Activation, Compute, Mask, heads_first};
use super::init::Init;
use super::layers::{LayerNorm, Linear};
use super::packing::{Group, Packing};
use super::vars::Vars;

/// What a block is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) width: i64,
    pub(super) heads: i64,
    /// Hidden width of the MLP.
    pub(super) hidden: i64,
    /// Of its LayerNorms.
    pub(super) eps: f64,
    pub(super) activation: Activation,
    /// Initial value of LayerScale, where there is one.
    pub(super) layer_scale: Option<f64>,
}

/// Initial values of a block's matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub(super) in_proj: Init,
    pub(super) out_proj: Init,
    pub(super) c_fc: Init,
    pub(super) c_proj: Init,
}

/// x + s₁·attention(LN(x)), then x + s₂·MLP(LN(x)), with s₁ = s₂ = 1 without LayerScale.
#[derive(Debug)]
pub(super) struct Block {
    width: i64,
    heads: i64,
    activation: Activation,
    norm_1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm_2: LayerNorm,
    expand: Linear,
    contract: Linear,
    /// Factors of the two branches (arXiv:2103.17239). Shapes: [W].
    scales: Option<[Tensor; 2]>,
}

impl Block {
    /// Takes a block under OpenCLIP's names.
    pub(super) fn new(vars: &Vars<'_>, shape: &Shape, weights: &Weights) -> Self {
        let Shape { width, hidden, .. } = *shape;
        let zero = Init::Constant(0.0);
        let attn = vars.sub("attn");
        let in_proj = attn.tensor("in_proj_weight", &[3 * width, width], weights.in_proj);
        let in_proj_bias = attn.tensor("in_proj_bias", &[3 * width], zero);
        let mlp = vars.sub("mlp");
        let linear = |name, inputs, outputs, weight, bias| {
            Linear::new(&mlp.sub(name), inputs, outputs, weight, Some(bias))
        };
        Self {
            width,
            heads: shape.heads,
            activation: shape.activation,
            norm_1: LayerNorm::new(&vars.sub("ln_1"), width, shape.eps),
            qkv: Linear::of(in_proj, Some(in_proj_bias)),
            out: Linear::new(&attn.sub("out_proj"), width, width, weights.out_proj, Some(zero)),
            norm_2: LayerNorm::new(&vars.sub("ln_2"), width, shape.eps),
            expand: linear("c_fc", width, hidden, weights.c_fc, Init::torch_default(width)),
            contract: linear("c_proj", hidden, width, weights.c_proj, Init::torch_default(hidden)),
            scales: shape.layer_scale.map(|value| {
                ["ls_1", "ls_2"]
                    .map(|name| vars.sub(name).tensor("gamma", &[width], Init::Constant(value)))
            }),
        }
    }

    /// Takes a block under timm's names.
    pub(super) fn timm(vars: &Vars<'_>, shape: &Shape) -> Self {
        let Shape { width, hidden, .. } = *shape;
        let (attn, mlp) = (vars.sub("attn"), vars.sub("mlp"));
        Self {
            width,
            heads: shape.heads,
            activation: shape.activation,
            norm_1: LayerNorm::new(&vars.sub("norm1"), width, shape.eps),
            qkv: Linear::small(&attn.sub("qkv"), width, 3 * width),
            out: Linear::small(&attn.sub("proj"), width, width),
            norm_2: LayerNorm::new(&vars.sub("norm2"), width, shape.eps),
            expand: Linear::small(&mlp.sub("fc1"), width, hidden),
            contract: Linear::small(&mlp.sub("fc2"), hidden, width),
            scales: None,
        }
    }

    /// Computes every token. Shapes: x [S, W] -> [S, W].
    pub(super) fn forward(&self, x: &Tensor, packing: &Packing, compute: &Compute) -> Tensor {
        let normed = self.norm_1.forward(x, compute);
        let qkv = self.qkv.forward(&normed, compute); // [S, 3W]
        let attended = attend_within(&qkv, packing, self.heads, compute);
        self.finish(x, &attended, compute)
    }

    /// Computes only the token of each sequence that `packing` pools: the same values as picking
    /// those rows of [`Self::forward`]. Shapes: x [S, W] -> [N, W].
    pub(super) fn forward_pooled(
        &self,
        x: &Tensor,
        packing: &Packing,
        compute: &Compute,
    ) -> Tensor {
        let normed = compute.cast(&self.norm_1.forward(x, compute));
        let queries = self.qkv.rows(0, self.width).forward(&packing.pooled(&normed), compute);
        let kv = self.qkv.rows(self.width, 2 * self.width).forward(&normed, compute); // [S, 2W]
        let queries = packing.split_rows(&queries);
        let mut attended = Vec::with_capacity(packing.groups().len());
        for ((group, kv), q) in packing.groups().iter().zip(packing.split(&kv)).zip(queries) {
            let parts = kv.chunk(2, -1); // two of [rows·len, W]
            let q = heads_first(&q, group.rows, self.heads); // [rows, H, 1, D]
            let part = |index: usize| heads_first(&parts[index], group.rows, self.heads);
            let mask = Mask::additive(group.pooled_mask.as_ref());
            attended.push(compute.attend(&q, &part(0), &part(1), &mask).flatten(0, 1));
        }
        self.finish(&packing.pooled(x), &concatenate(attended), compute)
    }

    /// Adds the attention's output, then the MLP's. Shapes: x and attended [S, W] -> [S, W].
    fn finish(&self, x: &Tensor, attended: &Tensor, compute: &Compute) -> Tensor {
        let x = x + self.scaled(0, self.out.forward(attended, compute));
        let hidden = self.expand.forward(&self.norm_2.forward(&x, compute), compute);
        let hidden = self.activation.apply(&hidden);
        &x + self.scaled(1, self.contract.forward(&hidden, compute))
    }

    fn scaled(&self, branch: usize, x: Tensor) -> Tensor {
        match &self.scales {
            Some(scales) => x * &scales[branch],
            None => x,
        }
    }
}

/// Attends inside every sequence. Shapes: qkv [S, 3W] -> [S, W].
pub(super) fn attend_within(
    qkv: &Tensor,
    packing: &Packing,
    heads: i64,
    compute: &Compute,
) -> Tensor {
    let mut attended = Vec::with_capacity(packing.groups().len());
    for (group, qkv) in packing.groups().iter().zip(packing.split(qkv)) {
        let parts = qkv.chunk(3, -1); // three of [rows·len, W]
        let part = |index: usize| heads_first(&parts[index], group.rows, heads);
        let mask = mask_of(group, packing);
        let group = compute.attend(&part(0), &part(1), &part(2), &mask); // [rows, len, W]
        attended.push(group.flatten(0, 1));
    }
    concatenate(attended)
}

pub(super) fn mask_of(group: &Group, packing: &Packing) -> Mask {
    if packing.causal() { Mask::Causal } else { Mask::additive(group.key_mask.as_ref()) }
}

/// Runs all blocks. Shapes: x [S, W] -> [S, W].
pub(super) fn all_tokens(
    blocks: &[Block],
    x: Tensor,
    packing: &Packing,
    compute: &Compute,
) -> Tensor {
    blocks.iter().fold(x, |x, block| block.forward(&x, packing, compute))
}

/// Runs all blocks and returns the pooled token of each sequence. Shapes: x [S, W] -> [N, W].
pub(super) fn pooled_by_last(
    blocks: &[Block],
    x: Tensor,
    packing: &Packing,
    compute: &Compute,
) -> Tensor {
    let (last, earlier) = blocks.split_last().expect("a tower has at least one block");
    let x = all_tokens(earlier, x, packing, compute);
    last.forward_pooled(&x, packing, compute)
}

pub(super) fn concatenate(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0) }
}
