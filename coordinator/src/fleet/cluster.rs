//! Everything the coordinator knows, as a plain value: no IO, and time only as it is told.

use std::time::Duration;

use ringmaster_proto::{Seat, v1};
use tokio::time::Instant;

use super::batch::{Batch, Effect, Now};
use super::config::Config;
use super::error::{Error, Reply};
use super::jobs::{Jobs, RolledBack};
use super::nodes::Nodes;
use crate::state::{Change, Loaded};

/// Jobs, nodes, and the batch that is being worked on.
pub(super) struct Cluster {
    pub(super) jobs: Jobs,
    pub(super) nodes: Nodes,
    pub(super) batch: Batch,
    /// Something arrived since the last settling that it could make a difference to.
    pub(super) unsettled: bool,
    last_batch: Instant,
}

impl Cluster {
    /// Takes up what the database holds.
    pub(super) fn new(config: Config, loaded: Loaded, now: Now) -> Self {
        let mut batch = Batch::new(config, &loaded, now);
        let jobs = Jobs::load(loaded.jobs, loaded.shards, &mut batch);
        let nodes = Nodes::new(loaded.closures, loaded.scores, loaded.agents, now.at);
        Self { jobs, nodes, batch, unsettled: true, last_batch: now.at }
    }

    /// Starts a batch. If the coordinator itself stood still, nobody could renew a lease, so all
    /// start afresh.
    pub(super) fn begin(&mut self, now: Now) {
        let gap = now.at.saturating_duration_since(self.last_batch);
        let Config { lease, early_loss, .. } = self.batch.config;
        if gap > early_loss / 2 && gap <= lease / 2 {
            self.nodes.excuse(gap, now.at);
            self.jobs.by_id.values_mut().for_each(|job| job.movement.excuse(gap, now.at));
        }
        if gap > lease / 2 {
            tracing::warn!("the coordinator stood still; all leases start afresh");
            self.nodes.excuse(gap, now.at);
            self.nodes.renew_leases(now.at);
            for job in self.jobs.by_id.values_mut() {
                job.movement.restart(now.at);
            }
        }
        self.last_batch = now.at;
        self.batch.now = now;
    }

    /// True when ranks were lost and nothing was decided about it yet. That is settled in the same
    /// batch, because the news of it is acknowledged with the batch.
    pub(super) fn has_losses(&self) -> bool {
        self.jobs.by_id.values().any(|job| !job.lost.is_empty())
    }

    /// What settling takes in a simulation.
    pub(super) fn settling_cost(&self) -> Duration {
        let jobs = u32::try_from(self.jobs.by_id.len()).unwrap_or(u32::MAX);
        self.batch.config.settling_cost.saturating_mul(jobs)
    }

    /// Ends a batch: what must be durable before the effects may happen. Changes of jobs come first.
    pub(super) fn flush(&mut self) -> (Vec<Change>, Vec<Effect>) {
        let jobs = self.jobs.by_id.values_mut();
        let mut changes: Vec<Change> = jobs.filter_map(|job| job.flush(&mut self.batch)).collect();
        let (mut others, effects) = self.batch.take();
        changes.append(&mut others);
        (changes, effects)
    }

    // ---- Calls that concern jobs and nodes

    pub(super) fn resume(&mut self, job_id: &str) -> Result<v1::Job, Error> {
        self.prepare_to_resume(job_id)?;
        let job = self.jobs.get(job_id)?;
        job.resume(&mut self.batch)?;
        Ok(job.view())
    }

    pub(super) fn roll_back(
        &mut self,
        job_id: &str,
        url: String,
        step: u64,
    ) -> Result<RolledBack, Error> {
        self.prepare_to_resume(job_id)?;
        self.jobs.get(job_id)?.roll_back(&mut self.batch, url, step)
    }

    /// Checks that a job has something left to do. What is left of the ranks of one that has ended is no
    /// part of its new attempt.
    fn prepare_to_resume(&mut self, job_id: &str) -> Result<(), Error> {
        let job = self.jobs.get(job_id)?;
        job.check_unfinished()?;
        if job.record.state.is_ended() {
            self.nodes.doom_ranks_of(job_id);
        }
        Ok(())
    }

    pub(super) fn join(&mut self, request: v1::JoinRequest, reply: Reply<v1::JoinReply>) {
        let (job_id, seat) = (request.job_id.clone(), Seat(request.rank));
        let given = request.generation.unwrap_or_default();
        let live = self.jobs.live(&job_id, request.generation);
        let admitted = live.and_then(|job| job.check_admitted(seat).map(|()| job));
        match admitted {
            Ok(job) => {
                if let Some(node) = job.seat(seat) {
                    let slot = job.record.slots[seat.index()];
                    self.nodes.see(node, (job_id, seat), slot, given);
                }
                job.join(&mut self.batch, request, reply);
            }
            Err(error) => {
                if matches!(error, Error::Stale { .. }) {
                    self.nodes.repeat_regenerate(&job_id, seat, given);
                }
                self.batch.reply(reply, Err(error));
            }
        }
    }
}
