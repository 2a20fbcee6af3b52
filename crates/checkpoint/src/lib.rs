//! Checkpoints: complete or invisible, loadable by any world size, written while training goes on.
//!
//! A checkpoint is a folder of the job's folder, named after its step and the generation that
//! wrote it, and never rewritten:
//!
//! ```text
//! <uri>/<job>/step-0000001000.g1.7/model.safetensors              parameters, OpenCLIP's names
//!                                 /optim-00000-of-00002.safetensors  moments, slice of rank 0
//!                                 /optim-00001-of-00002.safetensors  moments, slice of rank 1
//!                                 /state.json                     step, numeric plan, corrupt samples, job
//!                                 /MANIFEST.json                  sizes and checksums; written last
//! <uri>/<job>/latest.json                                         names the newest complete one
//! ```
//!
//! The fence is the coordinator: once every rank has reported its objects it grants the commit to
//! the current generation alone, and only then is MANIFEST.json created. What has no MANIFEST.json
//! does not exist for a reader; what has one is verified object by object before it is chosen.
//! latest.json is for people and tools: [`choose`] lists the folder instead, because only that
//! finds a checkpoint whose writer died between the two writes.
//!
//! Modules in reading order: `state` with `ledger` (what is saved), `upgrade` (what earlier versions saved), `layout`
//! (names), `manifest` (the two metadata files), `checksum`, `tensors` (safetensors files) over `chunks`, `dir`
//! (a folder of a store), `write` (from a snapshot to a published checkpoint), `read` (choosing and loading),
//! `rollback`, and [`browse`] (what people do with checkpoints). Nothing here touches ATen.

pub mod browse;
mod checksum;
mod chunks;
mod dir;
mod error;
mod layout;
mod ledger;
mod manifest;
mod progress;
mod read;
mod rollback;
mod runtime;
mod state;
mod tensors;
mod upgrade;
mod write;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use dir::check_writable;
pub use error::{Error, GrantError};
pub use layout::{is_local, is_weights, job_url, step_of, url_below};
pub use ledger::{Corrupt, Ledger, SampleKey};
pub use progress::moved;
pub use read::{Chosen, Listing, Loaded, choose, download};
pub use rollback::{choose_rolled_back, roll_back};
pub use safetensors::Dtype;
pub use state::{
    Cursor, DataState, Layout, RngState, STATE_VERSION, ScheduleState, Snapshot, State,
};
pub use tensors::{Moment, Part, Values};
pub use write::{Grant, Memory, Published, Saved, SnapshotBuffer, Writer, WriterOptions};
