//! A rank of a training job.
//!
//! Modules in reading order: [`env`] (what the agent tells it at exec), [`control`] (the line to
//! its agent), [`client`] (its calls to the coordinator), [`exit`] (how it ends).

pub mod client;
pub mod control;
pub mod env;
pub mod exit;

pub use env::RankEnv;
