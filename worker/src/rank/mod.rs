//! A rank of a training job.
//!
//! Modules in reading order: [`mod@env`] (what the agent tells it at exec), [`train`] (its life and
//! the training loop), `joining` (how it enters a generation), `pretrained` (weights it starts from), `neighbours` (how fast the ring's links are), `step` (a batch to reduced
//! gradients), `counted` (how far it has come), `boundary` (what follows a step), `replica` (the state every rank holds), `saving`
//! (checkpoints), `history` (what people are told), [`control`] (the line to its agent), [`client`] (its calls to the coordinator),
//! `switch` (how orders reach a busy rank) and [`signals`], `plan` (what fixes the last bit), `faults` (faults on
//! demand, for tests), [`exit`] and [`error`] (how it ends).

mod boundary;
mod bytes;
pub mod client;
mod contrast;
pub mod control;
mod counted;
pub mod env;
pub mod error;
pub mod exit;
mod faults;
mod history;
mod joining;
mod neighbours;
mod plan;
mod pretrained;
mod replica;
mod saving;
mod share;
pub mod signals;
pub mod snapshot;
mod step;
mod switch;
#[cfg(test)]
pub(crate) mod testing;
pub mod train;

pub use env::RankEnv;
pub use error::{Error, chain};
pub use train::run;
