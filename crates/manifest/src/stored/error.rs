//! Why a stored job cannot be used.

/// A job that was stored or sent, and cannot be used.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON of a job.
    #[error("the job is not in the form this version reads")]
    Json(#[from] serde_json::Error),
    /// Not `{kind, schema, job}`.
    #[error("the job is not stored as one: {reason}")]
    Envelope { reason: String },
    /// A kind that is not known; probably a newer version's.
    #[error("unknown kind {found}; this ringmaster reads {known}: upgrade ringmaster")]
    UnknownKind { found: String, known: String },
    /// A newer version's.
    #[error(
        "the {kind} is of schema {found}, and this ringmaster reads 1 to {known}; upgrade ringmaster"
    )]
    TooNew { kind: &'static str, found: u64, known: u64 },
    /// A key too many.
    #[error(
        "unknown key {key}: schema {schema} of {kind} has none of this name, so it is not used"
    )]
    UnknownKey { key: String, kind: &'static str, schema: u64 },
    /// A key too few.
    #[error("the key {key} is missing: schema {schema} of {kind} writes every key out")]
    MissingKey { key: String, kind: &'static str, schema: u64 },
    /// A value that no manifest gives, or fields that do not go together.
    #[error("{field}: {reason}")]
    Inconsistent { field: String, reason: String },
}
