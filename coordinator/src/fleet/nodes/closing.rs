//! Nodes that take no ranks: drained by somebody, or excluded after faults.
//!
//! Either way the ranks a closed node has leave at their job's next checkpoint. With which faults a node is
//! charged, its jobs' evidence says.

use std::collections::{BTreeMap, BTreeSet};

use ringmaster_proto::{Seat, v1};

use super::node::Node;
use super::placement::taken_seats;
use super::table::{MAY_COME_BACK, Nodes};
use super::view::unseen_node;
use crate::fleet::{Batch, Charge, Error, Job, Jobs};
use crate::state::{Change, Closure, ClosureKind};

/// So much of a fault may have been forgotten in the minutes between the faults of a row.
const ROUNDING: f64 = 0.25;

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
            jobs.by_id.values_mut().for_each(|job| job.evidence.accept(&node));
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
        let faults = self.scores.of(name, batch.now.unix_ms);
        v1::Node { faults, ..node.view(name, used, closure, batch.now.at) }
    }

    fn open_node(&mut self, batch: &mut Batch, name: &str) {
        self.scores.forgive(batch, name);
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

    /// Takes the seats of ranks that have not been started from nodes that are closed or have gone: there is
    /// nothing of them to leave at a checkpoint, and nothing to lose.
    pub(crate) fn leave_unstarted(&self, jobs: &mut Jobs, batch: &mut Batch) {
        for (job_id, job) in &mut jobs.by_id {
            if !job.goes_on() || job.record.formed {
                continue;
            }
            let is_left = |seat: &Seat| {
                let Some(name) = job.seat(*seat) else { return false };
                let Some(node) = self.by_name.get(name) else { return false };
                let takes_none =
                    self.closures.contains_key(name) || node.lease.is_expired(batch.now.at);
                takes_none && !node.processes.contains_key(&(job_id.clone(), *seat))
            };
            let left = job.seats().filter(|seat| !job.is_done(*seat) && is_left(seat));
            for seat in left.collect::<Vec<Seat>>() {
                let node = job.seat(seat).unwrap_or_default().to_owned();
                job.vacate(seat);
                let message =
                    format!("rank {seat} had not been started on {node}, which takes none now");
                job.event(batch, "seat_left", message);
            }
        }
    }

    /// Charges nodes with the faults that their jobs' evidence has proven, and excludes those that have too
    /// many.
    pub(crate) fn charge(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        let mut due: Vec<(String, Charge)> = Vec::new();
        for (job_id, job) in &mut jobs.by_id {
            let charges = job.evidence.take_due().into_iter();
            due.extend(charges.map(|charge| (job_id.clone(), charge)));
        }
        for (job_id, Charge { node, faults, how }) in due {
            let score = self.scores.add(batch, &node, faults);
            tracing::warn!(%node, %job_id, faults, score, "a node's faults: {how}");
            self.exclude_if_due(jobs, batch, &node, score, &format!("of job {job_id}: {how}"));
        }
    }

    /// Excludes a node with too many faults, unless no other could take its ranks.
    fn exclude_if_due(
        &mut self,
        jobs: &mut Jobs,
        batch: &mut Batch,
        name: &str,
        score: f64,
        last: &str,
    ) {
        let limit = batch.config.exclude_after;
        // Faults of the last minutes have hardly decayed: three in a row are three.
        let is_due = limit > 0 && score > f64::from(limit) - ROUNDING;
        let is_known = self.by_name.contains_key(name) && !self.closures.contains_key(name);
        if is_due && is_known && !self.is_last(batch, name) {
            let reason = format!("{score:.1} faults within hours; the last: a rank {last}");
            self.close_node(jobs, batch, name, ClosureKind::Excluded, reason);
        }
    }

    /// Whether a job could run without this node, if it had all slots of the others that it may use. One that
    /// has not answered for some minutes may come back.
    pub(crate) fn runs_elsewhere(
        &self,
        jobs: &Jobs,
        batch: &Batch,
        name: &str,
        job_id: &str,
    ) -> bool {
        let Some(job) = jobs.by_id.get(job_id) else { return true };
        // After a restart of the coordinator nobody knows yet how many slots those have.
        if self.awaited.keys().any(|node| !self.closures.contains_key(node)) {
            return true;
        }
        let may_come_back = |node: &Node| node.lease.unheard(batch.now.at) < MAY_COME_BACK;
        let others = self.by_name.iter().filter(|(other, node)| {
            let is_able = !job.evidence.rules_out(other, batch.now.at);
            *other != name && is_able && node.fits(job) && may_come_back(node)
        });
        let open = others.filter(|(other, _)| !self.closures.contains_key(*other));
        open.map(|(_, node)| node.slots_in_service()).sum::<u32>() >= job.spec.min_ranks
    }

    /// Whether a job can run without this node now: with the seats that it has on others, and the slots that
    /// are free there.
    pub(crate) fn has_room_elsewhere(
        &self,
        jobs: &Jobs,
        batch: &Batch,
        name: &str,
        job_id: &str,
    ) -> bool {
        let Some(job) = jobs.by_id.get(job_id) else { return true };
        let taken = taken_seats(jobs);
        let free = self.others_for(batch, job, name).map(|(other, node)| {
            let used = taken.get(other.as_str()).copied().unwrap_or(0);
            node.slots_in_service().saturating_sub(used + self.strays_on(jobs, other))
        });
        let elsewhere = job.seats().filter(|seat| job.seat(*seat).is_some_and(|node| node != name));
        elsewhere.count() + free.sum::<u32>() as usize >= job.spec.min_ranks as usize
    }

    /// The other nodes that a job may have ranks on.
    fn others_for<'a>(
        &'a self,
        batch: &'a Batch,
        job: &'a Job,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.by_name.iter().filter(move |(other, node)| {
            let avoids = job.evidence.avoids(other, batch.now.at);
            *other != name && !avoids && node.fits(job) && self.takes_ranks(batch, other)
        })
    }

    /// Whether a node answers and may be given ranks.
    fn takes_ranks(&self, batch: &Batch, name: &str) -> bool {
        let node = self.by_name.get(name);
        let is_able = node.is_some_and(|node| {
            node.answers(batch.now.at) && !node.leaving && node.unusable().is_none()
        });
        is_able && !self.closures.contains_key(name)
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

impl Node {
    /// Whether ranks of a job could run on it.
    fn fits(&self, job: &Job) -> bool {
        self.accelerator == job.spec.accelerator && self.unusable().is_none()
    }
}
