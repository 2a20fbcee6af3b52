//! Commits in the task that asks for them, for simulations.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

use super::Error;
use super::apply::commit;
use super::record::Change;

/// What a simulation does around a commit. A coordinator that crashes in the first pause has lost
/// the changes; one that crashes in the second has kept them and told nobody.
pub trait Hooks: Send + Sync {
    /// Waits as long as the disk would, before and again after the commit.
    fn pause(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// Sees what has just become durable.
    fn committed(&self, changes: &[Change]);
}

/// The connection that commits.
pub(super) struct Inline {
    /// None once a write has failed.
    connection: Mutex<Option<Connection>>,
    hooks: Arc<dyn Hooks>,
}

impl Inline {
    pub(super) fn new(connection: Connection, hooks: Arc<dyn Hooks>) -> Self {
        Self { connection: Mutex::new(Some(connection)), hooks }
    }

    pub(super) async fn write(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.hooks.pause().await;
        self.commit(&changes)?;
        self.hooks.committed(&changes);
        self.hooks.pause().await;
        Ok(())
    }

    fn commit(&self, changes: &[Change]) -> Result<(), Error> {
        let mut guard = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = guard.as_mut().ok_or(Error::Closed)?;
        let result = commit(connection, changes.iter());
        if result.is_err() {
            *guard = None;
        }
        result
    }
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inline").finish_non_exhaustive()
    }
}
