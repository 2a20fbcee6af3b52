//! Which sample stands in which row of which global batch: order version 2.
//!
//! A data set is a mixture of sources (`mixture`: how many rows of a batch each gives,
//! `places`: which ones), a source a list of blocks,
//! contiguous runs of samples in a shard (`blocks`). Per epoch a seeded permutation of its blocks gives one long
//! sequence, cut into C equal lanes; inside a lane samples are shuffled in windows (`sequence`, `permutation`). A
//! batch takes the next positions of every source, and they go round the lanes. All of this is a function of
//! (seed, sizes of the shards, shares, samples before the batch, row): size of the batch, world size, number of
//! readers, memory and restarts do not enter. A sample is found in O(log blocks).
//!
//! With n samples of a source, its lanes are ⌊n/C⌋ or ⌈n/C⌉ long, and 1/256 of each, rounded down, is its reserve,
//! from which corrupt samples are replaced. Epochs follow one another without a gap: a batch may span two.

mod blocks;
mod mixture;
mod permutation;
mod places;
mod sequence;
#[cfg(test)]
mod tests;
mod windows;

use std::ops::Range;

pub use self::mixture::Shares;
use self::sequence::Sequence;
pub use self::windows::Windows;

/// The version of the order that this module is: checkpoints and fingerprints hold it.
pub const VERSION: u32 = 2;

/// Why there is no order.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Weights that are no shares.
    #[error(
        "the weights of the sources are {weights:?}; expected positive numbers, none of them less than a billionth \
         of their sum"
    )]
    Weights { weights: Vec<f64> },
    /// A batch that rounding could leave without rows for the largest source.
    #[error(
        "a global batch of {global_batch} is too small for {sources} sources of these weights; expected at least \
         {least}"
    )]
    FewRows { global_batch: u64, sources: u64, least: u64 },
    /// A source that would give one batch the same sample twice.
    #[error(
        "source {source_name} has {samples} samples and would give {rows} rows to a global batch of \
         {global_batch}, some of them the same; add samples, lower its weight, or lower batch.global"
    )]
    TooSmall { source_name: String, samples: u64, rows: u64, global_batch: u64 },
    /// More blocks than are counted.
    #[error(
        "a source has {blocks} blocks, and at most {} are counted; raise data.block_samples, and lower data.pool_samples \
         below the number of its samples",
        u32::MAX
    )]
    TooManyBlocks { blocks: u64 },
    /// Windows to leave out that overlap, are empty, or do not follow one another.
    #[error(
        "the windows left out, {windows:?}, are not in order; expected each to begin after the one before"
    )]
    Windows { windows: Vec<Range<u64>> },
}

/// What decides the order besides the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Seed of all permutations.
    pub seed: u64,
    /// C, at least 1.
    pub lanes: u32,
    /// Samples out of which a batch is drawn, of all sources together. A source is permuted sample by sample when it
    /// is smaller than its share of them.
    pub pool_samples: u64,
}

/// A sample at its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleId {
    /// Which pass over its source.
    pub epoch: u64,
    /// Index in its source, counting through the shards.
    pub index: u64,
}

/// What stands in a row: a position in the endless sequence of a source. Nothing else has this position, so that
/// whatever is drawn for the row can be keyed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Visit {
    /// Number of the source.
    pub source: u32,
    /// Position in its sequence.
    pub position: u64,
}

/// A source as the order sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// For messages.
    pub name: String,
    /// Samples of every shard.
    pub shards: Vec<u64>,
    /// Samples of the longest block.
    pub block_samples: u64,
}

/// The order of a data set; shared by reader threads.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    shares: Shares,
    names: Vec<String>,
    sequences: Vec<Sequence>,
}

impl Order {
    /// Returns the order of these sources, which have these shares.
    ///
    /// # Errors
    /// [`Error::TooManyBlocks`].
    ///
    /// # Panics
    /// When there are not as many shares as sources.
    pub fn new(sources: &[Source], shares: Shares, options: Options) -> Result<Self, Error> {
        assert_eq!(sources.len(), shares.len(), "every source has a share");
        let sequence = |(number, source): (usize, &Source)| {
            // A share of the pool as of the rows: then two rows of a batch come from one block as rarely as in one
            // source of all samples.
            let pool = (options.pool_samples as f64 * shares.of(number)).ceil() as u64;
            Sequence::new(
                &source.shards,
                sequence::Options {
                    seed: options.seed,
                    source: number as u64,
                    lanes: u64::from(options.lanes.max(1)),
                    block: source.block_samples.max(1),
                    pool,
                },
            )
        };
        Ok(Self {
            seed: options.seed,
            names: sources.iter().map(|source| source.name.clone()).collect(),
            sequences: sources.iter().enumerate().map(sequence).collect::<Result<_, _>>()?,
            shares,
        })
    }

    /// Checks that no batch of this size holds a sample twice within an epoch.
    ///
    /// # Errors
    /// [`Error::FewRows`] or [`Error::TooSmall`].
    pub fn check_batch(&self, global_batch: u64) -> Result<(), Error> {
        self.shares.check_batch(global_batch)?;
        for (number, sequence) in self.sequences.iter().enumerate() {
            let rows = self.shares.most(number, global_batch);
            let (source_name, samples) = (self.names[number].clone(), sequence.samples());
            if sequence.epoch_len() < rows {
                return Err(Error::TooSmall { source_name, samples, rows, global_batch });
            }
        }
        Ok(())
    }

    /// Returns the positions of an epoch of a source.
    pub fn epoch_len(&self, source: u32) -> u64 {
        self.sequences[source as usize].epoch_len()
    }

    /// Returns the shares of the sources.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Returns what stands in these `rows` of the batch of `global_batch` that follows `before` samples, in order;
    /// samples that are `left_out` are not counted.
    ///
    /// A source's rows stand by lane, and then by position; where there are several sources, their rows are spread
    /// evenly over the batch, and permuted among neighbours. So a rank, which owns a contiguous run of rows, reads a contiguous run of lanes.
    pub fn visits(
        &self,
        before: u64,
        global_batch: u64,
        rows: Range<u64>,
        left_out: &Windows,
    ) -> Vec<Visit> {
        let sources = 0..self.sequences.len();
        let runs: Vec<Rows<'_>> = sources
            .map(|source| self.rows_of(source, before..before + global_batch, left_out))
            .collect();
        if let [only] = &runs[..] {
            return rows.map(|row| Visit { source: 0, position: only.position(row) }).collect();
        }
        let counts: Vec<u64> = runs.iter().map(|rows| rows.count).collect();
        let places = places::places(&counts, self.seed, before);
        let mut taken = vec![0; runs.len()];
        let mut visits = Vec::with_capacity(rows.clone().count());
        for (row, &source) in (0..rows.end).zip(&places) {
            let next = &mut taken[source as usize];
            if rows.contains(&row) {
                visits.push(Visit { source, position: runs[source as usize].position(*next) });
            }
            *next += 1;
        }
        visits
    }

    /// Returns the sample at a position.
    pub fn sample(&self, visit: Visit) -> SampleId {
        self.sequences[visit.source as usize].sample(visit.position)
    }

    /// Returns one past the last position of the source that reads the block which this visit reads, before the order
    /// goes elsewhere.
    pub fn needed_until(&self, visit: Visit) -> u64 {
        self.sequences[visit.source as usize].needed_until(visit.position)
    }

    /// Returns the first position of every source that a batch reads, or would read.
    pub fn first_positions(&self, before: u64, left_out: &Windows) -> Vec<u64> {
        let first = |source: usize| {
            let count = |samples| self.shares.before(source, samples);
            left_out.of_source(count).start(count(before))
        };
        (0..self.sequences.len()).map(first).collect()
    }

    /// Returns the samples of a source that lie in open windows at a time, or in blocks of theirs.
    pub fn pool(&self, source: u32) -> u64 {
        self.sequences[source as usize].pool()
    }

    /// Whether a source is permuted sample by sample, so that every part of an epoch reads all of it.
    pub fn is_permuted(&self, source: u32) -> bool {
        self.sequences[source as usize].is_permuted()
    }

    /// Returns the index, in the same source, of the sample that is tried in place of a corrupt one.
    pub fn substitute(&self, visit: Visit, attempt: u64) -> u64 {
        self.sequences[visit.source as usize].substitute(visit.position, attempt)
    }

    /// Returns the rows that a source gives to the batch of these samples of the run, counted without what is left out.
    fn rows_of(&self, source: usize, samples: Range<u64>, left_out: &Windows) -> Rows<'_> {
        let sequence = &self.sequences[source];
        let count = |samples: u64| self.shares.before(source, samples);
        let (first, rows) = (count(samples.start), count(samples.end) - count(samples.start));
        let positions = left_out.of_source(count).segments(first, rows).into_iter();
        let runs: Vec<Range<u64>> =
            positions.flat_map(|positions| sequence.by_epoch(positions)).collect();
        let count = runs.iter().map(|run| run.end - run.start).sum();
        Rows { sequence, runs, count }
    }
}

/// The rows that a source gives to one batch.
struct Rows<'a> {
    sequence: &'a Sequence,
    /// Their positions; each run is of one epoch.
    runs: Vec<Range<u64>>,
    count: u64,
}

impl Rows<'_> {
    /// Returns the position of the source's `row`th row of the batch.
    fn position(&self, mut row: u64) -> u64 {
        for run in &self.runs {
            let len = run.end - run.start;
            if row < len {
                return self.sequence.by_lane(run, row);
            }
            row -= len;
        }
        unreachable!("row {row} beyond the rows of a source")
    }
}
