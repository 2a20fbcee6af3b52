//! What can go wrong with a checkpoint.

use std::path::PathBuf;

use ringmaster_store as store;

/// Why a checkpoint was not written or cannot be read.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path or URL that does not lead to what is asked for, or that this build cannot use.
    #[error("cannot use {url:?}: {reason}")]
    Unusable {
        /// As the manifest or the command line gave it.
        url: String,
        /// The constraint it breaks, and what to give instead.
        reason: String,
    },
    /// The store failed; [`store::Kind::is_lasting`] says whether another attempt may succeed.
    #[error("cannot {action} {object}")]
    Store {
        action: &'static str,
        /// URL of the object or folder.
        object: String,
        /// What the store says, and what to do about it.
        source: store::Error,
    },
    /// A local file or folder beside the store's own calls.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// Somebody holds the lock of latest.json and does not let go.
    #[error("{} stayed locked for {seconds} s", path.display())]
    Locked { path: PathBuf, seconds: u64 },
    /// The coordinator does not let this rank go on.
    #[error("the coordinator did not take {what} of step {step}")]
    Grant { what: &'static str, step: u64, source: GrantError },
    /// A snapshot or a commit that lacks a part.
    #[error("checkpoint of step {step} lacks {missing}")]
    Incomplete { step: u64, missing: String },
    /// A checkpoint of this step and generation exists and says something else.
    #[error("{object} exists already with other content")]
    Conflict {
        /// URL of the manifest.
        object: String,
    },
    /// The writer was dropped before the commit was granted.
    #[error("checkpoint of step {step} was abandoned: its generation is over")]
    Abandoned { step: u64 },
    /// Content that verifies and makes no sense, or does not verify.
    #[error("{object} is damaged: {reason}")]
    Damaged {
        /// URL of the object.
        object: String,
        reason: String,
    },
    /// A format of another release.
    #[error(
        "{object} has format version {found}, this build reads 1 to {supported}; use a newer build"
    )]
    Version {
        /// URL of the object.
        object: String,
        found: u64,
        supported: u64,
    },
    /// JSON of the right version that does not parse.
    #[error("cannot understand {object}")]
    Json {
        /// URL of the object.
        object: String,
        source: serde_json::Error,
    },
    /// A tensor whose values do not fill its shape.
    #[error(
        "tensor {name} has shape {shape:?}, which is {expected} bytes, and {bytes} bytes of values"
    )]
    Shape {
        name: String,
        shape: Vec<i64>,
        /// Bytes of values it came with.
        bytes: usize,
        /// Bytes that fill its shape.
        expected: usize,
    },
    /// A store that takes every write and keeps somebody else's.
    #[error("{object} was written and holds something else now; another writer is at work there")]
    Overwritten {
        /// URL of the object.
        object: String,
    },
    /// No runtime for the store's calls.
    #[error("cannot start the runtime of the checkpoint store")]
    Runtime { source: std::io::Error },
    /// Somebody asked for an end.
    #[error("interrupted")]
    Interrupted,
    /// The writing thread ended without an answer.
    #[error("the checkpoint thread ended unexpectedly")]
    WriterDied,
}

impl Error {
    /// Whether it lies in what the job or its machines were told: every process that is told the same
    /// fails in the same way.
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Unusable { .. } => true,
            Self::Store { source, .. } => source.kind.is_mistake(),
            _ => false,
        }
    }

    /// Whether what was to be written will not be taken there however often it is tried: it is a mistake, or
    /// there is no such place and none can be made.
    pub fn refuses(&self) -> bool {
        match self {
            Self::Store { source, .. } => {
                source.kind.is_mistake() || source.kind == store::Kind::Missing
            }
            other => other.is_mistake(),
        }
    }

    /// Whether the place has no room left, which somebody may make.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.kind == store::Kind::Full)
    }

    /// Returns what kind of thing went wrong: words of this source, without names or numbers, so that two
    /// that have the same one can be taken for the same failure.
    pub fn cause(&self) -> String {
        let word = match self {
            Self::Store { source, .. } => return format!("store: {}", source.kind.word()),
            Self::Io { source, .. } => return format!("file: {:?}", source.kind()),
            Self::Unusable { .. } => "unusable",
            Self::Locked { .. } => "locked",
            Self::Grant { .. } => "no grant",
            Self::Incomplete { .. } => "incomplete",
            Self::Conflict { .. } => "conflict",
            Self::Abandoned { .. } => "abandoned",
            Self::Damaged { .. } => "damaged",
            Self::Version { .. } => "other version",
            Self::Json { .. } => "no such JSON",
            Self::Shape { .. } => "shape",
            Self::Overwritten { .. } => "overwritten",
            Self::Runtime { .. } => "no runtime",
            Self::Interrupted => "interrupted",
            Self::WriterDied => "writer ended",
        };
        word.to_owned()
    }
}

/// The coordinator's refusal, or its silence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct GrantError {
    /// In the coordinator's words.
    pub reason: String,
}
