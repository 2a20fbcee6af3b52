//! `spec.model`.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use crate::model_config::{ModelConfig, PreprocessCfg};

/// Which model, in which precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = with_images_before_weights)]
pub struct Model {
    /// Name of a configuration, as `OpenCLIP`'s `--model`: `ViT-B-16`.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The configuration itself, resolved from the name when the manifest was validated.
    #[schemars(skip)]
    pub config: ModelConfig,
    /// As `OpenCLIP`'s `--precision`, and fp64 on the CPU. Default fp32.
    #[schemars(extend("default" = "fp32"))]
    pub precision: Precision,
    /// Share of patches dropped in training, instead of the configuration's, as
    /// `--force-patch-dropout`.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub force_patch_dropout: Option<f64>,
    /// Weights that a new run starts from: a job's folder (its newest good checkpoint; only its weights
    /// are taken), the folder of one checkpoint, a file (safetensors, .pt, .pth, .bin, .npz) that every
    /// worker can read, as a path or a URL, `hf-hub:ORG/NAME`, or one of the tags OpenCLIP has for the
    /// model, as `laion2b_s34b_b79k`. Paths begin with a dot or a slash, or end as files of weights do.
    /// Default: weights drawn from the seed.
    #[schemars(length(min = 1))]
    pub pretrained: Option<String>,
    /// Weights of the image tower alone, over `pretrained`'s: as there, or a vision transformer of
    /// timm's (`hf-hub:timm/NAME`) or Google's (`.npz`).
    #[schemars(length(min = 1))]
    pub pretrained_image: Option<String>,
    /// Weights of the text tower alone, over `pretrained`'s: as there, or a model of transformers';
    /// `none` for weights drawn from the seed. Default: without `pretrained`, those of the
    /// configuration's `hf_model_name`, if it has one.
    #[schemars(length(min = 1))]
    pub pretrained_text: Option<String>,
    /// Tokenizer: a `tokenizer.json`, a SentencePiece model, a folder with either, or a repository in
    /// the workers' Hugging Face cache. Default: what the model's configuration names, else CLIP's.
    #[schemars(length(min = 1))]
    pub tokenizer: Option<String>,
    /// How images are prepared, resolved from the name and the keys `image_*`.
    #[schemars(flatten, with = "crate::spec::written::ImageKeys")]
    pub preprocess: PreprocessCfg,
}

/// Lets the keys `image_*` of a manifest stand before those of weights, where people and messages look for
/// them.
fn with_images_before_weights(schema: &mut Schema) {
    let Some(keys) = schema.get_mut("properties").and_then(|keys| keys.as_object_mut()) else {
        return;
    };
    for key in ["pretrained", "pretrained_image", "pretrained_text", "tokenizer"] {
        if let Some(property) = keys.shift_remove(key) {
            keys.insert(key.to_owned(), property);
        }
    }
}

/// `spec.model.precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in f32.
    Fp32,
    /// Weights in f32, matrix products in bf16.
    AmpBf16,
    /// Everything in f64, on the CPU: for comparing runs, not for speed. Checkpoints hold f64, too.
    Fp64,
}
