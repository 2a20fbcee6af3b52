//! What people see of a run: its folder with metrics, event files, summary and report.
//!
//! ```text
//! runs/<job-id>/job.json          manifest, versions, generations
//!               metrics.jsonl     one line per logged step and evaluation, appended
//!               tensorboard/      event files, one per process that wrote
//!               summary.json      the result in numbers, for scripts
//!               report.html       the result for people; needs no other file
//! runs/latest                     link to the newest run folder
//! ```
//!
//! A recovery may move the writer to another process: opening a folder again goes on where it
//! ends, and what a roll-back made obsolete is left out of the report.
//!
//! Modules in reading order: [`run`] (the folder), [`records`] (metrics.jsonl), [`tensorboard`]
//! (event files), [`summary`] (summary.json), [`page`] (report.html) with [`chart`] (its curves),
//! `clock` (where the time goes), `bottleneck` (what to change).

pub(crate) mod bottleneck;
pub mod chart;
pub(crate) mod clock;
pub mod page;
pub mod records;
pub mod run;
pub mod summary;
pub mod tensorboard;

pub use records::{Line, Records};
pub use run::{Ending, Error, Options, Run};
pub use summary::Summary;
