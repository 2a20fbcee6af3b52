//! What is done about a ring that broke although nobody died: a node is left, if the job can do without it.
//!
//! Nothing tells which of two nodes that do not reach one another is at fault. So neither is charged: a spare
//! takes the place of one; if that does not reach the other either, the other is the one that several do not
//! reach. Where there is no spare the ring is formed again with the same nodes, and the restart budget ends
//! that with the sentence that names the two.

use std::collections::BTreeSet;
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::{ExitClass, Phase};

use super::table::Nodes;
use crate::fleet::rings::Fault;
use crate::fleet::{Batch, Identity, Job, Jobs, LeftFor, Point};

/// A connection that breaks once may be a connection that broke.
const OFTEN: u32 = 2;
/// How long a job puts no rank on a node that it has left: networks mend, and the node is asked again then.
/// Twice as long each time.
const LEFT_FOR: Duration = Duration::from_secs(60);
/// How often that is doubled at most.
const MOST_DOUBLED: u32 = 6;

impl Nodes {
    /// Acts on what broke rings since the last time.
    pub(crate) fn part(&self, jobs: &mut Jobs, batch: &mut Batch) {
        let broken = jobs.by_id.iter().filter(|(_, job)| job.fault.is_some());
        let broken: Vec<String> = broken.map(|(job_id, _)| job_id.clone()).collect();
        for job_id in broken {
            let leaves = self.who_leaves(jobs, batch, &job_id);
            let Some(job) = jobs.by_id.get_mut(&job_id) else { continue };
            let Some(fault) = job.fault.take() else { continue };
            if !job.record.state.is_placed() || job.is_stopping() || job.is_finished() {
                continue;
            }
            if let Fault::Node { node, what } = &fault {
                job.charge_node(batch, node, what);
            }
            // A ring that stands is not given up for one failed dial.
            let is_once = matches!(fault, Fault::Pair { often, .. } if often < OFTEN);
            if job.record.formed && is_once {
                continue;
            }
            match leaves {
                Some(node) => job.leave(batch, &node, &fault),
                None => job.try_again(batch, &fault),
            }
        }
    }

    /// The node that a job leaves for what broke its ring; none if it is tried again as it is.
    fn who_leaves(&self, jobs: &Jobs, batch: &Batch, job_id: &str) -> Option<String> {
        let job = jobs.by_id.get(job_id)?;
        let fault = job.fault.as_ref()?;
        let mut candidates: Vec<&String> = match fault {
            Fault::Pair { often, .. } if *often < OFTEN => return None,
            // The later one: the first of the names often holds the state of a job that grew.
            Fault::Pair { nodes: [first, second], .. } => vec![second, first],
            Fault::Node { node, .. } | Fault::Address { node, .. } => vec![node],
        };
        // One of which a spare has shown that it was not the other.
        // Else one that was not in the last ring, since the others hold its state.
        let in_ring = |node: &str| job.record.ring.iter().any(|seat| job.sits(*seat, node));
        candidates
            .sort_by_key(|node| (std::cmp::Reverse(job.breaks.troubles(node)), in_ring(node)));
        let may_leave = |node: &&&String| self.has_room_elsewhere(jobs, batch, node, job_id);
        candidates.iter().find(may_leave).map(|node| (*node).clone())
    }
}

impl Job {
    /// Notes that a node broke its ring, as several others say.
    fn charge_node(&mut self, batch: &Batch, node: &str, what: &str) {
        let seats: BTreeSet<Seat> = self.seats().filter(|seat| self.sits(*seat, node)).collect();
        let Some(seat) = seats.first() else { return };
        // Others are witnesses already: what they say of it may pass for them, and not for the node.
        let identity = Identity {
            class: ExitClass::Retry,
            operation: "ring".to_owned(),
            cause: format!("{node} breaks it"),
        };
        let started = self.generation();
        let mut failure = self.failure(*seat, started, batch.now.at, identity, what);
        // Whoever trains afterwards has got past it.
        failure.point = Point::of(Phase::Join, 0);
        // Not proof of anything against the job: another node is to blame each time.
        self.evidence.fail(&failure, false);
    }

    /// Gives up its seats on a node, and forms the ring without that.
    fn leave(&mut self, batch: &mut Batch, node: &str, fault: &Fault) {
        let why = fault.what();
        let seats: Vec<Seat> = self.seats().filter(|seat| self.sits(*seat, node)).collect();
        if seats.is_empty() {
            return self.form_if_complete(batch);
        }
        for seat in seats {
            self.vacate(seat);
        }
        let times = self.evidence.times_avoided(node).min(MOST_DOUBLED);
        let lasts = LEFT_FOR * 2_u32.pow(times);
        // One of a pair may do well with others.
        let for_what = match fault {
            Fault::Node { .. } => LeftFor::Failure,
            Fault::Pair { .. } | Fault::Address { .. } => LeftFor::Link,
        };
        self.evidence.avoid(node, batch.now.at, lasts, for_what, why.to_owned());
        let why = format!("{why}; {node} is left");
        // That a ring broke was counted if its ranks have joined again since.
        if self.record.formed || self.membership.joined() == 0 {
            self.start_over(batch, &why);
        } else {
            self.regenerate(batch, &why);
        }
    }

    /// Forms the ring with the same nodes once more, as long as the budget allows.
    fn try_again(&mut self, batch: &mut Batch, fault: &Fault) {
        match fault {
            Fault::Address { what, .. } => self.fail(batch, what),
            // Its ranks have joined again, and each such ring was counted when the last one broke.
            Fault::Pair { .. } | Fault::Node { .. } if self.membership.joined() > 0 => {
                self.form_if_complete(batch);
            }
            Fault::Pair { what, .. } | Fault::Node { what, .. } => self.start_over(batch, what),
        }
    }
}
