//! Everything that touches tensors: the ranks of a job.
//!
//! Modules in reading order: [`rank`] (the training loop), [`data`] (from tar member to
//! tensors, over [`ringmaster_inputs`]), [`model`] and [`factory`] (models by name, and their weights), [`loss`] over [`collective`], [`optim`],
//! [`eval`], [`health`] (whether a machine is fit), [`report`] (what people see),
//! [`mod@bench`] (measures the data plane),
//! [`progress`] (what shows that a rank moves on) and [`ffi`] (the only unsafe code). An agent starts and stops
//! ranks: [`ringmaster_agent`].

pub mod bench;
pub mod collective;
pub mod data;
pub mod eval;
pub mod factory;
pub mod ffi;
pub mod health;
pub mod loss;
pub mod model;
pub mod optim;
pub mod progress;
pub mod rank;
pub mod report;
