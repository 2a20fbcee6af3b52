//! Blocks of shards in memory: fetched ahead, each by one request, and kept as long as the order comes back to them.
//!
//! A batch is drawn from a pool of many blocks, so each of them is needed again and again until its lane has passed
//! on. The order says when that is: whoever asks for a block says until which position of its source it is needed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::dataset::{BlockKey, Dataset, Need};
use crate::sample::Block;

/// What was read so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were dropped although they were needed, because the memory for them was full.
    pub dropped: u64,
}

/// See the module. Shared by the threads that fetch and those that decode.
#[derive(Debug)]
pub(crate) struct Blocks {
    dataset: Arc<Dataset>,
    /// Bytes to keep at most.
    budget: u64,
    state: Mutex<State>,
    changed: Condvar,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<BlockKey, Slot>,
    /// Blocks that are wanted soon, in the order in which they will be; some were fetched meanwhile.
    queue: VecDeque<BlockKey>,
    /// Positions of every source before which nothing is needed any more.
    passed: Vec<u64>,
    /// Bytes of all blocks at hand.
    bytes: u64,
    /// Counts uses, to tell which block was used last.
    clock: u64,
    fetched: Fetched,
    stop: bool,
}

#[derive(Debug)]
enum Slot {
    /// A thread will fetch it.
    Queued { until: u64 },
    /// A thread fetches it.
    Coming { until: u64 },
    /// It is at hand.
    Here { block: Arc<Block>, until: u64, used: u64 },
}

impl Blocks {
    pub(crate) fn new(dataset: Arc<Dataset>, budget: u64, cancel: CancellationToken) -> Self {
        let passed = vec![0; dataset.order().shares().len()];
        let state = State { passed, ..State::default() };
        Self { dataset, budget, state: Mutex::new(state), changed: Condvar::new(), cancel }
    }

    /// Lets blocks be fetched that are wanted soon.
    pub(crate) fn want(&self, needs: impl IntoIterator<Item = Need>) {
        let mut state = self.lock();
        for Need { key, until: needed } in needs {
            match state.slots.get_mut(&key) {
                Some(
                    Slot::Here { until, .. } | Slot::Coming { until } | Slot::Queued { until },
                ) => {
                    *until = needed.max(*until);
                }
                None => {
                    state.slots.insert(key, Slot::Queued { until: needed });
                    state.queue.push_back(key);
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Says that no position of these sources before these is needed any more.
    pub(crate) fn pass(&self, positions: &[u64]) {
        self.lock().passed.copy_from_slice(positions);
        self.changed.notify_all();
    }

    /// Returns a block; waits until it is there.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn get(&self, need: Need) -> Result<Arc<Block>, Error> {
        let mut state = self.lock();
        loop {
            state.clock += 1;
            let now = state.clock;
            match state.slots.get_mut(&need.key) {
                Some(Slot::Here { block, until, used }) => {
                    *until = need.until.max(*until);
                    *used = now;
                    return Ok(Arc::clone(block));
                }
                Some(Slot::Coming { until }) => {
                    *until = need.until.max(*until);
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                // Nobody fetches it yet: waiting for its turn would take longer.
                Some(Slot::Queued { until }) => {
                    let until = need.until.max(*until);
                    state.slots.insert(need.key, Slot::Coming { until });
                    drop(state);
                    return self.fetch(need.key);
                }
                None => {
                    state.slots.insert(need.key, Slot::Coming { until: need.until });
                    drop(state);
                    return self.fetch(need.key);
                }
            }
        }
    }

    /// Returns what was read so far.
    pub(crate) fn fetched(&self) -> Fetched {
        self.lock().fetched
    }

    /// The life of a thread that fetches what is queued.
    pub(crate) fn run(&self) {
        while let Some(key) = self.next() {
            // Whoever needs the block fetches it again, and meets the error itself.
            let _ = self.fetch(key);
        }
    }

    /// Ends the threads that fetch.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    /// Returns the next block to fetch, once there is room for it.
    fn next(&self) -> Option<BlockKey> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            state.drop_passed();
            if state.bytes < self.budget
                && let Some(key) = state.queue.pop_front()
            {
                let Some(Slot::Queued { until }) = state.slots.get(&key) else { continue };
                let until = *until;
                if until <= state.passed[key.source as usize] {
                    state.slots.remove(&key);
                    continue;
                }
                state.slots.insert(key, Slot::Coming { until });
                return Some(key);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fetches a block whose slot says that it is coming.
    fn fetch(&self, key: BlockKey) -> Result<Arc<Block>, Error> {
        let arriving = Arriving { blocks: self, key };
        let fetched = self.dataset.fetch(key, &self.cancel).map(Arc::new);
        let block = fetched?;
        let mut state = self.lock();
        state.clock += 1;
        let used = state.clock;
        // Others may have come to need it for longer meanwhile.
        let until = match state.slots.get(&key) {
            Some(Slot::Coming { until }) => *until,
            _ => 0,
        };
        let here = Slot::Here { block: Arc::clone(&block), until, used };
        state.slots.insert(key, here);
        state.bytes += block.bytes;
        state.fetched.blocks += 1;
        state.fetched.bytes += block.bytes;
        state.make_room(self.budget, key);
        drop(state);
        drop(arriving);
        Ok(block)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back the promise of a block that does not come, by a panic too, so that nobody waits for it.
struct Arriving<'a> {
    blocks: &'a Blocks,
    key: BlockKey,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let mut state = self.blocks.lock();
        if matches!(state.slots.get(&self.key), Some(Slot::Coming { .. })) {
            state.slots.remove(&self.key);
        }
        drop(state);
        self.blocks.changed.notify_all();
    }
}

impl State {
    /// Drops blocks that no position needs any more.
    fn drop_passed(&mut self) {
        let (mut bytes, passed) = (self.bytes, &self.passed);
        self.slots.retain(|key, slot| match slot {
            Slot::Here { block, until, .. } if *until <= passed[key.source as usize] => {
                bytes -= block.bytes;
                false
            }
            _ => true,
        });
        self.bytes = bytes;
    }

    /// Drops what was used longest ago until the budget holds, but for the block that came last.
    fn make_room(&mut self, budget: u64, newest: BlockKey) {
        if self.bytes <= budget {
            return;
        }
        self.drop_passed();
        while self.bytes > budget {
            let at_hand = self.slots.iter().filter_map(|(key, slot)| match slot {
                Slot::Here { used, .. } if *key != newest => Some((*used, *key)),
                _ => None,
            });
            let Some((_, oldest)) = at_hand.min_by_key(|(used, _)| *used) else { return };
            if let Some(Slot::Here { block, .. }) = self.slots.remove(&oldest) {
                self.bytes -= block.bytes;
                self.fetched.dropped += 1;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_manifest::ModelCatalogue;

    use super::*;

    /// On a busy machine blocks were fetched twice: those that took long were dropped when they had just come.
    #[test]
    fn a_block_that_is_wanted_for_longer_while_it_comes_is_kept_for_as_long() {
        let yaml = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: a}\nspec:\n  resources: {ranks: 1}\n  \
                    model: {name: ViT-B-32}\n  data: {train: 'synthetic:1000'}\n  loss: {kind: siglip}\n  optimizer: \
                    {lr: 1e-3}\n  schedule: {steps: 10}\n  batch: {global: 10}\n  checkpoint: {uri: /c}\n";
        let job = ringmaster_manifest::parse(yaml, "a", "/".as_ref(), &ModelCatalogue::builtin());
        let dataset = Arc::new(Dataset::open(&job.unwrap().data, 10).unwrap());
        let blocks = Blocks::new(dataset, 1 << 20, CancellationToken::new());
        let key = BlockKey { source: 0, shard: 0, block: 0 };
        blocks.want([Need { key, until: 5 }]);
        assert_eq!(blocks.next(), Some(key));
        blocks.want([Need { key, until: 50 }]);
        blocks.fetch(key).unwrap();
        blocks.pass(&[20]);
        blocks.lock().drop_passed();
        blocks.get(Need { key, until: 50 }).unwrap();
        assert_eq!(blocks.fetched().blocks, 1);
        blocks.pass(&[50]);
        blocks.lock().drop_passed();
        blocks.get(Need { key, until: 50 }).unwrap();
        assert_eq!(blocks.fetched().blocks, 2, "and not for longer");
    }
}
