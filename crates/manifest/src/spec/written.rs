//! The manifest as a file: `ringmaster/v1`, where it is written otherwise than [`crate::spec`] holds it.
//!
//! The schema of a manifest is derived from [`File`]. Documents are not read into it: [`crate::check`] holds
//! them against the schema, and [`crate::resolve`] makes a job of them.
#![expect(dead_code, reason = "most of these types are here for their schemas")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::data::Source;
use super::{ScheduleKind, TrainJob};
use crate::limits::{MAX_JOB_NAME, MAX_SOURCES, MAX_THREADS};
use crate::model_config::PreprocessCfg;
use crate::model_config::preprocess::{Interpolation, ResizeMode};
use crate::number::Count;

/// The only `apiVersion` this build reads.
#[derive(JsonSchema)]
enum ApiVersion {
    /// The first version.
    #[schemars(rename = "ringmaster/v1")]
    V1,
}

/// What a manifest describes.
#[derive(JsonSchema)]
enum Kind {
    /// A training run.
    TrainJob,
}

/// A Ringmaster job manifest.
#[derive(JsonSchema)]
#[schemars(title = "TrainJob", rename_all = "camelCase")]
pub(crate) struct File {
    /// Format of this file: `ringmaster/v1`.
    api_version: ApiVersion,
    /// What it describes: `TrainJob`.
    kind: Kind,
    /// Name and labels.
    metadata: Metadata,
    /// The job itself.
    spec: TrainJob,
}

/// Who the job is.
#[derive(JsonSchema)]
struct Metadata {
    /// Lower-case letters, digits and dashes, at most 48; the first part of the job's id.
    #[schemars(length(min = 1, max = MAX_JOB_NAME), extend("format" = "job-name", "pattern" = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    name: String,
    /// Labels for people and tools. Default none.
    #[schemars(extend("default" = {}))]
    labels: BTreeMap<String, String>,
}

/// The keys of `spec.model` that say how images are prepared, instead of the model's own.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct ImageKeys {
    /// Subtracted from red, green and blue (0 to 1), as `--image-mean`. Default: what the model's
    /// published weights expect.
    image_mean: Option<[f64; 3]>,
    /// What red, green and blue are divided by, as `--image-std`. Default: as `image_mean`'s.
    image_std: Option<[f64; 3]>,
    /// Filter of evaluation's resize, as `--image-interpolation`, and with `data.aug_cfg.use_timm` of
    /// training's. `random` draws bilinear or bicubic for every training image, and is bicubic in evaluation.
    /// Default: as `image_mean`'s.
    image_interpolation: Option<Interpolation>,
    /// How evaluation makes images square, as `--image-resize-mode`. Default: as `image_mean`'s.
    image_resize_mode: Option<ResizeMode>,
}

impl ImageKeys {
    /// Returns what a model expects, with these keys' values in their places.
    pub(crate) fn over(self, model: PreprocessCfg) -> PreprocessCfg {
        PreprocessCfg {
            mean: self.image_mean.unwrap_or(model.mean),
            std: self.image_std.unwrap_or(model.std),
            interpolation: self.image_interpolation.unwrap_or(model.interpolation),
            resize_mode: self.image_resize_mode.unwrap_or(model.resize_mode),
            ..model
        }
    }
}

/// Learning-rate schedule and length of the run.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Schedule {
    /// Shape after warm-up, as `OpenCLIP`'s `--lr-scheduler`. Default cosine.
    #[schemars(extend("default" = "cosine"))]
    pub(crate) kind: ScheduleKind,
    /// Length of the run in samples, rounded down to whole global batches. This or `steps`.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub(crate) samples: Option<u64>,
    /// Length of the run in steps. This or `samples`.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub(crate) steps: Option<u64>,
    /// Linear warm-up in samples, rounded down to whole global batches. Default 0.
    #[schemars(with = "Option<Count>")]
    pub(crate) warmup_samples: Option<u64>,
    /// Linear warm-up in steps. Default 0.
    #[schemars(with = "Option<Count>")]
    pub(crate) warmup_steps: Option<u64>,
}

/// The keys of `spec.data` that say what is read.
#[derive(JsonSchema)]
pub(crate) struct DataKeys {
    /// Webdataset shards: a path or URL or a list of them; `{000..127}` and `{a,b}` expand, `::`
    /// joins. Relative paths start at the manifest's folder. This or `sources`.
    train: Option<OneOrMany>,
    /// A mixture: every batch has rows of each source, in fixed shares. This or `train`.
    #[schemars(length(min = 1, max = MAX_SOURCES))]
    sources: Option<Vec<Source>>,
}

/// The keys of `spec.data` that say how far the order mixes.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct PoolKeys {
    /// Samples out of which a batch is drawn, of all sources together. Default 250000.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub(crate) pool_samples: Option<u64>,
    /// Samples shuffled together inside a lane: says the same as `pool_samples` divided by `lanes`.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub(crate) shuffle_window: Option<u64>,
}

/// Strengths of a colour jitter.
#[derive(JsonSchema)]
#[schemars(inline, untagged)]
pub(crate) enum JitterStrengths {
    /// Of brightness, contrast and saturation.
    One(#[schemars(range(min = 0.0))] f64),
    /// Of brightness, contrast, saturation and, if there are four, hue.
    Each(#[schemars(length(min = 3, max = 4), inner(range(min = 0.0)))] Vec<f64>),
}

/// One string or a list of them.
#[derive(JsonSchema)]
#[schemars(inline, untagged)]
pub(crate) enum OneOrMany {
    /// A string.
    One(#[schemars(length(min = 1))] String),
    /// A list of strings.
    Many(#[schemars(length(min = 1))] Vec<String>),
}

/// The ring's shape.
#[derive(JsonSchema)]
pub(crate) struct Ring {
    /// Ranks that stand together: text rotates inside a group and travels between groups. `auto`
    /// (the ranks of a node, from 16 ranks on), or a number that divides the ranks; 1 is the flat
    /// ring. Default auto.
    group: Option<RingGroup>,
}

/// `auto` or a number of ranks.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum RingGroup {
    /// Chosen from the world size and the nodes.
    Auto(Auto),
    /// Ranks in a group.
    Ranks(#[schemars(range(min = 1))] u32),
}

/// `auto` or a number of threads.
#[derive(JsonSchema)]
#[schemars(inline, untagged)]
pub(crate) enum Readers {
    /// Chosen from the node's cores.
    Auto(Auto),
    /// Threads.
    Threads(#[schemars(range(min = 1, max = MAX_THREADS))] u32),
}

/// The word `auto`.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub(crate) enum Auto {
    /// Chosen.
    Auto,
}
