//! Why training data cannot be used.

use crate::order;

/// Why training data cannot be used.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL whose scheme no store serves.
    #[error("{url}: {reason}")]
    Url { url: String, reason: String },
    /// Settings of the environment with which a store cannot be opened.
    #[error("{url}: the settings of its store cannot be used: {reason}")]
    Settings { url: String, reason: String },
    /// A table without a column.
    #[error("{url} has no column {column:?}, only {columns}; {remedy}")]
    Column { url: String, column: String, columns: String, remedy: String },
    /// A file that is not of its form.
    #[error("{url}: {reason}")]
    Unreadable { url: String, reason: String },
    /// No place for what a compressed file holds.
    #[error("cannot unpack {url} into the folder for temporary files (TMPDIR)")]
    Unpack { url: String, source: std::io::Error },
    /// A shard that is not there.
    #[error("shard {url} does not exist; correct its URL in the manifest, or make the file")]
    Missing { url: String },
    /// A store that refuses, or fails for longer than the retries last.
    #[error("cannot read {url}")]
    Store { url: String, source: ringmaster_store::Error },
    /// The same of a part of a shard.
    #[error("cannot read bytes {from} to {to} of {url}")]
    Read { url: String, from: u64, to: u64, source: ringmaster_store::Error },
    /// A shard that is not the one any more whose samples were looked up.
    #[error(
        "{url} was replaced while the job read it, and where its samples lie is known of the old one only; put the old \
         one back, or go on from the last checkpoint with --accept-new-data"
    )]
    Replaced { url: String },
    /// A shard that holds no sample.
    #[error("shard {url} holds no sample: {reason}")]
    Empty { url: String, reason: String },
    /// A file that should be Parquet and is something else, or is cut off.
    #[error("{url} is no Parquet file: {reason}")]
    NoParquet { url: String, reason: String },
    /// A Parquet file without the columns that are wanted, or whose footer contradicts itself.
    #[error("{url}: {reason}")]
    Parquet { url: String, reason: String },
    /// A source whose shards are all declared to hold nothing.
    #[error(
        "source {source_name} has no samples, as sizes.json or shardindex.json beside its shards says; correct or \
         remove that file"
    )]
    NoSamples { source_name: String },
    /// Sources that have no order.
    #[error(transparent)]
    Order(#[from] order::Error),
    /// More corrupt samples than the manifest accepts.
    #[error(
        "{count} corrupt samples, more than the {limit} that data.max_corrupt accepts; repair the \
         shards or raise it. Found: {list}"
    )]
    TooManyCorrupt { count: usize, limit: u64, list: String },
    /// A row that no sample of its source can fill.
    #[error(
        "source {source_name}: a sample and {attempts} replacements are corrupt; repair the shards. Found: {list}"
    )]
    NoReplacement { source_name: String, attempts: u64, list: String },
    /// A reader that ended, or a batch beyond the last.
    #[error("reader thread: {reason}")]
    Reader { reason: String },
    /// The system gives no more threads.
    #[error("cannot start a thread that reads data")]
    Thread { source: std::io::Error },
}
