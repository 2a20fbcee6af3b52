//! How a job loses ranks, recovers and ends.

use super::Error;
use super::job::{Job, Loss};
use super::ledger::Ledger;
use super::standstill::Recovery;
use crate::state::{Change, State};

impl Ledger {
    /// Notes that a rank's process has failed; settling decides. If it counts, the fault lies at its
    /// node's door.
    pub(super) fn lose(&mut self, job: &mut Job, rank: u32, how: String, counts: bool) {
        let node = job.seat(rank).filter(|_| counts).map(str::to_owned);
        self.note_loss(job, rank, Loss { how, counts, blames: node });
    }

    /// Notes that a rank's process is gone, though nothing says that it failed.
    pub(super) fn lose_blameless(&mut self, job: &mut Job, rank: u32, how: String, counts: bool) {
        self.note_loss(job, rank, Loss { how, counts, blames: None });
    }

    fn note_loss(&mut self, job: &mut Job, rank: u32, loss: Loss) {
        let how = &loss.how;
        if job.record.state.is_ended() || rank >= job.record.ranks {
            return;
        }
        if job.is_finished() {
            let message = format!("rank {rank}: {how}; the run was finished, nothing is redone");
            self.event(job, "rank_ended", message);
            job.record.done[rank as usize] = true;
            // The others wait for it in the barrier that ends a run, and have nothing left to do.
            job.kill_at = Some(self.now.at);
            return;
        }
        let node = job.seat(rank).unwrap_or("an unknown node").to_owned();
        self.event(job, "rank_lost", format!("rank {rank} on {node}: {how}"));
        job.lost.insert(rank, loss);
    }

    /// Opens the next generation for a job that lost ranks, or gives it up. Afterwards the lost
    /// ranks have no seats, the survivors keep theirs, and nothing of the old ring stands.
    pub(super) fn recover(&mut self, job: &mut Job) {
        let lost = std::mem::take(&mut job.lost);
        let Some((rank, loss)) = lost.iter().next() else { return };
        let what = match lost.len() {
            1 => format!("rank {rank} was lost ({})", loss.how),
            several => format!("{several} ranks were lost (rank {rank}: {})", loss.how),
        };
        for rank in lost.keys() {
            job.vacate(*rank);
        }
        // A rank that had ended well has to take part again: the run is not finished without all.
        for rank in job.seats().filter(|rank| job.is_done(*rank)).collect::<Vec<_>>() {
            job.vacate(rank);
        }
        if job.is_stopping() {
            // No checkpoint will come of a broken ring.
            job.kill_at = Some(self.now.at);
            return;
        }

        let counts = lost.values().any(|loss| loss.counts);
        job.record.high_step = job.high_step;
        if counts && job.record.without_progress >= job.wants.max_without_progress {
            let budget = job.wants.max_without_progress;
            let reason = format!(
                "{what}; {budget} recoveries in a row without a new step are allowed \
                 (restart.max_without_progress)"
            );
            return self.fail(job, &reason);
        }
        job.recovery.get_or_insert(Recovery::begin(self.now.at));
        job.record.without_progress += u32::from(counts);
        job.record.recoveries += 1;
        self.regenerate(job, &what);
    }

    /// Opens the next generation because the ring broke.
    pub(super) fn regenerate(&mut self, job: &mut Job, why: &str) {
        self.form_anew(job, State::Recovering, "recovering", why);
    }

    /// Opens the next generation and lets nobody wait for the old one.
    pub(super) fn form_anew(&mut self, job: &mut Job, state: State, kind: &str, why: &str) {
        let old = job.generation();
        let generation = self.open_generation(job, why);
        self.refuse_stale(job, old);
        self.change(Change::ForgetShards {
            job_id: job.record.job_id.clone(),
            up_to_step: i64::MAX.cast_unsigned(),
        });
        job.record.state = state;
        job.record.reason = format!("{why}; forming generation {generation}");
        self.event(job, kind, format!("{why}; forming generation {generation}"));
    }

    fn refuse_stale(&mut self, job: &mut Job, old: ringmaster_proto::v1::Generation) {
        let job_id = job.record.job_id.clone();
        let current = job.generation();
        let stale = || Error::Stale { job_id: job_id.clone(), given: old, current };
        for reply in job.membership.clear() {
            self.reply(reply, Err(stale()));
        }
        for reply in job.checkpoints.clear() {
            self.reply(reply, Err(stale()));
        }
    }

    /// Answers whoever waits in a job that is being stopped or has ended.
    pub(super) fn refuse_waiting(&mut self, job: &mut Job) {
        let job_id = job.record.job_id.clone();
        let state = if job.record.state.is_ended() { job.record.state.word() } else { "stopping" };
        let reason = job.record.reason.clone();
        let not_live = || Error::NotLive { job_id: job_id.clone(), state, reason: reason.clone() };
        for reply in job.membership.take_waiting() {
            self.reply(reply, Err(not_live()));
        }
        if job.record.state.is_ended() {
            for reply in job.checkpoints.clear() {
                self.reply(reply, Err(not_live()));
            }
        }
    }

    /// Ends a job that cannot go on; its ranks are killed by the next settling.
    pub(super) fn fail(&mut self, job: &mut Job, reason: &str) {
        self.end(job, State::Failed, reason);
    }

    /// Ends a job.
    pub(super) fn end(&mut self, job: &mut Job, state: State, reason: &str) {
        job.record.state = state;
        job.record.reason = reason.to_owned();
        job.record.ended_at_ms = self.now.unix_ms;
        job.record.high_step = job.high_step;
        job.lost.clear();
        job.attach_until = None;
        job.kill_at = None;
        self.refuse_waiting(job);
        job.record.halt = None;
        self.event(job, state.word(), reason.to_owned());
        self.change(Change::ForgetShards {
            job_id: job.record.job_id.clone(),
            up_to_step: i64::MAX.cast_unsigned(),
        });
        let job_id = job.record.job_id.clone();
        self.effect(move |logs| logs.announce(&job_id, true));
    }
}
