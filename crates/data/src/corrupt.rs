//! How many corrupt samples a run takes.

pub use ringmaster_checkpoint::{Corrupt, Ledger, SampleKey};

use crate::Error;

/// Corrupt samples that a message lists.
pub(crate) const LISTED: usize = 20;
/// The same where they are all alike.
const FEW: usize = 3;
/// How the reasons begin of samples that lack a part.
const HALVES: [&str; 2] = [": no image (", ": no caption ("];

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
    Err(Error::TooManyCorrupt { count: ledger.len(), limit, list: listed(ledger) })
}

/// Lists some of the reasons; where most are that an image or a caption is missing, few and what to do.
fn listed(ledger: &Ledger) -> String {
    let is_half = |reason: &&str| HALVES.iter().any(|half| reason.contains(half));
    let (halves, all) = (ledger.reasons().filter(is_half).count(), ledger.len());
    let first = |many: usize| ledger.reasons().take(many).collect::<Vec<_>>().join("; ");
    if halves * 2 <= all {
        return first(LISTED);
    }
    format!(
        "{halves} of these {all} have no image or no caption, which OpenCLIP leaves out: if that is meant, raise \
         data.max_corrupt above their share; if not, set data.image_key and data.text_key to what the shards hold. {}",
        first(FEW)
    )
}
