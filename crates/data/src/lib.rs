//! Training data: which sample stands where, and how it gets there.
//!
//! Modules in reading order: [`order`] (a pure function from a row of a batch to a sample), [`dataset`] (the sources
//! of a job, opened), [`source`] (shards of one form, behind one index over samples) with `sample` and [`store`]
//! (files and object stores), `blocks` (fetched ahead), `plan` (what a rank reads, step by step), [`loader`] (decodes
//! ahead of the training step), `batch` (what comes of it) in
//! `buffers`, [`corrupt`] (how many samples may be replaced),
//! [`resumed`] (whether a run can go on from a checkpoint), `progress`.

mod batch;
mod blocks;
mod buffers;
pub mod corrupt;
pub mod dataset;
mod error;
pub mod loader;
pub mod order;
mod plan;
mod progress;
pub mod resumed;
mod sample;
pub mod source;
pub mod store;

#[cfg(test)]
mod tests;

pub use batch::Batch;
pub use blocks::Fetched;
pub use buffers::Buffer;
pub use dataset::Dataset;
pub use error::Error;
pub use loader::{Loader, LoaderOptions, Spent};
pub use progress::moved;
pub use sample::{Damaged, Flaw, RawSample, SampleError};
pub use source::{Run, Source};
