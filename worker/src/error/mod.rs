//! What can end a rank, and whose fault that is.
//!
//! Here what can happen; `class` says of each what the coordinator is told: the class, what the rank was about
//! to do, and what kind of thing went wrong.

mod class;
mod weights;

use std::path::PathBuf;

use crate::control::{agent, coordinator};
use crate::{collective, eval, ffi, health, loss, model, report};
use ringmaster_checkpoint as checkpoint;
use ringmaster_data as data;
use ringmaster_manifest::stored;

/// Why a rank, or one of its attempts, ended.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent's copy of the manifest is not to be had.
    #[error("cannot read the manifest {}", path.display())]
    ReadManifest { path: PathBuf, source: std::io::Error },
    /// The manifest says something that this worker does not understand: a newer one may.
    #[error("manifest {}", path.display())]
    Manifest { path: PathBuf, source: stored::Error },
    /// A fault that a test asks for is not to be had.
    #[error("{what}")]
    Fault { what: String },
    /// SIGTERM cannot be kept from ending the process.
    #[error("cannot block SIGTERM")]
    Signals { source: std::io::Error },
    /// The system gives no more threads.
    #[error("cannot start the thread {name}")]
    Thread { name: &'static str, source: std::io::Error },
    /// The device that the rank is to compute on cannot be used at all.
    #[error("cannot use {device}")]
    Device {
        /// In words: by its UUID, or by the local rank that it belongs to.
        device: String,
        source: ffi::cuda::Error,
    },
    /// The GPU works no more, or there is no NCCL for it.
    #[error("GPU {ordinal} of this node")]
    Gpu {
        /// As libtorch numbers it.
        ordinal: usize,
        source: ffi::nccl::Error,
    },
    /// This node cannot take part in a communicator of GPUs.
    #[error("NCCL")]
    Nccl { source: ffi::nccl::Error },
    /// What the ring's first rank sent is none of NCCL's ids.
    #[error(
        "rank 0 sent a communicator id of {bytes} bytes, but NCCL's have {expected}; all ranks of a job \
         need accelerator: cuda and the same version of ringmaster-worker"
    )]
    CommunicatorId { bytes: usize, expected: usize },
    /// This machine cannot train the job.
    #[error("health check")]
    Health(#[from] health::Error),
    /// The agent's socket does not answer.
    #[error("cannot reach the agent")]
    Control(#[from] agent::Error),
    /// The coordinator refused a call.
    #[error("the coordinator refused a call")]
    Coordinator { source: coordinator::Error },
    /// A newer generation has begun.
    #[error("this generation is over: {what}")]
    Superseded { what: String },
    /// The ring broke.
    #[error("ring broke")]
    Collective(#[from] collective::Error),
    /// The files for mutual TLS between ranks are no good.
    #[error("TLS between ranks")]
    Tls(#[from] collective::tcp::tls::Error),
    /// No socket for the peers.
    #[error("cannot listen for peers on {address}")]
    Listen { address: String, source: std::io::Error },
    /// Training data that cannot be read.
    #[error("training data")]
    Data(#[from] data::Error),
    /// A model that cannot be built or run.
    #[error("model")]
    Model(#[from] model::Error),
    /// The model's tokenizer is not to be had.
    #[error("tokenizer")]
    Tokenizer(#[from] crate::factory::tokenizer::Error),
    /// The loss failed in libtorch.
    #[error("loss")]
    Loss(#[from] loss::Error),
    /// libtorch failed in the optimizer.
    #[error("optimizer")]
    Optimizer(#[from] tch::TchError),
    /// A checkpoint store that cannot be read.
    #[error("checkpoint store")]
    Store(#[from] checkpoint::Error),
    /// The folder of checkpoints takes none: found out before the first step.
    #[error("checkpoints cannot be written to {uri}")]
    CheckpointFolder {
        /// As the manifest names it.
        uri: String,
        source: checkpoint::Error,
    },
    /// There is no checkpoint where there has to be one.
    #[error("{what}")]
    NoCheckpoint {
        /// Path or URL of the place.
        url: String,
        /// Why there has to be one, and what to do.
        what: String,
    },
    /// A checkpoint that does not fit the model.
    #[error("checkpoint: {what}")]
    Checkpoint { what: String },
    /// Weights to start from, or a training checkpoint of OpenCLIP's, that cannot be had or do not fit.
    #[error("{field}")]
    Weights {
        /// Where the manifest or the command line names them.
        field: String,
        source: crate::factory::Error,
    },
    /// The end of a run that could not be stored.
    #[error(
        "the last checkpoint (step {step}) could not be stored within an hour: {what}. The run goes \
         on from the newest published one when the store is back"
    )]
    NotSaved {
        /// Steps applied.
        step: u64,
        what: String,
    },
    /// Evaluation failed.
    #[error("evaluation")]
    Eval(#[from] eval::Error),
    /// The run folder cannot be written.
    #[error("run folder")]
    Report(#[from] report::Error),
    /// Training diverged.
    #[error(
        "loss or gradient is not finite in step {step} (loss {loss}, squared gradient norm \
         {squared_norm}); lower the learning rate, lengthen the warm-up or set grad_clip_norm"
    )]
    NotFinite {
        /// 1-based step.
        step: u64,
        loss: f64,
        /// Of this rank's reduced gradient.
        squared_norm: f64,
    },
    /// Silent corruption: ranks hold different sums of the same gradients.
    #[error(
        "replicas disagree in step {step}: gradient norms from {lowest} to {highest}; \
         {}",
        culprits(minority)
    )]
    ReplicasDiffer {
        /// 1-based step.
        step: u64,
        /// Smallest gradient norm of any rank.
        lowest: f64,
        /// Largest.
        highest: f64,
        /// Ring ranks that hold another sum than most do; empty where there is no majority.
        minority: Vec<u32>,
    },
    /// Silent corruption: ranks hold different weights or optimizer state.
    #[error(
        "replicas hold different weights or optimizer state after step {step}; {}",
        culprits(minority)
    )]
    WeightsDiffer {
        /// Steps applied.
        step: u64,
        /// Ring ranks that hold another state than most do; empty where there is no majority.
        minority: Vec<u32>,
    },
    /// Ranks read different data: their nodes hold different copies.
    #[error(
        "the ranks do not read the same data ({found}); give every node the same shards, or read them from one place"
    )]
    DataDiffers {
        /// What ranks read, in short.
        found: String,
        /// Ring ranks that read something else than most do; empty where there is no majority.
        minority: Vec<u32>,
        /// This rank is one of them.
        mine: bool,
    },
    /// Data that is not what the run read that goes on, or another order of it.
    #[error("cannot go on from {what}")]
    OtherData {
        /// The checkpoint, what differs, and what to do.
        what: String,
    },
    /// A message between ranks of the same build that makes no sense.
    #[error("internal: {what}")]
    Internal { what: String },
}

impl Error {
    /// Whether the process can go on in a new generation.
    pub fn regroups(&self) -> bool {
        if let Self::DataDiffers { minority, mine, .. } = self {
            // Without somebody who is right the same happens again.
            return !mine && !minority.is_empty();
        }
        matches!(
            self,
            Self::Collective(_)
                | Self::Superseded { .. }
                | Self::WeightsDiffer { .. }
                | Self::ReplicasDiffer { .. }
                | Self::Eval(eval::Error::Collective(_))
                | Self::Report(report::Error::Superseded { .. })
        )
    }
}

/// Says who computes or stores wrongly, as the end of a sentence.
fn culprits(minority: &[u32]) -> String {
    let ranks: Vec<String> = minority.iter().map(u32::to_string).collect();
    match ranks.as_slice() {
        [] => {
            "a node computes or stores wrongly, and there is no majority that says which".to_owned()
        }
        [one] => {
            format!("ring rank {one} holds another than most: its node computes or stores wrongly")
        }
        more => format!(
            "ring ranks {} hold others than most: their nodes compute or store wrongly",
            more.join(", ")
        ),
    }
}

// A client error is one of the rank's own only where it ends the attempt.
impl From<coordinator::Error> for Error {
    fn from(error: coordinator::Error) -> Self {
        match error {
            coordinator::Error::Superseded(_) | coordinator::Error::Interrupted => {
                Self::Superseded { what: error.to_string() }
            }
            source => Self::Coordinator { source },
        }
    }
}
