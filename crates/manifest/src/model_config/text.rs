//! `text_cfg`: the text tower.

use serde::{Deserialize, Serialize};

use super::hugging_face::HfConfig;
use super::{ActKwargs, NormKwargs};

/// `text_cfg`: `OpenCLIP`'s `TextTransformer`, or with `hf_model_name` a tower of Hugging Face's.
/// Defaults are `OpenCLIP`'s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextConfig {
    /// Tokens per caption, start and end included.
    pub context_length: i64,
    /// Size of the token table.
    pub vocab_size: i64,
    /// Tokenizer: a repository of the Hugging Face hub, or a folder; CLIP's own without it.
    pub hf_tokenizer_name: Option<String>,
    /// Arguments of the tokenizer.
    pub tokenizer_kwargs: Option<TokenizerKwargs>,
    /// Width of the residual stream.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Transformer blocks.
    pub layers: i64,
    /// Hidden width of the MLP over `width`.
    pub mlp_ratio: f64,
    /// Initial value of LayerScale (arXiv:2103.17239); without it a block has none.
    pub ls_init_value: Option<f64>,
    /// Id that fills short captions.
    pub pad_id: i64,
    /// Id that `pool_type: eos` looks for.
    pub eos_id: i64,
    /// Attend both ways instead of only backwards.
    pub no_causal_mask: bool,
    /// LayerNorm behind the pooling; the same where one token is picked.
    pub final_ln_after_pool: bool,
    /// Which position becomes the caption's embedding.
    pub pool_type: TextPool,
    /// A projection with a bias: a Linear layer instead of a bare matrix.
    pub proj_bias: bool,
    /// Whether there is a projection.
    pub proj_type: TextProjection,
    /// Arguments of the activation.
    pub act_kwargs: Option<ActKwargs>,
    /// Arguments of the tower's LayerNorms.
    pub norm_kwargs: Option<NormKwargs>,
    /// A text tower of Hugging Face's by its repository.
    pub hf_model_name: Option<String>,
    /// Whether OpenCLIP starts from that repository's weights.
    pub hf_model_pretrained: bool,
    /// Projection behind a Hugging Face tower.
    pub hf_proj_type: Option<HfProjection>,
    /// Pooling of a Hugging Face tower.
    pub hf_pooler_type: Option<HfPooler>,
    /// Numbers that replace those of `hf_model_name`.
    pub hf_model_config: Option<HfConfig>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            context_length: 77,
            vocab_size: 49_408,
            hf_tokenizer_name: None,
            tokenizer_kwargs: None,
            width: 512,
            heads: 8,
            layers: 12,
            mlp_ratio: 4.0,
            ls_init_value: None,
            pad_id: 0,
            eos_id: 2,
            no_causal_mask: false,
            final_ln_after_pool: false,
            pool_type: TextPool::Argmax,
            proj_bias: false,
            proj_type: TextProjection::Linear,
            act_kwargs: None,
            norm_kwargs: None,
            hf_model_name: None,
            hf_model_pretrained: true,
            hf_proj_type: Some(HfProjection::Mlp),
            hf_pooler_type: Some(HfPooler::Mean),
            hf_model_config: None,
        }
    }
}

/// `text_cfg.tokenizer_kwargs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerKwargs {
    /// How captions are cleaned. Default: as the tokenizer does by itself.
    pub clean: Option<Cleaning>,
    /// Replace separator tokens by padding, as CLIPA's captions need.
    pub strip_sep_token: bool,
}

/// `text_cfg.tokenizer_kwargs.clean`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleaning {
    /// Repaired, HTML unescaped, whitespace collapsed.
    Whitespace,
    /// The same in lower case.
    Lower,
    /// The same without ASCII punctuation, underscores as blanks.
    Canonicalize,
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
    /// The first position that holds `eos_id`; the first of all where none does.
    Eos,
}

/// `text_cfg.proj_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextProjection {
    /// One matrix.
    Linear,
    /// None: the tower's width is the embedding's.
    None,
}

/// `text_cfg.hf_proj_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HfProjection {
    /// One matrix.
    Linear,
    /// Two matrices, GELU between; the hidden width is the mean of the two outer ones.
    Mlp,
}

/// `text_cfg.hf_pooler_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HfPooler {
    /// The mean of the tokens that are no padding.
    #[serde(rename = "mean_pooler")]
    Mean,
    /// The first token behind the tower's own pooling layer (a matrix and tanh).
    #[serde(rename = "cls_pooler")]
    Cls,
    /// The first token.
    #[serde(rename = "cls_last_hidden_state_pooler")]
    ClsLastHiddenState,
}
