//! Faults done to a real cluster while a job trains, and how long until it trains again.
//!
//! One coordinator and an agent per node run as processes, on the loopback interface or each in a
//! network namespace of its own; a job trains on them; the fault strikes again and again at steps
//! fixed beforehand, and the clock runs from the moment before it strikes to the first step that
//! the job completes in a newer generation, by that step's own time stamp.
//!
//! Modules in reading order: [`kind`] (what is done to the cluster and undone again), [`steps`](crate::steps) (the
//! job's progress as its run folder shows it), [`timeline`] (where the time went), [`starts`] (how much of it
//! a fresh rank takes to start, wherever it does), [`drill`] (one job, many faults), `pair` (two nodes that
//! cannot reach each other), [`report`] (what was measured beside what is promised), [`table`] (the same for
//! people), [`interruption`] (a drill that is broken off leaves nothing behind).

pub mod drill;
pub mod interruption;
pub mod kind;
mod pair;
pub mod report;
pub mod starts;
pub mod table;
pub mod timeline;

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns Unix seconds now.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
