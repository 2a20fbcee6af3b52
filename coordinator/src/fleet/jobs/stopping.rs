//! How long the ranks of a job that stops may take: as long as they move.
//!
//! The rest of a step, the checkpoint in flight and the upload of the last one take seconds on one cluster
//! and a quarter of an hour on another. So no fixed time ends them, but a time without progress: the grace of
//! the coordinator, or more where the job has shown that it stands still for longer by nature. A manifest
//! may set an end all the same (`checkpoint.stop_within`).

use std::time::Duration;

use tokio::time::Instant;

use super::job::Job;
use crate::fleet::Batch;

/// So many steps after it was asked to stop a ring shows that it was not: it stops at the next boundary but
/// one.
const DEAF: u64 = 100;

/// A job's ranks were asked to checkpoint and stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopping {
    asked_at: Instant,
    /// Most steps that any rank had applied then.
    step: u64,
    /// They were not done in time.
    is_forced: bool,
}

impl Job {
    /// Notes that its ranks are asked to stop, if they were not before.
    pub(crate) fn begin_to_stop(&mut self, now: Instant) {
        let step = self.high_step;
        self.stopping.get_or_insert(Stopping { asked_at: now, step, is_forced: false });
    }

    /// Takes in how its ranks fare that are to stop; from when they are overdue on they are killed.
    pub(crate) fn follow_stop(&mut self, batch: &Batch) {
        let is_overdue = self.is_overdue(batch.config.grace, batch.now.at);
        if let Some(stopping) = &mut self.stopping {
            stopping.is_forced |= is_overdue;
        }
    }

    /// Whether ranks that are to end are killed by now.
    pub(crate) fn is_overdue(&self, grace: Duration, now: Instant) -> bool {
        if self.kill_at.is_some_and(|at| now >= at) {
            return true;
        }
        let Some(Stopping { asked_at, step, is_forced }) = self.stopping else { return false };
        if is_forced || self.spec.stop_within.is_some_and(|within| now >= asked_at + within) {
            return true;
        }
        let patience = self.movement.patience_to_stop(grace);
        // Who trains on has not heard of it.
        if self.high_step >= step + DEAF && now >= asked_at + patience {
            return true;
        }
        let moved_at = self.movement.moved_at().map_or(asked_at, |moved| moved.max(asked_at));
        now >= moved_at + patience
    }

    /// Tells people what was lost because ranks were killed before they had saved.
    pub(crate) fn tell_unsaved(&mut self, batch: &mut Batch) {
        let was_forced = self.stopping.take().is_some_and(|stopping| stopping.is_forced);
        let saved = self.record.checkpoint_step;
        if was_forced && self.record.rollback.is_none() && self.high_step > saved {
            let lost = self.high_step - saved;
            let message = format!(
                "its ranks were killed before they had saved: {lost} steps after step {saved} are lost; \
                 give them longer with `ringmaster coordinator --grace`, or checkpoint.stop_within"
            );
            self.event(batch, "stopped_unsaved", message);
        }
    }
}
