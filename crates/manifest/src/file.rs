//! The manifest as a file: `ringmaster/v1`, read strictly.
//!
//! Every field is optional here, the required ones too: a mistake is cut out of the document
//! before it is read into these types, so that one pass reports every mistake. The JSON schema
//! derived from them says which are required, and [`crate::check`] holds the document against it.
//! Defaults are filled in by [`crate::assemble`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::limits::{MAX_GLOBAL_BATCH, MAX_JOB_NAME, MAX_LANES, MAX_RANKS, MAX_THREADS};
use crate::model_config::preprocess::{Interpolation, ResizeMode};
use crate::number::{ByteSize, Count, Positive, Share};
use crate::spec::{
    Accelerator, Exchange, LossKind, Positives, Precision, ReportTo, ScheduleKind, WhenBusy,
};

/// The only `apiVersion` this build reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum ApiVersion {
    /// The first version.
    #[serde(rename = "ringmaster/v1")]
    V1,
}

/// What a manifest describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum Kind {
    /// A training run.
    TrainJob,
}

/// A Ringmaster job manifest.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(title = "TrainJob")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct File {
    /// Format of this file: `ringmaster/v1`.
    #[schemars(required)]
    #[expect(dead_code, reason = "there is one version, and the check compares the text")]
    pub(crate) api_version: Option<ApiVersion>,
    /// What it describes: `TrainJob`.
    #[schemars(required)]
    #[expect(dead_code, reason = "there is one kind, and the check compares the text")]
    pub(crate) kind: Option<Kind>,
    /// Name and labels.
    #[schemars(required)]
    pub(crate) metadata: Option<Metadata>,
    /// The job itself.
    #[schemars(required)]
    pub(crate) spec: Option<Spec>,
}

/// Who the job is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    /// Lower-case letters, digits and dashes, at most 48; the first part of the job's id.
    #[schemars(required, length(min = 1, max = MAX_JOB_NAME), extend("format" = "job-name", "pattern" = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub(crate) name: Option<String>,
    /// Labels for people and tools. Default none.
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

/// What is trained, on what, how.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// What the job needs of the cluster. Default: one rank on a CPU.
    pub(crate) resources: Option<Resources>,
    /// Which model, in which precision.
    #[schemars(required)]
    pub(crate) model: Option<Model>,
    /// Training data and how it is read.
    #[schemars(required)]
    pub(crate) data: Option<Data>,
    /// The contrastive loss.
    #[schemars(required)]
    pub(crate) loss: Option<Loss>,
    /// AdamW.
    #[schemars(required)]
    pub(crate) optimizer: Option<Optimizer>,
    /// Learning-rate schedule and length of the run.
    #[schemars(required)]
    pub(crate) schedule: Option<Schedule>,
    /// Global batch and its division.
    #[schemars(required)]
    pub(crate) batch: Option<Batch>,
    /// Where and how often the state is saved.
    #[schemars(required)]
    pub(crate) checkpoint: Option<Checkpoint>,
    /// What is measured on held-out data. Default nothing.
    pub(crate) eval: Option<Eval>,
    /// Extra sinks for metrics; `metrics.jsonl` is always written. Default none.
    pub(crate) report_to: Option<Vec<ReportTo>>,
    /// When to give up.
    pub(crate) restart: Option<Restart>,
}

/// What the job needs of the cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resources {
    /// World size wanted. Default 1.
    #[schemars(range(min = 1, max = MAX_RANKS))]
    pub(crate) ranks: Option<u32>,
    /// Fewest ranks the job may run with. Default: `ranks`.
    #[schemars(range(min = 1, max = MAX_RANKS))]
    pub(crate) min_ranks: Option<u32>,
    /// Device of every rank. Default cpu.
    pub(crate) accelerator: Option<Accelerator>,
    /// Higher runs first. Default 0.
    pub(crate) priority: Option<i32>,
    /// libtorch threads of a rank. Default: the node's cores divided by its slots, at least 1.
    #[schemars(range(min = 1, max = MAX_THREADS))]
    pub(crate) threads_per_rank: Option<u32>,
}

/// Which model, in which precision.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    /// Name of a configuration, as `OpenCLIP`'s `--model`: `ViT-B-16`.
    #[schemars(required, length(min = 1))]
    pub(crate) name: Option<String>,
    /// As `OpenCLIP`'s `--precision`, and fp64 on the CPU. Default fp32.
    pub(crate) precision: Option<Precision>,
    /// Share of patches dropped in training, instead of the configuration's, as
    /// `--force-patch-dropout`.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub(crate) force_patch_dropout: Option<f64>,
    /// Subtracted from red, green and blue (0 to 1), as `--image-mean`. Default: what the model's
    /// published weights expect.
    pub(crate) image_mean: Option<[f64; 3]>,
    /// What red, green and blue are divided by, as `--image-std`. Default: as `image_mean`'s.
    pub(crate) image_std: Option<[f64; 3]>,
    /// Filter of evaluation's resize, as `--image-interpolation`. Default: as `image_mean`'s.
    pub(crate) image_interpolation: Option<Interpolation>,
    /// How evaluation makes images square, as `--image-resize-mode`. Default: as `image_mean`'s.
    pub(crate) image_resize_mode: Option<ResizeMode>,
    /// Weights that a new run starts from: a job's folder (its newest good checkpoint; only its weights
    /// are taken), the folder of one checkpoint, a file (safetensors, .pt, .pth, .bin, .npz) that every
    /// worker can read, as a path or a URL, `hf-hub:ORG/NAME`, or one of the tags OpenCLIP has for the
    /// model, as `laion2b_s34b_b79k`. Paths begin with a dot or a slash, or end as files of weights do.
    /// Default: weights drawn from the seed.
    #[schemars(length(min = 1))]
    pub(crate) pretrained: Option<String>,
    /// Weights of the image tower alone, over `pretrained`'s: as there, or a vision transformer of
    /// timm's (`hf-hub:timm/NAME`) or Google's (`.npz`).
    #[schemars(length(min = 1))]
    pub(crate) pretrained_image: Option<String>,
    /// Weights of the text tower alone, over `pretrained`'s: as there, or a model of transformers';
    /// `none` for weights drawn from the seed. Default: without `pretrained`, those of the
    /// configuration's `hf_model_name`, if it has one.
    #[schemars(length(min = 1))]
    pub(crate) pretrained_text: Option<String>,
    /// Tokenizer: a `tokenizer.json`, a SentencePiece model, a folder with either, or a repository in
    /// the workers' Hugging Face cache. Default: what the model's configuration names, else CLIP's.
    #[schemars(length(min = 1))]
    pub(crate) tokenizer: Option<String>,
}

/// One string or a list of them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum OneOrMany {
    /// A string.
    One(#[schemars(length(min = 1))] String),
    /// A list of strings.
    Many(#[schemars(length(min = 1))] Vec<String>),
}

/// Training data and how it is read.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Webdataset shards: a path or URL or a list of them; `{000..127}` and `{a,b}` expand, `::`
    /// joins. Relative paths start at the manifest's folder.
    #[schemars(required)]
    pub(crate) train: Option<OneOrMany>,
    /// Seed of the initial weights, the order and the augmentation. Default 0.
    pub(crate) seed: Option<u64>,
    /// Member extensions tried for the image, as `--image-key`: a list or text joined by `;`.
    /// Default png;jpg;jpeg;webp.
    pub(crate) image_key: Option<OneOrMany>,
    /// Member extension of the caption, as `--text-key`. Default txt.
    #[schemars(length(min = 1))]
    pub(crate) text_key: Option<String>,
    /// Field of the `.json` member to take captions from instead of `text_key`; of a list one
    /// entry is drawn per sample.
    #[schemars(length(min = 1))]
    pub(crate) json_text_key: Option<String>,
    /// Parallel lanes of the data order, at least the most ranks the job will ever use; the global
    /// batch must be a multiple of it. Default 64.
    #[schemars(range(min = 1, max = MAX_LANES))]
    pub(crate) lanes: Option<u32>,
    /// Contiguous samples of a shard that move together in the permutation. Default by data set
    /// size.
    #[schemars(range(min = 1))]
    pub(crate) block_samples: Option<u32>,
    /// Samples shuffled together inside a lane. Default 1024.
    #[schemars(range(min = 1))]
    pub(crate) shuffle_window: Option<u32>,
    /// Decoding threads per rank. Default 1.
    #[schemars(range(min = 1, max = MAX_THREADS))]
    pub(crate) readers: Option<u32>,
    /// Largest share of corrupt samples before the job fails. Default 0.01.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) max_corrupt: Option<f64>,
    /// Random augmentation, in `OpenCLIP`'s `--aug-cfg` words where it has them.
    pub(crate) aug_cfg: Option<AugCfg>,
}

/// Random augmentation.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AugCfg {
    /// Area of the crop, as a share of the image. Default [0.9, 1.0].
    pub(crate) scale: Option<[Share; 2]>,
    /// Aspect ratio of the crop. Default [0.75, 1.3333333333333333].
    pub(crate) ratio: Option<[Positive; 2]>,
    /// Strengths of brightness, contrast, saturation and hue jitter. Default all zero.
    #[schemars(inner(range(min = 0.0)))]
    pub(crate) color_jitter: Option<[f64; 4]>,
    /// Probability of the jitter. Default 0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) color_jitter_prob: Option<f64>,
    /// Probability of turning grey. Default 0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) gray_scale_prob: Option<f64>,
    /// Probability of a horizontal flip. Default 0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) hflip_prob: Option<f64>,
    /// Random affine map applied instead of the crop. Default none.
    pub(crate) affine: Option<Affine>,
    /// Probability of erasing a random rectangle. Default 0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) re_prob: Option<f64>,
}

/// A random rotation, zoom and shift, with white fill.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Affine {
    /// Largest rotation either way, in degrees. Default 0.
    #[schemars(range(min = 0.0, max = 180.0))]
    pub(crate) degrees: Option<f64>,
    /// Range of the zoom factor; below 1 shrinks the image. Default [1, 1].
    pub(crate) zoom: Option<[Positive; 2]>,
    /// Largest shift either way, as a share of the side. Default 0.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub(crate) translate: Option<f64>,
}

/// The contrastive loss.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Loss {
    /// siglip or infonce.
    #[schemars(required)]
    pub(crate) kind: Option<LossKind>,
    /// Initial t', the logarithm of the scale. Default: the checkpoint's, the model
    /// configuration's, or the loss's own (siglip ln 10, infonce ln(1/0.07)).
    pub(crate) init_logit_scale: Option<f64>,
    /// Initial bias of siglip. Default as above; the loss's own is -10.
    pub(crate) init_logit_bias: Option<f64>,
    /// Clamp t' to [0, ln 100] after each step, as `OpenCLIP` does. Default true.
    pub(crate) clamp_logit_scale: Option<bool>,
    /// Which pairs belong together: `pairs` (an image and its caption), or `captions` (an image and
    /// every caption equal to its own: duplicates are no negatives; siglip only). Default pairs.
    pub(crate) positives: Option<Positives>,
    /// How text meets the images of other ranks: `ring` (it travels; nobody holds all of it) or
    /// `all_gather` (infonce only: less traffic, memory for the whole batch's text). Default: ring
    /// for siglip, all_gather for infonce.
    pub(crate) exchange: Option<Exchange>,
    /// The ring's shape.
    pub(crate) ring: Option<Ring>,
    /// Text rows that travel together round the ring. Default: by device, 256 on a CPU.
    #[schemars(range(min = 1))]
    pub(crate) sub_chunk: Option<u32>,
    /// Image rows that are multiplied together. Default: by a CPU's cache, 8192 on a GPU.
    #[schemars(range(min = 1))]
    pub(crate) tile_rows: Option<u32>,
    /// Bytes infonce may keep for its rows of logits instead of recomputing them. Default 256MiB.
    pub(crate) logits_budget: Option<ByteSize>,
}

/// The ring's shape.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ring {
    /// Ranks that stand together: text rotates inside a group and travels between groups. `auto`
    /// (the ranks of a node, from 16 ranks on), or a number that divides the ranks; 1 is the flat
    /// ring. Default auto.
    pub(crate) group: Option<RingGroup>,
}

/// `auto` or a number of ranks.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum RingGroup {
    /// Chosen from the world size and the nodes.
    Auto(Auto),
    /// Ranks in a group.
    Ranks(#[schemars(range(min = 1))] u32),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auto {
    /// Chosen.
    Auto,
}

/// `AdamW`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Optimizer {
    /// Peak learning rate.
    #[schemars(required, extend("exclusiveMinimum" = 0))]
    pub(crate) lr: Option<f64>,
    /// Decay of the first moment. Default 0.9.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub(crate) beta1: Option<f64>,
    /// Decay of the second moment. Default 0.95.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    pub(crate) beta2: Option<f64>,
    /// Added to the root of the second moment. Default 1e-6.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) eps: Option<f64>,
    /// As torch's `AdamW`: multiplied by the learning rate. Default 0.1.
    #[schemars(range(min = 0.0))]
    pub(crate) weight_decay: Option<f64>,
    /// Largest global L2 norm of the gradient. Default: no clipping.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) grad_clip_norm: Option<f64>,
}

/// Learning-rate schedule and length of the run.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Schedule {
    /// Shape after warm-up, as `OpenCLIP`'s `--lr-scheduler`. Default cosine.
    pub(crate) kind: Option<ScheduleKind>,
    /// Length of the run in samples, rounded down to whole global batches. This or `steps`.
    #[schemars(extend("minimum" = 1))]
    pub(crate) samples: Option<Count>,
    /// Length of the run in steps. This or `samples`.
    #[schemars(extend("minimum" = 1))]
    pub(crate) steps: Option<Count>,
    /// Linear warm-up in samples, rounded down to whole global batches. Default 0.
    pub(crate) warmup_samples: Option<Count>,
    /// Linear warm-up in steps. Default 0.
    pub(crate) warmup_steps: Option<Count>,
}

/// Global batch and its division.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    /// Samples of all ranks per step; a multiple of `data.lanes`.
    #[schemars(required, range(min = 1, max = MAX_GLOBAL_BATCH))]
    pub(crate) global: Option<u32>,
    /// Largest number of samples a rank sends through a tower at once. Default: its whole share.
    #[schemars(range(min = 1))]
    pub(crate) micro_per_rank: Option<u32>,
}

/// Where and how often the state is saved.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Checkpoint {
    /// Folder that holds one folder per job: a path, or a URL of file://, s3://, gs:// or az://. A
    /// relative path starts at the manifest's folder.
    #[schemars(required, length(min = 1))]
    pub(crate) uri: Option<String>,
    /// Steps between checkpoints; one is always written at the end. Default 1000.
    #[schemars(extend("minimum" = 1))]
    pub(crate) every_steps: Option<Count>,
    /// Newest checkpoints kept. Default 3.
    #[schemars(range(min = 1))]
    pub(crate) keep_last: Option<u32>,
    /// Checkpoints whose step is a multiple of this are kept for good, too. A multiple of
    /// `every_steps`. Default: none is.
    #[schemars(extend("minimum" = 1))]
    pub(crate) keep_every: Option<Count>,
    /// What happens to a checkpoint that is due while the one before it is still being written: `skip`
    /// (training goes on, this one is left out) or `wait` (training waits). Default skip.
    pub(crate) when_busy: Option<WhenBusy>,
}

/// What is measured on held-out data.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Eval {
    /// Steps between evaluations. Default: only at the end.
    #[schemars(extend("minimum" = 1))]
    pub(crate) every_steps: Option<Count>,
    /// Zero-shot classification and retrieval sets. Default none.
    pub(crate) zero_shot: Option<Vec<EvalSet>>,
}

/// A webdataset whose distinct captions are the classes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvalSet {
    /// Name in metric keys: `val/<name>-zeroshot-val-top1`.
    #[schemars(required, length(min = 1), extend("format" = "set-name", "pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub(crate) name: Option<String>,
    /// Shards, as `data.train`.
    #[schemars(required)]
    pub(crate) data: Option<OneOrMany>,
}

/// When to give up.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restart {
    /// Recoveries in a row without a new step before the job fails. Default 3.
    pub(crate) max_without_progress: Option<u32>,
}
