//! OpenCLIP's pretrained tags: which repository holds a model's weights, and how they are used.

use super::tag_table::TAGS;

/// Weights of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tag {
    /// The model, by OpenCLIP's name.
    pub model: &'static str,
    /// The tag.
    pub name: &'static str,
    /// The repository of the hub.
    pub repository: &'static str,
    /// How images were prepared for it.
    pub preprocess: Preprocess,
    /// Whether it was trained with QuickGELU, whatever the model's configuration says.
    pub quick_gelu: bool,
}

/// How images are prepared, as far as tags differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// Mean of red, green and blue, of values from 0 to 1.
    pub mean: [f64; 3],
    /// Their standard deviation.
    pub std: [f64; 3],
    /// `bicubic` or `bilinear`.
    pub interpolation: &'static str,
    /// `shortest` (and the centre is cut out) or `squash`.
    pub resize_mode: &'static str,
}

const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// OpenAI's and most others'.
pub(super) const CLIP: Preprocess = Preprocess {
    mean: CLIP_MEAN,
    std: CLIP_STD,
    interpolation: "bicubic",
    resize_mode: "shortest",
};
/// Those, of the whole image.
pub(super) const CLIP_SQUASH: Preprocess = Preprocess { resize_mode: "squash", ..CLIP };
/// Values from -1 to 1.
pub(super) const INCEPTION: Preprocess = Preprocess { mean: [0.5; 3], std: [0.5; 3], ..CLIP };
/// SigLIP's: values from -1 to 1, of the whole image.
pub(super) const SIGLIP: Preprocess = Preprocess { resize_mode: "squash", ..INCEPTION };
/// CLIPA's: ImageNet's mean and deviation.
pub(super) const CLIPA: Preprocess = Preprocess {
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
    interpolation: "bilinear",
    resize_mode: "squash",
};

/// Ending of a model's name that asks for QuickGELU.
const QUICK_GELU: &str = "-quickgelu";

/// Returns a model's tag, upper or lower case, with `-` or `_`. A model `NAME-quickgelu` has those
/// tags of NAME that were trained with QuickGELU.
pub fn tag(model: &str, name: &str) -> Option<&'static Tag> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    tags(model).find(|tag| tag.name == name)
}

/// Returns all tags of a model.
pub fn tags(model: &str) -> impl Iterator<Item = &'static Tag> {
    let (base, quick) = match model.strip_suffix(QUICK_GELU) {
        Some(base) => (base, true),
        None => (model, false),
    };
    TAGS.iter().filter(move |tag| tag.model == base && (tag.quick_gelu || !quick))
}
