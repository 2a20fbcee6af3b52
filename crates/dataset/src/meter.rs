//! How far long work is, for whoever shows it while another thread does it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::Error;

/// How far long work is; shared by who does it and who shows it.
#[derive(Debug, Default)]
pub struct Meter {
    doing: Mutex<String>,
    done: AtomicU64,
    total: AtomicU64,
    bytes: AtomicU64,
    bad: AtomicU64,
    cancel: CancellationToken,
}

/// A look at a [`Meter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What is being done.
    pub doing: String,
    /// Samples that are done with.
    pub done: u64,
    /// Samples in all; 0 as long as nobody knows.
    pub total: u64,
    /// Bytes of images read.
    pub bytes: u64,
    /// Samples that cannot be used.
    pub bad: u64,
}

impl Meter {
    /// Returns how far the work is.
    pub fn read(&self) -> Reading {
        Reading {
            doing: self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            bad: self.bad.load(Ordering::Relaxed),
        }
    }

    /// Asks the work to take back what it began, and end.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Begins a part of the work, of `total` samples, or 0 where their number is not known.
    pub(crate) fn begin(&self, doing: impl Into<String>, total: u64) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = doing.into();
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts a sample that is done with, and its bytes.
    pub(crate) fn count(&self, bytes: usize) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a sample that cannot be used.
    pub(crate) fn count_bad(&self) {
        self.bad.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// # Errors
    /// [`Error::Interrupted`] after [`Meter::cancel`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
