//! Model configurations in `OpenCLIP`'s JSON format.
//!
//! Modules in reading order: [`vision`] and [`text`] (the two sections), [`trunk`] (what a
//! `timm_model_name` stands for), [`hugging_face`] (what an `hf_model_name` stands for), `json`
//! (reading and writing `OpenCLIP`'s files), `check` (which numbers go together), [`preprocess`] (how
//! images become inputs) and [`size`] (parameters and operations).

mod check;
pub mod hugging_face;
mod json;
pub mod preprocess;
pub mod size;
pub mod text;
pub mod trunk;
pub mod vision;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use serde::{Deserialize, Serialize};

pub use preprocess::PreprocessCfg;
pub use text::{Cleaning, TextConfig, TextPool, TextProjection};
pub use vision::{Layers, PositionEmbedding, VisionConfig, VisionPool};

/// A model configuration, as in `OpenCLIP`'s `model_configs/*.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the shared embedding space.
    pub embed_dim: i64,
    /// The image tower.
    pub vision_cfg: VisionConfig,
    /// The text tower.
    pub text_cfg: TextConfig,
    /// x·sigmoid(1.702x) instead of exact GELU, as OpenAI's weights need. `timm` and Hugging Face
    /// towers have an activation of their own.
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

/// `act_kwargs`: arguments of the activation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActKwargs {
    /// Which formula of GELU.
    pub approximate: Approximate,
}

/// How GELU is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approximate {
    /// Exactly: x·Φ(x).
    #[default]
    None,
    /// By a hyperbolic tangent, as flax does (arXiv:1606.08415, section 2).
    Tanh,
}

/// `norm_kwargs`: arguments of `LayerNorm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NormKwargs {
    /// Added to the variance.
    pub eps: f64,
}

impl Default for NormKwargs {
    fn default() -> Self {
        Self { eps: DEFAULT_EPS }
    }
}

/// torch's `LayerNorm` eps, which `OpenCLIP` keeps where a configuration says nothing.
pub const DEFAULT_EPS: f64 = 1e-5;

impl ModelConfig {
    /// Reads a file of `OpenCLIP`'s: a `model_configs/*.json`, or an `open_clip_config.json`, whose
    /// `model_cfg` it takes.
    ///
    /// # Errors
    /// Text that is no JSON, a key that is unknown or asks for what is not supported (with the key,
    /// its value and what is), and numbers that do not go together.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let config = json::read(text)?;
        config.check().map_err(Error::Inconsistent)?;
        Ok(config)
    }

    /// Reads the `preprocess_cfg` of an `open_clip_config.json`, where there is one.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn preprocess_from_json(text: &str) -> Result<Option<PreprocessCfg>, Error> {
        let preprocess = json::read_preprocess(text)?;
        if let Some(preprocess) = &preprocess {
            preprocess.check().map_err(Error::Inconsistent)?;
        }
        Ok(preprocess)
    }

    /// Returns the configuration as `OpenCLIP` reads it: keys that have their default are left out.
    pub fn to_json(&self) -> serde_json::Value {
        json::write(self)
    }

    /// Returns true where text keys lie under `text.`: `custom_text`, or a Hugging Face tower.
    pub fn has_text_prefix(&self) -> bool {
        self.custom_text || self.text_cfg.hf_model_name.is_some()
    }

    /// Returns true where a step depends on the statistics of a whole batch.
    pub fn has_batch_norm(&self) -> bool {
        self.vision_cfg.timm_model_name.is_none()
            && matches!(self.vision_cfg.layers, Layers::Stages(_))
    }
}

/// Why a file is no usable model configuration.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not JSON, or a key is unknown or of the wrong type.
    #[error(transparent)]
    Format(#[from] serde_json::Error),
    /// A key of a section is unknown or of the wrong type.
    #[error("{section}: {source}")]
    Section {
        /// `vision_cfg` or `text_cfg`.
        section: &'static str,
        source: serde_json::Error,
    },
    /// A key of `OpenCLIP`'s asks for something that is not supported.
    #[error("{key} is {value}; {remedy}")]
    Unsupported {
        /// The key, with its section.
        key: String,
        value: String,
        remedy: String,
    },
    /// Numbers do not go together.
    #[error("{0}")]
    Inconsistent(String),
}
