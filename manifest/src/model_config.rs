//! Model configurations in OpenCLIP's JSON format.

use serde::{Deserialize, Serialize};

/// A model configuration, as in OpenCLIP's `model_configs/*.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the shared embedding space.
    pub embed_dim: i64,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
    /// x·sigmoid(1.702x) instead of exact GELU, as OpenAI's weights need.
    #[serde(default)]
    pub quick_gelu: bool,
    /// Text keys under `text.` instead of the root.
    #[serde(default)]
    pub custom_text: bool,
    /// Initial t'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_logit_scale: Option<f64>,
    /// Initial β; its presence gives the model a `logit_bias`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_logit_bias: Option<f64>,
}

/// `vision_cfg` of a native ViT. Defaults are OpenCLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionConfig {
    /// Transformer blocks.
    pub layers: i64,
    /// Width of the residual stream.
    pub width: i64,
    /// Width of one attention head.
    pub head_width: i64,
    /// Hidden width of the MLP over `width`.
    pub mlp_ratio: f64,
    /// Side of a square patch, in pixels.
    pub patch_size: i64,
    /// Side of the square input image, in pixels.
    pub image_size: i64,
    /// Share of patches dropped in training (arXiv:2212.00794).
    pub patch_dropout: f64,
    /// No LayerNorm before the blocks.
    pub no_ln_pre: bool,
    /// Pool before the final LayerNorm instead of after it.
    pub final_ln_after_pool: bool,
    /// What becomes the image's embedding: `tok`, `avg` or `none`.
    pub pool_type: VisionPool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            layers: 12,
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: 224,
            patch_dropout: 0.0,
            no_ln_pre: false,
            final_ln_after_pool: false,
            pool_type: VisionPool::Tok,
        }
    }
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

/// `text_cfg` of OpenCLIP's own text transformer. Defaults are OpenCLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Tokens per caption, start and end included.
    pub context_length: i64,
    /// Size of the token table.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Transformer blocks.
    pub layers: i64,
    /// Hidden width of the MLP over `width`.
    pub mlp_ratio: f64,
    /// Attend both ways instead of only backwards.
    pub no_causal_mask: bool,
    /// Which position becomes the caption's embedding.
    pub pool_type: TextPool,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            context_length: 77,
            vocab_size: 49_408,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            no_causal_mask: false,
            pool_type: TextPool::Argmax,
        }
    }
}

/// `text_cfg.pool_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextPool {
    /// The first position.
    First,
    /// The last position.
    Last,
    /// The position of the largest token id: end-of-text in CLIP's vocabulary.
    Argmax,
}

impl ModelConfig {
    /// Checks that the numbers go together.
    ///
    /// # Errors
    /// The first field that does not, its value, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let Self { vision_cfg: vision, text_cfg: text, .. } = self;
        for (field, value) in [
            ("embed_dim", self.embed_dim),
            ("vision_cfg.layers", vision.layers),
            ("vision_cfg.width", vision.width),
            ("vision_cfg.head_width", vision.head_width),
            ("vision_cfg.patch_size", vision.patch_size),
            ("vision_cfg.image_size", vision.image_size),
            ("text_cfg.context_length", text.context_length),
            ("text_cfg.vocab_size", text.vocab_size),
            ("text_cfg.width", text.width),
            ("text_cfg.heads", text.heads),
            ("text_cfg.layers", text.layers),
        ] {
            if value < 1 {
                return Err(format!("{field} is {value}; expected a whole number of at least 1"));
            }
        }
        for (field, value, of, divisor) in [
            ("vision_cfg.width", vision.width, "vision_cfg.head_width", vision.head_width),
            ("text_cfg.width", text.width, "text_cfg.heads", text.heads),
        ] {
            if value % divisor != 0 {
                return Err(format!("{field} is {value}; expected a multiple of {of}, {divisor}"));
            }
        }
        if vision.image_size < vision.patch_size {
            let (side, patch) = (vision.image_size, vision.patch_size);
            return Err(format!(
                "vision_cfg.image_size is {side}; expected at least vision_cfg.patch_size, {patch}"
            ));
        }
        if text.context_length < 2 {
            let length = text.context_length;
            return Err(format!(
                "text_cfg.context_length is {length}; expected at least 2, for start and end"
            ));
        }
        for (field, value) in
            [("vision_cfg.mlp_ratio", vision.mlp_ratio), ("text_cfg.mlp_ratio", text.mlp_ratio)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{field} is {value}; expected a number above 0"));
            }
        }
        if !(0.0..1.0).contains(&vision.patch_dropout) {
            let share = vision.patch_dropout;
            return Err(format!(
                "vision_cfg.patch_dropout is {share}; expected at least 0 and below 1"
            ));
        }
        Ok(())
    }
}
