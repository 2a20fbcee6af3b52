//! Decodes ahead of the training step, on threads of its own, with bounded memory.
//!
//! Work is cut into units of a few rows of one global batch. Readers take units in order and may
//! finish them in any; a batch is handed out once all its units are there, so its contents do not
//! depend on the number of readers.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ringmaster_manifest::spec::AugCfg;
use tokio_util::sync::CancellationToken;

use super::{
    Dataset, Error, LISTED, Order, SampleError, Substitution, corrupt_limit, too_many_corrupt,
};
use crate::progress::{self, Work};
use ringmaster_inputs::image::{Augment, Preprocess, Scratch, decode};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_inputs::text::Tokenizer;
use ringmaster_words as words;

/// Rows per unit of work.
const UNIT_ROWS: u64 = 16;
/// Replacements tried for one slot before the data set counts as unusable.
const SUBSTITUTES: u64 = 96;

/// What a loader needs.
#[derive(Debug)]
pub struct LoaderOptions {
    /// The shards.
    pub dataset: Arc<Dataset>,
    /// Which sample stands where.
    pub order: Arc<Order>,
    /// This rank's rows of every global batch.
    pub rows: Range<u64>,
    /// First global batch, 0-based.
    pub first_step: u64,
    /// One past the last global batch.
    pub last_step: u64,
    /// Size and normalisation of the images.
    pub preprocess: Preprocess,
    /// Turns captions into ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Augmentation.
    pub aug: AugCfg,
    /// Seed of augmentation and caption choice.
    pub seed: u64,
    /// Threads.
    pub readers: usize,
    /// Batches kept ready or in the making beyond the one in use.
    pub prefetch: u64,
    /// Replacements made earlier in this run, by any rank: they are made again.
    pub substitutions: Vec<Substitution>,
    /// Largest share of the data set that may be corrupt. A rank counts what its own readers meet,
    /// ahead of the step; [`super::check_corrupt`] counts over all ranks.
    pub max_corrupt: f64,
}

/// One rank's rows of a global batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The global batch, 0-based.
    pub step: u64,
    /// The rows.
    pub rows: Range<u64>,
    /// Normalised pixels. Shape `[n, 3, S, S]`.
    pub images: Vec<f32>,
    /// Token ids. Shape `[n, L]`.
    pub tokens: Vec<i64>,
    /// Index in the data set of every row's sample, replacements included.
    pub sample_ids: Vec<u64>,
    /// Replacements made in these rows.
    pub substitutions: Vec<Substitution>,
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
    /// (step, row) → what stands there instead.
    known: HashMap<(u64, u64), Substitution>,
    state: Mutex<State>,
    changed: Condvar,
    /// Ends a reader's wait for a store that is away.
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// Next unit to be taken, counting from `first_step`.
    next_unit: u64,
    /// The batch the trainer waits for or works on.
    wanted: u64,
    /// Finished units by step and unit within the step.
    units: BTreeMap<(u64, u64), Unit>,
    /// Corrupt samples met, with the reason.
    corrupt: BTreeMap<u64, String>,
    /// What stopped a reader first; its batch and all after it stay unfinished.
    error: Option<Error>,
    /// No further unit is taken.
    stop: bool,
    /// Readers at work.
    readers: usize,
}

/// A few decoded rows.
#[derive(Debug, Default)]
struct Unit {
    images: Vec<f32>,
    tokens: Vec<i64>,
    sample_ids: Vec<u64>,
    substitutions: Vec<Substitution>,
}

impl Loader {
    /// Starts the readers.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(options: LoaderOptions) -> Result<Self, Error> {
        let (first_step, readers) = (options.first_step, options.readers.max(1));
        let augment = Augment::new(options.aug.clone(), options.preprocess);
        let substitutions = options.substitutions.iter();
        let known = substitutions.map(|s| ((s.step, s.row), s.clone())).collect();
        let corrupt = options.substitutions.iter().map(|s| (s.sample, s.reason.clone())).collect();
        let state = State { wanted: first_step, corrupt, ..State::default() };
        let (state, changed, cancel) =
            (Mutex::new(state), Condvar::new(), CancellationToken::new());
        let shared = Arc::new(Shared { options, augment, known, state, changed, cancel });
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
        Ok(loader)
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
        let parts = self.shared.wait_for(step)?;
        self.next += 1;
        Ok(assemble(step, self.shared.options.rows.clone(), parts))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        self.shared.cancel.cancel();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

fn assemble(step: u64, rows: Range<u64>, parts: Vec<Unit>) -> Batch {
    let mut batch = Batch {
        step,
        rows,
        images: Vec::with_capacity(parts.iter().map(|p| p.images.len()).sum()),
        tokens: Vec::new(),
        sample_ids: Vec::new(),
        substitutions: Vec::new(),
    };
    for part in parts {
        batch.images.extend(part.images);
        batch.tokens.extend(part.tokens);
        batch.sample_ids.extend(part.sample_ids);
        batch.substitutions.extend(part.substitutions);
    }
    batch
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

    /// Waits until all units of a step are there, and takes them.
    fn wait_for(&self, step: u64) -> Result<Vec<Unit>, Error> {
        let units = self.units_per_step();
        let mut state = self.lock();
        // Lets readers go on that wait for room: they may be `prefetch` batches ahead of this one.
        state.wanted = step;
        self.changed.notify_all();
        while !(0..units).all(|unit| state.units.contains_key(&(step, unit))) {
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
        // In the order of rows, whichever reader was faster.
        Ok((0..units).filter_map(|unit| state.units.remove(&(step, unit))).collect())
    }

    /// A reader's life.
    fn run(&self) {
        let mut scratch = Scratch::default();
        while let Some((step, unit)) = self.take() {
            let start = self.options.rows.start + unit * UNIT_ROWS;
            let rows = start..self.options.rows.end.min(start + UNIT_ROWS);
            let result = self.load(step, rows, &mut scratch);
            let mut state = self.lock();
            match result {
                Ok(done) => {
                    state.units.insert((step, unit), done);
                }
                Err(error) => {
                    state.error.get_or_insert(error);
                    state.stop = true;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
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
        let mut unit = Unit::default();
        for row in rows {
            self.load_row(step, row, scratch, &mut unit)?;
        }
        Ok(unit)
    }

    /// Loads the sample of a row, or what replaces it.
    fn load_row(
        &self,
        step: u64,
        row: u64,
        scratch: &mut Scratch,
        unit: &mut Unit,
    ) -> Result<(), Error> {
        let original = self.options.order.sample(step, row).index;
        if let Some(known) = self.known.get(&(step, row)) {
            // A recorded substitution is repeated even if the sample has been repaired since: every
            // run of the job reads the same data.
            let result = self.append(step, row, known.replacement, scratch, unit)?;
            if result.is_none() {
                return Ok(());
            }
        }
        let Some(reason) = self.append(step, row, original, scratch, unit)? else { return Ok(()) };
        self.note_corrupt(original, &reason)?;
        let mut tried = vec![reason.clone()];
        for attempt in 0..SUBSTITUTES {
            let replacement = self.options.order.substitute(step, row, attempt);
            match self.append(step, row, replacement, scratch, unit)? {
                None => {
                    tracing::warn!(step, row, %reason, replacement, "corrupt sample replaced");
                    let sample = original;
                    unit.substitutions.push(Substitution {
                        step,
                        row,
                        sample,
                        replacement,
                        reason,
                    });
                    return Ok(());
                }
                Some(reason) => {
                    self.note_corrupt(replacement, &reason)?;
                    tried.push(reason);
                }
            }
        }
        tried.truncate(LISTED);
        let list = tried.join("; ");
        Err(Error::NoReplacement { step, row, attempts: SUBSTITUTES, list })
    }

    /// Decodes one sample into `unit`; returns why not when it is corrupt.
    fn append(
        &self,
        step: u64,
        row: u64,
        index: u64,
        scratch: &mut Scratch,
        unit: &mut Unit,
    ) -> Result<Option<String>, Error> {
        let options = &self.options;
        let sample = match options.dataset.read_until(index, &self.cancel) {
            Ok(sample) => sample,
            Err(SampleError::Store(error)) => return Err(error),
            Err(corrupt) => return Ok(Some(corrupt.to_string())),
        };
        let start = unit.images.len();
        unit.images.resize(start + options.preprocess.values(), 0.0);
        // Keyed by step and row: the same draws whichever rank or reader decodes the row.
        let mut stream = Stream::new(options.seed, Site::Augment, &[step, row]);
        let pixels = decode(&sample.image).and_then(|image| {
            self.augment.apply(&image, &mut stream, scratch, &mut unit.images[start..])
        });
        if let Err(error) = pixels {
            unit.images.truncate(start);
            return Ok(Some(format!("{}: {}", sample.key, words::chain(&error))));
        }
        let choice = match sample.captions.len() {
            1 => 0,
            n => Stream::new(options.seed, Site::Caption, &[step, row]).below(n as u64) as usize,
        };
        unit.tokens.extend(options.tokenizer.encode(&sample.captions[choice]));
        unit.sample_ids.push(index);
        progress::advance(Work::Data);
        Ok(None)
    }

    fn note_corrupt(&self, index: u64, reason: &str) -> Result<(), Error> {
        let mut state = self.lock();
        state.corrupt.insert(index, reason.to_owned());
        let too_many = state.corrupt.len() as u64 > self.limit();
        drop(state);
        if too_many { Err(self.too_many()) } else { Ok(()) }
    }

    fn limit(&self) -> u64 {
        corrupt_limit(self.options.dataset.len(), self.options.max_corrupt)
    }

    fn too_many(&self) -> Error {
        let state = self.lock();
        let reasons = state.corrupt.values().map(String::as_str);
        too_many_corrupt(state.corrupt.len(), self.limit(), reasons)
    }
}
