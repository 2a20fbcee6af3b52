//! Everything that touches tensors: the agent of a node and the ranks it runs.
//!
//! Modules in reading order: [`rank`] (the training loop), [`data`] and [`image`] and [`text`]
//! (from tar member to tensors), [`model`] and [`factory`] (models by name, and their weights), [`loss`] over [`collective`], [`optim`],
//! [`eval`], [`health`] (whether a machine is fit), [`report`] (what people see), [`agent`] (starts and stops ranks),
//! [`mod@bench`] (measures the data plane),
//! [`progress`] (what shows that a rank moves on), [`panics`] (those that end no rank), [`rng`] (counter-based randomness) and [`ffi`] (the only unsafe code).

pub mod agent;
pub mod bench;
pub mod collective;
pub mod data;
pub mod eval;
pub mod factory;
pub mod ffi;
pub mod health;
pub mod image;
pub mod loss;
pub mod model;
pub mod optim;
pub mod panics;
pub mod progress;
pub mod rank;
pub mod report;
pub mod rng;
pub mod text;
