//! What shows that data moves on, for whoever watches the process.

use std::sync::atomic::{AtomicU64, Ordering};

static READ: AtomicU64 = AtomicU64::new(0);

/// Counts an object's bytes that came, or a sample that was decoded.
pub(crate) fn advance() {
    READ.fetch_add(1, Ordering::Relaxed);
}

/// Returns how many pieces of data this process has read and decoded. It grows as long as data moves on.
pub fn moved() -> u64 {
    READ.load(Ordering::Relaxed)
}
