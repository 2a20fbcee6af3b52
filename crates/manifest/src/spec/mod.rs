//! The validated specification of a training job: what every other crate works with.
//!
//! Only [`crate::parse`] makes one, so holding a [`TrainJob`] means that its fields are consistent.
//!
//! A field is defined here and nowhere else: its meaning, its bounds and its default stand at the field, and
//! the schema of manifests is derived from them. A key that has a `default` may be left out of a manifest; in
//! the JSON of a job all of them are written out. Where a manifest writes something otherwise than a job
//! stores it, `with` names the type of `file` that describes it, and `resolve` translates.
//!
//! A field that is added later is absent in stored jobs: a step of [`crate::stored`]'s upgrades writes it into
//! them, with the value that stands for what was done before.

mod data;
mod loss;
mod model;
mod optimizer;
pub(crate) mod written;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_RANKS, MAX_THREADS};
use crate::number::{Count, Seconds};
use crate::spec::written::OneOrMany;

pub(crate) use data::form;
pub use data::{Affine, AugCfg, Data, DatasetType, SYNTHETIC, Source};
pub use loss::{Exchange, Loss, LossKind, Positives};
pub use model::{Model, Precision};
pub use optimizer::{Batch, Optimizer, Schedule, ScheduleKind};

/// A validated `TrainJob` manifest with every default filled in and every derived quantity computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Spec", description = "What is trained, on what, how.")]
pub struct TrainJob {
    /// `metadata.name`: lower-case letters, digits and dashes; the first part of the job id.
    #[schemars(skip)]
    pub name: String,
    /// `metadata.labels`, for people and tools.
    #[schemars(skip)]
    pub labels: BTreeMap<String, String>,
    /// What the job needs of the cluster. Default: one rank on a CPU.
    #[schemars(extend("default" = {}))]
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
    #[schemars(with = "crate::spec::written::Schedule")]
    pub schedule: Schedule,
    /// Global batch and its division.
    pub batch: Batch,
    /// Where and how often the state is saved.
    pub checkpoint: Checkpoint,
    /// What is measured on held-out data. Default nothing.
    #[schemars(extend("default" = {}))]
    pub eval: Eval,
    /// Extra sinks for metrics; `metrics.jsonl` is always written. Default none.
    #[schemars(extend("default" = []))]
    pub report_to: Vec<ReportTo>,
    /// When to give up.
    #[schemars(extend("default" = {}))]
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

/// What the job needs of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// World size wanted. Default 1.
    #[schemars(range(min = 1, max = MAX_RANKS), extend("default" = 1))]
    pub ranks: u32,
    /// Fewest ranks the job may run with. Default: `ranks`.
    #[schemars(range(min = 1, max = MAX_RANKS), extend("default" = null))]
    pub min_ranks: u32,
    /// Device of every rank. Default cpu.
    #[schemars(extend("default" = "cpu"))]
    pub accelerator: Accelerator,
    /// Higher runs first. Default 0.
    #[schemars(extend("default" = 0))]
    pub priority: i32,
    /// libtorch threads of a rank. Default: the node's cores divided by its slots, at least 1.
    #[schemars(range(min = 1, max = MAX_THREADS))]
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

/// Where and how often the state is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// Folder that holds one folder per job: a path, or a URL of file://, s3://, gs:// or az://. A
    /// relative path starts at the manifest's folder.
    #[schemars(length(min = 1))]
    pub uri: String,
    /// Steps between checkpoints; one is always written at the end. Default 1000.
    #[schemars(with = "Count", extend("minimum" = 1, "default" = 1000))]
    pub every_steps: u64,
    /// Newest checkpoints kept. Default 3.
    #[schemars(range(min = 1), extend("default" = 3))]
    pub keep_last: u32,
    /// Checkpoints whose step is a multiple of this are kept for good, too. A multiple of
    /// `every_steps`. Default: none is.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub keep_every: Option<u64>,
    /// What happens to a checkpoint that is due while the one before it is still being written: `skip`
    /// (training goes on, this one is left out) or `wait` (training waits). Default skip.
    // For the schema of manifests: stored jobs say it.
    #[serde(default)]
    pub when_busy: WhenBusy,
    /// The longest time from a request to stop (cancel, pause, preemption, drain) until ranks are killed,
    /// whatever they do, as seconds or as `30s`, `10m`, `2h`. Default: as long as their last checkpoint makes
    /// progress.
    #[schemars(with = "Option<Seconds>", extend("minimum" = 1))]
    pub stop_within: Option<u64>,
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

/// What is measured on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Eval {
    /// Steps between evaluations. Default: only at the end.
    #[schemars(with = "Option<Count>", extend("minimum" = 1))]
    pub every_steps: Option<u64>,
    /// Zero-shot classification and retrieval sets. Default none.
    #[schemars(extend("default" = []))]
    pub zero_shot: Vec<EvalSet>,
}

/// A webdataset whose distinct captions are the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalSet {
    /// Name in metric keys: `val/<name>-zeroshot-val-top1`.
    #[schemars(length(min = 1), extend("format" = "set-name", "pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
    /// Shards, as `data.train`.
    #[schemars(with = "OneOrMany")]
    pub data: Vec<String>,
}

/// `spec.report_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    /// Event files in the run folder.
    Tensorboard,
}

/// When to give up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Restart {
    /// Recoveries in a row without a new step before the job fails. Default 3.
    #[schemars(extend("default" = 3))]
    pub max_without_progress: u32,
}
