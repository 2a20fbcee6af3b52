//! `spec.loss`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::number::ByteSize;
use crate::spec::written::Ring;

/// The contrastive loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// siglip or infonce.
    pub kind: LossKind,
    /// Initial t', the logarithm of the scale. Default: the checkpoint's, the model
    /// configuration's, or the loss's own (siglip ln 10, infonce ln(1/0.07)).
    pub init_logit_scale: Option<f64>,
    /// Initial bias of siglip. Default as above; the loss's own is -10.
    pub init_logit_bias: Option<f64>,
    /// Clamp t' to [0, ln 100] after each step, as `OpenCLIP` does. Default true.
    #[schemars(extend("default" = true))]
    pub clamp_logit_scale: bool,
    /// Which pairs belong together: `pairs` (an image and its caption), or `captions` (an image and
    /// every caption equal to its own: duplicates are no negatives; siglip only). Default pairs.
    // For the schema of manifests: stored jobs say it.
    #[serde(default)]
    pub positives: Positives,
    /// How text meets the images of other ranks: `ring` (it travels; nobody holds all of it) or
    /// `all_gather` (infonce only: less traffic, memory for the whole batch's text). Default: ring
    /// for siglip, all_gather for infonce.
    pub exchange: Option<Exchange>,
    /// The ring's shape.
    // In a job: the ranks that stand together. None is a value, as it is of the keys around it: ranks choose
    // when they form a ring, by its size and their nodes.
    #[schemars(rename = "ring", with = "Option<Ring>")]
    pub ring_group: Option<u32>,
    /// Text rows that travel together round the ring. Default: by device, 256 on a CPU.
    #[schemars(range(min = 1))]
    pub sub_chunk: Option<u32>,
    /// Image rows that are multiplied together. Default: by a CPU's cache, 8192 on a GPU.
    #[schemars(range(min = 1))]
    pub tile_rows: Option<u32>,
    /// Bytes infonce may keep for its rows of logits instead of recomputing them. Default 256MiB.
    #[schemars(with = "ByteSize", extend("default" = 256 << 20))]
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
