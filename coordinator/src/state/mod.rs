//! What survives the coordinator: one SQLite database with one writer.
//!
//! Every acknowledged transition is durable before anybody hears of it (WAL, `synchronous=FULL`).
//! Writers hand [`Change`]s to [`Store::write`]; a single thread applies all that wait in one
//! transaction, so that many transitions share one flush. Heartbeats never come here.
//!
//! Modules in reading order: `record` (what is stored), `migrations` (the schema and its history),
//! `objects` (checkpoint objects as JSON),
//! `apply` (one change to SQL), `load` (reading back), `store` (the writer thread),
//! `inline` (writing without one).

mod apply;
mod inline;
mod load;
mod migrations;
mod objects;
mod record;
mod store;

pub use inline::Hooks;
pub use objects::encode as objects_to_json;
pub use record::{
    AgentProcess, Change, CheckpointGrant, Closure, ClosureKind, EventRecord, FaultScore, Halt,
    HaltKind, JobRecord, Rollback, ShardRecord, State,
};
pub use store::{Loaded, Store};

use std::path::PathBuf;

/// What can go wrong with the database.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or configured.
    #[error("the database {path} cannot be opened", path = path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer coordinator.
    #[error(
        "the database has schema version {found}, this coordinator knows up to {known}; use the \
         newer coordinator or another state directory"
    )]
    TooNew { found: u32, known: u32 },
    /// A statement failed.
    #[error("{action} failed in the database")]
    Sql {
        action: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    /// A stored value is not what this program writes.
    #[error("column {column} of {key} holds {value:?}, which this coordinator never writes")]
    Corrupt { column: &'static str, key: String, value: String },
    /// The writer thread could not be started.
    #[error("the database's writer thread cannot be started")]
    Thread {
        #[source]
        source: std::io::Error,
    },
    /// The writer has stopped: after an error, or because the coordinator ends.
    #[error("the database's writer has stopped")]
    Closed,
}

/// Names the action that failed, for `map_err`.
fn sql(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| Error::Sql { action, source }
}
