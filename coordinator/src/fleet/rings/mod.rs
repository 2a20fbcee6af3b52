//! The ranks of a job that train together, as plain values that know nothing of jobs or nodes.
//!
//! Modules in reading order: `order` (who stands where), `membership` (who has joined, and what all
//! were told), `breaks` (who could not reach whom), `checkpoints` (which parts of a checkpoint are
//! stored), `deadlines` (who holds the others up), `timing` (how long a recovery takes).

mod breaks;
mod checkpoints;
mod deadlines;
mod membership;
mod order;
mod timing;

pub(crate) use breaks::{Breaks, Fault, Member};
pub(crate) use checkpoints::{Answer, Checkpoints, Overdue};
pub use deadlines::Deadlines;
pub(crate) use deadlines::{Progress, Verdict, word};
pub(crate) use membership::Membership;
pub(crate) use order::order;
pub(crate) use timing::Recovery;
