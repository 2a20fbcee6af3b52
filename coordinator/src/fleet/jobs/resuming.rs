//! Going on: with what was paused, with what failed or was cancelled, and from an older checkpoint.
//!
//! A roll-back is one durable fact: from which checkpoint the job goes on, and up to which generation
//! the work above it is given up. Its ranks stop at a step boundary, if it has any; the next generation
//! is told the checkpoint instead of choosing one; and once that has saved anew the roll-back is over.
//! In the store it is one object too (`ringmaster_checkpoint::roll_back`), written once nobody of the
//! old generations writes any more: by the caller for a job at rest, else when its last rank has ended,
//! after a restart of the coordinator again, and before anything else by the rank that loads. Writing it
//! again changes nothing, so it does not matter who of them dies.

use ringmaster_proto::v1::{self, Generation};

use super::job::Job;
use super::spec::JobSpec;
use crate::fleet::{Batch, Error};
use crate::state::{HaltKind, Rollback, State};

/// A job that was rolled back, as it stands.
#[derive(Debug)]
pub struct RolledBack {
    /// The job.
    pub job: v1::Job,
    /// Nobody writes any more, so the store may be told: what is given up goes up to this generation.
    pub at_rest: Option<Generation>,
}

impl Job {
    /// Refuses a job that has nothing left to do.
    pub(crate) fn check_unfinished(&self) -> Result<(), Error> {
        if self.record.state == State::Succeeded || self.is_finished() {
            return Err(Error::Succeeded { job_id: self.record.job_id.clone() });
        }
        Ok(())
    }

    /// Lets it go on, if it does not anyway.
    pub(crate) fn resume(&mut self, batch: &mut Batch) -> Result<(), Error> {
        if self.record.state.is_ended() {
            return self.revive(batch);
        }
        if self.record.state == State::Paused {
            let message = "waits in the queue again".to_owned();
            self.rest(batch, State::Queued, "resumed", message);
        } else if let Some(halt) = &mut self.record.halt
            && halt.kind == HaltKind::Pause
        {
            halt.kind = HaltKind::Preempt;
            let message = "goes on as soon as its ranks have stopped and slots are free".to_owned();
            self.event(batch, "resumed", message);
        }
        Ok(())
    }

    /// Goes on from the checkpoint at `url`, of this step, which the caller has verified.
    pub(crate) fn roll_back(
        &mut self,
        batch: &mut Batch,
        url: String,
        step: u64,
    ) -> Result<RolledBack, Error> {
        if self.record.cancel_reason.is_some() && !self.record.state.is_ended() {
            return Err(Error::NotLive {
                job_id: self.record.job_id.clone(),
                state: "being cancelled",
                reason: "wait until its ranks have stopped, then resume it".to_owned(),
            });
        }
        let up_to = self.generation();
        self.record.rollback = Some(Rollback::new(url.clone(), step, up_to));
        self.record.given_up = self.record.given_up.max(Some(up_to));
        self.record.checkpoint_step = step;
        self.record.checkpoint_url.clone_from(&url);
        self.start_over_from(step);
        let message = format!("back to step {step}: goes on from {url}, what is above is given up");
        self.event(batch, "rolled_back", message);

        match self.record.state {
            state if state.is_ended() => self.revive(batch)?,
            State::Queued => {}
            State::Paused => {
                let message = "waits in the queue again".to_owned();
                self.rest(batch, State::Queued, "resumed", message);
            }
            _ => match &mut self.record.halt {
                // It stops already; afterwards it goes on, from there.
                Some(halt) => halt.kind = HaltKind::Preempt,
                None => {
                    let reason = format!("goes back to step {step}");
                    self.halt(batch, HaltKind::Preempt, &reason);
                }
            },
        }
        let at_rest = (self.record.state == State::Queued).then_some(up_to);
        Ok(RolledBack { job: self.view(), at_rest })
    }

    /// Puts a job that failed or was cancelled back into the queue.
    fn revive(&mut self, batch: &mut Batch) -> Result<(), Error> {
        self.spec = JobSpec::read(&self.record.manifest).map_err(|source| Error::Manifest {
            file_name: self.record.file_name.clone(),
            source,
        })?;
        for seat in self.seats() {
            self.vacate(seat);
        }
        self.lost.clear();
        (self.attach_until, self.kill_at, self.recovery) = (None, None, None);
        (self.stopping, self.fault) = (None, None);
        self.evidence.clear();
        self.record.formed = false;
        self.record.cancel_reason = None;
        self.record.ended_at_ms = 0;
        self.record.without_progress = 0;
        let from = match (self.record.checkpoint_url.as_str(), self.record.resume_from.as_str()) {
            ("", "") => "from the start, as there is no checkpoint".to_owned(),
            ("", given) => format!("from {given}"),
            _ => format!("from its checkpoint of step {}", self.record.checkpoint_step),
        };
        let was = self.record.state.word();
        let message = format!("was {was}, waits in the queue again to go on {from}");
        self.rest(batch, State::Queued, "resumed", message);
        let job_id = self.record.job_id.clone();
        batch.effect(move |logs| logs.announce(&job_id, false));
        Ok(())
    }

    /// Tells the store of a roll-back, if there is one and nobody of the old generations writes.
    pub(crate) fn mark_rollback(&self, batch: &mut Batch) {
        let Some(rollback) = self.record.rollback.clone() else { return };
        if self.record.state.is_placed() {
            return;
        }
        let job_id = self.record.job_id.clone();
        batch.effect(move |_| {
            tokio::spawn(async move {
                let done = ringmaster_checkpoint::roll_back(&rollback.url, rollback.up_to()).await;
                if let Err(error) = done {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        %job_id, %error, source,
                        "the store does not show the roll-back yet; the job's first rank tries again"
                    );
                }
            });
        });
    }

    /// What was reached counts no more: progress is what goes beyond `step` again.
    pub(crate) fn start_over_from(&mut self, step: u64) {
        self.high_step = step;
        self.record.high_step = step;
        self.record.without_progress = 0;
        self.evidence.start_over();
        self.metrics = None;
        self.dirty = true;
    }
}
