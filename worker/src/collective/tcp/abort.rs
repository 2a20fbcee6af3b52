//! Ending a ring, or its formation, from another thread.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::Error;

/// A switch that ends the formation or the life of a ring; set once, with a reason.
///
/// Not tokio's `CancellationToken`: that one carries no reason, and here nobody waits for the switch. Threads look
/// at it between two polls of a socket, and are woken by the end of their sockets (`AbortHandle`).
#[derive(Debug, Clone, Default)]
pub struct AbortFlag(Arc<Mutex<Option<String>>>);

impl AbortFlag {
    /// Returns a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag; the first reason stays.
    pub fn set(&self, reason: &str) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| reason.to_owned());
    }

    /// Returns the reason once the flag is set.
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.get() {
            Some(reason) => Err(Error::Aborted { reason }),
            None => Ok(()),
        }
    }
}

/// Ends the ring from another thread.
#[derive(Debug, Clone)]
pub(super) struct AbortHandle {
    pub(super) flag: AbortFlag,
    pub(super) streams: Arc<Vec<Arc<TcpStream>>>,
}

impl AbortHandle {
    pub(super) fn abort(&self, reason: &str) {
        self.flag.set(reason);
        for stream in self.streams.iter() {
            // Wakes this rank's thread, and tells the peer.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn reason(&self) -> String {
        self.flag.get().unwrap_or_else(|| "the ring is closed".to_owned())
    }
}
