//! Everything the coordinator knows, as a plain value: no IO, and time only as it is told.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::handle::Call;
use super::job::Job;
use super::ledger::{Effect, Ledger, Now};
use super::node::Node;
use super::wants::Wants;
use super::{Config, Error};
use crate::state::{Change, Closure, Loaded, State};

/// Jobs, nodes, and the ledger of the batch that is being worked on.
pub(super) struct Cluster {
    pub(super) config: Config,
    /// By job id.
    pub(super) jobs: BTreeMap<String, Job>,
    /// Job ids by the request that made them.
    pub(super) requests: BTreeMap<String, String>,
    /// By name.
    pub(super) nodes: BTreeMap<String, Node>,
    /// Nodes that take no ranks, by name.
    pub(super) closures: BTreeMap<String, Closure>,
    /// Node names by open session.
    pub(super) sessions: BTreeMap<u64, String>,
    pub(super) last_session: u64,
    pub(super) last_sequence: u64,
    pub(super) last_batch: Instant,
    /// Something arrived since the last settling that it could make a difference to.
    pub(super) unsettled: bool,
    pub(super) ledger: Ledger,
}

impl Cluster {
    /// Takes up what the database holds. Jobs that were placed go to Recovering, and their agents
    /// get two leases' time to bring their ranks back before any of them counts as lost.
    pub(super) fn new(config: Config, loaded: Loaded, now: Now) -> Self {
        let ledger = Ledger::new(loaded.incarnation, loaded.counter, loaded.last_event, now);
        let mut cluster = Self {
            config,
            jobs: BTreeMap::new(),
            requests: BTreeMap::new(),
            nodes: BTreeMap::new(),
            closures: loaded.closures,
            sessions: BTreeMap::new(),
            last_session: 0,
            last_sequence: 0,
            last_batch: now.at,
            unsettled: true,
            ledger,
        };
        for record in loaded.jobs {
            cluster.take_up(record);
        }
        for shard in loaded.shards {
            if let Some(job) = cluster.jobs.get_mut(&shard.job_id)
                && job.record.generation == Some(shard.generation)
            {
                job.checkpoints.add_shard(shard.step, shard.rank, shard.objects);
            }
        }
        cluster
    }

    fn take_up(&mut self, record: crate::state::JobRecord) {
        let job_id = record.job_id.clone();
        self.last_sequence = self.last_sequence.max(record.sequence);
        self.requests.insert(record.request_id.clone(), job_id.clone());
        let ended = record.state.is_ended();
        let announced = job_id.clone();
        self.ledger.effect(move |logs| logs.announce(&announced, ended));

        let placed = record.state.is_placed();
        let (wants, unreadable) = match Wants::read(&record.manifest) {
            Ok(wants) => (wants, None),
            Err(error) => (Wants::of_record(&record), Some(error)),
        };
        let mut job = Job::new(record, wants);
        if let Some(error) = unreadable.filter(|_| !ended) {
            let reason = format!("this coordinator cannot read the job's stored manifest: {error}");
            self.ledger.fail(&mut job, &reason);
        } else if placed {
            let now = self.ledger.now.at;
            job.attach_until = Some(now + 2 * self.config.lease);
            if job.is_stopping() {
                job.kill_at = Some(now + self.config.grace);
            } else {
                job.record.state = State::Recovering;
            }
            let reason = "the coordinator restarted; waiting for the job's ranks to come back";
            job.record.reason = reason.to_owned();
            self.ledger.event(&mut job, "reattaching", reason.to_owned());
        }
        self.ledger.mark_rollback(&job);
        self.jobs.insert(job_id, job);
    }

    /// Starts a batch. If the coordinator itself stood still, nobody could renew a lease, so all
    /// start afresh.
    pub(super) fn begin(&mut self, now: Now) {
        let stood_still = now.at.saturating_duration_since(self.last_batch) > self.config.lease / 2;
        if stood_still {
            tracing::warn!("the coordinator stood still; all leases start afresh");
            for node in self.nodes.values_mut() {
                node.lease.renew(now.at);
            }
            for job in self.jobs.values_mut() {
                job.movement.restart(now.at);
            }
        }
        self.last_batch = now.at;
        self.ledger.now = now;
    }

    /// Does what one call asks for.
    pub(super) fn apply(&mut self, call: Call) {
        tracing::trace!(call = call.name, "taken up");
        // Ten thousand agents send as many heartbeats a second, and next to none of them matters.
        self.unsettled |= !call.is_heartbeat;
        (call.work)(self);
    }

    /// True when ranks were lost and nothing was decided about it yet. That is settled in the same
    /// batch, because the news of it is acknowledged with the batch.
    pub(super) fn has_losses(&self) -> bool {
        self.jobs.values().any(|job| !job.lost.is_empty())
    }

    /// Ends a batch: what must be durable before the effects may happen.
    pub(super) fn flush(&mut self) -> (Vec<Change>, Vec<Effect>) {
        self.ledger.take(self.jobs.values_mut())
    }

    pub(super) fn job(&mut self, job_id: &str) -> Result<&mut Job, Error> {
        let unknown = || Error::UnknownJob { job_id: job_id.to_owned() };
        self.jobs.get_mut(job_id).ok_or_else(unknown)
    }
}
