//! The blocks of a source, and their order in one epoch.

use std::ops::Range;

use ringmaster_inputs::rng::{Site, Stream};

/// Contiguous runs of samples, none of which spans two shards. A shard's blocks differ by one sample at most; only
/// the shards take memory.
#[derive(Debug)]
pub(super) struct Blocks {
    /// Index of the first sample of every shard, and the number of samples.
    samples: Vec<u64>,
    /// Number of the first block of every shard, and the number of blocks.
    blocks: Vec<u64>,
}

impl Blocks {
    /// Cuts shards of these many samples into blocks of at most `longest`.
    pub(super) fn new(shards: &[u64], longest: u64) -> Self {
        let sums = |sizes: &mut dyn Iterator<Item = u64>| {
            let mut sum = 0;
            let ends = sizes.map(|size| {
                sum += size;
                sum
            });
            std::iter::once(0).chain(ends).collect()
        };
        Self {
            samples: sums(&mut shards.iter().copied()),
            blocks: sums(&mut shards.iter().map(|size| size.div_ceil(longest.max(1)))),
        }
    }

    /// Returns the number of blocks.
    pub(super) fn len(&self) -> u64 {
        self.blocks.last().copied().unwrap_or(0)
    }

    /// Returns the number of samples.
    pub(super) fn samples(&self) -> u64 {
        self.samples.last().copied().unwrap_or(0)
    }

    /// Returns the samples of a block.
    pub(super) fn run(&self, block: u64) -> Range<u64> {
        // The last shard that begins at or before the block: empty ones share their beginning with the next.
        let shard = self.blocks.partition_point(|&first| first <= block) - 1;
        let (first, size) = (self.samples[shard], self.samples[shard + 1] - self.samples[shard]);
        let (within, count) =
            (block - self.blocks[shard], self.blocks[shard + 1] - self.blocks[shard]);
        first + within * size / count..first + (within + 1) * size / count
    }
}

/// Blocks between two known starts: a trade of memory (2 billion samples are 16 million blocks) for a short walk.
const STRIDE: usize = 16;

/// All blocks of a source, permuted: one long sequence of samples.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Block numbers in their order.
    order: Vec<u32>,
    /// Place in the sequence of the first sample of every [`STRIDE`]th block.
    starts: Vec<u64>,
}

impl Epoch {
    /// Returns epoch `number` of source `source`.
    pub(super) fn new(blocks: &Blocks, seed: u64, source: u64, number: u64) -> Self {
        let mut order: Vec<u32> = (0..blocks.len() as u32).collect();
        // Keyed by source and epoch alone: every rank and every restart gets the same permutation.
        Stream::new(seed, Site::BlockOrder, &[source, number]).shuffle(&mut order);
        let mut next = 0;
        let starts = order.chunks(STRIDE).map(|chunk| {
            let start = next;
            next += chunk.iter().map(|&block| length(blocks, block)).sum::<u64>();
            start
        });
        let starts = starts.collect();
        Self { order, starts }
    }

    /// Returns the index of the sample at `place` of the sequence.
    pub(super) fn sample(&self, blocks: &Blocks, place: u64) -> u64 {
        let chunk = self.starts.partition_point(|&start| start <= place) - 1;
        let mut left = place - self.starts[chunk];
        for &block in &self.order[chunk * STRIDE..] {
            let run = blocks.run(u64::from(block));
            if left < run.end - run.start {
                return run.start + left;
            }
            left -= run.end - run.start;
        }
        unreachable!("place {place} lies in a sequence of {} samples", blocks.samples())
    }
}

fn length(blocks: &Blocks, block: u32) -> u64 {
    let run = blocks.run(u64::from(block));
    run.end - run.start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_every_sample_once_stay_inside_their_shard_and_are_even() {
        let shards = [1, 0, 300, 128, 129, 0, 7];
        let blocks = Blocks::new(&shards, 128);
        assert_eq!((blocks.len(), blocks.samples()), (1 + 3 + 1 + 2 + 1, 565));
        let runs: Vec<_> = (0..blocks.len()).map(|block| blocks.run(block)).collect();
        assert_eq!(
            runs,
            [0..1, 1..101, 101..201, 201..301, 301..429, 429..493, 493..558, 558..565]
        );
    }

    #[test]
    fn an_epoch_is_a_permutation_of_the_samples_block_by_block() {
        let blocks = Blocks::new(&[1000, 333, 90], 16);
        let epoch = Epoch::new(&blocks, 3, 0, 0);
        let sequence: Vec<u64> = (0..1423).map(|place| epoch.sample(&blocks, place)).collect();
        let mut sorted = sequence.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1423));
        // Whatever is inside a block stays together.
        let broken = sequence.windows(2).filter(|pair| pair[1] != pair[0] + 1).count() as u64;
        assert!(broken < blocks.len() && broken > blocks.len() * 9 / 10, "{broken}");
    }
}
