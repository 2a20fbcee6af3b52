//! Nodes that take no ranks: drained by somebody, or excluded after faults.
//!
//! Either way the ranks a closed node has leave at their job's next checkpoint. Faults lie at a
//! node's door when a rank of the current generation failed there and nowhere else: a fault that
//! hits several nodes at once is the job's. A step of the job on the node ends the row.

use std::collections::BTreeMap;

use ringmaster_proto::v1;

use super::cluster::Cluster;
use super::node::{Faults, Node};
use super::{Error, view};
use crate::state::{Change, Closure, ClosureKind};

impl Cluster {
    pub(super) fn set_node(&mut self, request: v1::SetNodeRequest) -> Result<v1::Node, Error> {
        let v1::SetNodeRequest { node, usable, reason } = request;
        if !self.nodes.contains_key(&node) && !self.closures.contains_key(&node) {
            return Err(Error::UnknownNode { node });
        }
        if usable {
            self.open_node(&node);
        } else {
            let reason = if reason.is_empty() { "drained by a client".to_owned() } else { reason };
            let is_drained = |closure: &Closure| closure.kind == ClosureKind::Drained;
            if !self.closures.get(&node).is_some_and(is_drained) {
                self.close_node(&node, ClosureKind::Drained, reason);
            }
        }
        Ok(self.view_node(&node, &self.taken_seats()))
    }

    pub(super) fn view_node(&self, name: &str, taken: &BTreeMap<&str, u32>) -> v1::Node {
        let closure = self.closures.get(name);
        let Some(node) = self.nodes.get(name) else { return view::unseen_node(name, closure) };
        let used = taken.get(name).copied().unwrap_or(0) + self.strays_on(name);
        view::node(name, node, used, closure, self.ledger.now.at)
    }

    fn open_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.faults = None;
        }
        if self.closures.remove(name).is_some() {
            tracing::info!(node = %name, "the node takes ranks again");
            self.ledger.change(Change::Node { node: name.to_owned(), closure: None });
        }
    }

    fn close_node(&mut self, name: &str, kind: ClosureKind, reason: String) {
        tracing::warn!(node = %name, kind = kind.word(), "{reason}");
        let closure = Closure { kind, reason, since_ms: self.ledger.now.unix_ms };
        let node = name.to_owned();
        self.ledger.change(Change::Node { node, closure: Some(closure.clone()) });
        let word = match kind {
            ClosureKind::Drained => "node_drained",
            ClosureKind::Excluded => "node_excluded",
        };
        for job in self.jobs.values_mut().filter(|job| job.record.state.is_placed()) {
            if job.record.seats.iter().flatten().any(|seat| seat == name) {
                let message = format!(
                    "{name} was {}: {}; its ranks leave at the next checkpoint",
                    kind.word(),
                    closure.reason
                );
                self.ledger.event(job, word, message);
            }
        }
        self.closures.insert(name.to_owned(), closure);
    }

    /// Counts the losses of a job against the one node they happened on, and excludes it if they are
    /// too many in a row.
    pub(super) fn blame_node(&mut self, job_id: &str) {
        let job = &self.jobs[job_id];
        if job.is_stopping() {
            return;
        }
        let mut blamed =
            job.lost.iter().filter_map(|(seat, loss)| Some((loss.blames.as_ref()?, seat)));
        let Some((name, seat)) = blamed.next() else { return };
        if blamed.any(|(other, _)| other != name) {
            return;
        }
        let (name, step) = (name.clone(), job.high_step);
        let last = format!("the last: rank {seat} of job {job_id}: {}", job.lost[seat].how);
        let Some(node) = self.nodes.get_mut(&name) else { return };
        let count = node.faults.as_ref().map_or(0, |faults| faults.count) + 1;
        node.faults = Some(Faults { count, job_id: job_id.to_owned(), step });
        let limit = self.config.exclude_after;
        if limit == 0 || count < limit || self.closures.contains_key(&name) || self.is_last(&name) {
            return;
        }
        let reason = format!("{count} faults in a row without a new step; {last}");
        self.close_node(&name, ClosureKind::Excluded, reason);
    }

    /// True when no other open node with the same accelerator answers.
    fn is_last(&self, name: &str) -> bool {
        let now = self.ledger.now.at;
        let answers = |node: &Node| node.session.is_some() && !node.lease.is_expired(now);
        let accelerator = self.nodes.get(name).map(|node| node.accelerator.as_str());
        !self.nodes.iter().any(|(other, node)| {
            other != name
                && Some(node.accelerator.as_str()) == accelerator
                && answers(node)
                && !self.closures.contains_key(other)
        })
    }
}
