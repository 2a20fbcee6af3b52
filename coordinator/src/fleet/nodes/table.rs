//! Every node the coordinator knows.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::Seat;
use ringmaster_proto::v1::Generation;

use super::node::{Node, Process};
use crate::state::Closure;

/// Nodes by name, and what is known of nodes whose agents have not registered.
#[derive(Debug)]
pub(crate) struct Nodes {
    pub(super) by_name: BTreeMap<String, Node>,
    /// Nodes that take no ranks, by name.
    pub(super) closures: BTreeMap<String, Closure>,
    /// Node names by open session.
    pub(super) sessions: BTreeMap<u64, String>,
    pub(super) last_session: u64,
}

impl Nodes {
    pub(crate) fn new(closures: BTreeMap<String, Closure>) -> Self {
        Self { by_name: BTreeMap::new(), closures, sessions: BTreeMap::new(), last_session: 0 }
    }

    /// The node whose agent speaks in a session, with its name.
    pub(super) fn of_session(&mut self, session: u64) -> Option<(&str, &mut Node)> {
        let name = self.sessions.get(&session)?;
        Some((name.as_str(), self.by_name.get_mut(name)?))
    }

    /// Lets every lease start afresh, because for a while no agent could be heard.
    pub(crate) fn renew_leases(&mut self, now: tokio::time::Instant) {
        for node in self.by_name.values_mut() {
            node.lease.renew(now);
        }
    }

    /// The jobs of which processes run.
    pub(crate) fn running_jobs(&self) -> BTreeSet<&str> {
        let processes = self.by_name.values().flat_map(|node| node.processes.keys());
        processes.map(|(job_id, _)| job_id.as_str()).collect()
    }

    /// Takes in that a rank is in this generation, as it says itself.
    pub(crate) fn see(&mut self, node: &str, job_id: &str, rank: Seat, generation: Generation) {
        let key = (job_id.to_owned(), rank);
        let node = self.by_name.get_mut(node);
        if let Some(process) = node.and_then(|node| node.processes.get_mut(&key)) {
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
