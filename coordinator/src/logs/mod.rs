//! What the ranks printed: a bounded ring per job in memory, and everything in a file per job.
//!
//! Every line of a job has a number, which is its place in the file. A reader asks for lines from a
//! number on; what the ring no longer has comes from the file. So a slow follower loses nothing and
//! costs nothing but its own reads.
//!
//! Modules in reading order: `line` (the text form), `job` (ring and file of one job), `index`
//! (all jobs).

mod index;
mod job;
mod line;

pub use index::{Follow, LogIndex};
pub use line::Line;

use std::path::PathBuf;

/// What can go wrong with logs.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be used.
    #[error("{action} failed for the log {path}", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Nobody announced this job.
    #[error("there is no job {job_id}")]
    UnknownJob { job_id: String },
}
