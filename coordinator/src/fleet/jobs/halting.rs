//! Stopping a job's ranks at a checkpoint so that it goes on later: preemption and pause.
//!
//! A job that halts is Preempting: its ranks get a graceful stop, checkpoint together and end. It
//! keeps its seats until the last has gone, so that nobody is placed on slots that are still in use;
//! then it is Queued or Paused, and its next generation starts from its newest checkpoint. Ranks
//! that do not end in time are killed, and the job halts all the same.

use super::job::Job;
use crate::fleet::Batch;
use crate::state::{Halt, HaltKind, State};

impl Job {
    /// Lets it stop until somebody resumes it.
    pub(crate) fn pause(&mut self, batch: &mut Batch, reason: String) {
        let reason = if reason.is_empty() { "paused by a client".to_owned() } else { reason };
        let is_paused = self.record.state == State::Paused
            || self.record.halt.as_ref().is_some_and(|halt| halt.kind == HaltKind::Pause);
        if is_paused || self.record.cancel_reason.is_some() || self.is_finished() {
            return;
        }
        if self.record.state == State::Queued {
            self.rest(batch, State::Paused, "paused", reason);
        } else {
            self.halt(batch, HaltKind::Pause, &reason);
        }
    }

    /// Asks its ranks to checkpoint and stop.
    pub(crate) fn halt(&mut self, batch: &mut Batch, kind: HaltKind, reason: &str) {
        self.begin_to_stop(batch.now.at);
        self.record.halt = Some(Halt { kind, reason: reason.to_owned() });
        self.record.state = State::Preempting;
        self.record.reason = format!("its ranks checkpoint and stop: {reason}");
        let word = match kind {
            HaltKind::Preempt => "preempting",
            HaltKind::Pause => "pausing",
        };
        self.event(batch, word, reason.to_owned());
        self.refuse_waiting(batch);
    }

    /// The last rank of a job that halts has ended.
    pub(crate) fn halted(&mut self, batch: &mut Batch) {
        let Some(Halt { kind, reason }) = self.record.halt.take() else { return };
        for seat in self.seats() {
            self.vacate(seat);
        }
        self.lost.clear();
        self.tell_unsaved(batch);
        (self.kill_at, self.recovery, self.fault) = (None, None, None);
        self.record.formed = false;
        self.record.high_step = self.high_step;
        if let Some(step) = self.record.rollback.as_ref().map(|rollback| rollback.step) {
            // Its ranks went on for a while.
            self.start_over_from(step);
        }
        self.refuse_waiting(batch);
        self.forget_shards(batch);
        let from = if self.record.checkpoint_url.is_empty() {
            "there is no checkpoint yet".to_owned()
        } else {
            format!("the newest checkpoint is of step {}", self.record.checkpoint_step)
        };
        let message = format!("{reason}; {from}");
        match kind {
            HaltKind::Preempt => self.rest(batch, State::Queued, "preempted", message),
            HaltKind::Pause => self.rest(batch, State::Paused, "paused", message),
        }
        self.mark_rollback(batch);
    }

    /// Lets it wait without ranks: in the queue, or for somebody to resume it.
    pub(crate) fn rest(&mut self, batch: &mut Batch, state: State, kind: &str, message: String) {
        self.record.state = state;
        self.record.reason.clone_from(&message);
        self.event(batch, kind, message);
    }
}
