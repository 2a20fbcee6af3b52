//! Ranks that come and go, each with a loader of its rows, as workers have them.

use super::samples::{BATCHES, SAMPLES};
use super::*;

/// Part of a run in which nothing changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) global_batch: u64,
    pub(super) world_size: u64,
    pub(super) steps: Range<u64>,
    /// Samples of the run before it.
    pub(super) first_sample: u64,
}

/// What a run has read.
#[derive(Debug)]
pub(super) struct Read {
    /// Global batches, in order of steps.
    pub(super) batches: Vec<Batch>,
    pub(super) ledger: Ledger,
}

/// Returns a run of one rank whose batch grows after half of its samples, or does not.
pub(super) fn one_rank(grows: bool) -> Vec<Stretch> {
    stretches(grows, [u64::MAX; 2])
}

/// Returns a run of one, then three, then two ranks, which change at steps that a seed draws.
pub(super) fn changing_ranks(grows: bool, seed: u64) -> Vec<Stretch> {
    let mut stream = Stream::new(seed, Site::Places, &[]);
    let steps = steps(grows);
    let first = 1 + stream.below(steps - 2);
    stretches(grows, [first, first + 1 + stream.below(steps - first - 1)])
}

/// Returns how many steps a run has.
fn steps(grows: bool) -> u64 {
    let [short, long] = BATCHES;
    if grows { SAMPLES / 2 / short + SAMPLES / 2 / long } else { SAMPLES / short }
}

/// Returns a run whose ranks become three and then two before these steps.
fn stretches(grows: bool, changes: [u64; 2]) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    let mut first_sample = 0;
    for step in 0..steps(grows) {
        let global_batch = BATCHES[usize::from(grows && step >= SAMPLES / 2 / BATCHES[0])];
        let world_size = match () {
            () if step < changes[0] => 1,
            () if step < changes[1] => 3,
            () => 2,
        };
        match all.last_mut() {
            Some(last) if (last.global_batch, last.world_size) == (global_batch, world_size) => {
                last.steps.end += 1;
            }
            _ => {
                let steps = step..step + 1;
                all.push(Stretch { global_batch, world_size, steps, first_sample });
            }
        }
        first_sample += global_batch;
    }
    all
}

/// Reads a run.
pub(super) fn read(dataset: &Arc<Dataset>, run: &[Stretch]) -> Read {
    let last_step = run.last().unwrap().steps.end;
    let mut done = Read { batches: Vec::new(), ledger: Ledger::default() };
    for stretch in run {
        // As a checkpoint brings it to the ranks that go on.
        let stored = serde_json::to_string(&done.ledger).unwrap();
        let ledger: Ledger = serde_json::from_str(&stored).unwrap();
        let mut ranks: Vec<Loader> = (0..stretch.world_size)
            .map(|rank| Loader::start(options(dataset, stretch, rank, last_step, &ledger)).unwrap())
            .collect();
        for _ in stretch.steps.clone() {
            let parts = ranks.iter_mut().map(|rank| rank.next().unwrap()).collect();
            done.take(parts);
        }
        // When ranks come or go some have begun a step that is never applied: it is read again.
        if stretch.steps.end < last_step {
            for rank in ranks.iter_mut().skip(1) {
                rank.next().unwrap();
            }
        }
    }
    done
}

fn options(
    dataset: &Arc<Dataset>,
    stretch: &Stretch,
    rank: u64,
    last_step: u64,
    ledger: &Ledger,
) -> LoaderOptions {
    LoaderOptions {
        rows: rows(stretch.global_batch, rank, stretch.world_size),
        first_step: stretch.steps.start,
        first_sample: stretch.first_sample,
        last_step,
        aug: AugCfg { re_prob: 0.3, re_count: 2, ..augmentation() },
        // Another number of readers for every rank.
        readers: 1 + rank as usize % 2,
        ledger: ledger.clone(),
        ..loader_options(dataset, stretch.global_batch)
    }
}

/// Returns the rows of a rank: counts differ by one at most, and the first ranks have the longer ones.
fn rows(global_batch: u64, rank: u64, world_size: u64) -> Range<u64> {
    let (each, over) = (global_batch / world_size, global_batch % world_size);
    let start = |rank: u64| rank * each + rank.min(over);
    start(rank)..start(rank + 1)
}

impl Read {
    /// Takes in a step that every rank has read its rows of: each tells the others what it found corrupt and the
    /// ledger does not have, and all of them merge what all of them found.
    fn take(&mut self, parts: Vec<Batch>) {
        let mut whole = joined(parts);
        whole.corrupt.retain(|found| self.ledger.reason(found.sample).is_none());
        self.ledger.merge(whole.replaced, &whole.corrupt);
        self.batches.push(whole);
    }
}

/// Joins the rows of all ranks.
fn joined(parts: Vec<Batch>) -> Batch {
    let mut whole = Batch { step: parts[0].step, ..Batch::default() };
    for part in parts {
        assert_eq!((part.step, part.rows.start), (whole.step, whole.rows.end));
        let first = whole.samples.len();
        whole.rows.end = part.rows.end;
        whole.images.extend_from_slice(&part.images);
        whole.holes.extend(part.holes.into_iter().map(|(row, hole)| (first + row, hole)));
        whole.tokens.extend(part.tokens);
        whole.samples.extend(part.samples);
        whole.replaced += part.replaced;
        whole.corrupt.extend(part.corrupt);
    }
    whole
}
