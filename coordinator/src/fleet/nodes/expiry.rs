//! What has silently gone becomes a loss: nodes unheard of, processes an agent came back without,
//! ranks that did not come back after the coordinator's restart.

use ringmaster_proto::Seat;

use super::node::Presence;
use super::table::Nodes;
use crate::fleet::{Batch, Jobs, Loss};
use crate::state::State;

impl Nodes {
    /// Gives up nodes that were not heard of for a lease, and sessions that do not take messages.
    pub(crate) fn expire_leases(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        let now = batch.now.at;
        for (name, node) in &mut self.by_name {
            let stuck = node.session.as_ref().is_some_and(|session| {
                session.outbound.is_closed() || session.outbound.capacity() == 0
            });
            let expired = node.lease.is_expired(now);
            let was_open = node.session.is_some();
            if (stuck || expired)
                && let Some(session) = node.session.take()
            {
                tracing::warn!(node = %name, expired, "an agent's session is given up");
                self.sessions.remove(&session.id);
            }
            if !expired {
                continue;
            }
            let how = if was_open {
                let unheard = node.lease.unheard(now).as_secs_f64();
                format!("its node was not heard of for {unheard:.1} s")
            } else {
                "its agent's connection closed and did not come back".to_owned()
            };
            for ((job_id, rank), process) in std::mem::take(&mut node.processes) {
                let Some(job) = jobs.by_id.get_mut(&job_id) else { continue };
                if !process.doomed && job.sits(rank, name) && !job.is_done(rank) {
                    job.lose_gone(batch, rank, &process, "unheard", &how);
                }
            }
        }
    }

    /// Gives up processes that an agent came back without, once their exits had time to arrive. One
    /// that was never seen was probably never started, and simply is again.
    pub(crate) fn expire_missing(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        let now = batch.now.at;
        for (name, node) in &mut self.by_name {
            node.processes.retain(|(job_id, rank), process| {
                let Presence::Missing { since, seen } = process.presence else { return true };
                if now < since + batch.config.lease {
                    return true;
                }
                if let Some(job) = jobs.by_id.get_mut(job_id)
                    && seen
                    && !process.doomed
                    && job.sits(*rank, name)
                    && !job.is_done(*rank)
                {
                    let how = "its agent came back without it";
                    job.lose_gone(batch, *rank, process, "missing", how);
                }
                false
            });
        }
    }

    /// After a restart of the coordinator: a job goes on once all its ranks are back, and those that
    /// are not back in time are lost.
    pub(crate) fn reattach(&self, jobs: &mut Jobs, batch: &mut Batch) {
        let now = batch.now.at;
        for (job_id, job) in &mut jobs.by_id {
            let Some(until) = job.attach_until else { continue };
            let is_absent = |rank: &Seat| {
                // One without a seat was lost before the restart, or since.
                let Some(seat) = job.seat(*rank) else { return false };
                let key = (job_id.clone(), *rank);
                let node = self.by_name.get(seat);
                !node.is_some_and(|node| node.processes.contains_key(&key))
            };
            let awaited =
                job.seats().filter(|rank| !job.is_done(*rank) && !job.lost.contains_key(rank));
            let absent: Vec<Seat> = awaited.filter(is_absent).collect();
            if absent.is_empty() {
                job.attach_until = None;
                if job.record.formed && job.lost.is_empty() && !job.is_stopping() {
                    job.record.state = State::Running;
                    job.record.reason = job.strength();
                    let message = format!("all ranks came back in {}", job.generation());
                    job.event(batch, "reattached", message);
                }
            } else if now >= until {
                job.attach_until = None;
                for rank in absent {
                    let how = "it did not come back after the coordinator's restart";
                    job.lose(batch, rank, Loss::new(how, true));
                }
            }
        }
    }
}
