//! Evaluation on held-out image–text pairs: zero-shot classification among all distinct captions
//! and retrieval both ways, sharded over the ranks.
//!
//! Modules in reading order: [`evaluate()`] (from a data set to scores), [`shard`] (scores of
//! embeddings that are spread over the ranks), [`scoring`] (pure functions over similarities),
//! [`scores`] (what comes out), `gather` (text through a tensor collective) and `pictures` (the
//! report's grid).

mod evaluate;
mod gather;
mod pictures;
pub mod scores;
pub mod scoring;
pub mod shard;

pub use evaluate::{EvalSet, evaluate};
pub use scores::{Choice, Picture, Prediction, Scores};
pub use scoring::{Ranks, Retrieval};

/// Why an evaluation could not be finished.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data set cannot be opened.
    #[error("evaluation set {set}: cannot open its data")]
    Open { set: String, source: ringmaster_data::Error },
    /// A sample cannot be read for a reason other than its own corruption.
    #[error("evaluation set {set}: cannot read sample {index}")]
    Read { set: String, index: u64, source: ringmaster_data::SampleError },
    /// No sample of the set can be used.
    #[error(
        "evaluation set {set}: none of its {samples} samples has a decodable image and a caption"
    )]
    Empty { set: String, samples: u64 },
    /// The model refused its input.
    #[error("evaluation set {set}: the model cannot encode the {what}")]
    Model {
        set: String,
        /// `images` or `captions`.
        what: &'static str,
        source: crate::model::Error,
    },
    /// A peer was lost, or the generation ended.
    #[error("the evaluation's ranks lost one another")]
    Collective(#[from] crate::collective::Error),
    /// A tensor operation failed.
    #[error("evaluation: {operation} failed")]
    Tensor { operation: &'static str, source: tch::TchError },
    /// The host refuses a thread.
    #[error("cannot start the thread that reads evaluation samples")]
    Thread(#[source] std::io::Error),
}
