//! Ranks that do not move: who is stopped for it.
//!
//! `deadlines` says who holds a job up; this acts on it. A hung rank is killed by its agent, and its
//! exit brings the job back to life as any other loss does. A ring in which everybody waits is formed
//! anew.

use std::collections::BTreeSet;
use std::time::Duration;

use ringmaster_proto::Seat;

use super::node::Node;
use super::table::Nodes;
use crate::fleet::rings::{Verdict, word};
use crate::fleet::{Batch, Job, Jobs};

/// How long an agent whose connection closed may take to come back when the ring of its ranks broke,
/// too: together the two say that it died.
const BROKEN_RING_GRACE: Duration = Duration::from_millis(300);
/// How long the ranks of other nodes are seen to stand in a collective before that says something of a node
/// that is not heard of. Bytes that move count as movement.
/// A little less than two pauses between heartbeats: of those that come on time three are enough.
const STANDING: Duration = Duration::from_millis(900);

impl Nodes {
    /// Looks at every job whose ranks should be moving.
    pub(crate) fn judge_standstills(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        let now = batch.now.at;
        for (job_id, job) in &mut jobs.by_id {
            if !job.record.state.is_placed() || job.attach_until.is_some() {
                continue;
            }
            job.follow_recovery(batch);
            if !job.goes_on() || !job.lost.is_empty() {
                continue;
            }
            self.expect_ranks(job_id, job, batch);
            self.doubt(job_id, job, batch);
            if job.fault.is_some() || job.record.state.is_ended() {
                continue;
            }
            let joined: BTreeSet<Seat> = job.membership.joined_seats().collect();
            match job.movement.judge(job.generation(), &joined, &batch.config.deadlines, now) {
                None => {}
                Some(verdict @ Verdict::Hung { seat, phase, .. }) => {
                    let name = job.seat(seat).unwrap_or("an unknown node").to_owned();
                    let message = format!("rank {seat} on {name}, in {}: {verdict}", word(phase));
                    job.event(batch, "rank_hung", message);
                    if let Some(node) = self.by_name.get_mut(&name) {
                        kill(batch, node, job_id, seat, &verdict);
                    }
                }
                Some(verdict @ Verdict::RingStuck { .. }) => {
                    job.start_over(batch, &verdict.to_string());
                }
            }
        }
    }

    /// Starts the clocks of ranks that were asked for and not heard of, and shortens the lease of an agent
    /// that is away while the ring of its ranks broke.
    fn expect_ranks(&mut self, job_id: &str, job: &mut Job, batch: &Batch) {
        let now = batch.now.at;
        for seat in job.members() {
            if job.is_done(seat) {
                continue;
            }
            let Some(node) = job.seat(seat).and_then(|name| self.by_name.get_mut(name)) else {
                continue;
            };
            let asked_for = node.processes.get(&(job_id.to_owned(), seat));
            if let Some(process) = asked_for.filter(|process| process.pid == 0) {
                job.movement.expect(seat, process.generation, now);
            }
            if node.session.is_none() && job.movement.ring_broke(job.generation()) {
                node.lease.shorten(BROKEN_RING_GRACE, now);
            }
        }
    }
}

impl Nodes {
    /// Ends the leases of nodes that are not heard of, though the others of their rings are, whose ranks stand in a
    /// collective and wait for those that they have.
    pub(crate) fn lose_early(&mut self, jobs: &Jobs, batch: &Batch) {
        for job in jobs.by_id.values() {
            if job.goes_on() && job.record.formed && job.lost.is_empty() {
                self.lose_early_of(job, batch);
            }
        }
    }

    fn lose_early_of(&mut self, job: &Job, batch: &Batch) {
        let (now, patience) = (batch.now.at, batch.config.early_loss);
        let nodes: BTreeSet<&str> = job.record.seats.iter().flatten().map(String::as_str).collect();
        let unheard = |name: &&&str| {
            let node = self.by_name.get(**name);
            node.is_some_and(|node| node.lease.unheard(now) >= patience)
        };
        let unheard: Vec<&str> = nodes.iter().filter(unheard).copied().collect();
        // Several at once are the network's doing, or this coordinator's.
        let [name] = unheard[..] else { return };
        let on_it: BTreeSet<Seat> = job.seats().filter(|seat| job.sits(*seat, name)).collect();
        let Some((still, heard)) = job.movement.wait_for(&on_it, job.generation()) else { return };
        let Some(node) = self.by_name.get_mut(name) else { return };
        // What the others managed to say, it has missed.
        let missed = heard.saturating_duration_since(node.lease.renewed());
        if still >= STANDING && missed >= patience {
            node.lease.shorten(Duration::ZERO, now);
        }
    }
}

/// Has the agent of a node kill a rank.
fn kill(batch: &Batch, node: &mut Node, job_id: &str, seat: Seat, verdict: &Verdict) {
    let process = node.processes.get_mut(&(job_id.to_owned(), seat));
    // An agent that is away cannot be asked; its lease decides.
    if let Some(process) = process.filter(|_| node.session.is_some()) {
        process.is_killed(batch.now.at, &verdict.to_string());
    }
}
