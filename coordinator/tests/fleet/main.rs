//! The control plane over real gRPC on loopback, with fake agents and ranks.
//!
//! The fakes do what an agent and a rank would, one message at a time, so that a test can hold the
//! world still at any point. Every wait ends with the thing it waits for, or after a deadline that
//! only a broken build reaches.

#![allow(clippy::unwrap_used, missing_docs)]

mod checkpoints;
mod elastic;
mod fake;
mod halting;
mod hostile;
mod lifecycle;
mod links;
mod nodes;
mod notes;
mod people;
mod recovery;
mod restart;
mod resuming;
mod standstill;
mod stopping;
mod stored;
mod upgrade;
mod workers;
