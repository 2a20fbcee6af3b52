//! The endless sequence of one source: epoch after epoch, every position a function of itself alone.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ringmaster_inputs::rng::{Site, key};

use super::blocks::{Blocks, Epoch};
use super::permutation::Permutation;
use super::{Error, SampleId};

/// A lane keeps one sample of these many as its reserve.
const RESERVE_SHARE: u64 = 256;
/// Samples of the reserve, and then of the lane, that are tried in place of a corrupt one.
const VISITS: u64 = 32;

/// How a source is ordered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) seed: u64,
    /// Number of the source, so that no two are permuted alike.
    pub(super) source: u64,
    /// C.
    pub(super) lanes: u64,
    /// Longest block.
    pub(super) block: u64,
    /// Samples out of which a batch takes its rows of this source.
    pub(super) pool: u64,
}

/// A window of a lane, as seen from a place in it. All are places of the lane's circle but `left`.
struct Window {
    number: u64,
    start: u64,
    end: u64,
    /// The place.
    turned: u64,
    /// Place of the lane at which the epoch leaves the window.
    left: u64,
    /// The window is the whole lane.
    is_all: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Sequence {
    options: Options,
    blocks: Blocks,
    /// ⌊n/C⌋.
    lane: u64,
    /// Lanes that have one sample more: n mod C, the first ones.
    longer: u64,
    /// Its blocks are single samples.
    permuted: bool,
    /// Reserve of every lane.
    reserve: u64,
    /// The newest epochs asked for: two are in use around a boundary.
    epochs: Mutex<Vec<(u64, Arc<Epoch>)>>,
}

impl Sequence {
    pub(super) fn new(shards: &[u64], options: Options) -> Result<Self, Error> {
        let samples: u64 = shards.iter().sum();
        // What fits the pool is permuted sample by sample, and what has not a block for every lane: neighbouring lanes
        // would share blocks.
        let permuted = samples <= options.pool.max(options.lanes * options.block);
        let block = if permuted { 1 } else { options.block };
        let blocks = Blocks::new(shards, block);
        if blocks.len() > u64::from(u32::MAX) {
            return Err(Error::TooManyBlocks { blocks: blocks.len() });
        }
        let lane = samples / options.lanes;
        Ok(Self {
            options,
            blocks,
            lane,
            longer: samples % options.lanes,
            reserve: lane / RESERVE_SHARE,
            permuted,
            epochs: Mutex::default(),
        })
    }

    /// Returns n.
    pub(super) fn samples(&self) -> u64 {
        self.blocks.samples()
    }

    /// Returns E, the positions of an epoch: all samples but the lanes' reserves.
    pub(super) fn epoch_len(&self) -> u64 {
        self.samples() - self.options.lanes * self.reserve
    }

    /// Returns the sample at `position`.
    pub(super) fn sample(&self, position: u64) -> SampleId {
        let (epoch, lane, place) = self.place(position);
        let shuffled = self.shuffled(epoch, lane, place);
        SampleId { epoch, index: self.lane_sample(epoch, lane, shuffled) }
    }

    /// Returns the sample that is tried in place of a corrupt one at `position`, or of the ones tried before.
    ///
    /// The first attempts visit distinct samples of the lane's reserve, which no position of the epoch has; then
    /// come draws from the lane, which its reader has at hand, and then from the whole source. Attempts lie far
    /// apart: damage comes in runs, and neighbours share it.
    pub(super) fn substitute(&self, position: u64, attempt: u64) -> u64 {
        let Options { seed, source, .. } = self.options;
        let (epoch, lane, _) = self.place(position);
        let visits = self.reserve.min(VISITS);
        if attempt < visits {
            let start = key(seed, Site::Substitute, &[source, position]) % self.reserve;
            let within = (start + attempt * self.reserve / visits) % self.reserve;
            return self.lane_sample(epoch, lane, self.used(lane) + within);
        }
        let draw = key(seed, Site::Substitute, &[source, position, attempt]);
        if attempt < visits + VISITS {
            return self.lane_sample(epoch, lane, draw % (self.used(lane) + self.reserve));
        }
        self.epoch(epoch).sample(&self.blocks, draw % self.samples())
    }

    /// Splits positions where epochs begin.
    pub(super) fn by_epoch(&self, positions: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let len = self.epoch_len().max(1);
        let mut next = positions.start;
        std::iter::from_fn(move || {
            let start = next;
            next = positions.end.min((start / len + 1) * len);
            (start < positions.end).then_some(start..next)
        })
    }

    /// Returns the positions of one epoch by lane: what a rank reads then comes from few lanes.
    pub(super) fn by_lane(&self, positions: &Range<u64>, row: u64) -> u64 {
        let lanes = self.options.lanes;
        let (offset, count) = (positions.start % self.epoch_len(), positions.end - positions.start);
        // Positions go round the lanes: each has ⌊count/C⌋ of them, and those from `first` on, round the end, one
        // more.
        let (first, each, over) = (offset % lanes, count / lanes, count % lanes);
        let wrapped = (first + over).saturating_sub(lanes);
        let before = |lane: u64| {
            let more = lane.min(wrapped) + lane.saturating_sub(first).min(over - wrapped);
            lane * each + more
        };
        // The last lane that begins at or before the row.
        let (mut low, mut high) = (0, lanes);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if before(middle) <= row { low = middle } else { high = middle }
        }
        let ahead = (low + lanes - first) % lanes;
        positions.start + ahead + (row - before(low)) * lanes
    }

    /// Returns epoch, lane and place in the lane of a position: an epoch's positions go round the lanes.
    fn place(&self, position: u64) -> (u64, u64, u64) {
        let (epoch, offset) = (position / self.epoch_len(), position % self.epoch_len());
        (epoch, offset % self.options.lanes, offset / self.options.lanes)
    }

    /// Returns the samples of a lane that have positions.
    fn used(&self, lane: u64) -> u64 {
        self.lane + u64::from(lane < self.longer) - self.reserve
    }

    /// Applies the shuffle of the window that a place lies in.
    fn shuffled(&self, epoch: u64, lane: u64, place: u64) -> u64 {
        let Options { seed, source, .. } = self.options;
        let window = self.window(lane, place);
        let words = [source, epoch, lane, window.number];
        let key = key(seed, Site::WindowOrder, &words);
        window.start
            + Permutation::new(window.end - window.start, key).at(window.turned - window.start)
    }

    /// Returns the window that a place of a lane lies in.
    ///
    /// A lane is a circle of windows of equal length, and an epoch enters lane l at l/C of a window: so lanes go
    /// from window to window at different times, and no window is short.
    fn window(&self, lane: u64, place: u64) -> Window {
        let lanes = self.options.lanes;
        let used = self.used(lane);
        let windows = (used / self.options.pool.div_ceil(lanes).max(1)).max(1);
        let part = |of: u64, times: u64, by: u64| {
            (u128::from(of) * u128::from(times) / u128::from(by)) as u64
        };
        let border = |window: u64| part(used, window, windows);
        let entered = part(border(1), lane, lanes);
        let turned = (place + entered) % used;
        // The last window that begins at or before the place.
        let guess = part(turned, windows, used);
        let number = if border(guess + 1) <= turned { guess + 1 } else { guess };
        let (start, end) = (border(number), border(number + 1));
        // Where the epoch leaves the window; the one it entered in the middle it comes back to at its end.
        let left = if place + entered < used { end - entered } else { used };
        Window { number, start, end, turned, left, is_all: windows == 1 }
    }

    /// Returns one past the last position that reads what the shuffle brings to `position`, or something beside it in
    /// its block, before the order goes elsewhere.
    pub(super) fn needed_until(&self, position: u64) -> u64 {
        let (epoch, lane, place) = self.place(position);
        let window = self.window(lane, place);
        let epoch_end = (epoch + 1) * self.epoch_len();
        match (self.is_permuted(), window.is_all) {
            // Every part of the epoch reads every block, and so does the next epoch.
            (true, _) => u64::MAX,
            (false, true) => epoch_end,
            (false, false) => {
                let last = epoch * self.epoch_len() + (window.left - 1) * self.options.lanes + lane;
                (last + 1).min(epoch_end)
            }
        }
    }

    /// Whether the source is permuted sample by sample.
    pub(super) fn is_permuted(&self) -> bool {
        self.permuted
    }

    /// Returns the samples of the windows that are open at a time, those included that share a block with them.
    pub(super) fn pool(&self) -> u64 {
        let window = self.window(0, 0);
        let open = self.options.lanes * (window.end - window.start + 2 * self.options.block);
        if self.is_permuted() { self.samples() } else { open.min(self.samples()) }
    }

    /// Returns the sample at a place of a lane, before any shuffle inside the lane.
    fn lane_sample(&self, epoch: u64, lane: u64, place: u64) -> u64 {
        let start = lane * self.lane + lane.min(self.longer);
        self.epoch(epoch).sample(&self.blocks, start + place)
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = epochs.iter().find(|(known, _)| *known == number) {
            return Arc::clone(known);
        }
        let Options { seed, source, .. } = self.options;
        let epoch = Arc::new(Epoch::new(&self.blocks, seed, source, number));
        if epochs.len() >= 2 {
            epochs.remove(0);
        }
        epochs.push((number, Arc::clone(&epoch)));
        epoch
    }
}
