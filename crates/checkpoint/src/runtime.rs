//! The runtime of the store's calls, for callers that block.

use super::Error;

/// Returns a runtime of its own. It has two threads: one signs, encrypts or decrypts a part while the other
/// talks to the store.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("checkpoint-store")
        .enable_all()
        .build()
        .map_err(|source| Error::Runtime { source })
}
