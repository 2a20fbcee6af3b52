//! The validated specification of a training job: what every other crate works with.
//!
//! Only [`crate::parse`] makes one, so holding a [`TrainJob`] means that its fields are consistent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A validated `TrainJob` manifest with every default filled in and every derived quantity computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// `metadata.name`: lower-case letters, digits and dashes; the first part of the job id.
    pub name: String,
    /// `metadata.labels`, for people and tools.
    pub labels: BTreeMap<String, String>,
    /// What the job needs of the cluster.
    pub resources: Resources,
    /// Which model, in which precision.
    pub model: Model,
    /// Training data and how it is read.
    pub data: Data,
    /// The contrastive loss.
    pub loss: Loss,
    /// AdamW.
    pub optimizer: Optimizer,
    /// Learning-rate schedule and length of the run.
    pub schedule: Schedule,
    /// Global batch and its division.
    pub batch: Batch,
    /// Where and how often the state is saved.
    pub checkpoint: Checkpoint,
    /// What is measured on held-out data.
    pub eval: Eval,
    /// Extra sinks for metrics; `metrics.jsonl` is always written.
    pub report_to: Vec<ReportTo>,
    /// When to give up.
    pub restart: Restart,
}

impl TrainJob {
    /// Returns the samples of so many steps. Saturated: of a valid job that happens to none of its steps, but
    /// steps also come from files.
    pub fn samples(&self, steps: u64) -> u64 {
        steps.saturating_mul(self.batch.global.into())
    }

    /// Returns the samples of the whole run: at most [`crate::MAX_COUNT`].
    pub fn total_samples(&self) -> u64 {
        self.samples(self.schedule.total_steps)
    }
}

/// `spec.resources`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// World size wanted. Default 1.
    pub ranks: u32,
    /// Fewest ranks the job may run with. Default: `ranks`.
    pub min_ranks: u32,
    /// Device of every rank. Default cpu.
    pub accelerator: Accelerator,
    /// Higher runs first. Default 0.
    pub priority: i32,
    /// libtorch threads of a rank; default: the node's cores divided by its slots, at least 1.
    pub threads_per_rank: Option<u32>,
}

/// `spec.resources.accelerator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// libtorch on the CPU, tcp collective.
    Cpu,
    /// One GPU per rank.
    Cuda,
}

/// `spec.model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Name of a configuration (`configs/models/<name>.json`), as OpenCLIP's `--model`.
    pub name: String,
    /// The configuration itself, resolved from the name when the manifest was validated.
    pub config: crate::model_config::ModelConfig,
    /// As OpenCLIP's `--precision`, and fp64. Default fp32.
    pub precision: Precision,
    /// Overrides the configuration's `patch_dropout`, as OpenCLIP's `--force-patch-dropout`.
    pub force_patch_dropout: Option<f64>,
    /// Weights that a run takes at step 0: the URL of a file, of a job's folder or of one checkpoint,
    /// `hf-hub:` with a repository, or a tag of OpenCLIP's. Absent in what earlier versions wrote.
    #[serde(default)]
    pub pretrained: Option<String>,
    /// The same for the image tower alone. Absent in what earlier versions wrote.
    #[serde(default)]
    pub pretrained_image: Option<String>,
    /// The same for the text tower alone, or `none`. Absent in what earlier versions wrote.
    #[serde(default)]
    pub pretrained_text: Option<String>,
    /// Tokenizer: a path on the workers, or a repository in their Hugging Face cache. Absent in what
    /// earlier versions wrote.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// How images are prepared, resolved from the name and the keys `image_*`. Absent in what
    /// earlier versions wrote; see [`Self::preprocess`].
    #[serde(default)]
    pub preprocess: Option<crate::model_config::PreprocessCfg>,
}

impl Model {
    /// Returns how images are prepared.
    pub fn preprocess(&self) -> crate::model_config::PreprocessCfg {
        // What jobs of earlier versions were trained with.
        let openai = || crate::model_config::PreprocessCfg {
            size: u32::try_from(self.config.vision_cfg.image_size).unwrap_or(u32::MAX),
            ..crate::model_config::PreprocessCfg::default()
        };
        self.preprocess.clone().unwrap_or_else(openai)
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

/// `spec.data`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Shard URLs or absolute paths, brace lists expanded, `::` joins split, in order.
    pub train: Vec<String>,
    /// Seed of order and augmentation. Default 0.
    pub seed: u64,
    /// Member extensions tried for the image, as OpenCLIP's `--image-key`. Default png;jpg;jpeg;webp.
    pub image_key: Vec<String>,
    /// Member extension of the caption, as `--text-key`. Default txt.
    pub text_key: String,
    /// Field of the `.json` member to take captions from instead of `text_key`, as
    /// `--json-text-key`; a list value means that one entry is drawn per sample.
    pub json_text_key: Option<String>,
    /// C of the lane order. A multiple of every world size is not needed; global batch must be a multiple
    /// of it. Default 64.
    pub lanes: u32,
    /// Contiguous samples of a shard that move together in the permutation; default by data set size.
    pub block_samples: Option<u32>,
    /// Samples shuffled together inside a lane. Default 1024.
    pub shuffle_window: u32,
    /// Decoding threads per rank. Default 1.
    pub readers: u32,
    /// Largest share of corrupt samples before the job fails. Default 0.01.
    pub max_corrupt: f64,
    /// Random augmentation, in OpenCLIP's `--aug-cfg` words where it has them.
    pub aug_cfg: AugCfg,
}

/// `spec.data.aug_cfg`. The defaults are OpenCLIP's: a random resized crop of scale 0.9 to 1 and nothing
/// else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AugCfg {
    /// Area of the crop, as a share of the image. Default [0.9, 1.0].
    pub scale: [f64; 2],
    /// Aspect ratio of the crop. Default [3/4, 4/3].
    pub ratio: [f64; 2],
    /// Strengths of brightness, contrast, saturation and hue jitter. Default all zero.
    pub color_jitter: [f64; 4],
    /// Probability of the jitter. Default 0.
    pub color_jitter_prob: f64,
    /// Probability of turning grey. Default 0.
    pub gray_scale_prob: f64,
    /// Probability of a horizontal flip. Default 0.
    pub hflip_prob: f64,
    /// Random affine map applied instead of the crop when present: degrees of rotation either way,
    /// range of zoom, translation as a share of the side. White fill.
    pub affine: Option<Affine>,
    /// Probability of erasing a random rectangle. Default 0.
    pub re_prob: f64,
}

/// `spec.data.aug_cfg.affine`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// Largest rotation either way, in degrees.
    pub degrees: f64,
    /// Range of the zoom factor; below 1 shrinks the image.
    pub zoom: [f64; 2],
    /// Largest shift either way, as a share of the side.
    pub translate: f64,
}

/// `spec.loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// siglip or infonce.
    pub kind: LossKind,
    /// Initial t'; default by precedence checkpoint > manifest > model configuration > the loss's own.
    pub init_logit_scale: Option<f64>,
    /// Initial β of siglip; precedence as above.
    pub init_logit_bias: Option<f64>,
    /// Clamp t' to [0, ln 100] after each step, as OpenCLIP does. Default true.
    pub clamp_logit_scale: bool,
    /// Which pairs belong together.
    #[serde(default)]
    pub positives: Positives,
    /// How text meets the images of other ranks; none: as [`Loss::exchange`] says.
    pub exchange: Option<Exchange>,
    /// Ranks that stand together in the ring; none: chosen.
    pub ring_group: Option<u32>,
    /// Text rows that travel together round the ring; none: chosen.
    pub sub_chunk: Option<u32>,
    /// Image rows of a tile; none: chosen.
    pub tile_rows: Option<u32>,
    /// Bytes InfoNCE may keep for its rows of logits instead of recomputing them. Default 256 MiB.
    pub logits_budget: u64,
}

/// `spec.loss.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Pairwise sigmoid loss round the ring (arXiv:2303.15343).
    Siglip,
    /// One-sided all-gathered softmax loss (arXiv:2103.00020).
    Infonce,
}

impl Loss {
    /// How text meets the images of other ranks: unless the manifest says, it travels for siglip and
    /// is gathered for infonce.
    pub fn exchange(&self) -> Exchange {
        self.exchange.unwrap_or(match self.kind {
            LossKind::Siglip => Exchange::Ring,
            LossKind::Infonce => Exchange::AllGather,
        })
    }
}

/// `spec.loss.positives`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Positives {
    /// An image and its own caption.
    #[default]
    Pairs,
    /// An image and every caption that is equal to its own.
    Captions,
}

/// `spec.loss.exchange`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// Text travels round the ring of ranks.
    Ring,
    /// Every rank holds the text of the whole batch.
    AllGather,
}

/// `spec.optimizer`: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// Peak learning rate.
    pub lr: f64,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.95: tames gradient spikes of large batches (arXiv:2303.15343, §4.7).
    pub beta2: f64,
    /// Default 1e-6.
    pub eps: f64,
    /// As torch's AdamW: multiplied by the learning rate. Default 0.1.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; none = off.
    pub grad_clip_norm: Option<f64>,
}

/// `spec.schedule`, in steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape after warm-up. Default cosine.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up, from `warmup_samples` or `warmup_steps`. Default 0.
    pub warmup_steps: u64,
    /// Steps of the whole run, from `samples` or `steps`.
    pub total_steps: u64,
}

/// `spec.schedule.kind`, as OpenCLIP's `--lr-scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine down to zero.
    Cosine,
    /// The peak throughout.
    Const,
}

/// `spec.batch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// B: samples of all ranks per step; a multiple of `data.lanes`.
    pub global: u32,
    /// Largest number of samples a rank sends through a tower at once; default: its whole share.
    pub micro_per_rank: Option<u32>,
}

/// `spec.checkpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// URL of the folder that holds job folders (`file:///…`, `s3://bucket/runs` …).
    pub uri: String,
    /// Steps between checkpoints; one is always written at the end. Default 1000.
    pub every_steps: u64,
    /// Newest checkpoints kept. Default 3.
    pub keep_last: u32,
    /// Checkpoints of steps that are multiples of this are kept for good; none if absent, as in what
    /// earlier versions wrote.
    #[serde(default)]
    pub keep_every: Option<u64>,
    /// What happens to a checkpoint that is due while the last is still being written. Default skip.
    #[serde(default)]
    pub when_busy: WhenBusy,
}

/// `spec.checkpoint.when_busy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenBusy {
    /// Training goes on, and the checkpoint that is due is left out.
    #[default]
    Skip,
    /// Training waits until the last checkpoint is written.
    Wait,
}

/// `spec.eval`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Steps between evaluations; none = only at the end.
    pub every_steps: Option<u64>,
    /// Zero-shot classification and retrieval sets.
    pub zero_shot: Vec<EvalSet>,
}

/// One entry of `spec.eval.zero_shot`: a webdataset whose distinct captions are the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalSet {
    /// Name in metric keys: `val/<name>-zeroshot-val-top1`.
    pub name: String,
    /// Shards, as `data.train`.
    pub data: Vec<String>,
}

/// `spec.report_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Event files in the run folder.
    Tensorboard,
}

/// `spec.restart`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    /// Recoveries in a row without a new step before the job fails. Default 3.
    pub max_without_progress: u32,
}
