//! Jobs: what is known of them, and every transition one can make.
//!
//! A transition is a method of [`Job`] that takes the batch in which it happens: what must become
//! durable and who must be told goes there. Nothing here knows of nodes; those report losses and
//! are asked for seats.
//!
//! Modules in reading order: `job` (one job) and `spec` (what its manifest asks for), `table` (all of
//! them), `requests` (submitting, cancelling), `seating` (getting seats), `joining` (forming a ring),
//! `saving` (granting checkpoints), `reports` (notes and the summary), `evidence` (whose fault it was),
//! `lifecycle` (losing, recovering, ending), `stopping` (how long that may take), `halting` (stopping to go
//! on later), `resuming` (going on, from an older checkpoint too),
//! `readers` (which checkpoints are read), `view` and `watching` (what people see).

mod evidence;
mod halting;
mod job;
mod joining;
mod lifecycle;
mod readers;
mod reports;
mod requests;
mod resuming;
mod saving;
mod seating;
mod spec;
mod stopping;
mod table;
mod view;
mod watching;

pub(crate) use evidence::{Charge, Identity, LeftFor, Point};
pub(crate) use job::{Dial, Job, Loss};
pub(crate) use lifecycle::{AVOIDED_FOR, RankEnd};
pub(crate) use reports::kind_of;
pub use requests::Submission;
pub use resuming::RolledBack;
pub(crate) use table::Jobs;
