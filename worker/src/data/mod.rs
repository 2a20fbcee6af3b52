//! Training data: which sample stands where, and how it gets there.
//!
//! Modules in reading order: [`order`] (a pure function from step and row to sample), [`dataset`]
//! (webdataset shards behind an index) with [`store`] (files and object stores), `counts` (samples
//! per shard) and [`index`] (what is where in a tar), [`loader`] (decodes ahead of the training step).
//!
//! Nothing here calls ATen, so reader threads may.

mod counts;
pub mod dataset;
pub mod index;
pub mod loader;
pub mod order;
pub mod store;

#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;

pub use dataset::{Damaged, Dataset, Options, RawSample, SampleError};
pub use loader::{Batch, Loader, LoaderOptions};
pub use order::{Order, OrderOptions, SampleId};
use std::collections::BTreeMap;
use std::ops::Range;

pub use ringmaster_checkpoint::Substitution;
use ringmaster_manifest::spec::TrainJob;

use crate::split::even_range;

/// Why training data cannot be used.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A URL whose scheme no store serves.
    #[error("{url}: {reason}")]
    Url { url: String, reason: String },
    /// A shard that is not there.
    #[error("shard {url} does not exist; correct its URL in the manifest, or make the file")]
    Missing { url: String },
    /// A store that refuses, or fails for longer than the retries last.
    #[error("cannot read {url}")]
    Store { url: String, source: ringmaster_store::Error },
    /// A shard that holds no sample.
    #[error("shard {url} holds no sample: {reason}")]
    Empty { url: String, reason: String },
    /// Too few samples for one global batch in every lane.
    #[error(
        "the data set has {samples} samples, too few for a global batch of {global_batch} over \
         {lanes} lanes; add shards or lower batch.global"
    )]
    TooSmall {
        samples: u64,
        /// `batch.global`.
        global_batch: u32,
        /// `data.lanes`.
        lanes: u32,
    },
    /// More corrupt samples than the manifest accepts.
    #[error(
        "{count} corrupt samples, more than the {limit} that data.max_corrupt accepts; repair the \
         shards or raise it. Found: {list}"
    )]
    TooManyCorrupt { count: usize, limit: u64, list: String },
    /// A slot that no sample of its lane can fill.
    #[error(
        "global batch {step}, row {row}: the sample and {attempts} replacements are corrupt; repair \
         the shards. Found: {list}"
    )]
    NoReplacement {
        /// 0-based global batch.
        step: u64,
        /// Row of the global batch.
        row: u64,
        attempts: u64,
        list: String,
    },
    /// A reader that ended, or a batch beyond the last.
    #[error("reader thread: {reason}")]
    Reader { reason: String },
    /// The system gives no more threads.
    #[error("cannot start a thread that reads data")]
    Thread { source: std::io::Error },
}

/// Returns how many corrupt samples a share of `max_corrupt` of `samples` is: at least one, unless
/// none is accepted, since a share of a small data set must not round to zero.
pub fn corrupt_limit(samples: u64, max_corrupt: f64) -> u64 {
    match max_corrupt {
        share if share > 0.0 => ((samples as f64 * share) as u64).max(1),
        _ => 0,
    }
}

/// Checks that the samples replaced by all ranks together are not more than `limit`.
///
/// # Errors
/// [`Error::TooManyCorrupt`] with some of them.
pub fn check_corrupt<'a>(
    substitutions: impl Iterator<Item = &'a Substitution>,
    limit: u64,
) -> Result<(), Error> {
    let corrupt: BTreeMap<u64, &str> =
        substitutions.map(|s| (s.sample, s.reason.as_str())).collect();
    if corrupt.len() as u64 <= limit {
        return Ok(());
    }
    Err(too_many_corrupt(corrupt.len(), limit, corrupt.into_values()))
}

/// Corrupt samples that a message lists.
const LISTED: usize = 20;

fn too_many_corrupt<'a>(count: usize, limit: u64, reasons: impl Iterator<Item = &'a str>) -> Error {
    let list: Vec<&str> = reasons.take(LISTED).collect();
    Error::TooManyCorrupt { count, limit, list: list.join("; ") }
}

/// Returns the contiguous lanes that `rank` reads: as even as possible, the first ranks one more.
pub fn share(lanes: u32, rank: usize, world_size: usize) -> Range<u32> {
    let own = even_range(lanes as usize, rank, world_size);
    own.start as u32..own.end as u32
}

/// Rows of the global batch every rank holds when whole lanes are split over the ranks.
pub fn row_counts(job: &TrainJob, world_size: usize) -> Vec<usize> {
    let per_lane = (job.batch.global / job.data.lanes) as usize;
    (0..world_size).map(|rank| share(job.data.lanes, rank, world_size).len() * per_lane).collect()
}
