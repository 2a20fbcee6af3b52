//! Decodes ahead of the training step, on threads of its own, with bounded memory.
//!
//! Work is cut into units of a few rows of one global batch. Readers take units in order and may
//! finish them in any; a batch is handed out once all its units are there, so its contents do not
//! depend on the number of readers. `row` has the work on one row.

mod row;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use ringmaster_manifest::spec::AugCfg;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::batch::{Batch, Unit};
use crate::blocks::{Blocks, Fetched};
use crate::buffers::Pool;
use crate::corrupt::Ledger;
use crate::dataset::Dataset;
use crate::order::Windows;
use crate::plan::{self, Plan};
use ringmaster_inputs::image::{Augment, Preprocess, Scratch};
use ringmaster_inputs::text::Tokenizer;

/// Rows per unit of work.
const UNIT_ROWS: u64 = 16;
/// Threads that fetch blocks from a disk.
const LOCAL_FETCHERS: usize = 2;
/// Threads that fetch blocks over a network.
const REMOTE_FETCHERS: usize = 16;

/// What a loader needs.
#[derive(Debug)]
pub struct LoaderOptions {
    /// What is read, and in which order.
    pub dataset: Arc<Dataset>,
    /// Rows of every global batch.
    pub global_batch: u64,
    /// This rank's rows of it.
    pub rows: Range<u64>,
    /// First global batch, 0-based.
    pub first_step: u64,
    /// Samples that the run has consumed before it.
    pub first_sample: u64,
    /// One past the last global batch.
    pub last_step: u64,
    /// Size and normalisation of the images.
    pub preprocess: Preprocess,
    /// Turns captions into ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Augmentation.
    pub aug: AugCfg,
    /// Whether large JPEGs are decoded at part of their size.
    pub jpeg_scaled_decode: bool,
    /// Seed of augmentation and caption choice.
    pub seed: u64,
    /// Threads.
    pub readers: usize,
    /// Batches kept ready or in the making beyond the one in use.
    pub prefetch: u64,
    /// Samples of the run that no batch takes.
    pub left_out: Windows,
    /// Samples that were found corrupt earlier in this run, by any rank: they are replaced, whatever they are now.
    pub ledger: Ledger,
    /// Bytes of shards kept in memory at most. Where what the order comes back to does not fit, samples are read one by
    /// one.
    pub memory: u64,
    /// Largest share of the data set that may be corrupt. A rank counts what its own readers meet,
    /// ahead of the step; [`check`](crate::corrupt::check) counts over all ranks.
    pub max_corrupt: f64,
}

/// The reading side of one generation.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    next: u64,
}

#[derive(Debug)]
struct Shared {
    options: LoaderOptions,
    augment: Augment,
    /// Blocks in memory; none where samples are read one by one.
    blocks: Option<Blocks>,
    plan: Plan,
    state: Mutex<State>,
    changed: Condvar,
    /// Ends a reader's wait for a store that is away.
    cancel: CancellationToken,
    /// Nanoseconds that readers waited for a store, and that they decoded.
    store: AtomicU64,
    decode: AtomicU64,
    /// Buffers of units and of batches.
    units: Arc<Pool>,
    batches: Arc<Pool>,
    /// Made once.
    noise: OnceLock<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    /// Next unit to be taken, counting from `first_step`.
    next_unit: u64,
    /// The batch the trainer waits for or works on.
    wanted: u64,
    /// Finished units of steps that lack some, by step and unit within the step.
    units: BTreeMap<(u64, u64), Unit>,
    /// Finished steps.
    batches: BTreeMap<u64, Batch>,
    /// Corrupt samples met, those of before included.
    ledger: Ledger,
    /// What stopped a reader first; its batch and all after it stay unfinished.
    error: Option<Error>,
    /// No further unit is taken.
    stop: bool,
    /// Readers at work.
    readers: usize,
}

/// Where readers spend their time, in seconds, of all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Waiting for a store.
    pub store: f64,
    /// Decoding, augmenting, tokenizing.
    pub decode: f64,
}

impl Loader {
    /// Starts the readers.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(options: LoaderOptions) -> Result<Self, Error> {
        let (first_step, readers) = (options.first_step, options.readers.max(1));
        let augment = Augment::new(options.aug.clone(), options.preprocess);
        let ledger = options.ledger.clone();
        let state = State { wanted: first_step, ledger, ..State::default() };
        let (state, changed, cancel) =
            (Mutex::new(state), Condvar::new(), CancellationToken::new());
        let blocks = blocks(&options, &cancel);
        let scope = plan::Scope {
            dataset: Arc::clone(&options.dataset),
            global_batch: options.global_batch,
            rows: options.rows.clone(),
            first_step,
            first_sample: options.first_sample,
            last_step: options.last_step,
            left_out: options.left_out.clone(),
        };
        let plan = Plan::new(scope, options.prefetch);
        let (store, decode) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Shared {
            options,
            augment,
            blocks,
            plan,
            state,
            changed,
            cancel,
            store,
            decode,
            noise: OnceLock::new(),
            units: Arc::default(),
            batches: Arc::default(),
        };
        let shared = Arc::new(shared);
        let mut loader = Self { shared, readers: Vec::new(), next: first_step };
        for reader in 0..readers {
            loader.shared.lock().readers += 1;
            let working = Working(Arc::clone(&loader.shared));
            let thread = std::thread::Builder::new()
                .name(format!("reader-{reader}"))
                .spawn(move || working.0.run())
                .map_err(|source| Error::Thread { source })?;
            loader.readers.push(thread);
        }
        for fetcher in 0..loader.shared.fetchers() {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("fetcher-{fetcher}"))
                .spawn(move || shared.blocks.iter().for_each(Blocks::run))
                .map_err(|source| Error::Thread { source })?;
            loader.readers.push(thread);
        }
        Ok(loader)
    }

    /// Returns where readers have spent their time since this was asked last.
    pub fn take_spent(&self) -> Spent {
        let seconds = |nanoseconds: &AtomicU64| nanoseconds.swap(0, Ordering::Relaxed) as f64 / 1e9;
        Spent { store: seconds(&self.shared.store), decode: seconds(&self.shared.decode) }
    }

    /// Returns what was read so far, where it is read by blocks.
    pub fn fetched(&self) -> Option<Fetched> {
        self.shared.blocks.as_ref().map(Blocks::fetched)
    }

    /// Returns the next global batch's rows, in step order; waits until they are decoded.
    ///
    /// # Errors
    /// Whatever stopped a reader: a store that fails, or too many corrupt samples; batches that
    /// were finished by then are still handed out. [`Error::Reader`] past the last step and for
    /// every call after an error.
    #[expect(clippy::should_implement_trait, reason = "an iterator would end at its first error")]
    pub fn next(&mut self) -> Result<Batch, Error> {
        let step = self.next;
        let last = self.shared.options.last_step;
        if step >= last {
            let reason =
                format!("batch {step} was asked for, and {last} would be the last plus one");
            return Err(Error::Reader { reason });
        }
        let batch = self.shared.wait_for(step)?;
        self.next += 1;
        Ok(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        self.shared.cancel.cancel();
        if let Some(blocks) = &self.shared.blocks {
            blocks.stop();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Returns where blocks are kept, if what the order comes back to fits.
fn blocks(options: &LoaderOptions, cancel: &CancellationToken) -> Option<Blocks> {
    let rows = (options.rows.end - options.rows.start) as f64;
    let needed = options.dataset.pool_bytes(rows / options.global_batch.max(1) as f64);
    if needed > options.memory {
        tracing::warn!(
            needed,
            memory = options.memory,
            "blocks of the data order do not fit into memory, so that samples are read one by one, which takes many \
             more requests; raise data.memory, lower data.pool_samples (another order), or use more ranks"
        );
        return None;
    }
    Some(Blocks::new(Arc::clone(&options.dataset), options.memory, cancel.clone()))
}

/// Counts a reader out when it ends, by a panic too, so that nobody waits for it.
struct Working(Arc<Shared>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.lock().readers -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn units_per_step(&self) -> u64 {
        let rows = &self.options.rows;
        (rows.end - rows.start).div_ceil(UNIT_ROWS)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a step is there, and takes it.
    fn wait_for(&self, step: u64) -> Result<Batch, Error> {
        let mut state = self.lock();
        // Lets readers go on that wait for room: they may be `prefetch` batches ahead of this one.
        state.wanted = step;
        self.changed.notify_all();
        if let Some(blocks) = &self.blocks {
            blocks.pass(&self.plan.first_positions(step));
        }
        loop {
            if let Some(batch) = state.batches.remove(&step) {
                return Ok(batch);
            }
            // Batches that are complete are handed out although a reader has failed; this one is not.
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            // A reader that panicked has left no error; without this check nobody would wake the trainer.
            if state.readers == 0 {
                let reason = format!("all ended before batch {step} was ready");
                return Err(Error::Reader { reason });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A reader's life.
    fn run(&self) {
        let mut scratch = Scratch::default();
        while let Some((step, unit)) = self.take() {
            let start = self.options.rows.start + unit * UNIT_ROWS;
            let rows = start..self.options.rows.end.min(start + UNIT_ROWS);
            let result = self.load(step, rows, &mut scratch);
            match result {
                Ok(done) => self.finish(step, unit, done),
                Err(error) => {
                    let mut state = self.lock();
                    state.error.get_or_insert(error);
                    state.stop = true;
                }
            }
            self.changed.notify_all();
        }
    }

    /// Keeps a unit; with the last of a step makes a batch of them, so that the trainer need not.
    fn finish(&self, step: u64, unit: u64, done: Unit) {
        let units = self.units_per_step();
        let mut state = self.lock();
        state.units.insert((step, unit), done);
        if !(0..units).all(|unit| state.units.contains_key(&(step, unit))) {
            return;
        }
        // In the order of rows, whichever reader was faster.
        let parts = (0..units).filter_map(|unit| state.units.remove(&(step, unit))).collect();
        drop(state);
        let batch = Batch::of(step, self.options.rows.clone(), parts, &self.batches);
        self.lock().batches.insert(step, batch);
    }

    /// Returns the next unit of work once there is room for it; none at the end.
    fn take(&self) -> Option<(u64, u64)> {
        let units = self.units_per_step();
        let mut state = self.lock();
        loop {
            let step = self.options.first_step + state.next_unit.checked_div(units)?;
            if state.stop || step >= self.options.last_step {
                return None;
            }
            // Bounds the memory of decoded batches: at most `prefetch` of them beside the one in use.
            if step <= state.wanted + self.options.prefetch {
                let unit = state.next_unit % units;
                state.next_unit += 1;
                return Some((step, unit));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn load(&self, step: u64, rows: Range<u64>, scratch: &mut Scratch) -> Result<Unit, Error> {
        let visits = self.plan.visits(step, self.blocks.as_ref());
        let first = self.options.rows.start;
        let mut unit = Unit { images: self.units.take(), ..Unit::default() };
        for row in rows {
            self.load_row(visits[(row - first) as usize], scratch, &mut unit)?;
        }
        Ok(unit)
    }

    /// Returns how many threads fetch blocks: more where a request waits for a network.
    fn fetchers(&self) -> usize {
        match (&self.blocks, self.options.dataset.is_remote()) {
            (None, _) => 0,
            (Some(_), false) => LOCAL_FETCHERS,
            (Some(_), true) => REMOTE_FETCHERS,
        }
    }
}
