//! `spec.data`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LANES, MAX_THREADS};
use crate::spec::written::OneOrMany;

/// Training data and how it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data {
    /// Webdataset shards: a path or URL or a list of them; `{000..127}` and `{a,b}` expand, `::`
    /// joins. Relative paths start at the manifest's folder.
    // In a job: absolute paths and URLs, expanded and split, in order.
    #[schemars(with = "OneOrMany")]
    pub train: Vec<String>,
    /// Seed of the initial weights, the order and the augmentation. Default 0.
    #[schemars(extend("default" = 0))]
    pub seed: u64,
    /// Member extensions tried for the image, as `--image-key`: a list or text joined by `;`.
    /// Default png;jpg;jpeg;webp.
    // In a job: one by one, without dots.
    #[schemars(with = "Option<OneOrMany>", extend("default" = "png;jpg;jpeg;webp"))]
    pub image_key: Vec<String>,
    /// Member extension of the caption, as `--text-key`. Default txt.
    #[schemars(length(min = 1), extend("default" = "txt"))]
    pub text_key: String,
    /// Field of the `.json` member to take captions from instead of `text_key`; of a list one
    /// entry is drawn per sample.
    #[schemars(length(min = 1))]
    pub json_text_key: Option<String>,
    /// Parallel lanes of the data order, at least the most ranks the job will ever use; the global
    /// batch must be a multiple of it. Default 64.
    #[schemars(range(min = 1, max = MAX_LANES), extend("default" = 64))]
    pub lanes: u32,
    /// Contiguous samples of a shard that move together in the permutation. Default by data set
    /// size.
    #[schemars(range(min = 1))]
    pub block_samples: Option<u32>,
    /// Samples shuffled together inside a lane. Default 1024.
    #[schemars(range(min = 1), extend("default" = 1024))]
    pub shuffle_window: u32,
    /// Decoding threads per rank. Default 1.
    #[schemars(range(min = 1, max = MAX_THREADS), extend("default" = 1))]
    pub readers: u32,
    /// Largest share of corrupt samples before the job fails. Default 0.01.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0.01))]
    pub max_corrupt: f64,
    /// Random augmentation, in `OpenCLIP`'s `--aug-cfg` words where it has them.
    #[schemars(extend("default" = {}))]
    pub aug_cfg: AugCfg,
}

/// Random augmentation.
// The defaults are OpenCLIP's: a random resized crop of scale 0.9 to 1 and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AugCfg {
    /// Area of the crop, as a share of the image. Default [0.9, 1.0].
    #[schemars(extend(
        "items" = {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "default" = [0.9, 1.0]
    ))]
    pub scale: [f64; 2],
    /// Aspect ratio of the crop. Default [0.75, 1.3333333333333333].
    #[schemars(extend(
        "items" = {"type": "number", "exclusiveMinimum": 0},
        "default" = [3.0 / 4.0, 4.0 / 3.0]
    ))]
    pub ratio: [f64; 2],
    /// Strengths of brightness, contrast, saturation and hue jitter. Default all zero.
    #[schemars(inner(range(min = 0.0)), extend("default" = [0, 0, 0, 0]))]
    pub color_jitter: [f64; 4],
    /// Probability of the jitter. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub color_jitter_prob: f64,
    /// Probability of turning grey. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub gray_scale_prob: f64,
    /// Probability of a horizontal flip. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub hflip_prob: f64,
    /// Random affine map applied instead of the crop. Default none.
    pub affine: Option<Affine>,
    /// Probability of erasing a random rectangle. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub re_prob: f64,
}

/// A random rotation, zoom and shift, with white fill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Affine {
    /// Largest rotation either way, in degrees. Default 0.
    #[schemars(range(min = 0.0, max = 180.0), extend("default" = 0))]
    pub degrees: f64,
    /// Range of the zoom factor; below 1 shrinks the image. Default [1, 1].
    #[schemars(extend("items" = {"type": "number", "exclusiveMinimum": 0}, "default" = [1, 1]))]
    pub zoom: [f64; 2],
    /// Largest shift either way, as a share of the side. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub translate: f64,
}
