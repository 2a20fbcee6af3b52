//! How many corrupt samples a run takes.

pub use ringmaster_checkpoint::{Corrupt, Ledger, SampleKey};

use crate::Error;

/// Corrupt samples that a message lists.
pub(crate) const LISTED: usize = 20;

/// Returns how many corrupt samples a share of `max_corrupt` of `samples` is: at least one, unless none is accepted,
/// since a share of a small data set must not round to zero.
pub fn limit(samples: u64, max_corrupt: f64) -> u64 {
    match max_corrupt {
        share if share > 0.0 => ((samples as f64 * share) as u64).max(1),
        _ => 0,
    }
}

/// As [`check`], of a ledger and what a step adds to it.
///
/// # Errors
/// [`Error::TooManyCorrupt`] with some of them.
pub fn check_with(ledger: &Ledger, more: &[Corrupt], limit: u64) -> Result<(), Error> {
    if (ledger.len() + more.len()) as u64 <= limit {
        return Ok(());
    }
    let mut all = ledger.clone();
    all.merge(0, more);
    check(&all, limit)
}

/// Checks that the corrupt samples are not more than `limit`.
///
/// # Errors
/// [`Error::TooManyCorrupt`] with some of them.
pub fn check(ledger: &Ledger, limit: u64) -> Result<(), Error> {
    if ledger.len() as u64 <= limit {
        return Ok(());
    }
    let list: Vec<&str> = ledger.reasons().take(LISTED).collect();
    Err(Error::TooManyCorrupt { count: ledger.len(), limit, list: list.join("; ") })
}
