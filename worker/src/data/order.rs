//! Which sample stands in which row of which global batch.
//!
//! A data set is a list of blocks, contiguous runs of samples in a shard. Per epoch a seeded
//! permutation of the blocks gives one long sequence; it is cut into C equal lanes; inside a lane
//! samples are shuffled in windows. Global batch k takes the next m = B/C samples of every lane,
//! and row r of it belongs to lane r / m. All of this is a function of (seed, shard sizes, k, r):
//! world size, reader count and restarts do not enter, and a position is found in O(log blocks).
//!
//! With N samples a lane is L = ⌊N/C⌋ long and an epoch has S = ⌊L/m⌋ steps. What a lane has
//! beyond S·m is its reserve, from which corrupt samples are replaced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ringmaster_manifest::spec::TrainJob;

use super::Error;
use ringmaster_inputs::rng::{Site, Stream, key};

/// Samples of a lane's reserve tried in place of one corrupt sample.
const RESERVE_VISITS: u64 = 32;

/// What decides the order besides the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderOptions {
    /// Seed of all permutations.
    pub seed: u64,
    /// C.
    pub lanes: u32,
    /// Samples per block; none to choose by the size of the data set.
    pub block_samples: Option<u32>,
    /// Samples shuffled together inside a lane.
    pub shuffle_window: u32,
    /// B, a multiple of C.
    pub global_batch: u32,
}

impl OrderOptions {
    /// Returns the options a manifest asks for.
    pub fn of(job: &TrainJob) -> Self {
        Self {
            seed: job.data.seed,
            lanes: job.data.lanes,
            block_samples: job.data.block_samples,
            shuffle_window: job.data.shuffle_window,
            global_batch: job.batch.global,
        }
    }
}

/// A sample at its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleId {
    /// Which pass over the data.
    pub epoch: u64,
    /// Index in the data set, counting through the shards.
    pub index: u64,
}

/// A run of samples within one shard.
#[derive(Debug, Clone, Copy)]
struct Block {
    first: u64,
    len: u32,
}

/// The blocks of one epoch in their order.
#[derive(Debug)]
struct Epoch {
    number: u64,
    /// Block numbers, permuted.
    blocks: Vec<u32>,
    /// Position in the sequence at which each of them starts.
    starts: Vec<u64>,
}

/// The shuffle of one window of a lane.
#[derive(Debug)]
struct Window {
    epoch: u64,
    /// Which window of the lane, counting from 0.
    number: u64,
    /// Position in the window → place in the window before the shuffle.
    places: Arc<Vec<u32>>,
}

/// The order of a data set; shared by reader threads.
#[derive(Debug)]
pub struct Order {
    options: OrderOptions,
    blocks: Vec<Block>,
    /// m: samples a lane gives to one batch.
    per_batch: u64,
    /// S.
    steps_per_epoch: u64,
    /// L.
    lane_len: u64,
    /// The newest epochs asked for: at most two are in use around a boundary.
    epochs: Mutex<Vec<Arc<Epoch>>>,
    /// The newest window of every lane.
    windows: Mutex<HashMap<u64, Window>>,
}

impl Order {
    /// Returns the order of shards with these sample counts.
    ///
    /// # Errors
    /// [`Error::TooSmall`] when the data set does not fill one global batch.
    pub fn new(shard_sizes: &[u64], options: OrderOptions) -> Result<Self, Error> {
        let samples: u64 = shard_sizes.iter().sum();
        let lanes = u64::from(options.lanes.max(1));
        let per_batch = u64::from(options.global_batch) / lanes;
        let lane_len = samples / lanes;
        let steps_per_epoch = lane_len.checked_div(per_batch).unwrap_or(0);
        if steps_per_epoch == 0 {
            let (global_batch, lanes) = (options.global_batch, options.lanes);
            return Err(Error::TooSmall { samples, global_batch, lanes });
        }
        let by_size = (samples / (16 * lanes)).clamp(1, 1024) as u32;
        let block = u64::from(options.block_samples.unwrap_or(by_size).max(1));
        let mut blocks = Vec::new();
        let mut shard_start = 0;
        for &size in shard_sizes {
            for offset in (0..size).step_by(block as usize) {
                let len = block.min(size - offset) as u32;
                blocks.push(Block { first: shard_start + offset, len });
            }
            shard_start += size;
        }
        Ok(Self {
            options,
            blocks,
            per_batch,
            steps_per_epoch,
            lane_len,
            epochs: Mutex::new(Vec::new()),
            windows: Mutex::new(HashMap::new()),
        })
    }

    /// Returns S, the global batches of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Returns the sample in row `row` of global batch `step` (0-based).
    pub fn sample(&self, step: u64, row: u64) -> SampleId {
        // Row r belongs to lane r / m, in every batch and for any number of ranks.
        let epoch = step / self.steps_per_epoch;
        let lane = row / self.per_batch;
        let position = step % self.steps_per_epoch * self.per_batch + row % self.per_batch;
        let shuffled = self.shuffled(epoch, lane, position);
        SampleId { epoch, index: self.lane_sample(epoch, lane, shuffled) }
    }

    /// Returns the sample that takes the place of a corrupt one.
    ///
    /// The first attempts visit distinct samples of the lane's reserve, the later ones draw from
    /// the whole lane. Attempts lie far apart: damage comes in runs, and neighbours share it.
    pub fn substitute(&self, step: u64, row: u64, attempt: u64) -> u64 {
        let epoch = step / self.steps_per_epoch;
        let lane = row / self.per_batch;
        let used = self.steps_per_epoch * self.per_batch;
        let reserve = self.lane_len - used;
        // The reserve first: no batch of the epoch reads it otherwise. Which of it follows from step and row,
        // so that whoever reads the row, now or after a restart, tries the same samples.
        let visits = reserve.min(RESERVE_VISITS);
        let position = if attempt < visits {
            let start = key(self.options.seed, Site::Substitute, &[step, row]) % reserve;
            used + (start + attempt * reserve / visits) % reserve
        } else {
            key(self.options.seed, Site::Substitute, &[step, row, attempt]) % self.lane_len
        };
        self.lane_sample(epoch, lane, position)
    }

    /// Applies the shuffle of the window that `position` of the lane lies in.
    fn shuffled(&self, epoch: u64, lane: u64, position: u64) -> u64 {
        let window_len = u64::from(self.options.shuffle_window.max(1));
        let used = self.steps_per_epoch * self.per_batch;
        let window = position / window_len;
        let start = window * window_len;
        let len = window_len.min(used - start);
        // One window is kept per lane: readers work close to one another in the order.
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let known = windows.get(&lane).filter(|w| (w.epoch, w.number) == (epoch, window));
        let places = match known {
            Some(known) => Arc::clone(&known.places),
            None => {
                let mut places: Vec<u32> = (0..len as u32).collect();
                let words = [epoch, lane, window];
                Stream::new(self.options.seed, Site::WindowOrder, &words).shuffle(&mut places);
                let places = Arc::new(places);
                windows.insert(lane, Window { epoch, number: window, places: Arc::clone(&places) });
                places
            }
        };
        drop(windows);
        start + u64::from(places[(position - start) as usize])
    }

    /// Returns the sample at `position` of a lane, before any shuffle inside the lane.
    fn lane_sample(&self, epoch: u64, lane: u64, position: u64) -> u64 {
        let epoch = self.epoch(epoch);
        let place = lane * self.lane_len + position;
        // The last block that starts at or before `place`.
        let at = epoch.starts.partition_point(|&start| start <= place) - 1;
        let block = self.blocks[epoch.blocks[at] as usize];
        block.first + (place - epoch.starts[at])
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = epochs.iter().find(|epoch| epoch.number == number) {
            return Arc::clone(known);
        }
        // Keyed by the epoch alone: every rank and every restart gets the same permutation.
        let mut blocks: Vec<u32> = (0..self.blocks.len() as u32).collect();
        Stream::new(self.options.seed, Site::BlockOrder, &[number]).shuffle(&mut blocks);
        let mut start = 0;
        let starts = blocks
            .iter()
            .map(|&block| {
                let this = start;
                start += u64::from(self.blocks[block as usize].len);
                this
            })
            .collect();
        let epoch = Arc::new(Epoch { number, blocks, starts });
        if epochs.len() >= 2 {
            epochs.remove(0);
        }
        epochs.push(Arc::clone(&epoch));
        epoch
    }
}
