//! A rank's lines to its agent and to the coordinator, and what it does when they say so.
//!
//! Modules in reading order: [`agent`] (status out, orders in), [`coordinator`] (the calls of a rank),
//! `interrupt` (how an order stops a rank that is busy), `history` (what people are told), [`signals`]
//! (SIGTERM) and [`panic_hook`].

pub mod agent;
pub mod coordinator;
pub(crate) mod history;
pub(crate) mod interrupt;
pub mod panic_hook;
pub mod signals;
