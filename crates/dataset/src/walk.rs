//! All samples of a source, or chosen ones: read and worked on by many threads, handed out in order.
//!
//! A thread takes the next unit (a run of a shard, or some chosen samples), reads it and works on its samples. Units
//! that are taken but not handed out yet are limited, which bounds the memory and makes fast threads wait.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ringmaster_data::{Flaw, RawSample, Run, SampleError, Source};

use crate::{Error, Meter};

/// Threads that read a remote store: most of them wait for it.
const REMOTE_THREADS: usize = 32;
/// Units per thread that may be taken and not handed out yet.
const AHEAD: usize = 2;
/// Chosen samples in a unit.
const CHOSEN: usize = 8;

/// In which order samples are handed out.
#[derive(Debug)]
pub(crate) enum Order {
    /// All, as they lie.
    Stored(Vec<Run>),
    /// These, each read by itself.
    Chosen(Vec<u64>),
}

/// A sample as it was read, and its index in the source.
pub(crate) type Read = (u64, Result<RawSample, Flaw>);

impl Order {
    /// Returns the order in which the samples of a source lie.
    pub(crate) fn stored(source: &Source) -> Self {
        Self::Stored(source.runs().collect())
    }

    fn units(&self) -> usize {
        match self {
            Self::Stored(runs) => runs.len(),
            Self::Chosen(indices) => indices.len().div_ceil(CHOSEN),
        }
    }

    fn read(&self, unit: usize, source: &Source, meter: &Meter) -> Result<Vec<Read>, Error> {
        match self {
            Self::Stored(runs) => {
                let samples = source.read_run(runs[unit], meter.token())?;
                Ok((runs[unit].first..).zip(samples).collect())
            }
            Self::Chosen(indices) => {
                let end = indices.len().min((unit + 1) * CHOSEN);
                indices[unit * CHOSEN..end].iter().map(|&index| one(source, index, meter)).collect()
            }
        }
    }
}

fn one(source: &Source, index: u64, meter: &Meter) -> Result<Read, Error> {
    meter.check()?;
    match source.read_until(index, meter.token()) {
        Ok(sample) => Ok((index, Ok(sample))),
        Err(SampleError::Corrupt(flaw)) => Ok((index, Err(flaw))),
        Err(SampleError::Store(error)) => Err(error.into()),
    }
}

/// Calls `work` for every sample, on many threads, and `take` with what it returns, on this thread and in order.
///
/// # Errors
/// A store that fails, and what `take` returns; the samples after it are not taken.
pub(crate) fn walk<T: Send>(
    source: &Source,
    order: &Order,
    meter: &Meter,
    work: impl Fn(Read) -> T + Sync,
    mut take: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let threads = threads(source).min(order.units().max(1));
    let queue = Queue::new(threads * AHEAD);
    std::thread::scope(|scope| {
        let _ending = Ending { queue: &queue };
        for number in 0..threads {
            let builder = std::thread::Builder::new().name(format!("samples-{number}"));
            builder
                .spawn_scoped(scope, || run(&queue, source, order, meter, &work))
                .map_err(|error| Error::Thread { reason: error.to_string() })?;
        }
        for unit in 0..order.units() {
            for result in queue.get(unit)? {
                take(result)?;
            }
        }
        Ok(())
    })
    .map_err(|error| if meter.check().is_err() { Error::Interrupted } else { error })
}

fn threads(source: &Source) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if source.is_remote() { cores.max(REMOTE_THREADS) } else { cores }
}

/// The life of a thread that reads and works.
fn run<T>(
    queue: &Queue<T>,
    source: &Source,
    order: &Order,
    meter: &Meter,
    work: &impl Fn(Read) -> T,
) {
    // Also when `work` panics: who waits for the unit learns of it.
    let _ending = Ending { queue };
    while let Some(unit) = queue.next(order.units()) {
        let done = order.read(unit, source, meter).and_then(|samples| {
            let each = samples.into_iter().map(|sample| {
                meter.check()?;
                let bytes = sample.1.as_ref().map_or(0, |sample| sample.image.len());
                let result = work(sample);
                meter.count(bytes);
                Ok(result)
            });
            each.collect()
        });
        let failed = done.is_err();
        queue.put(unit, done);
        if failed {
            // The others go on with units before this one.
            return queue.no_more();
        }
    }
}

/// Units on their way from those who work on them to the one who takes them in order.
#[derive(Debug)]
struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Units that may be taken and not handed out.
    ahead: usize,
}

#[derive(Debug)]
struct State<T> {
    /// The next unit to read.
    next: usize,
    /// The next unit to hand out.
    wanted: usize,
    done: HashMap<usize, Result<Vec<T>, Error>>,
    /// No further unit is begun.
    no_more: bool,
    /// Threads that work, or began to.
    ended: bool,
}

impl<T> Queue<T> {
    fn new(ahead: usize) -> Self {
        let state =
            State { next: 0, wanted: 0, done: HashMap::new(), no_more: false, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), ahead }
    }

    /// Returns the next unit to work on, once there is room for it; none when there is no further one.
    fn next(&self, units: usize) -> Option<usize> {
        let mut state = self.lock();
        while !state.no_more && state.next < units && state.next >= state.wanted + self.ahead {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.no_more || state.next >= units {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }

    fn put(&self, unit: usize, done: Result<Vec<T>, Error>) {
        self.lock().done.insert(unit, done);
        self.changed.notify_all();
    }

    /// Waits for a unit.
    fn get(&self, unit: usize) -> Result<Vec<T>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(done) = state.done.remove(&unit) {
                state.wanted = unit + 1;
                drop(state);
                self.changed.notify_all();
                return done;
            }
            if state.ended {
                return Err(Error::Thread { reason: "one ended early".to_owned() });
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn no_more(&self) {
        self.lock().no_more = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the other threads end when one of them panics, or when nobody takes what they do any more.
struct Ending<'a, T> {
    queue: &'a Queue<T>,
}

impl<T> Drop for Ending<'_, T> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.ended |= std::thread::panicking();
        // A thread that finds no further unit ends like this, too: then there is none for the others either.
        state.no_more = true;
        drop(state);
        self.queue.changed.notify_all();
    }
}
