//! Writing: a snapshot becomes a published checkpoint while training goes on.
//!
//! Modules in reading order: `memory` (where a snapshot waits while it is written), `writer` (the background
//! thread), `publish` (the phases of one rank), `upload` (objects, in parts) and `retention` (which checkpoints
//! stay).

mod memory;
pub(crate) mod publish;
mod retention;
pub(crate) mod upload;
mod writer;

pub use memory::{Memory, SnapshotBuffer};
pub use publish::{Grant, Published};
pub use writer::{Saved, Writer, WriterOptions};
