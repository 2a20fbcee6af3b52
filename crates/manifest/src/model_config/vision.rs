//! `vision_cfg`: the image tower.

use serde::{Deserialize, Deserializer, Serialize};

use super::trunk::TrunkKwargs;
use super::{ActKwargs, NormKwargs};

/// `vision_cfg`. Which tower it is: with `timm_model_name` that of [`super::trunk`]; with four
/// `layers` `OpenCLIP`'s `ModifiedResNet`; else its `VisionTransformer`. Defaults are `OpenCLIP`'s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Transformer blocks, or the bottleneck blocks of each of the four stages of a ResNet.
    pub layers: Layers,
    /// Width of the residual stream; of the stem, for a ResNet.
    pub width: i64,
    /// Width of one attention head.
    pub head_width: i64,
    /// Hidden width of the MLP over `width`.
    pub mlp_ratio: f64,
    /// Side of a square patch, in pixels.
    #[serde(deserialize_with = "patch_size")]
    pub patch_size: i64,
    /// Side of the square input image, in pixels.
    #[serde(deserialize_with = "square")]
    pub image_size: i64,
    /// Initial value of LayerScale (arXiv:2103.17239); without it a block has none.
    pub ls_init_value: Option<f64>,
    /// Share of patches dropped in training (arXiv:2212.00794).
    pub patch_dropout: f64,
    /// Pool by attention of learned queries instead of picking or averaging tokens.
    pub attentional_pool: bool,
    /// Learned queries of the attentional pool.
    pub attn_pooler_queries: i64,
    /// Heads of the attentional pool.
    pub attn_pooler_heads: i64,
    /// No LayerNorm before the blocks.
    pub no_ln_pre: bool,
    /// Where positions come from.
    pub pos_embed_type: PositionEmbedding,
    /// Pool before the final LayerNorm instead of after it.
    pub final_ln_after_pool: bool,
    /// What becomes the image's embedding.
    pub pool_type: VisionPool,
    /// Arguments of the activation.
    pub act_kwargs: Option<ActKwargs>,
    /// Arguments of the tower's LayerNorms.
    pub norm_kwargs: Option<NormKwargs>,
    /// A tower of timm's by its name there; overrides what shapes the other towers.
    pub timm_model_name: Option<String>,
    /// Whether OpenCLIP starts from timm's pretrained weights; here `pretrained_image` says so.
    pub timm_model_pretrained: bool,
    /// Pooling of the timm tower: `map`, `token`, `avg` or its own (empty).
    pub timm_pool: String,
    /// Projection behind the timm tower.
    pub timm_proj: TrunkProjection,
    /// A bias of that projection.
    pub timm_proj_bias: bool,
    /// Dropout before that projection; only 0 is supported.
    pub timm_drop: f64,
    /// Stochastic depth of the timm tower's last block, growing from 0 (arXiv:1603.09382).
    pub timm_drop_path: Option<f64>,
    /// Numbers that replace those of `timm_model_name`.
    pub timm_model_kwargs: Option<TrunkKwargs>,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            layers: Layers::Blocks(12),
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: 224,
            ls_init_value: None,
            patch_dropout: 0.0,
            attentional_pool: false,
            attn_pooler_queries: 256,
            attn_pooler_heads: 8,
            no_ln_pre: false,
            pos_embed_type: PositionEmbedding::Learnable,
            final_ln_after_pool: false,
            pool_type: VisionPool::Tok,
            act_kwargs: None,
            norm_kwargs: None,
            timm_model_name: None,
            timm_model_pretrained: false,
            timm_pool: "avg".to_owned(),
            timm_proj: TrunkProjection::Linear,
            timm_proj_bias: false,
            timm_drop: 0.0,
            timm_drop_path: None,
            timm_model_kwargs: None,
        }
    }
}

/// `vision_cfg.layers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// Blocks of a transformer.
    Blocks(i64),
    /// Bottleneck blocks of each stage of a ResNet.
    Stages([i64; 4]),
}

/// `vision_cfg.pool_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisionPool {
    /// The class token.
    Tok,
    /// The mean of the patches.
    Avg,
}

/// `vision_cfg.pos_embed_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PositionEmbedding {
    /// Learned.
    #[serde(rename = "learnable")]
    Learnable,
    /// Fixed sines and cosines of row and column (arXiv:2104.02057).
    #[serde(rename = "sin_cos_2d")]
    SinCos2d,
}

/// `vision_cfg.timm_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrunkProjection {
    /// A matrix under `visual.head.proj`.
    #[serde(rename = "linear")]
    Linear,
    /// Two matrices with GELU between, under `visual.head.mlp`.
    #[serde(rename = "mlp")]
    Mlp,
    /// None: the tower's width is the embedding's.
    #[serde(rename = "none")]
    None,
    /// The tower's own classifier, under `visual.trunk.head`.
    #[serde(rename = "")]
    Classifier,
}

/// Reads a number where `null`, which OpenCLIP writes for towers without patches, is the default.
fn patch_size<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or(16))
}

/// Reads a side, or two sides that are equal.
fn square<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "image_size must be a whole number of pixels, or two that are equal"
    )]
    enum Size {
        Side(i64),
        Sides([i64; 2]),
    }
    match Size::deserialize(input)? {
        Size::Side(side) => Ok(side),
        Size::Sides([height, width]) if height == width => Ok(height),
        Size::Sides([height, width]) => Err(serde::de::Error::custom(format!(
            "image_size is {height} × {width}; only square images are supported"
        ))),
    }
}
