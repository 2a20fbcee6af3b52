//! Stopping a job's ranks at a checkpoint so that it goes on later: preemption and pause.
//!
//! A job that halts is Preempting: its ranks get a graceful stop, checkpoint together and end. It
//! keeps its seats until the last has gone, so that nobody is placed on slots that are still in use;
//! then it is Queued or Paused, and its next generation starts from its newest checkpoint. Ranks
//! that do not end in time are killed, and the job halts all the same.

use std::time::Duration;

use ringmaster_proto::v1;

use super::cluster::Cluster;
use super::job::Job;
use super::ledger::Ledger;
use super::{Error, view};
use crate::state::{Change, Halt, HaltKind, State};

impl Cluster {
    pub(super) fn pause(&mut self, job_id: &str, reason: String) -> Result<v1::Job, Error> {
        let grace = self.config.grace;
        let job = find(&mut self.jobs, job_id)?;
        let reason = if reason.is_empty() { "paused by a client".to_owned() } else { reason };
        let is_paused = job.record.state == State::Paused
            || job.record.halt.as_ref().is_some_and(|halt| halt.kind == HaltKind::Pause);
        if is_paused || job.record.cancel_reason.is_some() || job.is_finished() {
            return Ok(view::job(job));
        }
        if job.record.state == State::Queued {
            self.ledger.rest(job, State::Paused, "paused", reason);
        } else {
            self.ledger.halt(job, HaltKind::Pause, &reason, grace);
        }
        Ok(view::job(job))
    }
}

/// Finds a job that has not ended.
fn find<'a>(
    jobs: &'a mut std::collections::BTreeMap<String, Job>,
    job_id: &str,
) -> Result<&'a mut Job, Error> {
    let unknown = || Error::UnknownJob { job_id: job_id.to_owned() };
    let job = jobs.get_mut(job_id).ok_or_else(unknown)?;
    if job.record.state.is_ended() {
        return Err(Error::NotLive {
            job_id: job_id.to_owned(),
            state: job.record.state.word(),
            reason: job.record.reason.clone(),
        });
    }
    Ok(job)
}

impl Ledger {
    /// Asks the ranks of a job to checkpoint and stop.
    pub(super) fn halt(&mut self, job: &mut Job, kind: HaltKind, reason: &str, grace: Duration) {
        if !job.is_stopping() {
            job.kill_at = Some(self.now.at + grace);
        }
        job.record.halt = Some(Halt { kind, reason: reason.to_owned() });
        job.record.state = State::Preempting;
        job.record.reason = format!("its ranks checkpoint and stop: {reason}");
        let word = match kind {
            HaltKind::Preempt => "preempting",
            HaltKind::Pause => "pausing",
        };
        self.event(job, word, reason.to_owned());
        self.refuse_waiting(job);
    }

    /// The last rank of a job that halts has ended.
    pub(super) fn halted(&mut self, job: &mut Job) {
        let Some(Halt { kind, reason }) = job.record.halt.take() else { return };
        for seat in job.seats() {
            job.vacate(seat);
        }
        job.lost.clear();
        job.kill_at = None;
        job.recovery = None;
        job.record.formed = false;
        job.record.high_step = job.high_step;
        if let Some(step) = job.record.rollback.as_ref().map(|rollback| rollback.step) {
            // Its ranks went on for a while.
            job.start_over_from(step);
        }
        self.refuse_waiting(job);
        self.change(Change::ForgetShards {
            job_id: job.record.job_id.clone(),
            up_to_step: i64::MAX.cast_unsigned(),
        });
        let from = if job.record.checkpoint_url.is_empty() {
            "there is no checkpoint yet".to_owned()
        } else {
            format!("the newest checkpoint is of step {}", job.record.checkpoint_step)
        };
        let message = format!("{reason}; {from}");
        match kind {
            HaltKind::Preempt => self.rest(job, State::Queued, "preempted", message),
            HaltKind::Pause => self.rest(job, State::Paused, "paused", message),
        }
        self.mark_rollback(job);
    }

    /// Lets a job without ranks wait: in the queue, or for somebody to resume it.
    pub(super) fn rest(&mut self, job: &mut Job, state: State, kind: &str, message: String) {
        job.record.state = state;
        job.record.reason.clone_from(&message);
        self.event(job, kind, message);
    }
}
