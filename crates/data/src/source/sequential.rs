//! A source from its first sample to its last, in the order of its shards: for tools, not for training.

use tokio_util::sync::CancellationToken;

use super::Source;
use crate::Error;
use crate::sample::{Flaw, RawSample};

/// Neighbouring samples of a shard that are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Index in the source of its first sample.
    pub first: u64,
    /// Number of the shard in the source.
    pub shard: usize,
    block: u64,
}

impl Source {
    /// Returns the runs of all shards, in order: every sample lies in one. None has more than `block_samples` of the
    /// manifest, where the form of the source lets it be cut like this.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        (0..self.shard_sizes().len()).flat_map(move |shard| {
            let start = self.starts[shard];
            let (size, count) = self.blocks(shard);
            (0..count).map(move |block| Run { first: start + block * size / count, shard, block })
        })
    }

    /// Reads the samples of a run, in one request where form and store can; one that cannot be used is a [`Flaw`] in
    /// its place. `cancel` ends the wait for a store that is away.
    ///
    /// # Errors
    /// When the store fails.
    pub fn read_run(
        &self,
        run: Run,
        cancel: &CancellationToken,
    ) -> Result<Vec<Result<RawSample, Flaw>>, Error> {
        Ok(self.fetch(run.shard, run.block, cancel)?.samples)
    }

    /// Returns the number of the shard that a sample lies in.
    ///
    /// # Panics
    /// When `index` is not below [`Source::len`].
    pub fn shard_of(&self, index: u64) -> usize {
        self.place(index).0
    }
}
