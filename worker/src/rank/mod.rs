//! A rank of a training job.
//!
//! What the agent tells it at exec is [`ringmaster_agent::env`], how it ends [`ringmaster_agent::exit`].
//!
//! Modules in reading order: [`train`] (its life and the training loop), `joining` (how it enters a generation), `pretrained` (weights it starts from), `neighbours` (how fast the ring's links are), `step` (a batch to reduced
//! gradients), `counted` (how far it has come), `boundary` (what follows a step), `replica` (the state every rank holds), `saving`
//! (checkpoints), `history` (what people are told), [`control`] (the line to its agent), [`client`] (its calls to the coordinator),
//! `switch` (how orders reach a busy rank) and [`signals`], `plan` (what fixes the last bit), `faults` (faults on
//! demand, for tests), [`panic_hook`] and [`error`] (why it ends).

mod boundary;
mod bytes;
pub mod client;
mod contrast;
pub mod control;
mod counted;
pub mod error;
mod faults;
mod history;
mod joining;
mod neighbours;
pub mod panic_hook;
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

pub use error::{Error, chain};
pub use train::run;
