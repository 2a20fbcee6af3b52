//! What an `hf_model_name` stands for: RoBERTa and XLM-RoBERTa text towers.
//!
//! Numbers are facts of the named repositories' `config.json`.

use serde::{Deserialize, Serialize};

use super::TextConfig;

/// `text_cfg.hf_model_config`, and Hugging Face's `config.json` of a RoBERTa.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HfConfig {
    /// `roberta` or `xlm-roberta`: the same tower.
    pub model_type: HfModelType,
    /// Size of the token table.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Hidden width of the MLP.
    pub intermediate_size: i64,
    /// Rows of the position table: the longest caption, and two that padding takes.
    pub max_position_embeddings: i64,
    /// Rows of the segment table, of which the first is used.
    pub type_vocab_size: i64,
    /// Eps of the LayerNorms.
    pub layer_norm_eps: f64,
    /// Id that fills short captions.
    pub pad_token_id: i64,
    /// Share of what is added to the residual stream that falls in training. Default 0.1.
    #[serde(default = "a_tenth")]
    pub hidden_dropout_prob: f64,
    /// Share of attention's weights that falls in training. Default 0.1.
    #[serde(default = "a_tenth")]
    pub attention_probs_dropout_prob: f64,
}

/// What transformers' RoBERTa has where a `config.json` says nothing.
fn a_tenth() -> f64 {
    0.1
}

/// `model_type` of a `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HfModelType {
    /// arXiv:1907.11692.
    Roberta,
    /// arXiv:1911.02116.
    XlmRoberta,
}

impl TextConfig {
    /// Returns the Hugging Face tower, if the configuration names one.
    ///
    /// # Errors
    /// A name that is not among those supported.
    pub fn hugging_face(&self) -> Option<Result<HfConfig, String>> {
        let name = self.hf_model_name.as_deref()?;
        if let Some(config) = &self.hf_model_config {
            return Some(Ok(config.clone()));
        }
        Some(named(name).ok_or_else(|| {
            format!(
                "text_cfg.hf_model_name is {name:?}; expected roberta-base, roberta-large, \
                 xlm-roberta-base or xlm-roberta-large, or a hf_model_config beside it"
            )
        }))
    }
}

fn named(name: &str) -> Option<HfConfig> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let (model_type, size) = match name.strip_prefix("xlm-roberta-") {
        Some(size) => (HfModelType::XlmRoberta, size),
        None => (HfModelType::Roberta, name.strip_prefix("roberta-")?),
    };
    let (hidden_size, num_hidden_layers, num_attention_heads) = match size {
        "base" => (768, 12, 12),
        "large" => (1024, 24, 16),
        _ => return None,
    };
    let vocab_size = match model_type {
        HfModelType::Roberta => 50_265,
        HfModelType::XlmRoberta => 250_002,
    };
    Some(HfConfig {
        model_type,
        vocab_size,
        hidden_size,
        num_hidden_layers,
        num_attention_heads,
        intermediate_size: 4 * hidden_size,
        max_position_embeddings: 514,
        type_vocab_size: 1,
        layer_norm_eps: 1e-5,
        pad_token_id: 1,
        hidden_dropout_prob: a_tenth(),
        attention_probs_dropout_prob: a_tenth(),
    })
}
