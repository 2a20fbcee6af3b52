//! The tar indexes used last.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::index::Index;

/// Samples whose places are kept at once, about 50 bytes each: those of the shards that the open windows of a rank lie
/// in, which may be a thousand.
const INDEXED_SAMPLES: usize = 16_000_000;

/// The tar indexes used last, the one unused for longest out first.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    by_shard: HashMap<usize, Arc<Index>>,
    order: VecDeque<usize>,
    samples: usize,
    /// Shards whose index was kept once.
    seen: HashSet<usize>,
}

impl Indexes {
    pub(super) fn get(&mut self, shard: usize) -> Option<Arc<Index>> {
        let known = Arc::clone(self.by_shard.get(&shard)?);
        // A shard is asked for once a block, so that a walk through a thousand of them costs nothing.
        if let Some(place) = self.order.iter().position(|other| *other == shard) {
            self.order.remove(place);
            self.order.push_back(shard);
        }
        Some(known)
    }

    /// Keeps an index; returns whether it is the first of this shard.
    pub(super) fn keep(&mut self, shard: usize, index: &Arc<Index>) -> bool {
        let is_first = self.seen.insert(shard);
        if self.by_shard.insert(shard, Arc::clone(index)).is_some() {
            return is_first;
        }
        self.order.push_back(shard);
        self.samples += index.len();
        while self.samples > INDEXED_SAMPLES
            && self.order.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.samples -= self.by_shard.remove(&oldest).map_or(0, |index| index.len());
        }
        is_first
    }
}
