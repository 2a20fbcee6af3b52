//! Going on: with what was paused, with what failed or was cancelled, and from an older checkpoint.
//!
//! A roll-back is one durable fact: from which checkpoint the job goes on, and up to which generation
//! the work above it is given up. Its ranks stop at a step boundary, if it has any; the next generation
//! is told the checkpoint instead of choosing one; and once that has saved anew the roll-back is over.
//! In the store it is one object too (`ringmaster_checkpoint::roll_back`), written once nobody of the
//! old generations writes any more: by the caller for a job at rest, else when its last rank has ended,
//! after a restart of the coordinator again, and before anything else by the rank that loads. Writing it
//! again changes nothing, so it does not matter who of them dies.

use ringmaster_checkpoint::step_of;
use ringmaster_proto::v1::{self, Generation};

use super::cluster::Cluster;
use super::job::Job;
use super::ledger::Ledger;
use super::wants::Wants;
use super::{Error, view};
use crate::state::{HaltKind, Rollback, State};

/// A job that was rolled back, as it stands.
#[derive(Debug)]
pub struct RolledBack {
    /// The job.
    pub job: v1::Job,
    /// Nobody writes any more, so the store may be told: what is given up goes up to this generation.
    pub at_rest: Option<Generation>,
}

impl Cluster {
    pub(super) fn resume(&mut self, job_id: &str) -> Result<v1::Job, Error> {
        let job = self.job(job_id)?;
        refuse_succeeded(job)?;
        if job.record.state.is_ended() {
            return self.revive(job_id);
        }
        let job = self.jobs.get_mut(job_id).expect("it was just found");
        if job.record.state == State::Paused {
            let message = "waits in the queue again".to_owned();
            self.ledger.rest(job, State::Queued, "resumed", message);
        } else if let Some(halt) = &mut job.record.halt
            && halt.kind == HaltKind::Pause
        {
            halt.kind = HaltKind::Preempt;
            let message = "goes on as soon as its ranks have stopped and slots are free".to_owned();
            self.ledger.event(job, "resumed", message);
        }
        Ok(view::job(job))
    }

    /// Goes on from the checkpoint at `url`, of this step, which the caller has verified.
    pub(super) fn roll_back(
        &mut self,
        job_id: &str,
        url: String,
        step: u64,
    ) -> Result<RolledBack, Error> {
        let grace = self.config.grace;
        let job = self.job(job_id)?;
        refuse_succeeded(job)?;
        if job.record.cancel_reason.is_some() && !job.record.state.is_ended() {
            return Err(Error::NotLive {
                job_id: job_id.to_owned(),
                state: "being cancelled",
                reason: "wait until its ranks have stopped, then resume it".to_owned(),
            });
        }
        let up_to = job.generation();
        job.record.rollback = Some(Rollback::new(url.clone(), step, up_to));
        job.record.checkpoint_step = step;
        job.record.checkpoint_url.clone_from(&url);
        job.start_over_from(step);
        let job = self.jobs.get_mut(job_id).expect("it was just found");
        let message = format!("back to step {step}: goes on from {url}, what is above is given up");
        self.ledger.event(job, "rolled_back", message);

        match job.record.state {
            state if state.is_ended() => {
                let job = self.revive(job_id)?;
                return Ok(RolledBack { job, at_rest: Some(up_to) });
            }
            State::Queued => {}
            State::Paused => {
                let message = "waits in the queue again".to_owned();
                self.ledger.rest(job, State::Queued, "resumed", message);
            }
            _ if job.record.halt.is_some() => {
                // It stops already; afterwards it goes on, from there.
                let halt = job.record.halt.as_mut().expect("it was just seen");
                halt.kind = HaltKind::Preempt;
            }
            _ => {
                let reason = format!("goes back to step {step}");
                self.ledger.halt(job, HaltKind::Preempt, &reason, grace);
            }
        }
        let at_rest = (job.record.state == State::Queued).then_some(up_to);
        Ok(RolledBack { job: view::job(job), at_rest })
    }

    /// Puts a job that failed or was cancelled back into the queue.
    fn revive(&mut self, job_id: &str) -> Result<v1::Job, Error> {
        // What is left of its old ranks has no part in the new attempt.
        for node in self.nodes.values_mut() {
            for ((owner, _), process) in &mut node.processes {
                process.doomed |= owner == job_id;
            }
        }
        let job = self.jobs.get_mut(job_id).expect("callers have found it");
        job.wants = Wants::read(&job.record.manifest).map_err(|source| Error::Manifest {
            file_name: job.record.file_name.clone(),
            source,
        })?;
        for seat in job.seats() {
            job.vacate(seat);
        }
        job.lost.clear();
        (job.attach_until, job.kill_at, job.recovery) = (None, None, None);
        job.record.formed = false;
        job.record.cancel_reason = None;
        job.record.ended_at_ms = 0;
        job.record.without_progress = 0;
        let from = match (job.record.checkpoint_url.as_str(), job.record.resume_from.as_str()) {
            ("", "") => "from the start, as there is no checkpoint".to_owned(),
            ("", given) => format!("from {given}"),
            _ => format!("from its checkpoint of step {}", job.record.checkpoint_step),
        };
        let was = job.record.state.word();
        let message = format!("was {was}, waits in the queue again to go on {from}");
        self.ledger.rest(job, State::Queued, "resumed", message);
        let announced = job_id.to_owned();
        self.ledger.effect(move |logs| logs.announce(&announced, false));
        Ok(view::job(job))
    }

    /// Notes that somebody reads a checkpoint of a job, or no longer does.
    pub(super) fn hold(&mut self, job_id: &str, url: &str, held: bool) -> Result<(), Error> {
        let job = self.job(job_id)?;
        if held {
            job.held.push(url.to_owned());
        } else if let Some(index) = job.held.iter().position(|other| other == url) {
            job.held.swap_remove(index);
        }
        Ok(())
    }

    /// What of a job's checkpoints somebody is about to read: its retention leaves it.
    pub(super) fn in_use(&self, job_id: &str) -> Vec<String> {
        let mut urls = Vec::new();
        if let Some(job) = self.jobs.get(job_id) {
            urls.extend(job.record.rollback.as_ref().map(|rollback| rollback.url.clone()));
            urls.extend(job.held.iter().cloned());
        }
        for other in self.jobs.values() {
            // Once it has saved, it goes on from there.
            let starts = !other.record.state.is_ended() && other.record.checkpoint_url.is_empty();
            if starts {
                let from =
                    std::iter::once(&other.record.resume_from).chain(&other.wants.pretrained);
                urls.extend(from.filter(|url| job_of(url) == Some(job_id)).cloned());
            }
        }
        urls
    }
}

impl Ledger {
    /// Tells the store of a roll-back, if there is one and nobody of the old generations writes.
    pub(super) fn mark_rollback(&mut self, job: &Job) {
        let Some(rollback) = job.record.rollback.clone() else { return };
        if job.record.state.is_placed() {
            return;
        }
        let job_id = job.record.job_id.clone();
        self.effect(move |_| {
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
}

impl Job {
    /// What was reached counts no more: progress is what goes beyond `step` again.
    pub(super) fn start_over_from(&mut self, step: u64) {
        self.high_step = step;
        self.record.high_step = step;
        self.record.without_progress = 0;
        self.metrics = None;
        self.dirty = true;
    }
}

fn refuse_succeeded(job: &Job) -> Result<(), Error> {
    if job.record.state == State::Succeeded || job.is_finished() {
        return Err(Error::Succeeded { job_id: job.record.job_id.clone() });
    }
    Ok(())
}

/// Returns the job that wrote what a URL names: its folder, one of its checkpoints, or a file of one.
fn job_of(url: &str) -> Option<&str> {
    let parts: Vec<&str> = url.trim_end_matches('/').split('/').collect();
    let checkpoint = parts.iter().rposition(|part| step_of(part).is_some());
    let folder = checkpoint.unwrap_or(parts.len()).checked_sub(1)?;
    parts.get(folder).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_of_the_job_whose_folder_it_lies_in_whatever_its_prefix_contains() {
        let step = "step-0000001000.g1.7";
        for place in [
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{step}"),
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{step}/model.safetensors"),
            "s3://a-aaaaaa/archive/b-bbbbbb/".to_owned(),
            format!("/runs-of-a-aaaaaa/b-bbbbbb/{step}/"),
        ] {
            assert_eq!(job_of(&place), Some("b-bbbbbb"), "{place}");
        }
        assert_eq!(job_of(&format!("/runs/a-aaaaaa/{step}")), Some("a-aaaaaa"));
        assert_eq!(job_of("/runs/a-aaaaaa-old/latest"), Some("latest"));
        assert_eq!((job_of(""), job_of(step)), (Some(""), None));
    }
}
