//! What can end a rank, and what another attempt may mend.

use crate::control::{agent, coordinator};
use crate::{collective, data, eval, health, loss, model, report};
use ringmaster_checkpoint as checkpoint;

/// Why a rank, or one of its attempts, ended.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment or the manifest the agent handed over is wrong.
    #[error("{what}")]
    Environment { what: String },
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
         a node computes or stores wrongly"
    )]
    ReplicasDiffer {
        /// 1-based step.
        step: u64,
        /// Smallest gradient norm of any rank.
        lowest: f64,
        /// Largest.
        highest: f64,
    },
    /// Silent corruption: ranks hold different weights or optimizer state.
    #[error(
        "replicas hold different weights or optimizer state after step {step}; a node computes or \
         stores wrongly. All ranks go back to the newest checkpoint"
    )]
    WeightsDiffer {
        /// Steps applied.
        step: u64,
    },
    /// A message between ranks of the same build that makes no sense.
    #[error("internal: {what}")]
    Internal { what: String },
}

impl Error {
    /// Whether the process can go on in a new generation.
    pub fn regroups(&self) -> bool {
        matches!(
            self,
            Self::Collective(_)
                | Self::Superseded { .. }
                | Self::WeightsDiffer { .. }
                | Self::Eval(eval::Error::Collective(_))
                | Self::Report(report::Error::Superseded { .. })
        )
    }

    /// Whether another process may do better; false for mistakes every attempt would meet.
    pub fn retryable(&self) -> bool {
        if let Self::Data(error) | Self::Eval(eval::Error::Open { source: error, .. }) = self {
            return error.retryable();
        }
        if let Self::Store(error) = self {
            return !error.is_mistake();
        }
        if let Self::Weights { source, .. } = self {
            return source.may_pass();
        }
        if let Self::Tokenizer(crate::factory::tokenizer::Error::NotFound { source, .. }) = self {
            return source.may_pass();
        }
        !matches!(
            self,
            Self::Environment { .. }
                | Self::Model(_)
                | Self::Tokenizer(_)
                | Self::Checkpoint { .. }
                | Self::NotFinite { .. }
                | Self::Eval(eval::Error::Empty { .. })
        )
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

#[cfg(test)]
mod tests {
    use ringmaster_store as store;

    use super::*;

    fn of_code(code: &str) -> store::Error {
        let source = format!("<Error><Code>{code}</Code></Error>").into();
        store::Error::from(object_store::Error::Generic { store: "S3", source })
    }

    /// Wrong credentials and missing buckets were tried four times, and the job's reason ended with its
    /// restart budget.
    #[test]
    fn what_a_store_refuses_ends_the_job_at_once_and_what_may_pass_does_not() {
        for (code, again) in [
            ("SignatureDoesNotMatch", false),
            ("InvalidAccessKeyId", false),
            ("AccessDenied", false),
            ("NoSuchBucket", false),
            ("NotImplemented", false),
            ("SlowDown", true),
            ("InternalError", true),
            ("QuotaExceeded", true),
        ] {
            let (url, source) = ("s3://data/a.tar".to_owned(), of_code(code));
            let data = Error::Data(data::Error::Store { url, source });
            let (object, source) = ("s3://runs".to_owned(), of_code(code));
            let store = Error::Store(checkpoint::Error::Store { action: "list", object, source });
            assert_eq!((data.retryable(), store.retryable()), (again, again), "{code}");
        }
        let (url, reason) = ("s3://runs".to_owned(), "there are no credentials".to_owned());
        assert!(!Error::Store(checkpoint::Error::Unusable { url, reason }).retryable());
    }
}
