//! Jobs that do not move on: who is stopped for it, and what people are told of a recovery.
//!
//! `deadlines` says who holds a job up; here its words become deeds. A hung rank is killed by its
//! agent, and its exit brings the job back to life as any other loss does. A ring in which everybody
//! waits is formed anew. A job whose ranks were all asked to stop by somebody else (a signal, an
//! agent that leaves) goes on from the checkpoint they left.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use ringmaster_proto::v1;
use ringmaster_proto::v1::coordinator_message::Message;

use super::cluster::Cluster;
use super::deadlines::{Verdict, word};
use super::job::Job;
use super::ledger::Ledger;
use super::node::Node;

/// How long an agent whose connection closed may take to come back when the ring of its ranks broke,
/// too: together the two say that it died.
const BROKEN_RING_GRACE: Duration = Duration::from_millis(300);

/// When the parts of a recovery were done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovery {
    /// The first loss was known.
    lost: Instant,
    /// The new ring stood.
    formed: Option<Instant>,
    /// Every rank of it held the state.
    ready: Option<Instant>,
}

impl Recovery {
    pub(super) fn begin(now: Instant) -> Self {
        Self { lost: now, formed: None, ready: None }
    }

    /// A ring stands; it may be the second one, if ranks were lost while the first was formed.
    pub(super) fn form(&mut self, now: Instant) {
        (self.formed, self.ready) = (Some(now), None);
    }
}

impl Cluster {
    /// Looks at every job whose ranks should be moving.
    pub(super) fn judge_standstills(&mut self) {
        let now = self.ledger.now.at;
        for (job_id, job) in &mut self.jobs {
            if !job.record.state.is_placed() || job.attach_until.is_some() {
                continue;
            }
            self.ledger.follow_recovery(job);
            if job.is_stopping() || job.is_finished() || !job.lost.is_empty() {
                continue;
            }
            let members = job.members();
            for seat in members {
                if job.is_done(seat) {
                    continue;
                }
                let Some(node) = job.seat(seat).and_then(|name| self.nodes.get_mut(name)) else {
                    continue;
                };
                let asked_for = node.processes.get(&(job_id.clone(), seat));
                if let Some(process) = asked_for.filter(|process| process.pid == 0) {
                    job.movement.expect(seat, process.generation, now);
                }
                if node.session.is_none() && job.movement.ring_broke(job.generation()) {
                    node.lease.shorten(BROKEN_RING_GRACE, now);
                }
            }
            let joined: BTreeSet<u32> = job.membership.joined_seats().collect();
            let deadlines = &self.config.deadlines;
            match job.movement.judge(job.generation(), &joined, deadlines, now) {
                None => {}
                Some(verdict @ Verdict::Hung { seat, phase, .. }) => {
                    let name = job.seat(seat).unwrap_or("an unknown node").to_owned();
                    let message = format!("rank {seat} on {name}, in {}: {verdict}", word(phase));
                    self.ledger.event(job, "rank_hung", message);
                    if let Some(node) = self.nodes.get(&name) {
                        kill(&mut self.ledger, node, job_id, seat, &verdict);
                    }
                }
                Some(verdict @ Verdict::RingStuck { .. }) => {
                    self.ledger.start_over(job, &verdict.to_string());
                }
            }
        }
    }
}

fn kill(ledger: &mut Ledger, node: &Node, job_id: &str, seat: u32, verdict: &Verdict) {
    // An agent that is away cannot be asked; its lease decides.
    let Some(session) = &node.session else { return };
    let stop = v1::StopRank {
        job_id: job_id.to_owned(),
        rank: seat,
        graceful: false,
        grace_ms: 0,
        reason: verdict.to_string(),
    };
    ledger.send(&session.outbound, Message::StopRank(stop));
}

impl Ledger {
    /// All ranks of a job ended well before the run did: somebody else than this coordinator asked
    /// them to stop, and they left a checkpoint.
    pub(super) fn stopped_by_others(&mut self, job: &mut Job) {
        for seat in job.members() {
            job.vacate(seat);
        }
        let why = "its ranks were told to stop by a signal or an agent that leaves, and saved their \
                   state";
        self.event(job, "stopped", why.to_owned());
        self.start_over(job, why);
    }

    /// Opens the next generation although no rank was lost, unless that has not helped before.
    fn start_over(&mut self, job: &mut Job, why: &str) {
        let allowed = job.wants.max_without_progress;
        if job.record.without_progress >= allowed {
            let reason = format!(
                "{why}; {allowed} recoveries in a row without a new step are allowed \
                 (restart.max_without_progress)"
            );
            return self.fail(job, &reason);
        }
        job.record.high_step = job.high_step;
        job.record.without_progress += 1;
        job.record.recoveries += 1;
        job.recovery.get_or_insert(Recovery::begin(self.now.at));
        self.regenerate(job, why);
    }

    /// Notes how far a recovery has come, and tells people what it took once a new step is done.
    fn follow_recovery(&mut self, job: &mut Job) {
        let Some(Recovery { lost, formed: Some(formed), ready }) = job.recovery else { return };
        let now = self.now.at;
        let generation = job.generation();
        let all_ready = || job.members().iter().all(|seat| job.movement.trains(*seat, generation));
        let ready = match ready {
            None if all_ready() => now,
            None => return,
            Some(ready) => ready,
        };
        if let Some(recovery) = &mut job.recovery {
            recovery.ready = Some(ready);
        }
        if !job.movement.has_stepped(generation) {
            return;
        }
        job.recovery = None;
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        let message = format!(
            "recovered in {:.2} s: rejoin {:.2} s, state {:.2} s, first step {:.2} s",
            seconds(lost, now),
            seconds(lost, formed),
            seconds(formed, ready),
            seconds(ready, now)
        );
        self.event(job, "recovered", message);
    }
}
