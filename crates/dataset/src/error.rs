//! Why a data set's tool did not do what it was asked to.

use ringmaster_data::Flaw;

/// Why a data set's tool did not do what it was asked to.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What names the data set, or asks for something, is wrong; nothing was read.
    #[error("{what}; {remedy}")]
    Asked { what: String, remedy: String },
    /// Shards that cannot be found or read.
    #[error(transparent)]
    Data(#[from] ringmaster_data::Error),
    /// A sample that cannot be used, where none may be left out.
    #[error(
        "{flaw}; nothing was kept of what was written. Repair it, or leave such samples out with --skip-corrupt"
    )]
    Corrupt { flaw: Flaw },
    /// A sample that no shard takes.
    #[error("sample {key}: {reason}")]
    Sample { key: String, reason: String },
    /// What is written cannot be stored.
    #[error("cannot {doing} {url}")]
    Store { doing: &'static str, url: String, source: ringmaster_store::Error },
    /// A file of this machine.
    #[error("cannot write {path}")]
    File { path: String, source: std::io::Error },
    /// A part of the program that others run in ended.
    #[error("cannot run a thread that reads samples: {reason}")]
    Thread { reason: String },
    /// Somebody asked for an end.
    #[error("interrupted")]
    Interrupted,
}
