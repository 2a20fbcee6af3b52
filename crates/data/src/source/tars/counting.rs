//! Counts the samples of shards that nobody has counted, many shards at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{Tars, unpacked};
use crate::Error;
use crate::store::Object;

/// Shards read at once from a disk, and over a network, where one connection is far slower than all.
const AT_ONCE: [usize; 2] = [2, 16];
/// The same of shards compressed as a whole, each of which is unpacked into memory.
const PACKED_AT_ONCE: usize = 2;

/// What the headers of a shard say of its number of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) samples: u64,
    /// Where the shard breaks off, and what to do.
    pub(super) broken: Option<String>,
    /// Why it has no sample although it is sound.
    pub(super) nothing: Option<String>,
}

impl Tars {
    /// Reads the headers of some shards, which are told by number in rising order; returns what each says.
    ///
    /// # Errors
    /// That of the first shard, in order, that cannot be read or is no tar; [`Error::Thread`].
    pub(super) fn count_all(&self, shards: &[usize]) -> Result<BTreeMap<usize, Counted>, Error> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done = Mutex::new(BTreeMap::new());
        let work = || {
            // Those taken are finished, all before the first that fails among them: which error that is does not
            // depend on timing.
            while !failed.load(Ordering::SeqCst)
                && let Some(&shard) = shards.get(next.fetch_add(1, Ordering::SeqCst))
            {
                let counted = self.count(shard);
                failed.fetch_or(counted.is_err(), Ordering::SeqCst);
                done.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, counted);
            }
        };
        // What the threads say of shards is said where the caller speaks.
        let (log, span) = (tracing::dispatcher::get_default(Clone::clone), Span::current());
        let work = || tracing::dispatcher::with_default(&log, || span.in_scope(work));
        std::thread::scope(|scope| {
            for number in 0..self.at_once().min(shards.len()) {
                let thread = std::thread::Builder::new().name(format!("counter-{number}"));
                thread.spawn_scoped(scope, work).map_err(|source| Error::Thread { source })?;
            }
            Ok::<(), Error>(())
        })?;
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.into_iter().map(|(shard, counted)| Ok((shard, counted?))).collect()
    }

    /// Returns how many shards are read at once.
    fn at_once(&self) -> usize {
        let is_packed = |shard: &Object| unpacked::is_gzip_name(&shard.file_name());
        if self.shards.iter().any(is_packed) {
            return PACKED_AT_ONCE;
        }
        AT_ONCE[usize::from(self.shards.iter().any(Object::is_remote))]
    }

    fn count(&self, shard: usize) -> Result<Counted, Error> {
        let index = self.index(shard, &CancellationToken::new())?;
        match &index.broken {
            Some(reason) if index.is_empty() => {
                let (url, reason) = (self.shards[shard].url.clone(), reason.clone());
                Err(Error::Empty { url, reason })
            }
            broken => Ok(Counted {
                samples: index.len() as u64,
                broken: broken.clone(),
                nothing: index.is_empty().then(|| index.nothing(&self.wanted)),
            }),
        }
    }
}
