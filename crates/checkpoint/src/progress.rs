//! What shows that reading and writing checkpoints moves on, for whoever watches this process.
//!
//! A counter of the process, not of an object: nothing is decided by it here and nothing waits for
//! it, and a process writes for one rank.

use std::sync::atomic::{AtomicU64, Ordering};

static MOVED: AtomicU64 = AtomicU64::new(0);

/// Counts a part of a checkpoint that was written, read or deleted.
pub(crate) fn advance() {
    MOVED.fetch_add(1, Ordering::Relaxed);
}

/// Returns how many parts of checkpoints this process has written, read or deleted. Attempts that failed do not
/// count: who is only refused does not move on.
pub fn moved() -> u64 {
    MOVED.load(Ordering::Relaxed)
}
