//! Nodes that take no ranks: drained by somebody, or excluded after faults.
//!
//! Either way the ranks a closed node has leave at their job's next checkpoint. A node is blamed when a
//! rank of the current generation failed there and nowhere else: a fault that hits several nodes at
//! once is the job's. A step of the job on the node ends the row of its faults.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::v1;

use super::node::Faults;
use super::placement::taken_seats;
use super::table::Nodes;
use super::view::unseen_node;
use crate::fleet::{Batch, Error, Jobs};
use crate::state::{Change, Closure, ClosureKind};

impl Nodes {
    /// Lets a node take ranks, or no more.
    pub(crate) fn set_node(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        request: v1::SetNodeRequest,
    ) -> Result<v1::Node, Error> {
        let v1::SetNodeRequest { node, usable, reason } = request;
        if !self.by_name.contains_key(&node) && !self.closures.contains_key(&node) {
            return Err(Error::UnknownNode { node });
        }
        if usable {
            self.open_node(batch, &node);
        } else {
            let reason = if reason.is_empty() { "drained by a client".to_owned() } else { reason };
            let is_drained = |closure: &Closure| closure.kind == ClosureKind::Drained;
            if !self.closures.get(&node).is_some_and(is_drained) {
                self.close_node(jobs, batch, &node, ClosureKind::Drained, reason);
            }
        }
        Ok(self.view(jobs, batch, &node, &taken_seats(jobs)))
    }

    /// Returns the nodes that are closed, and those seen since the coordinator started.
    pub(crate) fn list(&self, jobs: &Jobs, batch: &Batch) -> Vec<v1::Node> {
        let known: BTreeSet<&String> = self.by_name.keys().chain(self.closures.keys()).collect();
        let taken = taken_seats(jobs);
        known.into_iter().map(|name| self.view(jobs, batch, name, &taken)).collect()
    }

    fn view(
        &self,
        jobs: &Jobs,
        batch: &Batch,
        name: &str,
        taken: &BTreeMap<&str, u32>,
    ) -> v1::Node {
        let closure = self.closures.get(name);
        let Some(node) = self.by_name.get(name) else { return unseen_node(name, closure) };
        let used = taken.get(name).copied().unwrap_or(0) + self.strays_on(jobs, name);
        node.view(name, used, closure, batch.now.at)
    }

    fn open_node(&mut self, batch: &mut Batch, name: &str) {
        if let Some(node) = self.by_name.get_mut(name) {
            node.faults = None;
        }
        if self.closures.remove(name).is_some() {
            tracing::info!(node = %name, "the node takes ranks again");
            batch.change(Change::Node { node: name.to_owned(), closure: None });
        }
    }

    fn close_node(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        name: &str,
        kind: ClosureKind,
        reason: String,
    ) {
        tracing::warn!(node = %name, kind = kind.word(), "{reason}");
        let closure = Closure { kind, reason, since_ms: batch.now.unix_ms };
        let node = name.to_owned();
        batch.change(Change::Node { node, closure: Some(closure.clone()) });
        let word = match kind {
            ClosureKind::Drained => "node_drained",
            ClosureKind::Excluded => "node_excluded",
        };
        for job in jobs.by_id.values_mut().filter(|job| job.record.state.is_placed()) {
            if job.record.seats.iter().flatten().any(|seat| seat == name) {
                let message = format!(
                    "{name} was {}: {}; its ranks leave at the next checkpoint",
                    kind.word(),
                    closure.reason
                );
                job.event(batch, word, message);
            }
        }
        self.closures.insert(name.to_owned(), closure);
    }

    /// Counts the losses of a job against the one node they happened on, and excludes it if they are
    /// too many in a row.
    pub(crate) fn blame(&mut self, jobs: &mut Jobs, batch: &mut Batch, job_id: &str) {
        let job = &jobs.by_id[job_id];
        if job.is_stopping() {
            return;
        }

        // Only where all the faults happened on one node is that to blame.
        let mut blamed =
            job.lost.iter().filter_map(|(seat, loss)| Some((loss.blames.as_ref()?, seat)));
        let Some((name, seat)) = blamed.next() else { return };
        if blamed.any(|(other, _)| other != name) {
            return;
        }
        let (name, step) = (name.clone(), job.high_step);
        let last = format!("the last: rank {seat} of job {job_id}: {}", job.lost[seat].how);

        // Excluded is one with too many in a row, unless no other could take its ranks.
        let Some(node) = self.by_name.get_mut(&name) else { return };
        let count = node.faults.as_ref().map_or(0, |faults| faults.count) + 1;
        node.faults = Some(Faults { count, job_id: job_id.to_owned(), step });
        let limit = batch.config.exclude_after;
        if limit == 0 || count < limit || self.closures.contains_key(&name) {
            return;
        }
        if self.is_last(batch, &name) {
            return;
        }
        let reason = format!("{count} faults in a row without a new step; {last}");
        self.close_node(jobs, batch, &name, ClosureKind::Excluded, reason);
    }

    /// True when no other open node with the same accelerator answers.
    fn is_last(&self, batch: &Batch, name: &str) -> bool {
        let accelerator = self.by_name.get(name).map(|node| node.accelerator.as_str());
        !self.by_name.iter().any(|(other, node)| {
            other != name
                && Some(node.accelerator.as_str()) == accelerator
                && node.answers(batch.now.at)
                && !self.closures.contains_key(other)
        })
    }
}
