//! Kills that come to nothing: a process that stands in the kernel does not end at SIGKILL.
//!
//! Its agent says so, or says nothing at all. Either way its slot takes no rank until it has gone, and its
//! job goes on without it: the seat is given to another process, and a job that is to end does not wait.

use ringmaster_proto::v1;
use tokio::time::Instant;

use super::node::{Node, Presence, Process, RankKey, Stop, Undead};
use super::table::Nodes;
use crate::fleet::{AVOIDED_FOR, Batch, Job, Jobs, LeftFor, Loss};

impl Nodes {
    /// Gives up processes that are still there although their agents were asked to kill them.
    pub(crate) fn give_up_undead(&mut self, jobs: &mut Jobs, batch: &mut Batch) {
        // Its agent, which knows more, has its own deadlines, and goes first.
        let (now, deadline) = (batch.now.at, batch.config.lease + 2 * batch.config.kill_deadline);
        let is_overdue = |process: &Process| {
            let killed = process.killed.as_ref();
            killed.is_some_and(|(at, _)| now.saturating_duration_since(*at) >= deadline)
        };
        for (name, node) in &mut self.by_name {
            // Of one that is away nothing is known: its lease decides.
            if !node.answers(now) {
                continue;
            }
            let overdue = node.processes.iter().filter(|(_, process)| is_overdue(process));
            let overdue: Vec<RankKey> = overdue.map(|(key, _)| key.clone()).collect();
            for key in overdue {
                let seconds = deadline.as_secs();
                let why = format!(
                    "rank {} of job {} has not ended {seconds} s after its kill",
                    key.1, key.0
                );
                node.bury(jobs, batch, name, &key, why);
            }
        }
    }

    /// An agent says which of its slots take no rank.
    pub(crate) fn take_slots_out(&mut self, session: u64, slots_out: v1::SlotsOut) {
        let Some((name, node)) = self.of_session(session) else { return };
        node.take_slots_out(name, slots_out);
    }
}

impl Node {
    /// Takes a process that does not end out of its job, and its slot out of service.
    fn bury(&mut self, jobs: &mut Jobs, batch: &mut Batch, name: &str, key: &RankKey, why: String) {
        let Some(process) = self.processes.remove(key) else { return };
        // Of a process that nobody has seen there may be none.
        if process.presence == Presence::Requested {
            return;
        }
        tracing::error!(node = %name, job_id = %key.0, rank = key.1.0, "{why}");
        let Process { started, slot, doomed, generation, .. } = process;
        let newest = jobs.by_id.get(&key.0).map(Job::generation);
        let until = newest.unwrap_or_default().max(generation);
        self.undead.push(Undead { key: key.clone(), until, slot, why });
        let Some(job) = jobs.by_id.get_mut(&key.0) else { return };
        // Its agent would take another start of this rank for a repetition.
        let why = "a killed rank of the job has not ended there".to_owned();
        job.evidence.avoid(name, batch.now.at, AVOIDED_FOR, LeftFor::Undead, why);
        if !doomed && job.sits(key.1, name) && !job.is_done(key.1) {
            let counts = job.counts(started, generation);
            let how = "SIGKILL has not ended it; its slot takes no rank until it has gone";
            job.lose(batch, key.1, Loss::new(how, counts));
        }
    }

    /// Asks the agent, come back, to kill what it still runs of what was given up: it may not have heard of it.
    pub(crate) fn kill_undead_again(&self, batch: &mut Batch) {
        let Some(session) = &self.session else { return };
        for Undead { key: (job_id, seat), why, .. } in &self.undead {
            if !self.processes.contains_key(&(job_id.clone(), *seat)) {
                session.stop(batch, job_id, *seat, Stop::Kill, why.clone());
            }
        }
    }

    /// Takes in the end of a process of this generation. True if it is one that counted as undead; the end of
    /// a newer one in its place says that it has gone, too.
    pub(crate) fn unearth(&mut self, key: &RankKey, generation: v1::Generation) -> bool {
        let was_undead = |undead: &Undead| undead.key == *key && generation <= undead.until;
        let is_it = self.undead.iter().any(was_undead);
        self.undead.retain(|undead| undead.key != *key);
        is_it
    }

    pub(crate) fn take_slots_out(&mut self, name: &str, slots_out: v1::SlotsOut) {
        let said = slots_out.slots.into_iter().map(|out| (out.slot, out.reason)).collect();
        if self.slots_out != said {
            tracing::warn!(node = %name, slots = ?said, "slots that take no rank");
        }
        self.slots_out = said;
    }
}

impl Process {
    /// Notes that its agent is asked to kill it, in every session until it is gone.
    pub(crate) fn is_killed(&mut self, now: Instant, why: &str) {
        self.killed.get_or_insert_with(|| (now, why.to_owned()));
    }
}
