//! A source of samples: shards of some form, behind one index over samples.
//!
//! What a form has to do is `Shards`: to say how many samples each shard holds, and to fetch neighbouring ones.
//! Forms:
//! - `tars` (webdataset);
//! - `csv` (tables of images and captions), with `table` (rows) and `text` (its file);
//! - `folder` (images and captions as files), with `listing` (which files make a sample) and `metadata` (captions in
//!   one file for all);
//! - `parquet`;
//! - `synthetic`, which stands for no data at all.
//!
//! `objects` fetches images that are objects of their own, `captions` and `json` read what stands beside images.
//! `sequential` reads a source from its first sample to its last.

mod captions;
pub(crate) mod csv;
pub(crate) mod folder;
mod json;
mod listing;
mod metadata;
mod objects;
pub(crate) mod parquet;
mod sequential;
pub(crate) mod synthetic;
mod table;
mod tars;
mod text;

use std::fmt::Debug;
use std::ops::Range;

use ringmaster_manifest::spec::{self, DatasetType};
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use self::csv::Csv;
use self::folder::Folder;
use self::parquet::Parquet;
pub use self::sequential::Run;
use self::synthetic::Synthetic;
use self::tars::Tars;
use crate::Error;
use crate::sample::{Block, Damaged, Flaw, RawSample, SampleError};

/// Shards of one form, opened; shared by the threads that fetch.
pub(crate) trait Shards: Debug + Send + Sync {
    /// Returns the samples of every shard, in order.
    fn sizes(&self) -> &[u64];

    /// Returns the longest block that one request may fetch, where the form's own is another than the one `asked` for.
    fn block_samples(&self, asked: u32) -> u32 {
        asked
    }

    /// Returns the shards that break off, found when they were counted.
    fn damaged(&self) -> &[Damaged] {
        &[]
    }

    /// Adds names, lengths and sample counts to a digest: it changes when the order would mean something else.
    fn add_to(&self, fingerprint: &mut Sha256);

    /// Whether reading takes requests to another process.
    fn is_remote(&self) -> bool;

    /// Returns the bytes of all samples, about.
    fn bytes(&self) -> u64;

    /// Whether what is fetched stands for no data.
    fn is_synthetic(&self) -> bool {
        false
    }

    /// Fetches the samples at some places of a shard, in one request where form and store can; one that cannot be used
    /// is a [`Flaw`] in its place. `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// When the store fails.
    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Block, Error>;
}

/// An opened source; shared by reader threads.
#[derive(Debug)]
pub struct Source {
    shards: Box<dyn Shards>,
    /// Index of every shard's first sample, and the number of samples.
    starts: Vec<u64>,
    block_samples: u64,
}

impl Source {
    /// Opens a source of a manifest: finds its shards and how many samples each holds.
    ///
    /// # Errors
    /// A shard that is missing or holds no sample, named; a store that fails.
    pub fn open(data: &spec::Data, source: &spec::Source) -> Result<Self, Error> {
        let shards: Box<dyn Shards> = match source.form(data.dataset_type) {
            DatasetType::Csv => Box::new(Csv::open(csv::Options::of(data, source))?),
            DatasetType::Folder => Box::new(Folder::open(folder::Options::of(data, source))?),
            DatasetType::Parquet => Box::new(Parquet::open(&parquet::Options::of(data, source))?),
            DatasetType::Synthetic => Box::new(Synthetic::open(&source.data)?),
            _ => Box::new(Tars::open(tars::Options::of(data, source))?),
        };
        Ok(Self::new(shards, data.block_samples))
    }

    /// Opens tables of images and captions, of which each row is a sample.
    ///
    /// # Errors
    /// A table that is missing, holds no sample or lacks a column, named; a store that fails.
    #[cfg(test)]
    pub(crate) fn of_tables(options: csv::Options, block_samples: u32) -> Result<Self, Error> {
        Ok(Self::new(Box::new(Csv::open(options)?), block_samples))
    }

    /// Opens folders of images with captions.
    ///
    /// # Errors
    /// A folder that is missing or in which no image has a caption, named; a store that fails.
    #[cfg(test)]
    pub(crate) fn of_folders(options: folder::Options, block_samples: u32) -> Result<Self, Error> {
        Ok(Self::new(Box::new(Folder::open(options)?), block_samples))
    }

    pub(crate) fn new(shards: Box<dyn Shards>, block_samples: u32) -> Self {
        let mut end = 0;
        let ends = shards.sizes().iter().map(|size| {
            end += size;
            end
        });
        let starts = std::iter::once(0).chain(ends).collect();
        let block_samples = shards.block_samples(block_samples).max(1).into();
        Self { shards, starts, block_samples }
    }

    /// Returns the number of samples.
    pub fn len(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the samples of every shard, in order.
    pub fn shard_sizes(&self) -> &[u64] {
        self.shards.sizes()
    }

    /// Returns the samples of the longest block.
    pub(crate) fn block_samples(&self) -> u64 {
        self.block_samples
    }

    /// Returns the shards that break off, found when they were counted.
    pub fn damaged(&self) -> &[Damaged] {
        self.shards.damaged()
    }

    /// Adds to a digest what the order of samples depends on.
    pub(crate) fn add_to(&self, fingerprint: &mut Sha256) {
        self.shards.add_to(fingerprint);
    }

    /// Whether reading takes requests to another process.
    pub fn is_remote(&self) -> bool {
        self.shards.is_remote()
    }

    /// Whether it stands for no data.
    pub(crate) fn is_synthetic(&self) -> bool {
        self.shards.is_synthetic()
    }

    /// Returns the bytes of all samples, about.
    pub fn bytes(&self) -> u64 {
        self.shards.bytes()
    }

    /// Reads one sample.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`] for a sample that cannot be used, [`SampleError::Store`] when the
    /// store fails.
    ///
    /// # Panics
    /// When `index` is not below [`Source::len`].
    pub fn read(&self, index: u64) -> Result<RawSample, SampleError> {
        self.read_until(index, &CancellationToken::new())
    }

    /// As [`Source::read`]; `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_until(
        &self,
        index: u64,
        cancel: &CancellationToken,
    ) -> Result<RawSample, SampleError> {
        let (shard, place) = self.place(index);
        let block = self.shards.fetch(shard, place..place + 1, cancel)?;
        Ok(block.sample(place)?)
    }

    /// Returns shard and number of the block that a sample lies in.
    pub(crate) fn block_of(&self, index: u64) -> (usize, u64) {
        let (shard, place) = self.place(index);
        let (size, count) = self.blocks(shard);
        // The last block that begins at or before the place: block i begins at ⌊i·size/count⌋.
        (shard, ((place + 1) * count).div_ceil(size) - 1)
    }

    /// Fetches a block.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn fetch(
        &self,
        shard: usize,
        block: u64,
        cancel: &CancellationToken,
    ) -> Result<Block, Error> {
        let (size, count) = self.blocks(shard);
        let places = block * size / count..(block + 1) * size / count;
        self.shards.fetch(shard, places, cancel)
    }

    /// Returns a sample of a fetched block.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn sample(&self, block: &Block, index: u64) -> Result<RawSample, Flaw> {
        block.sample(self.place(index).1)
    }

    /// Returns the samples of a shard, and into how many blocks it is cut.
    fn blocks(&self, shard: usize) -> (u64, u64) {
        let size = self.starts[shard + 1] - self.starts[shard];
        (size, size.div_ceil(self.block_samples))
    }

    /// Returns shard and place in it of a sample.
    fn place(&self, index: u64) -> (usize, u64) {
        assert!(index < self.len(), "sample {index} of {}", self.len());
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        (shard, index - self.starts[shard])
    }
}
