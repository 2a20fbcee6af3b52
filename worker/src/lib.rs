//! Everything that touches tensors: the ranks of a job.
//!
//! Modules in reading order. What `open_clip` is: [`model`] and [`factory`] (models by name, and their
//! weights). What `open_clip_train` is: [`train`] (the loop and the step), `recover` (into a ring, and to
//! one state), [`replica`] (the state every rank holds), `save` (checkpoints of a running job), over
//! [`ringmaster_data`] (from tar member to batch); [`loss`] over [`collective`], [`optim`],
//! [`eval`], `plan` (what fixes the last bit) and [`report`] (what people see). A rank as a process:
//! `rank` (what it keeps over generations), [`control`] (its lines to agent and coordinator), [`health`]
//! (whether its machine is fit), [`split`] (how things are divided among ranks), [`progress`] (what shows
//! that it moves on), [`probe`] (what this build is, for its agent), `faults` (on demand, for tests), [`error`] (why it ends) and [`ffi`] (the only
//! unsafe code). An agent starts and stops ranks: [`ringmaster_agent`].

pub mod collective;
pub mod control;
pub mod error;
pub mod eval;
pub mod factory;
mod faults;
pub mod ffi;
pub mod health;
pub mod loss;
pub mod model;
pub mod optim;
mod plan;
pub mod probe;
pub mod progress;
mod rank;
mod recover;
pub mod replica;
pub mod report;
mod save;
pub mod split;
#[cfg(test)]
mod tests;
pub mod train;
