//! Every node the coordinator knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::Generation;
use tokio::time::Instant;

use super::dials::Links;
use super::node::{Node, Process, RankKey};
use super::scores::Scores;
use crate::fleet::Batch;
use crate::state::{AgentProcess, Change, Closure, FaultScore};

/// How long a node that does not answer counts among those that could run a job.
pub(super) const MAY_COME_BACK: Duration = Duration::from_secs(120);

/// Nodes by name, and what is known of nodes whose agents have not registered.
#[derive(Debug)]
pub(crate) struct Nodes {
    pub(super) by_name: BTreeMap<String, Node>,
    /// Nodes that take no ranks, by name.
    pub(super) closures: BTreeMap<String, Closure>,
    /// What nodes are charged with.
    pub(super) scores: Scores,
    /// The agents of nodes that have not come back since the coordinator's restart, and until when they may.
    pub(super) awaited: BTreeMap<String, AgentProcess>,
    pub(super) awaited_until: Instant,
    /// Which nodes were found to reach one another.
    pub(super) links: Links,
    /// Node names by open session.
    pub(super) sessions: BTreeMap<u64, String>,
    pub(super) last_session: u64,
}

impl Nodes {
    pub(crate) fn new(
        closures: BTreeMap<String, Closure>,
        scores: BTreeMap<String, FaultScore>,
        awaited: BTreeMap<String, AgentProcess>,
        now: Instant,
    ) -> Self {
        Self {
            by_name: BTreeMap::new(),
            closures,
            scores: Scores::new(scores),
            awaited,
            awaited_until: now + MAY_COME_BACK,
            links: Links::default(),
            sessions: BTreeMap::new(),
            last_session: 0,
        }
    }

    /// Forgets the agents that have not come back since the coordinator's restart, after some minutes.
    pub(crate) fn forget_awaited(&mut self, batch: &mut Batch) {
        if batch.now.at >= self.awaited_until {
            for node in std::mem::take(&mut self.awaited).into_keys() {
                batch.change(Change::Agent { node, agent: None });
            }
        }
    }

    /// The node whose agent speaks in a session, with its name.
    pub(super) fn of_session(&mut self, session: u64) -> Option<(&str, &mut Node)> {
        let name = self.sessions.get(&session)?;
        Some((name.as_str(), self.by_name.get_mut(name)?))
    }

    /// No agent could be heard for so long: that counts against none of them.
    pub(crate) fn excuse(&mut self, gap: Duration, now: Instant) {
        for node in self.by_name.values_mut() {
            node.lease.excuse(gap, now);
            for process in node.processes.values_mut() {
                if let Some((at, _)) = &mut process.killed {
                    *at = (*at + gap).min(now);
                }
            }
        }
    }

    /// Lets every lease start afresh, because for a while no agent could be heard.
    pub(crate) fn renew_leases(&mut self, now: Instant) {
        for node in self.by_name.values_mut() {
            node.lease.renew(now);
        }
    }

    /// The jobs of which processes run.
    pub(crate) fn running_jobs(&self) -> BTreeSet<&str> {
        let processes = self.by_name.values().flat_map(|node| node.processes.keys());
        processes.map(|(job_id, _)| job_id.as_str()).collect()
    }

    /// Takes in that a rank is in this generation, as it says itself. It may do so before its agent has come
    /// back to a coordinator that was restarted: then nobody else may be started in its place.
    pub(crate) fn see(&mut self, node: &str, key: RankKey, slot: u32, generation: Generation) {
        if let Some(node) = self.by_name.get_mut(node) {
            let process = node
                .processes
                .entry(key)
                .or_insert_with(|| Process::reported(generation, 0, Some(slot)));
            process.see(generation, None);
        }
    }

    /// What is left of a job's ranks has no part in its new attempt.
    pub(crate) fn doom_ranks_of(&mut self, job_id: &str) {
        for node in self.by_name.values_mut() {
            for ((owner, _), process) in &mut node.processes {
                process.doomed |= owner == job_id;
            }
        }
    }

    /// A rank that calls for an old generation has not heard of the new one: its agent may have had
    /// the news before the rank was there to take it.
    pub(crate) fn repeat_regenerate(&mut self, job_id: &str, rank: Seat, given: Generation) {
        let key = (job_id.to_owned(), rank);
        let processes = self.by_name.values_mut().filter_map(|node| node.processes.get_mut(&key));
        for process in processes.filter(|process: &&mut Process| process.generation <= given) {
            process.told = None;
        }
    }
}
