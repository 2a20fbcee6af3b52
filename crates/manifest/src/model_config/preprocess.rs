//! `preprocess_cfg`: how an image becomes a tower's input.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::ModelConfig;

/// `OpenCLIP`'s `PreprocessCfg`. Defaults are those of OpenAI's models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreprocessCfg {
    /// Side of the square input, in pixels.
    #[serde(deserialize_with = "square")]
    pub size: u32,
    /// Colours of the input: always `RGB`.
    pub mode: ColorMode,
    /// Subtracted from red, green and blue after division by 255.
    pub mean: [f64; 3],
    /// What red, green and blue are divided by afterwards.
    pub std: [f64; 3],
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// How an image of another shape becomes square.
    pub resize_mode: ResizeMode,
    /// What `longest` fills the rest with, in 0 to 255.
    pub fill_color: u8,
}

/// `preprocess_cfg.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColorMode {
    /// Red, green, blue.
    #[serde(rename = "RGB")]
    Rgb,
}

/// `preprocess_cfg.interpolation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Cubic convolution with a = −0.5, antialiased.
    Bicubic,
    /// A triangle, antialiased.
    Bilinear,
    /// One of the two, drawn per image, in training; bicubic in evaluation.
    Random,
}

/// `preprocess_cfg.resize_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// The shorter side fits, the middle of the longer one is kept.
    Shortest,
    /// The longer side fits, the rest is filled.
    Longest,
    /// Both sides fit; the shape is lost.
    Squash,
}

/// Largest side of an input, in pixels.
pub const MAX_IMAGE_SIZE: u32 = 8192;

/// OpenAI's mean of red, green and blue.
pub const OPENAI_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's standard deviation of red, green and blue.
pub const OPENAI_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
const HALF: [f64; 3] = [0.5; 3];

impl Default for PreprocessCfg {
    fn default() -> Self {
        Self {
            size: 224,
            mode: ColorMode::Rgb,
            mean: OPENAI_MEAN,
            std: OPENAI_STD,
            interpolation: Interpolation::Bicubic,
            resize_mode: ResizeMode::Shortest,
            fill_color: 0,
        }
    }
}

impl PreprocessCfg {
    /// Returns what the published weights of `name` expect: SigLIP's models map colours to −1 to 1
    /// and squash; CLIPA's take ImageNet's statistics, squash and interpolate linearly; all others
    /// do as OpenAI's.
    pub fn of_model(name: &str, config: &ModelConfig) -> Self {
        let size = u32::try_from(config.vision_cfg.image_size).unwrap_or(u32::MAX);
        let siglip = config
            .vision_cfg
            .timm_model_name
            .as_deref()
            .is_some_and(|trunk| trunk.contains("siglip"));
        let plain = Self { size, ..Self::default() };
        let resize_mode = ResizeMode::Squash;
        if siglip {
            Self { mean: HALF, std: HALF, resize_mode, ..plain }
        } else if name.contains("CLIPA") {
            let interpolation = Interpolation::Bilinear;
            Self { mean: IMAGENET_MEAN, std: IMAGENET_STD, interpolation, resize_mode, ..plain }
        } else {
            plain
        }
    }

    /// Checks that values can be computed with.
    ///
    /// # Errors
    /// The field, its value, and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=MAX_IMAGE_SIZE).contains(&self.size) {
            let size = self.size;
            return Err(format!(
                "preprocess_cfg.size is {size}; expected 1 to {MAX_IMAGE_SIZE} pixels"
            ));
        }
        if let Some(value) = self.mean.iter().find(|value| !value.is_finite()) {
            return Err(format!("preprocess_cfg.mean holds {value}; expected finite numbers"));
        }
        match self.std.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
            Some(value) => {
                Err(format!("preprocess_cfg.std holds {value}; expected numbers above 0"))
            }
            None => Ok(()),
        }
    }
}

/// Reads a side, or height and width that are equal.
fn square<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "size must be a whole number of pixels, or two that are equal")]
    enum Size {
        Side(u32),
        Sides([u32; 2]),
    }
    match Size::deserialize(input)? {
        Size::Side(side) => Ok(side),
        Size::Sides([height, width]) if height == width => Ok(height),
        Size::Sides([height, width]) => Err(serde::de::Error::custom(format!(
            "size is {height} × {width}; only square images are supported"
        ))),
    }
}
