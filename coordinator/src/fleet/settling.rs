//! Desired, observed, difference: run after every batch but those of mere heartbeats, and at every
//! tick; harmless to repeat.

use super::cluster::Cluster;
use crate::state::State;

impl Cluster {
    /// Brings everything as far as it can come without further news.
    pub(super) fn settle(&mut self) {
        self.unsettled = false;
        let Self { jobs, nodes, batch, .. } = self;

        // ---- What has silently gone becomes a loss, and ranks that hang are stopped
        nodes.forget_awaited(batch);
        nodes.lose_early(jobs, batch);
        nodes.expire_leases(jobs, batch);
        nodes.expire_missing(jobs, batch);
        nodes.reattach(jobs, batch);
        nodes.give_up_undead(jobs, batch);
        nodes.judge_standstills(jobs, batch);
        for job in jobs.by_id.values_mut().filter(|job| job.record.state.is_placed()) {
            job.follow_stop(batch);
            job.refuse_overdue_commits(batch);
        }

        // ---- Nodes are charged with what they are proven to have done; rings that broke leave nodes
        nodes.charge(jobs, batch);
        nodes.part(jobs, batch);

        // ---- Jobs that lost ranks recover or fail; those whose ranks have all ended end or go on later
        self.recover_jobs();
        self.end_jobs();

        // ---- Seats are given to ranks, and agents are told what differs from what they run
        let Self { jobs, nodes, batch, .. } = self;
        nodes.leave_unstarted(jobs, batch);
        nodes.place(jobs, batch);
        jobs.by_id.values_mut().for_each(|job| job.form_if_nobody_is_missing(batch));
        nodes.stop_what_is_not_wanted(jobs, batch);
        nodes.start_and_regenerate(jobs, batch);
    }

    fn recover_jobs(&mut self) {
        let Self { jobs, batch, .. } = self;
        for job in jobs.by_id.values_mut().filter(|job| !job.lost.is_empty()) {
            job.recover(batch);
        }
    }

    fn end_jobs(&mut self) {
        let Self { jobs, nodes, batch, .. } = self;
        let running = nodes.running_jobs();
        for (job_id, job) in &mut jobs.by_id {
            if !job.record.state.is_placed() || job.attach_until.is_some() {
                continue;
            }
            let all_gone = !running.contains(job_id.as_str());
            let members = job.members();
            let all_done = !members.is_empty() && members.iter().all(|seat| job.is_done(*seat));
            // Before all else: the summary was taken, and a cancellation came too late.
            if job.is_finished() && (all_done || (job.is_stopping() && all_gone)) {
                job.end(batch, State::Succeeded, "the run reached its end");
            } else if let Some(reason) = job.record.cancel_reason.clone().filter(|_| all_gone) {
                job.end(batch, State::Cancelled, &reason);
            } else if job.record.halt.is_some() && all_gone {
                job.halted(batch);
            } else if all_done && !job.is_stopping() {
                job.stopped_by_others(batch);
            }
        }
    }
}
