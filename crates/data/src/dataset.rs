//! The training data of a job: its sources, opened, in the order they are read.

use ringmaster_manifest::spec;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::corrupt::SampleKey;
use crate::order::{self, Order, Shares, Visit};
use crate::sample::{Block, Damaged, RawSample, SampleError};
use crate::source::Source;

/// An opened data set; shared by reader threads.
#[derive(Debug)]
pub struct Dataset {
    names: Vec<String>,
    sources: Vec<Source>,
    order: Order,
    fingerprint: String,
}

/// A block of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    pub(crate) source: u32,
    pub(crate) shard: usize,
    /// Number of the block in the shard.
    pub(crate) block: u64,
}

/// A block and how long it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) key: BlockKey,
    /// One past the last position of its source that may need it.
    pub(crate) until: u64,
}

impl Dataset {
    /// Opens every source and lays out the order in which they are read.
    ///
    /// # Errors
    /// A shard that is missing or holds no sample, named; a store that fails; sources that do not go with
    /// `global_batch`.
    pub fn open(data: &spec::Data, global_batch: u64) -> Result<Self, Error> {
        let open = |source| Source::open(data, source);
        let sources = data.sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for (source, set) in data.sources.iter().zip(&sources) {
            if set.is_empty() {
                return Err(Error::NoSamples { source_name: source.name.clone() });
            }
        }
        let weights: Vec<f64> = data
            .sources
            .iter()
            .zip(&sources)
            .map(|(source, set)| source.weighs(set.len()))
            .collect();
        let shares = Shares::new(&weights)?;
        let options =
            order::Options { seed: data.seed, lanes: data.lanes, pool_samples: data.pool_samples };
        let names: Vec<String> = data.sources.iter().map(|source| source.name.clone()).collect();
        let sized = names.iter().zip(&sources).map(|(name, set)| order::Source {
            name: name.clone(),
            shards: set.shard_sizes().to_vec(),
            block_samples: set.block_samples(),
        });
        let order = Order::new(&sized.collect::<Vec<_>>(), shares, options)?;
        order.check_batch(global_batch)?;
        let fingerprint = fingerprint(&sources, order.shares(), options);
        Ok(Self { names, sources, order, fingerprint })
    }

    /// Returns which sample stands where.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// Returns a digest of all that decides which samples a run reads in which order: the shards' names, lengths and
    /// sample counts, the sources' shares, seed, lanes, blocks and pool, and the version of the order.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns the number of samples of all sources.
    pub fn len(&self) -> u64 {
        self.sources.iter().map(Source::len).sum()
    }

    /// Whether there is no sample; an opened data set has some.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of shards of all sources.
    pub fn shards(&self) -> usize {
        self.sources.iter().map(|source| source.shard_sizes().len()).sum()
    }

    /// Returns the shards that break off, found when they were counted.
    pub fn damaged(&self) -> impl Iterator<Item = &Damaged> {
        self.sources.iter().flat_map(Source::damaged)
    }

    /// Returns the name of a source.
    pub fn name(&self, source: u32) -> &str {
        &self.names[source as usize]
    }

    /// Returns the block that a visit reads when it reads this sample, and how long it is needed.
    pub(crate) fn need(&self, visit: Visit, index: u64) -> Need {
        let source = &self.sources[visit.source as usize];
        let (shard, block) = source.block_of(index);
        let key = BlockKey { source: visit.source, shard, block };
        Need { key, until: self.order.needed_until(visit) }
    }

    /// Fetches a block.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn fetch(&self, key: BlockKey, cancel: &CancellationToken) -> Result<Block, Error> {
        self.sources[key.source as usize].fetch(key.shard, key.block, cancel)
    }

    /// Returns a sample of a fetched block.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`].
    pub(crate) fn sample(
        &self,
        block: &Block,
        sample: SampleKey,
    ) -> Result<RawSample, SampleError> {
        Ok(self.sources[sample.source as usize].sample(block, sample.index)?)
    }

    /// Returns the bytes of the blocks that a reader of this share of every batch comes back to at a time.
    pub fn pool_bytes(&self, share: f64) -> u64 {
        let of = |(number, source): (usize, &Source)| {
            let (samples, pool) = (source.len().max(1), self.order.pool(number as u32));
            // Every part of a batch reads all of a source that is permuted sample by sample.
            let share = if self.order.is_permuted(number as u32) { 1.0 } else { share };
            source.bytes() as f64 * pool as f64 / samples as f64 * share
        };
        self.sources.iter().enumerate().map(of).sum::<f64>() as u64
    }

    /// Whether a source stands for no data.
    pub(crate) fn is_synthetic(&self, source: u32) -> bool {
        self.sources[source as usize].is_synthetic()
    }

    /// Whether a source lies in a remote store.
    pub(crate) fn is_remote(&self) -> bool {
        self.sources.iter().any(Source::is_remote)
    }

    /// Reads a sample of a source; `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// [`SampleError::Corrupt`] for a sample that cannot be used, [`SampleError::Store`] when the store fails.
    ///
    /// # Panics
    /// When there is no such source or sample.
    pub fn read(
        &self,
        source: u32,
        index: u64,
        cancel: &CancellationToken,
    ) -> Result<RawSample, SampleError> {
        self.sources[source as usize].read_until(index, cancel)
    }
}

fn fingerprint(sources: &[Source], shares: &Shares, options: order::Options) -> String {
    let mut digest = Sha256::new();
    let order::Options { seed, lanes, pool_samples } = options;
    let version = order::VERSION;
    digest.update(format!("order {version} {seed} {lanes} {pool_samples}\n"));
    for (number, source) in sources.iter().enumerate() {
        let (share, block) = (shares.of(number).to_bits(), source.block_samples());
        digest.update(format!("source {number} {share:016x} {block}\n"));
        source.add_to(&mut digest);
    }
    hex::encode(&digest.finalize()[..16])
}
