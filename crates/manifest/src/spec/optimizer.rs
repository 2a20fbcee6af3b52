//! `spec.optimizer`, `spec.schedule` and `spec.batch`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::MAX_GLOBAL_BATCH;

/// `AdamW`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Optimizer {
    /// Peak learning rate.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Decay of the first moment. Default 0.9.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1, "default" = 0.9))]
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    // The default tames gradient spikes of large batches (arXiv:2303.15343, section 4.7).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1, "default" = 0.95))]
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-6.
    #[schemars(extend("exclusiveMinimum" = 0, "default" = 1e-6))]
    pub eps: f64,
    /// As torch's `AdamW`: multiplied by the learning rate. Default 0.1.
    #[schemars(range(min = 0.0), extend("default" = 0.1))]
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient. Default: no clipping.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub grad_clip_norm: Option<f64>,
}

/// `spec.schedule`, in steps. What a manifest may say of it is in `file`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up, from `warmup_samples` or `warmup_steps`.
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

/// Global batch and its division.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Batch {
    /// Samples of all ranks per step, at least one per rank.
    #[schemars(range(min = 1, max = MAX_GLOBAL_BATCH))]
    pub global: u32,
    /// Largest number of samples a rank sends through a tower at once. Default: its whole share.
    #[schemars(range(min = 1))]
    pub micro_per_rank: Option<u32>,
}
