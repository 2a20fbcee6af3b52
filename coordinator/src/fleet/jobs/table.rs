//! Every job the coordinator knows.

use std::collections::BTreeMap;

use ringmaster_proto::v1::{self, Generation};

use super::job::Job;
use super::spec::JobSpec;
use crate::fleet::{Batch, Error};
use crate::state::{JobRecord, ShardRecord, State};

/// Jobs by their ids, those that have ended included.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    pub(crate) by_id: BTreeMap<String, Job>,
    /// Job ids by the request that made them.
    pub(super) requests: BTreeMap<String, String>,
    pub(super) last_sequence: u64,
}

impl Jobs {
    /// Takes up what the database holds. Jobs that were placed go to Recovering, and their agents
    /// get two leases' time to bring their ranks back before any of them counts as lost.
    pub(crate) fn load(
        records: Vec<JobRecord>,
        shards: Vec<ShardRecord>,
        batch: &mut Batch,
    ) -> Self {
        let mut jobs = Self::default();
        for record in records {
            jobs.take_up(record, batch);
        }
        for shard in shards {
            if let Some(job) = jobs.by_id.get_mut(&shard.job_id)
                && job.record.generation == Some(shard.generation)
            {
                job.take_up_shard(shard, batch.now.at);
            }
        }
        jobs
    }

    fn take_up(&mut self, record: JobRecord, batch: &mut Batch) {
        let job_id = record.job_id.clone();
        self.last_sequence = self.last_sequence.max(record.sequence);
        self.requests.insert(record.request_id.clone(), job_id.clone());
        let ended = record.state.is_ended();
        let announced = job_id.clone();
        batch.effect(move |logs| logs.announce(&announced, ended));

        let placed = record.state.is_placed();
        let (spec, unreadable) = match JobSpec::read(&record.manifest) {
            Ok(spec) => (spec, None),
            Err(error) => (JobSpec::of_record(&record), Some(error)),
        };
        let mut job = Job::new(record, spec);
        if let Some(error) = unreadable.filter(|_| !ended) {
            let reason = format!("this coordinator cannot read the job's stored manifest: {error}");
            job.fail(batch, &reason);
        } else if placed {
            let now = batch.now.at;
            job.attach_until = Some(now + 2 * batch.config.lease);
            if job.is_finished() {
                // Its ranks are to end by themselves, and one of them may have been lingering for long.
                job.kill_at = Some(now + batch.config.grace);
            } else if job.is_stopping() {
                job.begin_to_stop(now);
            } else {
                job.record.state = State::Recovering;
            }
            let reason = "the coordinator restarted; waiting for the job's ranks to come back";
            job.record.reason = reason.to_owned();
            job.event(batch, "reattaching", reason.to_owned());
        }
        job.mark_rollback(batch);
        self.by_id.insert(job_id, job);
    }

    /// Finds a job.
    pub(crate) fn get(&mut self, job_id: &str) -> Result<&mut Job, Error> {
        let unknown = || Error::UnknownJob { job_id: job_id.to_owned() };
        self.by_id.get_mut(job_id).ok_or_else(unknown)
    }

    /// Finds a job whose current generation is the given one.
    pub(crate) fn live(
        &mut self,
        job_id: &str,
        given: Option<Generation>,
    ) -> Result<&mut Job, Error> {
        let given = given.unwrap_or_default();
        let job = self.get(job_id)?;
        let state = job.record.state;
        if state.is_ended() {
            return Err(job.not_live(state.word()));
        }
        match job.record.generation {
            Some(current) if current == given && state.is_placed() => Ok(job),
            Some(current) if current == given => Err(job.not_live(state.word())),
            current => Err(Error::Stale {
                job_id: job_id.to_owned(),
                given,
                current: current.unwrap_or_default(),
            }),
        }
    }

    /// Returns jobs in the order of submission.
    pub(crate) fn list(&self, include_ended: bool) -> Vec<v1::Job> {
        let all = self.by_id.values();
        let mut jobs: Vec<&Job> =
            all.filter(|job| include_ended || !job.record.state.is_ended()).collect();
        jobs.sort_by_key(|job| job.record.sequence);
        jobs.into_iter().map(Job::view).collect()
    }
}
