//! How large a model is: parameters, and operations of one forward pass.
//!
//! Operations count a multiplication and an addition as two, of matrix products, convolutions and
//! attention; norms, activations and look-ups are left out, as OpenCLIP's tables do.

use super::hugging_face::HfConfig;
use super::text::{HfPooler, HfProjection};
use super::trunk::{ConvNext, Trunk, TrunkPool, TrunkVit};
use super::vision::TrunkProjection;
use super::{Layers, ModelConfig, TextConfig, TextProjection, VisionConfig};

/// What a model, or a part of one, takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Numbers that are learned, or fixed position embeddings; running statistics do not count.
    pub parameters: i64,
    /// Multiplications and additions of one forward pass of one image or one caption.
    pub flops: i64,
}

impl ModelConfig {
    /// Returns the size of the image tower. Of a configuration that [`Self::check`] accepts.
    pub fn image_size(&self) -> Size {
        let (vision, mut count) = (&self.vision_cfg, Count::default());
        match (vision.trunk(), vision.layers) {
            (Some(Ok(Trunk::Vit(vit))), _) => trunk_vit(&mut count, &vit, vision, self.embed_dim),
            (Some(Ok(Trunk::ConvNext(net))), _) => {
                conv_next(&mut count, &net, vision, self.embed_dim);
            }
            (Some(Err(_)), _) => {}
            (None, Layers::Blocks(layers)) => native(&mut count, layers, vision, self.embed_dim),
            (None, Layers::Stages(stages)) => residual(&mut count, stages, vision, self.embed_dim),
        }
        count.size()
    }

    /// Returns the size of the text tower for a caption of `context_length` tokens.
    pub fn text_size(&self) -> Size {
        let (text, mut count) = (&self.text_cfg, Count::default());
        match text.hugging_face() {
            Some(Ok(tower)) => roberta(&mut count, &tower, text, self.embed_dim),
            Some(Err(_)) => {}
            None => transformer(&mut count, text, self.embed_dim),
        }
        count.size()
    }

    /// Returns the number of parameters, `logit_scale` and a `logit_bias` included.
    pub fn parameters(&self) -> i64 {
        let scalars = 1 + i64::from(self.init_logit_bias.is_some());
        let towers = [self.image_size().parameters, self.text_size().parameters];
        towers.into_iter().fold(scalars, i64::saturating_add)
    }
}

/// Running sums over the layers of a tower. They saturate: a configuration may be valid and far too large.
#[derive(Default)]
struct Count {
    parameters: i64,
    /// Multiplications, each with an addition.
    products: i64,
}

impl Count {
    fn size(&self) -> Size {
        Size { parameters: self.parameters, flops: self.products.saturating_mul(2) }
    }

    /// A table or vector that no product multiplies.
    fn table(&mut self, elements: i64) {
        self.parameters = self.parameters.saturating_add(elements);
    }

    fn multiply(&mut self, factors: &[i64]) {
        self.products = self.products.saturating_add(product(factors));
    }

    fn norm(&mut self, width: i64) {
        self.table(2 * width);
    }

    /// A matrix applied to `tokens` rows; `bias` counts its elements.
    fn linear(&mut self, tokens: i64, inputs: i64, outputs: i64, bias: bool) {
        self.table(product(&[inputs, outputs]));
        self.table(if bias { outputs } else { 0 });
        self.multiply(&[tokens, inputs, outputs]);
    }

    /// One filter of `side` × `side` and a bias for each channel.
    fn depthwise(&mut self, pixels: i64, side: i64, channels: i64) {
        self.table((side * side + 1) * channels);
        self.multiply(&[pixels, side, side, channels]);
    }

    /// Scores and weighted sums of `queries` over `keys`.
    fn attention(&mut self, queries: i64, keys: i64, width: i64) {
        self.multiply(&[2, queries, keys, width]);
    }

    /// A transformer block; without LayerScale.
    fn block(&mut self, tokens: i64, width: i64, hidden: i64) {
        self.norm(2 * width);
        self.linear(tokens, width, 4 * width, true);
        self.attention(tokens, tokens, width);
        self.mlp(tokens, width, hidden);
    }

    fn mlp(&mut self, tokens: i64, width: i64, hidden: i64) {
        self.linear(tokens, width, hidden, true);
        self.linear(tokens, hidden, width, true);
    }
}

fn product(factors: &[i64]) -> i64 {
    factors.iter().copied().fold(1, i64::saturating_mul)
}

fn hidden(width: i64, ratio: f64) -> i64 {
    (width as f64 * ratio) as i64
}

fn native(count: &mut Count, layers: i64, vision: &VisionConfig, embed_dim: i64) {
    let width = vision.width;
    let patches = (vision.image_size / vision.patch_size).pow(2);
    let tokens = patches + 1;
    count.linear(patches, 3 * vision.patch_size.pow(2), width, false);
    count.table(width + tokens * width);
    if !vision.no_ln_pre {
        count.norm(width);
    }
    for _ in 0..layers {
        count.block(tokens, width, hidden(width, vision.mlp_ratio));
        if vision.ls_init_value.is_some() {
            count.table(2 * width);
        }
    }
    let mut pooled = width;
    if vision.attentional_pool {
        let queries = vision.attn_pooler_queries;
        count.table(queries * embed_dim);
        count.norm(embed_dim + width);
        count.linear(queries, embed_dim, embed_dim, true);
        count.linear(tokens, width, 2 * embed_dim, true);
        count.attention(queries, tokens, embed_dim);
        count.linear(queries, embed_dim, embed_dim, true);
        pooled = embed_dim;
    }
    count.norm(pooled);
    count.linear(1, pooled, embed_dim, false);
}

fn trunk_vit(count: &mut Count, vit: &TrunkVit, vision: &VisionConfig, embed_dim: i64) {
    let (width, mlp) = (vit.width, hidden(vit.width, vit.mlp_ratio));
    let patches = (vision.image_size / vit.patch_size).pow(2);
    let tokens = patches + i64::from(vit.class_token);
    count.linear(patches, 3 * vit.patch_size.pow(2), width, true);
    count.table(tokens * width + if vit.class_token { width } else { 0 });
    for _ in 0..vit.depth {
        count.block(tokens, width, mlp);
    }
    count.norm(width);
    if vit.pool == TrunkPool::Map {
        count.table(width);
        count.linear(1, width, width, true);
        count.linear(tokens, width, 2 * width, true);
        count.attention(1, tokens, width);
        count.linear(1, width, width, true);
        count.norm(width);
        count.mlp(1, width, mlp);
    }
    projection(count, width, vision, embed_dim);
}

fn projection(count: &mut Count, features: i64, vision: &VisionConfig, embed_dim: i64) {
    match vision.timm_proj {
        TrunkProjection::Linear => count.linear(1, features, embed_dim, vision.timm_proj_bias),
        TrunkProjection::Mlp => {
            count.linear(1, features, 2 * embed_dim, true);
            count.linear(1, 2 * embed_dim, embed_dim, vision.timm_proj_bias);
        }
        TrunkProjection::None => {}
        TrunkProjection::Classifier => count.linear(1, features, embed_dim, true),
    }
}

fn conv_next(count: &mut Count, net: &ConvNext, vision: &VisionConfig, embed_dim: i64) {
    let mut side = vision.image_size / 4;
    count.linear(side * side, 3 * 4 * 4, net.dims[0], true);
    count.norm(net.dims[0]);
    let mut before = net.dims[0];
    for (stage, (depth, width)) in net.depths.into_iter().zip(net.dims).enumerate() {
        if stage > 0 {
            side /= 2;
            count.norm(before);
            count.linear(side * side, 4 * before, width, true);
        }
        for _ in 0..depth {
            count.depthwise(side * side, 7, width);
            count.norm(width);
            count.mlp(side * side, width, 4 * width);
            count.table(width); // LayerScale
        }
        before = width;
    }
    count.norm(before);
    projection(count, before, vision, embed_dim);
}

fn residual(count: &mut Count, stages: [i64; 4], vision: &VisionConfig, embed_dim: i64) {
    let width = vision.width;
    let mut side = (vision.image_size + 1) / 2;
    for (inputs, outputs) in [(3, width / 2), (width / 2, width / 2), (width / 2, width)] {
        count.linear(side * side, 9 * inputs, outputs, false);
        count.norm(outputs);
    }
    side /= 2;
    let mut before = width;
    for (stage, blocks) in stages.into_iter().enumerate() {
        let planes = width << stage;
        for block in 0..blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            bottleneck(count, before, planes, side, stride);
            side /= stride;
            before = 4 * planes;
        }
    }
    let tokens = (vision.image_size / 32).pow(2) + 1;
    count.table(tokens * before);
    count.linear(1, before, before, true);
    count.linear(tokens, before, 2 * before, true);
    count.attention(1, tokens, before);
    count.linear(1, before, embed_dim, true);
}

fn bottleneck(count: &mut Count, before: i64, planes: i64, side: i64, stride: i64) {
    let (pixels, pooled) = (side * side, (side / stride).pow(2));
    count.linear(pixels, before, planes, false);
    count.linear(pixels, 9 * planes, planes, false);
    count.linear(pooled, planes, 4 * planes, false);
    count.norm(6 * planes);
    if stride > 1 || before != 4 * planes {
        count.linear(pooled, before, 4 * planes, false);
        count.norm(4 * planes);
    }
}

fn transformer(count: &mut Count, text: &TextConfig, embed_dim: i64) {
    let width = text.width;
    count.table((text.vocab_size + text.context_length) * width);
    for _ in 0..text.layers {
        count.block(text.context_length, width, hidden(width, text.mlp_ratio));
        if text.ls_init_value.is_some() {
            count.table(2 * width);
        }
    }
    count.norm(width);
    if text.proj_type == TextProjection::Linear {
        count.linear(1, width, embed_dim, text.proj_bias);
    }
}

fn roberta(count: &mut Count, tower: &HfConfig, text: &TextConfig, embed_dim: i64) {
    let width = tower.hidden_size;
    let rows = tower.vocab_size + tower.max_position_embeddings + tower.type_vocab_size;
    count.table(rows * width);
    count.norm(width);
    for _ in 0..tower.num_hidden_layers {
        count.block(text.context_length, width, tower.intermediate_size);
    }
    if text.hf_pooler_type == Some(HfPooler::Cls) {
        count.linear(1, width, width, true);
    }
    match text.hf_proj_type {
        None => {}
        Some(HfProjection::Linear) => count.linear(1, width, embed_dim, false),
        Some(HfProjection::Mlp) => {
            let middle = i64::midpoint(width, embed_dim);
            count.linear(1, width, middle, false);
            count.linear(1, middle, embed_dim, false);
        }
    }
}
